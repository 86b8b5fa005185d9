"""A dataset on the Hub is named by its repository, a configuration of it, or an address."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.support.loopback_hub import LoopbackHub
from tests.support.loopback_state import StoredRepository
from tinystories_hf.config.command_line import parse_arguments
from tinystories_hf.core.errors import UserError

CARD = """---
configs:
- config_name: english
  data_files: [{split: train, path: en.jsonl}, {split: validation, path: en-valid.jsonl}]
- config_name: french
  data_files: [{split: train, path: fr.jsonl}, {split: validation, path: fr-valid.jsonl}]
---
"""
READ = """
import sys
from tinystories_hf.config.command_line import parse_arguments
from tinystories_hf.data.corpus import open_corpus

corpus = open_corpus(parse_arguments(sys.argv[1:]).data)
print(corpus.train.identity, *corpus.train.read(), *corpus.validation.read(), sep="|")
"""


@pytest.fixture
def stories(hub: LoopbackHub) -> LoopbackHub:
    """Serve a dataset of two configurations."""
    lines = {
        name: (json.dumps({"text": f"{name} says hello."}) + "\n").encode()
        for name in ("en", "en-valid", "fr", "fr-valid")
    }
    files = {f"{name}.jsonl": line for name, line in lines.items()}
    hub.repositories["datasets", "me/stories"] = StoredRepository(
        {"README.md": CARD.encode(), **files}
    )
    return hub


@pytest.mark.parametrize(("config", "language"), [("english", "en"), ("french", "fr")])
def test_a_configuration_is_chosen_by_name(
    stories: LoopbackHub, run_code: Callable[..., tuple[int, str, str]], config: str, language: str
) -> None:
    flags = ("--dataset", "me/stories", "--dataset_config", config)
    status, out, err = run_code(READ, *flags, HF_ENDPOINT=stories.url)
    assert status == 0, err
    identity, *found = out.strip().split("|")
    assert found == [f"{language} says hello.", f"{language}-valid says hello."]
    assert f"'config': '{config}'" in identity


def test_a_dataset_of_several_configurations_needs_one(
    stories: LoopbackHub, run_code: Callable[..., tuple[int, str, str]]
) -> None:
    status, _, err = run_code(READ, "--dataset", "me/stories", HF_ENDPOINT=stories.url)
    assert status != 0
    assert "english" in err
    assert "dataset_config" in err


def test_an_address_stands_for_its_parts(
    stories: LoopbackHub, run_code: Callable[..., tuple[int, str, str]]
) -> None:
    address = "hf://datasets/me/stories@main/fr.jsonl"
    flags = ("--dataset", address, "--validation_file", "fr-valid.jsonl")
    status, out, err = run_code(READ, *flags, HF_ENDPOINT=stories.url)
    assert status == 0, err
    assert out.strip().split("|")[1:] == ["fr says hello.", "fr-valid says hello."]


def test_what_an_address_says_is_what_the_settings_say() -> None:
    data = parse_arguments(["--dataset", "hf://datasets/me/stories@v1/data/a.jsonl"]).data
    assert (data.dataset, data.dataset_revision, data.train_file) == (
        "me/stories",
        "v1",
        "data/a.jsonl",
    )
    assert parse_arguments(["--dataset", "hf://datasets/me/stories"]).data.dataset == "me/stories"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "hf://me/model"], "is not the address of a dataset"),
        (
            ["--dataset", "hf://datasets/me/s@v1", "--dataset_revision", "v2"],
            "dataset_revision: v2, but dataset says v1; omit one",
        ),
        (
            ["--dataset", "me/s", "--dataset_config", "a", "--train_file", "b.txt"],
            "train_file already chooses the files",
        ),
    ],
)
def test_a_contradiction_is_refused(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_arguments(flags)
