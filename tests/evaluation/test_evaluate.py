from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, made_once
from tests.support.forked import run_forked, script, train_forked
from tests.support.loopback_hub import LoopbackHub
from tests.support.loopback_state import StoredRepository
from tinystories_hf.core.errors import UserError
from tinystories_hf.data.toy import toy_stories
from tinystories_hf.evaluation.arguments import EvaluationArguments, parse_evaluation_arguments
from tinystories_hf.evaluation.evaluate import results_folder
from tinystories_hf.evaluation.report.paper import FIGURE_4, paper_bits_per_byte, paper_row
from tinystories_hf.evaluation.report.report import render_report, write_report
from tinystories_hf.evaluation.results import read_results, schema, validate_results
from tinystories_hf.model.modeling import GPTNeoForCausalLM

# Enough for a complete toy story.
LONGER = ("--context_length", "256", "--max_position_embeddings", "256", "--vocab_size", "700")
DRAWN = ("loss_by_position.png", "cloze.png", "memorization.png")
PICTURES = set(DRAWN)


def evaluate(folder: Path, *flags: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Evaluate in a forked process."""
    variables = {"HF_HOME": str(folder / "home"), **extra}
    return run_forked(folder, script, "evaluate.py", list(flags), variables=variables)


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the run `run`, evaluated with all suites except judge."""

    def make(folder: Path) -> None:
        train_forked(folder, *LONGER)
        done = evaluate(folder, "--model", "run")
        assert done.returncode == 0, done.stderr
        (folder / "stdout.txt").write_text(done.stdout)
        (folder / "stderr.txt").write_text(done.stderr)

    return made_once(tmp_path_factory, "evaluated", make)


def results_in(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "eval_results.json").read_text())
    return content


def test_all_suites_write_results_that_match_the_schema(evaluated: Path) -> None:
    results = read_results(evaluated / "run" / "eval_results.json")
    assert set(results) == {
        "schema_version", "model", "loss", "cloze", "stories", "memorization"
    }  # fmt: skip
    assert (evaluated / "stderr.txt").read_text() == ""
    for suite in ("cloze", "stories", "memorization"):
        made = results[suite]["made"]
        assert made["versions"]["torch"]
        assert made["command"].startswith("python")
        assert made["settings"]
    assert results["stories"]["prompts"]["texts"] == 12
    lines = (evaluated / "run" / "stories.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 120
    assert len(results["memorization"]["drawn"]) == 100


def test_the_report_and_its_plots_are_written(evaluated: Path) -> None:
    text = (evaluated / "run" / "evaluation.md").read_text()
    for heading in ("Loss", "Cloze", "Stories", "Memorization"):
        assert f"## {heading}" in text
    for picture in PICTURES:
        assert f"({picture})" in text
        assert (evaluated / "run" / picture).read_bytes().startswith(b"\x89PNG")


def test_report_card_and_plots_are_rebuilt_from_the_json_alone(
    evaluated: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "eval_results.json"
    shutil.copy(evaluated / "run" / "eval_results.json", copy)
    done = evaluate(tmp_path, "--results", str(copy), "--output_dir", str(tmp_path / "again"))
    assert done.returncode == 0, done.stderr
    for name in ("evaluation.md", *PICTURES):
        assert (tmp_path / "again" / name).read_bytes() == (evaluated / "run" / name).read_bytes()
    card = (evaluated / "run" / "README.md").read_text()
    assert "### Cloze" in card
    assert "### Memorization" in card


def test_suites_already_evaluated_are_skipped(evaluated: Path) -> None:
    before = (evaluated / "run" / "eval_results.json").read_bytes()
    done = evaluate(evaluated, "--model", "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("already evaluated, skipped") == 4
    assert (evaluated / "run" / "eval_results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed", "7"], "stories: .* another seed; choose another --output_dir"),
        (["--toy_seed", "3"], "loss: .* another training, validation; choose"),
    ],
)
def test_results_with_other_settings_are_refused(
    evaluated: Path, flags: list[str], message: str
) -> None:
    import re

    before = (evaluated / "run" / "eval_results.json").read_bytes()
    done = evaluate(evaluated, "--model", "run", *flags)
    assert done.returncode == 2
    assert re.search(message, done.stderr), done.stderr
    assert (evaluated / "run" / "eval_results.json").read_bytes() == before


def test_several_models_are_compared(evaluated: Path, tmp_path: Path) -> None:
    """A second model was trained on the same data with another seed."""
    other, out = tmp_path / "other", tmp_path / "compared"
    train_forked(tmp_path, *LONGER, "--seed", "7", "--max_steps", "2", run="other")
    models = ("--model", "run", str(other))
    done = evaluate(evaluated, *models, "--suite", "loss,cloze", "--output_dir", str(out))
    assert done.returncode == 0, done.stderr
    text = (out / "evaluation.md").read_text()
    assert text.startswith("# Evaluation: run, other")
    assert (out / "run" / "eval_results.json").exists()
    losses = [results_in(out / name)["loss"]["packed"]["loss"] for name in ("run", "other")]
    assert losses[0] < losses[1], "more steps give a lower loss"
    assert all(f"{loss:.4f}" in text for loss in losses)


def test_a_trained_model_is_better_than_an_untrained_one(evaluated: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GPTNeoConfig

    fresh = tmp_path / "fresh"
    config: Any = GPTNeoConfig.from_pretrained(evaluated / "run")
    GPTNeoForCausalLM(config).save_pretrained(fresh)
    AutoTokenizer.from_pretrained(evaluated / "run").save_pretrained(fresh)
    done = evaluate(
        evaluated, "--model", str(fresh), "--dataset", "toy", "--toy_stories", "300",
        "--context_length", "256", "--suite", "loss,stories", "--output_dir", str(tmp_path / "out"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    untrained, trained = results_in(tmp_path / "out"), results_in(evaluated / "run")
    for reading in ("packed", "by_story"):
        assert trained["loss"][reading]["loss"] < untrained["loss"][reading]["loss"] - 1
    assert (
        trained["stories"]["unknown_words"]["mean"] < untrained["stories"]["unknown_words"]["mean"]
    )


def test_results_that_do_not_match_the_schema_are_refused(evaluated: Path) -> None:
    results = results_in(evaluated / "run")
    validate_results(results)
    changes: tuple[Callable[[Any], Any], ...] = (
        lambda r: r["loss"].pop("packed"),
        lambda r: r["loss"]["packed"].update(loss="1.0"),
        lambda r: r["cloze"]["families"]["facts"].update(accuracy=1.5),
        lambda r: r.update(extra=1),
        lambda r: r.update(schema_version=2),
    )
    for change in changes:
        changed = json.loads(json.dumps(results))
        change(changed)
        with pytest.raises(UserError, match="does not match the schema"):
            validate_results(changed)


RECORDED = sorted((ROOT / "docs" / "results").rglob("*eval_results.json"))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.parent.name)
def test_recorded_results_match_the_schema(path: Path) -> None:
    results = read_results(path)
    assert results["loss"]["packed"]["tokens"] == results["loss"]["by_story"]["tokens"] > 0


def test_the_comparison_in_the_docs_is_rendered_from_its_results() -> None:
    folder = ROOT / "docs" / "results" / "compared"
    models = [read_results(folder / name / "eval_results.json") for name in ("small", "untrained")]
    pictures = [path.name for path in folder.glob("*.png")]
    ordered = [name for name in DRAWN if name in pictures]
    assert render_report(models, ordered) == (folder / "evaluation.md").read_text(encoding="utf-8")
    trained, untrained = models
    for reading in ("packed", "by_story"):
        assert trained["loss"][reading]["loss_interval"][1] < untrained["loss"][reading]["loss"]


def test_the_schema_is_a_valid_schema() -> None:
    import jsonschema

    jsonschema.Draft202012Validator.check_schema(schema())
    assert schema()["properties"]["model"]["additionalProperties"] is False


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --model"),
        (["--model", "a", "--suite", "loss,clozy"], "suite: unknown clozy; the suites are loss"),
        (["--model", "a", "--suite", "all"], "name one with --judge_model"),
        (["--model", "a", "b", "--revision", "x"], "single model"),
        (["--model", "a", "--batch_size", "0"], "at least 1"),
        (["--model", "a", "--judge_base_url", "https://me:key@host/v1"], "must not contain"),
        (["--model", "a", "--data_set", "x"], "did you mean --dataset"),
        (["--model", "a", "--tokenizer", "x"], "unknown flag --tokenizer"),
    ],
)
def test_invalid_flags_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_evaluation_arguments(flags)


def test_model_and_dataset_are_loaded_from_the_hub(
    trained_run: Path, hub: LoopbackHub, tmp_path: Path
) -> None:
    """A model without a run record, and prompts in the dataset repository."""
    model = {
        path.name: path.read_bytes()
        for path in trained_run.iterdir()
        if path.is_file() and path.name != "run.json"
    }
    stories = list(toy_stories(60, 8))
    text = {
        "stories-train.txt": "\n<|endoftext|>\n".join(stories[:50]).encode(),
        "stories-valid.txt": "\n<|endoftext|>\n".join(stories[45:]).encode(),
        "Evaluation prompts.yaml": b"- One day a cat\n- Then a dog\n",
    }
    hub.repositories["models", "me/tiny"] = StoredRepository(model)
    hub.repositories["datasets", "me/stories"] = StoredRepository(text)
    done = evaluate(
        tmp_path, "--model", "me/tiny", "--dataset", "me/stories",
        "--train_file", "stories-train.txt", "--validation_file", "stories-valid.txt",
        "--context_length", "64", "--suite", "loss,stories", HF_ENDPOINT=hub.url,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = results_in(tmp_path / "evaluations" / "me--tiny")
    assert results["model"]["revision"] == hub.repositories["models", "me/tiny"].commit
    assert results["model"]["run_id"] is None
    assert (results["loss"]["in_training"], results["loss"]["stories"]) == (5, 15)
    assert results["loss"]["not_in_training"]["by_story"]["stories"] == 10
    assert results["stories"]["prompts"]["texts"] == 2
    assert results["stories"]["prompts"]["source"].startswith("me/stories, Evaluation prompts.yaml")


def test_an_error_after_results_were_written_exits_with_1(evaluated: Path, tmp_path: Path) -> None:
    """Exit code 2 means that nothing was written."""
    run, folder = evaluated / "run", tmp_path / "measured"
    (tmp_path / "empty").mkdir()
    flags = ("--suite", "cloze", "--output_dir", str(folder))
    done = evaluate(evaluated, "--model", str(tmp_path / "empty"), str(run), *flags)
    assert (done.returncode, folder.exists()) == (2, False), done.stderr
    done = evaluate(evaluated, "--model", str(run), str(tmp_path / "empty"), *flags)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "cloze" in results_in(folder / "run")


def test_a_missing_model_is_reported_in_one_line(tmp_path: Path) -> None:
    done = evaluate(tmp_path, "--model", "nobody/nothing")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert "could not reach http://127.0.0.1:9 for the model nobody/nothing" in done.stderr


def test_the_dataset_is_that_of_the_run_unless_given(evaluated: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(evaluated)
    data = parse_evaluation_arguments(["--model", "run"]).data
    assert (data.dataset, data.toy_stories) == ("toy", 300)
    other = parse_evaluation_arguments(["--model", "run", "--dataset", "me/stories"]).data
    assert (other.dataset, other.dataset_revision) == ("me/stories", None)
    hub = parse_evaluation_arguments(["--model", "roneneldan/TinyStories-1M"]).data
    assert hub.dataset == "roneneldan/TinyStories"
    assert hub.dataset_revision


def test_each_model_has_its_own_results_folder(evaluated: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(evaluated)
    place: Callable[..., Path] = lambda name, **k: results_folder(  # noqa: E731
        name, EvaluationArguments(model=[name], **k)
    )
    assert place("run") == Path("run")
    assert place("me/model") == Path("evaluations/me--model")
    assert place("me/model", revision="step-3") == Path("evaluations/me--model@step-3")
    assert place("run", output_dir="out") == Path("out")


def test_the_report_compares_with_the_paper_if_the_shape_is_the_same(
    evaluated: Path, tmp_path: Path
) -> None:
    results = results_in(evaluated / "run")
    assert "as published" not in render_report([results])
    results["model"] |= {"hidden_size": 64, "num_layers": 8}
    assert "other tokenizer" in render_report([results])
    results["model"]["vocab_size"] = 50_257
    text = render_report([results])
    assert "| the paper | as published | 2.08 |" in text
    assert "about 0.745" in text
    assert "| 0 of 9, 1 half right | 0 of 9, 0 half right | 1 of 6, 1 half right |" in text
    assert write_report([results], tmp_path).read_text().startswith("# Evaluation: run")


def test_the_papers_table_is_complete() -> None:
    assert len(FIGURE_4) == 26
    assert len({(row.hidden_size, row.num_layers) for row in FIGURE_4}) == 26
    assert sum(row.published is not None for row in FIGURE_4) == 7
    row = paper_row(64, 8)
    assert row is not None
    assert row.loss == 2.08
    assert paper_bits_per_byte(row) == pytest.approx(0.745, abs=5e-4)
    assert paper_row(64, 3) is None
