"""Find the splits among local files: a file, the files that match a pattern, or a folder."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinystories_hf.config.data_arguments import DataArguments
from tinystories_hf.config.parsing import local_path
from tinystories_hf.core.console import print_note_once
from tinystories_hf.core.errors import UserError, reporting_unreadable
from tinystories_hf.core.files import file_sha256
from tinystories_hf.data.readers.formats import KINDS, files_of, format_of, is_saved, is_text
from tinystories_hf.data.readers.split_files import (
    described_left,
    find_splits,
    in_order,
    note_single_shard,
    other_shards,
    shown,
    split_of,
)
from tinystories_hf.data.readers.text_files import read_files, separator_identity
from tinystories_hf.data.splits import Split


def file_splits(data: DataArguments, train: list[Path]) -> tuple[Split, Split | None]:
    """Return the splits when `dataset` is a file or a pattern.

    Raises:
        UserError: `train_file` is set, or `validation_file` matches no file.
    """
    if data.train_file is not None:
        raise UserError(
            f"train_file: the dataset {data.dataset} already names files; set dataset to the folder"
        )
    return _splits(data, train, _validation(data))


def _validation(data: DataArguments) -> list[Path] | None:
    """Return the files of `validation_file`, a path or pattern independent of `dataset`."""
    if data.validation_file is None:
        return None
    place = local_path("validation_file", data.validation_file)
    return _named("validation_file", Path(), str(place))


def pattern_splits(pattern: Path, data: DataArguments) -> tuple[Split, Split | None]:
    """Return the splits of the files that match: all are training, unless names contain a split.

    Raises:
        UserError: no file matches, or it is ambiguous which files form a split.
    """
    paths = [Path(name) for name in in_order(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207
    paths = [path for path in paths if path.is_file() or is_saved(path)]
    if not paths:
        raise UserError(f"dataset: no file matches {data.dataset}")
    root = Path(os.path.commonpath([path.parent for path in paths]))
    names = {_name(root, path): path for path in paths}
    if data.train_file is not None or {split_of(name) for name in names} <= {None, "train"}:
        return file_splits(data, paths)
    chosen = _validation(data)
    found = find_splits(data.dataset, list(names), None, None if chosen is None else [])
    _note_unread_files(data.dataset, found.left)
    train = [names[name] for name in found.train]
    return _splits(data, train, chosen or [names[name] for name in found.validation])


def folder_splits(folder: Path, data: DataArguments) -> tuple[Split, Split | None]:
    """Return the splits of a folder, by `train_file` and `validation_file` or by file names.

    Raises:
        UserError: it is ambiguous which files form a split, a shard is missing, or a setting
            matches no file.
    """
    chosen = {
        key: None if pattern is None else _named(key, folder, pattern)
        for key, pattern in (
            ("train_file", data.train_file),
            ("validation_file", data.validation_file),
        )
    }
    train, validation = chosen["train_file"], chosen["validation_file"]
    if train is None or validation is None:
        names = [_name(folder, path) for path in _all_files(folder)]
        own = [[_name(folder, p) for p in paths] if paths else None for paths in chosen.values()]
        found = find_splits(str(folder), names, *own)
        _note_unread_files(str(folder), found.left)
        train = train or [folder / name for name in found.train]
        validation = validation or [folder / name for name in found.validation]
    return _splits(data, train, validation)


def _all_files(folder: Path) -> Iterator[Path]:
    """Yield the files and saved datasets of a folder and its subfolders, except hidden ones."""

    def unreadable(error: OSError) -> None:
        if error.filename == str(folder):  # an unreadable subfolder, such as lost+found, is skipped
            raise error

    for place, folders, names in os.walk(folder, onerror=unreadable):
        here = Path(place)
        yield from (here / name for name in names if not name.startswith("."))
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        saved = [name for name in folders if is_saved(here / name)]
        yield from (here / name for name in saved)
        folders[:] = [name for name in folders if name not in saved]


def _name(folder: Path, path: Path) -> str:
    """Return the path of a file relative to a folder; a saved dataset's path ends with `/`."""
    name = path.relative_to(folder) if path.is_relative_to(folder) else path
    return name.as_posix() + ("/" if path.is_dir() else "")


def _named(key: str, folder: Path, name: str) -> list[Path]:
    """Return the file that a setting names, or the files that match its pattern."""
    path = folder / name
    if path.exists():
        return [path]
    # Path.glob does not accept absolute patterns.
    found = [folder / match for match in glob.glob(name, root_dir=folder, recursive=True)]  # noqa: PTH207
    found = [path for path in found if path.is_file() or is_saved(path)]
    if not found:
        raise UserError(f"{key}: no file {name} in {folder}")
    return [Path(path) for path in in_order(map(str, found))]


def _splits(
    data: DataArguments, train: list[Path], validation: list[Path] | None
) -> tuple[Split, Split | None]:
    also = [path for path in train if path in (validation or [])]
    if len(train) > len(also) > 0:  # the training pattern also matches validation files
        train = [path for path in train if path not in also]
        print_note_once(f"used for validation only: {shown([path.name for path in also])}")
    for paths in (train, validation or []):
        if len(paths) == 1 and paths[0].is_file():
            note_single_shard(paths[0].name, other_shards(paths[0].name, _beside(paths[0])))
    return _local_split(train, data), _local_split(validation, data) if validation else None


def _beside(path: Path) -> list[str]:
    """Return the names of readable files in the same folder; empty if it cannot be listed."""
    try:
        return [other.name for other in path.parent.iterdir() if format_of(other.name)]
    except PermissionError:
        return []


def _note_unread_files(where: str, names: list[str]) -> None:
    if names:
        print_note_once(f"files in {where} that are not read: {described_left(names)}")


def _local_split(paths: list[Path], data: DataArguments) -> Split:
    files: list[dict[str, Any]] = []
    for path in paths:
        with reporting_unreadable("dataset", path):
            saved = is_saved(path)
            if not saved and not path.is_file():
                raise UserError(f"dataset: there is no file {path}; check the path")
            if not saved and not format_of(path.name):
                raise UserError(
                    f"dataset: {path} has an unknown format; supported formats: {KINDS}"
                )
            for file in files_of(path):
                name = f"{path.name}/{file.name}" if saved else file.name
                size = file.stat().st_size
                files.append({"name": name, "bytes": size, "sha256": file_sha256(file)})
    size = sum(file["bytes"] for file in files)
    text = all(is_text(path) for path in paths)
    return Split(
        {"files": files, "column": None if text else data.text_column, **separator_identity(data)},
        lambda advance: read_files(paths, data, advance),
        size,
        "bytes",
        size if text else 0,
    )
