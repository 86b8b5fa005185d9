from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tinystories_hf.config.command_line import Arguments
from tinystories_hf.core.environment import git_state, portable, power_limit_watts
from tinystories_hf.core.errors import UserError
from tinystories_hf.core.files import write_json
from tinystories_hf.core.run_record import RUN_RECORD, read_record
from tinystories_hf.training.session import published_configuration


def test_the_record_says_what_is_needed_to_repeat_the_run(trained_run: Path) -> None:
    record = read_record(trained_run)
    assert record.configuration["model"]["hidden_size"] == 32
    assert record.configuration["training"]["learning_rate"] == 0.01
    assert record.configuration["training"]["seed"] == 42
    assert record.dataset["name"] == "toy"
    assert record.dataset["train"]["source"]["toy"]["seed"] == 0
    assert len(record.dataset["tokenizer"]["vocab_sha256"]) == 64
    assert record.parameters["total"] == 37_568
    (session,) = record.sessions
    assert {"torch", "transformers", "accelerate", "tokenizers"} <= session.versions.keys()
    assert "train.py --config tiny.yaml" in session.command
    assert session.device.startswith("CPU")
    assert session.mixed_precision == "no"
    assert (session.status, session.resumed_from) == ("finished", None)
    assert session.finished is not None
    assert session.finished >= session.started


def test_the_commit_is_that_of_the_code_and_not_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout, and this copy of the project is none")
    monkeypatch.chdir(tmp_path)
    head = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    assert git_state()[0] == head.stdout.strip()


def test_no_absolute_path_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert portable(str(tmp_path / "runs" / "xs")) == "runs/xs"
    assert portable("/data/of/mine/stories.txt") == "stories.txt"
    assert portable("~/stories.txt") == "stories.txt"
    for kept in ("roneneldan/TinyStories", "../stories.txt", "runs/xs", 0.1, None, ["/a"]):
        assert portable(kept) == kept


def test_the_power_limit_is_what_the_driver_says_and_else_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert power_limit_watts() is None, "no such program"
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 700.00\necho 700.00\n")
    program.chmod(0o755)
    assert power_limit_watts() == 700
    program.write_text("#!/bin/sh\necho '[N/A]'\n")
    assert power_limit_watts() is None


@pytest.mark.parametrize("text", [None, "", "{", "{}", '{"sessions": [{}]}'])
def test_a_missing_or_foreign_record_is_an_error(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / RUN_RECORD).write_text(text)
    with pytest.raises(UserError, match="missing or not a run record"):
        read_record(tmp_path)


def test_json_is_written_by_one_rename(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"b": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("separator", ["/", "~", "~~~", "//", "/usr"])
def test_a_separator_that_looks_like_a_path_is_recorded_as_it_is(
    tiny_arguments: Callable[..., Arguments], separator: str
) -> None:
    arguments = tiny_arguments("--story_separator", separator)
    assert published_configuration(arguments)["data"]["story_separator"] == separator
