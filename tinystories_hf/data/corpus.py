"""Open the corpus given by `dataset`: a dataset on the Hub, files, a folder, or the toy corpus.

Stories are streamed: at most one block of text is in memory at a time.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinystories_hf.config.arguments import DataArguments
from tinystories_hf.config.parsing import local_path
from tinystories_hf.core.console import print_note_once
from tinystories_hf.core.errors import UserError, reporting_unreadable
from tinystories_hf.core.files import file_sha256
from tinystories_hf.data.readers.formats import KINDS, endings_of, files_of, format_of, is_saved
from tinystories_hf.data.readers.split_files import (
    described_left,
    find_splits,
    in_order,
    matching,
    other_shards,
    shard_of,
    shown,
    split_of,
)
from tinystories_hf.data.readers.tables import require_column, stories_of_records, texts_of
from tinystories_hf.data.readers.text_files import read_stories
from tinystories_hf.data.splits import Corpus, OptionalStory, ReportProgress, Split, hold_out
from tinystories_hf.data.tokenizer import END_OF_TEXT

if TYPE_CHECKING:
    from tinystories_hf.data.download import HubFile

TOY = "toy"
# The code that decides which stories a corpus has; part of the fingerprint of prepared rows.
CODE_FILES = [
    *(Path(__file__).with_name(f"{name}.py") for name in ("corpus", "splits")),
    *sorted(Path(__file__).with_name("readers").glob("*.py")),
]


def open_corpus(data: DataArguments) -> Corpus:
    """Find the splits of the corpus in `data.dataset`, without reading any story yet.

    If the dataset has no validation split, a seeded share of its stories is held out. A note is
    printed for files of a folder that are not read, and for a shard that is read without the rest.

    Raises:
        UserError: the file, folder, Hub dataset or one of its files does not exist or has an
            unknown format, or it is ambiguous which files of a folder form a split.
    """
    train, validation = _find_splits(data)
    if validation is None:
        return hold_out(train, data.validation_share, data.validation_seed)
    return Corpus(train, validation)


def _find_splits(data: DataArguments) -> tuple[Split, Split | None]:
    if data.dataset == TOY:
        return _toy(data), None
    path = local_path("dataset", data.dataset)
    with reporting_unreadable("dataset", path):
        if path.is_file() or is_saved(path):
            return _files(data, [path])
        if path.is_dir():
            return _folder(path, data)
        if glob.has_magic(data.dataset):
            return _pattern(path, data)
    looks_local = data.dataset.startswith((".", "/", "~")) or endings_of(path.name)
    if looks_local or data.dataset.count("/") != 1:
        raise UserError(
            f"dataset: {data.dataset} does not exist; give an existing file or folder,"
            " owner/name of a dataset on the Hub, or `toy`"
        )
    return _hub(data)


def _toy(data: DataArguments) -> Split:
    from tinystories_hf.data import toy

    def stories(advance: ReportProgress) -> Iterator[OptionalStory]:
        for story in toy.toy_stories(data.toy_stories, data.toy_seed):
            advance(1)
            yield story

    code = hashlib.sha256(Path(toy.__file__).read_bytes()).hexdigest()
    identity = {"toy": {"stories": data.toy_stories, "seed": data.toy_seed, "code_sha256": code}}
    return Split(identity, stories, data.toy_stories)


def _files(data: DataArguments, train: list[Path]) -> tuple[Split, Split | None]:
    """Return the splits when `dataset` is a file or a pattern."""
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


def _pattern(pattern: Path, data: DataArguments) -> tuple[Split, Split | None]:
    """Return the splits of the files that match: all are training, unless names contain a split."""
    paths = [Path(name) for name in in_order(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207
    paths = [path for path in paths if path.is_file() or is_saved(path)]
    if not paths:
        raise UserError(f"dataset: no file matches {data.dataset}")
    root = Path(os.path.commonpath([path.parent for path in paths]))
    names = {_name(root, path): path for path in paths}
    if data.train_file is not None or {split_of(name) for name in names} <= {None, "train"}:
        return _files(data, paths)
    chosen = _validation(data)
    found = find_splits(data.dataset, list(names), None, None if chosen is None else [])
    _note_unread_files(data.dataset, found.left)
    train = [names[name] for name in found.train]
    return _splits(data, train, chosen or [names[name] for name in found.validation])


def _folder(folder: Path, data: DataArguments) -> tuple[Split, Split | None]:
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
            _note_single_shard(paths[0].name, other_shards(paths[0].name, _beside(paths[0])))
    return _local_files(train, data), _local_files(validation, data) if validation else None


def _beside(path: Path) -> list[str]:
    """Return the names of readable files in the same folder; empty if it cannot be listed."""
    try:
        return [other.name for other in path.parent.iterdir() if format_of(other.name)]
    except PermissionError:
        return []


def _note_single_shard(name: str, others: list[str]) -> None:
    count = shard_of(name).count
    if others or (count or 1) > 1:
        rest = f" without {shown(others)}" if others else " alone"
        of = f" of {count}" if count else ""
        print_note_once(
            f"{name} is one shard{of} and is read{rest}; to read all shards, give a folder or a"
            " pattern"
        )


def _note_unread_files(where: str, names: list[str]) -> None:
    if names:
        print_note_once(f"files in {where} that are not read: {described_left(names)}")


def _local_files(paths: list[Path], data: DataArguments) -> Split:
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
    text = all(_is_text(path) for path in paths)
    return Split(
        {"files": files, "column": None if text else data.text_column, **_separator_identity(data)},
        lambda advance: _read_all(paths, data, advance),
        size,
        "bytes",
        size if text else 0,
    )


def _read_all(
    paths: Iterable[Path | HubFile], data: DataArguments, advance: ReportProgress
) -> Iterator[OptionalStory]:
    return itertools.chain.from_iterable(read_stories(path, data, advance) for path in paths)


def _is_text(path: Path | str) -> bool:
    return endings_of(Path(path).name).lower().startswith(".txt")


def _separator_identity(data: DataArguments) -> dict[str, str]:
    """Return the separator as a part of the identity, or nothing for the default separator."""
    return {"separator": data.separator} if data.separator != END_OF_TEXT else {}


def _hub(data: DataArguments) -> tuple[Split, Split | None]:
    """Return the splits of a Hub dataset; a pinned commit needs no network until it is read."""
    from tinystories_hf.data.download import resolve_commit

    commit = data.dataset_revision
    if commit is None or not re.fullmatch(r"[0-9a-f]{40}", commit):
        commit = resolve_commit(data.dataset, "dataset", data.dataset_revision)
    if data.train_file is not None:
        validation = data.validation_file
        return (
            _hub_files(data, commit, data.train_file, without=validation),
            None if validation is None else _hub_files(data, commit, validation),
        )
    if data.validation_file is not None:
        raise UserError("validation_file: a Hub dataset also needs train_file; set both")
    validation = data.validation_split
    return (
        _hub_split(data, commit, data.train_split),
        None if validation is None else _hub_split(data, commit, validation),
    )


def _hub_files(data: DataArguments, commit: str, pattern: str, without: str | None = None) -> Split:
    """Return the split of one file of a Hub dataset, or of those that match a pattern.

    Files that match the pattern `without` are excluded.
    """
    without = without if glob.has_magic(pattern) else None

    def stories(advance: ReportProgress) -> Iterator[OptionalStory]:
        from tinystories_hf.data.download import HubFile, download_files, list_files

        there = list_files(data.dataset, commit)
        apart = matching(without, there) if without else []
        names = [name for name in matching(pattern, there) if name not in apart]
        if not names:
            raise UserError(f"dataset: {data.dataset} has no file {pattern} at {commit}")
        if len(names) == 1:
            _note_single_shard(names[0], other_shards(names[0], filter(format_of, there)))
        if data.streaming:
            files = [HubFile(data.dataset, commit, name) for name in names]
            return _read_all(files, data, advance)
        folder = download_files(data.dataset, "dataset", commit, [glob.escape(n) for n in names])
        return _read_all([folder / name for name in names], data, advance)

    if not format_of(pattern) and not glob.has_magic(pattern):
        raise UserError(f"dataset: {pattern} has an unknown format; supported formats: {KINDS}")
    identity = {"hub": data.dataset, "commit": commit, "file": pattern}
    column = {} if _is_text(pattern) else {"column": data.text_column}
    if without is not None:
        identity["without"] = without
    return Split({**identity, **column, **_separator_identity(data)}, stories, unit="bytes")


def _hub_split(data: DataArguments, commit: str, split: str) -> Split:
    def stories(advance: ReportProgress) -> Iterator[OptionalStory]:
        import datasets

        from tinystories_hf.data.download import download_error, resolve_commit

        resolve_commit(data.dataset, "dataset", commit)
        try:
            rows = datasets.load_dataset(
                data.dataset, split=split, revision=commit, streaming=data.streaming
            )
            names = rows.column_names or list(next(iter(rows), {}))  # None for some streams
        except (ValueError, datasets.exceptions.DatasetsError) as error:
            raise UserError(
                f"dataset: cannot read split {split} of {data.dataset}: {error} Choose other splits"
                " with train_split and validation_split; with validation_split null, a share of the"
                " training stories is held out"
            ) from error
        except Exception as error:  # network failures raise many exception types
            raise download_error(error, data.dataset, "dataset", commit) from error
        column = data.text_column
        require_column(data.dataset, column, names)
        column = column if column in names else column.split(".")[0]
        table = rows.select_columns([column]).with_format("arrow")

        def records() -> Iterator[object]:
            try:
                for block in table.iter(1000):
                    yield from texts_of(data.dataset, block, data.text_column)
                    advance(len(block))
            except Exception as error:
                raise download_error(error, data.dataset, "dataset", commit) from error

        where = f"{data.dataset}: record"
        return stories_of_records(where, enumerate(records(), start=1), data.drop_null)

    identity = {"hub": data.dataset, "commit": commit, "split": split, "column": data.text_column}
    return Split(identity, stories)
