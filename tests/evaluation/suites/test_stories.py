from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import evaluate
import pytest

from tests.support.bars import Bars
from tinystories_hf.config.command_line import parse_arguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.evaluation.records import RecordFile
from tinystories_hf.evaluation.subject import load_model_to_evaluate
from tinystories_hf.evaluation.suites import metrics
from tinystories_hf.evaluation.suites import stories as stories_module
from tinystories_hf.evaluation.suites.cloze import cloze_accuracy, cloze_items
from tinystories_hf.evaluation.suites.ngrams import (
    bleu,
    distinct,
    repetition,
    rouge_f,
    rouge_precision,
    self_bleu,
    words_of,
)
from tinystories_hf.evaluation.suites.stories import (
    load_prompts,
    read_prompts,
    story_records,
    story_statistics,
)


def test_words_are_runs_of_letters_and_digits_in_lower_case() -> None:
    assert words_of("Don’t! Zoë has_2 cats.") == ["don", "t", "zoë", "has", "2", "cats"]


def test_ngram_metrics_equal_values_by_hand() -> None:
    one, other = words_of("a b c d a b"), words_of("a b x")
    assert rouge_precision(one, other, 2) == pytest.approx(1 / 4)  # ab bc cd da: ab
    assert rouge_precision(other, one, 2) == pytest.approx(1 / 2)
    assert rouge_f(one, other, 2) == pytest.approx(1 / 3)
    assert distinct([one, other], 2) == pytest.approx(5 / 7)
    assert repetition(words_of("a b c d a b c d")) == pytest.approx(1 / 5)
    assert rouge_precision([], one, 2) == rouge_f([], [], 2) == distinct([], 1) == 0.0


def test_bleu_equals_values_by_hand() -> None:
    text, reference = words_of("the cat sat on the mat"), words_of("the cat sat on a mat")
    assert bleu(text, [text]) == pytest.approx(1.0)
    # 5 of 6 words, 3 of 5 bigrams, 2 of 4 trigrams, 1 of 3 4-grams; the same length.
    assert bleu(text, [reference]) == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    # Half the length of its reference: a brevity penalty of exp(1 - 12 / 6).
    assert bleu(text, [text + text]) == pytest.approx(math.exp(-1))
    assert self_bleu([text, text]) == pytest.approx([1.0, 1.0])
    assert bleu([], [text]) == 0.0


def record(prompt: int, completion: int, text: str, ended: bool = True) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "text": text, "ended": ended}


def test_story_statistics_equal_values_by_hand() -> None:
    stories = [
        record(0, 0, "The cat sat on the mat."),
        record(0, 1, "The cat sat on the mat.", ended=False),
        record(1, 0, "A zorgle ran."),
        record(1, 1, "Dogs bark."),
    ]
    found = story_statistics(stories, set(words_of("the cat sat on mat a ran dogs bark")))
    assert found["words"]["mean"] == pytest.approx((6 + 6 + 3 + 2) / 4)
    assert found["words"]["median"] == 4.5
    assert found["ended"]["mean"] == 0.75
    assert found["unknown_words"]["mean"] == pytest.approx(1 / 3 / 4)
    assert found["distinct"]["1"] == pytest.approx(10 / 17)
    assert found["self_bleu"]["mean"] > 0.5
    assert found["ended"]["count"] == 4


def test_duplicates_change_self_bleu_and_loops_change_repetition() -> None:
    texts = ["One fine day a frog sang.", "The moon was big and white.", "We ate a pie at noon."]
    plain = story_statistics([record(0, at, text) for at, text in enumerate(texts)], set())
    twice = story_statistics(
        [record(0, at, text) for at, text in enumerate([*texts[:2], texts[1]])], set()
    )
    assert twice["self_bleu"]["mean"] > plain["self_bleu"]["mean"] + 0.3
    assert twice["repetition"]["mean"] == plain["repetition"]["mean"] == 0
    looped = [*texts[:2], "We ate a pie we ate a pie we ate a pie."]
    again = story_statistics([record(0, at, text) for at, text in enumerate(looped)], set())
    assert again["repetition"]["mean"] > 0.1
    assert again["self_bleu"]["mean"] < 0.3


def test_interrupted_generation_resumes_with_the_same_stories(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars = Bars()
    monkeypatch.setattr(stories_module, "tqdm", bars)
    subject = load_model_to_evaluate(str(trained_run))
    prompts = load_prompts(parse_arguments(["--dataset", "toy"]).data)
    whole = story_records(subject, prompts, tmp_path / "whole", seed=1, quiet=True)
    assert len(whole.records) == 10 * len(prompts.texts)
    lines = whole.path.read_bytes().splitlines(keepends=True)
    cut = tmp_path / "cut" / "stories.jsonl"
    cut.parent.mkdir()
    cut.write_bytes(b"".join(lines[:80]) + lines[80][:25])  # killed in the middle of a line
    again = story_records(subject, prompts, tmp_path / "cut", seed=1, quiet=True)
    assert bars.have_ended(2), "stories from before the interruption count once"
    key = lambda record: (record["prompt"], record["completion"])  # noqa: E731
    assert sorted(again.records, key=key) == sorted(whole.records, key=key)
    assert [json.loads(line) for line in cut.read_text().splitlines()][1:] == again.records
    other = story_records(subject, prompts, tmp_path / "other", seed=2, quiet=True)
    assert [r["text"] for r in other.records] != [r["text"] for r in whole.records]


def test_records_of_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "made.jsonl"
    RecordFile(path, {"seed": 1}).append([{"a": 1}])
    before = path.read_bytes()
    with pytest.raises(UserError, match="other settings"):
        RecordFile(path, {"seed": 2})
    assert path.read_bytes() == before
    assert RecordFile(path, {"seed": 1}).records == [{"a": 1}]
    path.write_bytes(before[:-3] + b"}}\n" + before)
    with pytest.raises(UserError, match="damaged"):
        RecordFile(path, {"seed": 1})
    path.write_bytes(before[:5])  # killed in the middle of the first line
    assert RecordFile(path, {"seed": 1}).records == []
    assert RecordFile(path, {"seed": 1}).records == []


def test_unreadable_prompts_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.yaml"
    for content in (b"- a: [\n", b'- "h\xe9"\n'):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"^prompts: cannot read {path}: ") as refused:
            read_prompts(path, "mine")
        assert "\n" not in str(refused.value)


def test_prompts_are_read_from_a_file_the_dataset_or_the_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = parse_arguments(["--dataset", str(tmp_path)]).data
    assert load_prompts(data).source.startswith("tinystories_hf")
    assert "using the prompts of this package" in capsys.readouterr().out
    (tmp_path / "Evaluation prompts.yaml").write_text("- One day\n- |-\n  Two\n\n  days\n")
    assert load_prompts(data).texts == ["One day", "Two\n\ndays"]
    mine = tmp_path / "mine.yaml"
    mine.write_text("- Mine\n")
    assert load_prompts(data, mine).texts == ["Mine"]
    mine.write_text("a: 1\n")
    with pytest.raises(UserError, match="YAML list"):
        load_prompts(data, mine)


def test_the_authors_file_has_44_prompts(shared: Path) -> None:
    data = parse_arguments(["--dataset", str(shared / "data" / "tinystories")]).data
    assert len(load_prompts(data).texts) == 44


TEXTS = ["The cat sat on the mat.", "The cat ran away and the cat ran away."]


@pytest.mark.parametrize(
    ("metric", "inputs", "right"),
    [
        (metrics.Distinct, {"predictions": TEXTS}, {"distinct_1": 8 / 15}),
        (metrics.Repetition, {"predictions": TEXTS}, {"repetition": (0 + 1 / 6) / 2}),
        (metrics.SelfBleu, {"predictions": [TEXTS[0]] * 2}, {"self_bleu": 1.0}),
        (
            metrics.RougeOverlap,
            {"predictions": TEXTS, "references": [TEXTS[0], "A dog."]},
            {"rouge_2_precision": 0.5, "rouge_2_f": 0.5},
        ),
        (
            metrics.BitsPerByte,
            {"predictions": [math.log(2) * 8, 0.0], "references": ["abcd", "é"]},
            {"bits_per_byte": 8 / 6},
        ),
        (
            metrics.ClozeAccuracy,
            {"predictions": [[0.0, 1.0], [2.0, 2.0]], "references": [1, 0]},
            {"accuracy": 0.75, "chance": 0.5},
        ),
    ],
)
def test_each_metric_computes_its_value(
    metric: type[evaluate.Metric], inputs: dict[str, Any], right: dict[str, float]
) -> None:
    found = metric().compute(**inputs)
    assert {key: found[key] for key in right} == pytest.approx(right)
    assert metric().description
    assert metric().citation
    assert metric().inputs_description


def test_the_metrics_combine() -> None:
    found = evaluate.combine([metrics.Distinct(), metrics.Repetition()]).compute(predictions=TEXTS)
    assert {"distinct_1", "distinct_4", "repetition"} <= set(found)


def test_the_suites_compute_their_numbers_with_the_metrics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each suite changes with its metric; the mean of a metric is that of its values."""
    stories = [record(0, at, text) for at, text in enumerate(TEXTS)]
    expected = {
        key: value
        for metric in (metrics.Distinct, metrics.Repetition, metrics.SelfBleu)
        for key, value in metrics.compute_metric(metric, predictions=TEXTS).items()
    }
    found = story_statistics(stories, set())
    assert found["distinct"] == {str(k): expected[f"distinct_{k}"] for k in (1, 2, 3, 4)}
    assert found["repetition"]["mean"] == expected["repetition"]
    assert found["self_bleu"]["mean"] == expected["self_bleu"]

    items = [item for item in cloze_items() if item.family == "facts"][:4]
    scores = [[float(at == item.right) for at in range(len(item.answers))] for item in items]
    assert cloze_accuracy(items, scores)["facts"].accuracy == 1.0
    computed = []

    def count(metric: type[evaluate.Metric], **inputs: Any) -> Any:
        computed.append(metric.__name__)
        return compute(metric, **inputs)

    compute = metrics.compute_metric
    monkeypatch.setattr(metrics, "compute_metric", count)
    story_statistics(stories, set())
    cloze_accuracy(items, scores)
    assert set(computed) == {"Distinct", "Repetition", "SelfBleu", "ClozeAccuracy"}


def test_evaluate_is_imported_only_by_a_suite_that_needs_it() -> None:
    code = "import sys, tinystories_hf.evaluation.evaluate; print('evaluate' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
