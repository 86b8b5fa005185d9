"""The loss suite on runs: which validation stories it reads, resuming, several processes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluation.suites.test_loss import CONTEXT, STORIES, byte_pairs, tiny, words_with_marks
from tests.support.forked import run_forked, script
from tinystories_hf.config.command_line import Arguments
from tinystories_hf.data.prepare import prepare
from tinystories_hf.data.toy import toy_stories
from tinystories_hf.evaluation.arguments import EvaluationArguments
from tinystories_hf.evaluation.subject import load_model_to_evaluate
from tinystories_hf.evaluation.suites import loss as loss_module
from tinystories_hf.evaluation.suites.loss import (
    SplitLoss,
    split_loss,
)
from tinystories_hf.evaluation.suites.measure import SuiteTask, measure_suite
from tinystories_hf.evaluation.validation import (
    PROTOCOLS,
    TokenizedStories,
    Validation,
    prepared_validation,
    read_validation,
    tokenize_stories,
)


@pytest.mark.parametrize(
    "flags", [(), ("--drop_duplicates", "true"), ("--drop_validation_overlap", "true")]
)
def test_validation_stories_are_read_from_the_prepared_folder(
    tiny_arguments: Callable[..., Arguments], trained_run: Path, tmp_path: Path, flags: Any
) -> None:
    stories = list(toy_stories(90, 4))
    folder = tmp_path / "stories"
    folder.mkdir()
    texts = {"train": stories[:80], "valid": [*stories[70:], stories[85], " " + stories[3]]}
    for name, part in texts.items():
        (folder / f"{name}.txt").write_text("\n<|endoftext|>\n".join(part))
    data = tiny_arguments("--dataset", str(folder), *flags).data
    prepared = prepare(data, 320, quiet=True)
    expected = read_validation(data)
    shutil.rmtree(folder)
    found = prepared_validation(prepared)
    assert found.texts == expected.texts
    assert found.in_training is not None
    assert expected.in_training is not None
    assert found.in_training.tolist() == expected.in_training.tolist()
    assert found.in_training.sum() == (0 if "--drop_validation_overlap" in flags else 11)
    assert (found.source, found.cleaning) == (expected.source, expected.cleaning)
    subject = load_model_to_evaluate(str(trained_run))
    task = SuiteTask(subject, data, EvaluationArguments(model=["run"]), tmp_path / "out", prepared)
    section = measure_suite("loss", task, quiet=True)
    assert section["stories"] == len(expected.texts)
    assert section["made"]["settings"]["validation"] == expected.source


def test_a_tokenizer_without_eos_token_is_refused() -> None:
    from tinystories_hf.core.errors import UserError

    tokenizer = words_with_marks()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="eos_token"):
        tokenize_stories(tokenizer, ["A story."])


def test_empty_stories_have_no_loss_per_byte() -> None:
    from tinystories_hf.core.errors import UserError

    tokenizer = byte_pairs()

    def measure(texts: list[str], known: list[bool]) -> SplitLoss:
        validation = Validation(texts, np.array(known), {}, [])
        return split_loss(
            tiny(len(tokenizer)), tokenizer, validation, context_length=CONTEXT, batch_size=4
        )

    with pytest.raises(UserError, match="are empty"):
        measure(["", ""], [False, False])
    assert measure(["A cat.", ""], [True, False]).not_in_training is None


def test_stories_keep_their_tokens_and_bytes() -> None:
    tokenizer = byte_pairs()
    stories: TokenizedStories = tokenize_stories(tokenizer, STORIES)
    ends = [*stories.starts[1:].tolist(), len(stories.ids)]
    for story, start, end, size in zip(
        STORIES, stories.starts.tolist(), ends, stories.bytes.tolist(), strict=True
    ):
        ids = tokenizer(story, add_special_tokens=False).input_ids
        assert stories.ids[start:end].tolist() == [*ids, tokenizer.eos_token_id]
        assert size == len(story.encode())


def test_an_interrupted_loss_suite_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_pairs()
    model = tiny(len(tokenizer))
    texts = list(toy_stories(12, 3))
    validation = Validation(texts, np.zeros(12, dtype=bool), {}, [])
    measured, real = [], loss_module._window_losses

    def stopping(*arguments: Any) -> Any:
        measured.append(1)
        if len(measured) == 7:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(loss_module, "_window_losses", stopping)
    scratch = tmp_path / "run" / ".losses-a"

    def measure(path: Path | None) -> SplitLoss:
        return split_loss(
            model, tokenizer, validation, context_length=CONTEXT, batch_size=8, scratch=path
        )

    with pytest.raises(KeyboardInterrupt):
        measure(scratch)
    assert list(scratch.parent.iterdir())
    found = measure(scratch)
    assert list(scratch.parent.iterdir()) == []
    batches = len(measured)
    assert measure(None) == found
    assert len(measured) - batches == batches - 1, "only the interrupted batch is computed again"


def test_two_processes_measure_the_same_loss(trained_run: Path, tmp_path: Path) -> None:
    measured = []
    for name in ("one", "two"):
        flags = ["--model", str(trained_run), "--suite", "loss", "--output_dir", name]
        processes = 1 if name == "one" else 2
        home = {"HF_HOME": str(tmp_path)}
        done = run_forked(
            tmp_path, script, "evaluate.py", flags, num_processes=processes, variables=home
        )
        assert done.returncode == 0, done.stderr
        measured.append(json.loads((tmp_path / name / "eval_results.json").read_text())["loss"])
    at_the_end = json.loads((trained_run / "eval_results.json").read_text())["loss"]
    for protocol in PROTOCOLS:
        one, two, trained = (m[protocol]["loss"] for m in (*measured, at_the_end))
        assert one == pytest.approx(two, abs=1e-6)
        assert one == pytest.approx(trained, abs=1e-6)
