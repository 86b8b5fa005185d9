"""A mixture has the rows of each dataset in the asked proportions, and none of them twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.forked import run_forked, script, train_forked
from tests.training.test_resume import AskToStop, log_of, train_here
from tinystories_hf.config.command_line import Arguments, parse_arguments
from tinystories_hf.core.errors import Stopped, UserError
from tinystories_hf.data.manifest import PreparedData, SplitManifest
from tinystories_hf.data.mixture import shares
from tinystories_hf.data.prepare import prepare
from tinystories_hf.data.tokenization.tokenizer import train_tokenizer
from tinystories_hf.data.toy import toy_stories
from tinystories_hf.training.signals import StopRequest

Parse = Callable[..., Arguments]


@pytest.fixture
def mixture(tiny_arguments: Parse, tmp_path: Path) -> Callable[..., Arguments]:
    """Return a function that parses the settings of a mixture of toy stories and of two files."""
    train_tokenizer(toy_stories(200), 320, 64).save_pretrained(tmp_path / "tok")
    for name, seed in (("a", 7), ("b", 8)):
        stories = toy_stories(150, seed)
        (tmp_path / f"{name}.txt").write_text("\n<|endoftext|>\n".join(stories))
    named = ("--dataset", str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))

    def parse(*flags: str, weights: tuple[str, ...] = ("0.9", "0.1")) -> Arguments:
        tokenizer = ("--tokenizer", str(tmp_path / "tok"), "--dataset_weights", *weights)
        return tiny_arguments(*named, *tokenizer, *flags)

    return parse


def rows_of(prepared: PreparedData, split: str) -> np.ndarray[tuple[int, int], np.dtype[np.uint16]]:
    return np.array(prepared.rows(split).with_format("numpy")["input_ids"])


@pytest.mark.parametrize("weights", [("0.9", "0.1"), ("1", "3"), ("0.333", "0.667")])
def test_the_rows_are_the_first_of_each_dataset_in_exact_proportions(
    mixture: Callable[..., Arguments], weights: tuple[str, ...]
) -> None:
    arguments = mixture(weights=weights)
    prepared = prepare(arguments.data, 320, quiet=True)
    train = prepared.manifest.train
    assert isinstance(train, SplitManifest)
    mixed = prepared.manifest.mixture
    taken = [part.rows for part in mixed]
    exact = [Fraction(w) / sum(map(Fraction, weights)) * train.rows for w in weights]
    assert sum(taken) == train.rows
    assert all(abs(rows - share) < 1 for rows, share in zip(taken, exact, strict=True))
    assert min(part.rows_left_out for part in mixed) <= 1, "one is used up"
    names = [arguments.data.dataset, *arguments.data.other_datasets]
    alone = [prepare(mixture_part(arguments, name).data, 320, quiet=True) for name in names]
    expected = [rows_of(part, "train")[:rows] for part, rows in zip(alone, taken, strict=True)]
    assert np.array_equal(rows_of(prepared, "train"), np.concatenate(expected))
    validation = [rows_of(part, "validation") for part in alone]
    assert np.array_equal(rows_of(prepared, "validation"), np.concatenate(validation))
    for split in (train, prepared.manifest.validation):
        assert split.tokens_in == split.tokens_out + split.tokens_dropped
        assert split.tokens_out == split.rows * 64
    assert train.tokens_in == sum(part.manifest.split("train").tokens_in for part in alone)
    assert prepare(arguments.data, 320, quiet=True).path == prepared.path


def mixture_part(arguments: Arguments, name: str) -> Arguments:
    from dataclasses import replace

    alone = replace(arguments.data, dataset=name, other_datasets=[], dataset_weights=[])
    return arguments._replace(data=alone)


@given(
    available=st.lists(st.integers(1, 10**6), min_size=2, max_size=5),
    weights=st.lists(st.integers(1, 1000), min_size=5, max_size=5),
)
def test_shares_are_exact_to_a_row_and_never_more_than_there_are(
    available: list[int], weights: list[int]
) -> None:
    weights = weights[: len(available)]
    taken = shares(available, [weight / 1000 for weight in weights])
    assert all(0 <= rows <= most for rows, most in zip(taken, available, strict=True))
    total = sum(taken)
    for rows, weight in zip(taken, weights, strict=True):
        assert abs(rows - Fraction(weight, sum(weights)) * total) < 2
    assert any(
        most - rows <= Fraction(weight, sum(weights)) + 1
        for rows, most, weight in zip(taken, available, weights, strict=True)
    ), "the mixture could be larger"


def test_a_mixture_is_trained_evaluated_and_described(
    mixture: Callable[..., Arguments], tmp_path: Path
) -> None:
    data = mixture().data
    flags = ("--dataset", data.dataset, *data.other_datasets, "--dataset_weights", "0.9", "0.1",
             "--tokenizer", data.tokenizer)  # fmt: skip
    train_forked(tmp_path, *flags)
    run = tmp_path / "run"
    record = json.loads((run / "run.json").read_text())
    parts = record["dataset"]["mixture"]
    assert [part["weight"] for part in parts] == [0.9, 0.1]
    card = (run / "README.md").read_text()
    first, second = (part["rows"] for part in parts)
    assert f"by training rows: {first} of a.txt (weight 0.9); {second} of b.txt" in card
    done = run_forked(
        tmp_path, script, "evaluate.py", ["--model", "run", "--suite", "loss,cloze,stories"],
        variables={"HF_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((run / "eval_results.json").read_text())
    assert set(results) >= {"loss", "cloze", "stories"}
    assert results["loss"]["stories"] == record["dataset"]["validation"]["stories_kept"]


def test_a_mixture_is_the_same_for_any_number_of_processes(
    mixture: Callable[..., Arguments], tmp_path: Path
) -> None:
    data = mixture().data
    flags = ("--dataset", data.dataset, *data.other_datasets, "--dataset_weights", "2", "1",
             "--tokenizer", data.tokenizer)  # fmt: skip
    logs = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        train_forked(folder, *flags, num_processes=processes)
        state = json.loads((folder / "run" / "checkpoint-20" / "trainer_state.json").read_text())
        logs.append([entry["loss"] for entry in state["log_history"] if "loss" in entry])
    assert logs[0] == pytest.approx(logs[1], abs=1e-4)


def test_a_run_on_a_mixture_resumes_exactly(
    mixture: Callable[..., Arguments], tmp_path: Path
) -> None:
    flags = ("--max_steps", "10", "--resid_dropout", "0.1", "--logging_steps", "3")
    whole = train_here(mixture(*flags, "--output_dir", str(tmp_path / "whole")))
    resumed = mixture(*flags, "--resume_from_checkpoint", "auto")
    stop = StopRequest()
    with pytest.raises(Stopped):
        train_here(resumed, stop, AskToStop(stop, "on_step_end", 7))
    assert log_of(train_here(resumed)) == log_of(whole)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "a", "b"], "0 weights for 2 datasets .*; give one for each"),
        (["--dataset", "a", "b", "--dataset_weights", "1"], "1 weights for 2 datasets"),
        (["--dataset", "a", "--dataset_weights", "1"], "1 weights for 1 datasets"),
        (["--dataset", "a", "b", "--dataset_weights", "1", "0"], "must be positive"),
        (["--dataset", "a", "b", "--dataset_weights", "1", "x"], "expected a list of numbers"),
        (
            ["--dataset", "a", "b", "--dataset_weights", "1", "1", "--tokenizer", "train"],
            "cannot be combined with tokenizer `train`",
        ),
        (
            ["--dataset", "a", "b", "--dataset_weights", "1", "1", "--streaming", "--max_steps",
             "1"],
            "cannot be combined with streaming",
        ),
    ],
)  # fmt: skip
def test_an_impossible_mixture_is_refused(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_arguments(flags)


def test_a_share_without_a_row_is_refused(mixture: Callable[..., Arguments]) -> None:
    with pytest.raises(UserError, match="has no row for its share"):
        prepare(mixture(weights=("1", "1e9")).data, 320, quiet=True)


def test_another_dataset_on_the_command_line_ends_the_mixture_of_the_yaml(tmp_path: Path) -> None:
    (tmp_path / "mix.yaml").write_text(
        "base: xs\ndataset: [a.txt, b.txt]\ndataset_weights: [3, 1]\n"
    )
    config = ["--config", str(tmp_path / "mix.yaml")]
    data = parse_arguments(config).data
    assert (data.dataset, data.other_datasets, data.dataset_weights) == ("a.txt", ["b.txt"], [3, 1])
    data = parse_arguments([*config, "--dataset", "c.txt"]).data
    assert (data.dataset, data.other_datasets, data.dataset_weights) == ("c.txt", [], [])
