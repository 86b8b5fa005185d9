"""Prepared rows are opened by `datasets` where they lie, and from the Hub by their name."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest

from tests.support.loopback_hub import LoopbackHub
from tests.support.loopback_state import StoredRepository
from tests.support.publishing import TOKEN
from tinystories_hf.config.command_line import Arguments
from tinystories_hf.core.errors import RunError, UserError
from tinystories_hf.data.manifest import PreparedData
from tinystories_hf.data.prepare import prepare
from tinystories_hf.hub.arguments import parse_push_arguments
from tinystories_hf.hub.rows import RowsRepository, publish_rows

ROWS = "me/rows"


@pytest.fixture
def prepared(tiny_arguments: Callable[..., Arguments]) -> PreparedData:
    """Return the rows of the tiny corpus."""
    return prepare(tiny_arguments().data, 320, quiet=True)


def same_rows(found: datasets.DatasetDict, prepared: PreparedData) -> bool:
    assert set(found) == {"train", "validation"}
    return all(
        np.array_equal(found[name]["input_ids"][:], prepared.rows(name)["input_ids"][:])
        for name in found
    )


def test_datasets_opens_a_prepared_folder_as_it_lies(
    prepared: PreparedData, tmp_path: Path
) -> None:
    folder = str(prepared.path)
    assert same_rows(datasets.load_from_disk(folder), prepared)
    loaded = datasets.load_dataset(folder, cache_dir=str(tmp_path / "cache"))
    assert same_rows(loaded, prepared)
    assert loaded["train"].features["input_ids"].feature.dtype == "uint16"
    streamed = datasets.load_dataset(folder, split="validation", streaming=True)
    assert next(iter(streamed))["input_ids"] == prepared.validation[0]["input_ids"]


def test_rows_are_published_and_loaded_by_name(
    prepared: PreparedData, mine: LoopbackHub, run_code: Callable[..., tuple[int, str, str]],
    run_script: Callable[..., subprocess.CompletedProcess[str]],
) -> None:  # fmt: skip
    flags = ("--rows", str(prepared.path), "--repo", ROWS)
    hub = {"HF_ENDPOINT": mine.url, "HF_TOKEN": TOKEN}
    shown = run_script("push_to_hub.py", *flags, "--dry_run", **hub)
    assert "train/data-00000-of-00001.arrow" in shown.stdout, shown.stderr
    assert ("datasets", ROWS) not in mine.repositories
    pushed = run_script("push_to_hub.py", *flags, **hub)
    assert f"published {mine.url}/datasets/{ROWS}" in pushed.stdout, pushed.stderr
    code = (
        "import datasets, sys, json\n"
        f"found = datasets.load_dataset({ROWS!r})\n"
        "print(json.dumps({name: found[name]['input_ids'][:] for name in found}))"
    )
    status, out, err = run_code(code, **hub)
    assert status == 0, err
    found = json.loads(out.splitlines()[-1])
    for name in ("train", "validation"):
        assert found[name] == prepared.rows(name)["input_ids"][:]
    commits = len(mine.repositories["datasets", ROWS].history("main"))
    again = run_script("push_to_hub.py", *flags, **hub)
    assert again.returncode == 0, again.stderr
    assert len(mine.repositories["datasets", ROWS].history("main")) == commits


def test_other_content_is_not_replaced(
    prepared: PreparedData, mine: LoopbackHub, client: list[float]
) -> None:
    mine.repositories["datasets", ROWS] = StoredRepository({"stories.txt": b"Once."})
    with pytest.raises(UserError, match=r"already has other content \(stories.txt\)"):
        publish_rows(prepared.path, RowsRepository(ROWS))
    publish_rows(prepared.path, RowsRepository(ROWS, overwrite=True))
    assert "stories.txt" not in mine.repositories["datasets", ROWS].at("main")


def test_the_token_is_found_in_a_file_of_any_size(
    prepared: PreparedData, client: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Across the border of two blocks, too."""
    large = prepared.path / "note.txt"
    large.write_bytes(b"x" * ((1 << 24) - 9) + TOKEN.encode() + b"x")
    with pytest.raises(RunError, match=r"note.txt contains your Hub token; remove it"):
        publish_rows(prepared.path, RowsRepository(ROWS))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rows", "rows"], "give --rows and --repo together"),
        (["--rows", "rows", "--repo", "me/r", "--license", "mit"], "--license: applies to a run"),
        (["--rows", "rows", "--site", "s", "--space", "me/s"], "--rows: applies to a run"),
    ],
)
def test_impossible_flags_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_push_arguments(flags)


def test_what_is_no_prepared_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a prepared folder; .*prints where the rows are"):
        publish_rows(tmp_path, RowsRepository(ROWS))
