from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from tinystories_hf.core.errors import UserError
from tinystories_hf.data.sources import parse_dataset, parse_tokenizer


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with some files; return it."""
    (tmp_path / "owner" / "folder").mkdir(parents=True)
    (tmp_path / "owner" / "s.txt").touch()
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "saved"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "kind", "path"),
    [
        ("toy", "toy", None),
        ("owner/name", "hub", None),
        ("owner/s.txt", "file", "owner/s.txt"),
        ("saved", "file", "saved"),
        ("owner/folder", "folder", "owner/folder"),
        ("~/owner", "folder", "owner"),
        ("owner/*.txt", "pattern", "owner/*.txt"),
        ("~/*.jsonl", "pattern", "*.jsonl"),
    ],
)
def test_a_dataset_is_local_where_it_exists_and_on_the_hub_otherwise(
    folder: Path, name: str, kind: str, path: str | None
) -> None:
    found = parse_dataset(name)
    assert (found.kind, found.name) == (kind, name)
    assert found.path == (None if path is None else (folder if "~" in name else Path()) / path)


@pytest.mark.parametrize(
    "name", ["name", "owner/other.txt", "other.jsonl.gz", "./owner/name", "~/name", "/a/b", "a/b/c"]
)
def test_a_dataset_that_can_only_be_a_local_path_has_to_exist(name: str) -> None:
    with pytest.raises(UserError, match=f"^dataset: {name} does not exist; give"):
        parse_dataset(name)


@pytest.mark.parametrize(
    ("name", "kind", "short"),
    [
        ("train", "train", "train"),
        ("gpt2", "hub", "gpt2"),
        ("owner/name", "hub", "owner/name"),
        ("owner/folder", "folder", "folder"),
        ("~/owner/folder", "folder", "folder"),
    ],
)
def test_a_tokenizer_is_a_folder_where_it_exists_and_on_the_hub_otherwise(
    name: str, kind: str, short: str
) -> None:
    found = parse_tokenizer(name)
    assert (found.kind, found.name, found.short_name) == (kind, name, short)


@pytest.mark.parametrize("name", ["owner/s.txt", "./name", "/a", "~/name", "a/b/c"])
def test_a_tokenizer_that_can_only_be_a_local_path_has_to_be_a_folder(name: str) -> None:
    with pytest.raises(UserError, match=f"^tokenizer: {name} is not a folder; give"):
        parse_tokenizer(name)
