"""Text: where stories come from, and how to read them one by one.

A corpus has a training and a validation split. It may be a dataset on the Hub, a file, a folder, or
the embedded toy corpus. Reading streams: at no time is more than one block of text in memory.
"""

from __future__ import annotations

import codecs
import fnmatch
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tinystories_hf.arguments import DataArguments
from tinystories_hf.errors import UserError, readable
from tinystories_hf.files import file_sha256
from tinystories_hf.parsing import brief, local_path
from tinystories_hf.tokenizer import END_OF_TEXT

if TYPE_CHECKING:
    from tinystories_hf.download import HubFile

TOY = "toy"
SUFFIXES = (".txt", ".jsonl", ".parquet")
BLOCK = 1 << 20
# A story has about 900 characters. So much text without a separator, or so many bytes of .jsonl in
# a line, are no file of stories, and holding it all to find out would take the machine's memory.
MAX_STORY_CHARACTERS = 64 << 20


@dataclass(frozen=True)
class Split:
    """One part of a corpus.

    `identity` is all that decides the stories (a commit, or the sha256 of a file); `read` starts
    from the first story at each call; `total` counts `unit`s, for progress bars.
    """

    identity: dict[str, Any]
    read: Callable[[], Iterator[str]]
    total: int | None = None
    unit: Literal["stories", "bytes"] = "stories"


@dataclass(frozen=True)
class Corpus:
    """Stories to train on and stories to validate on."""

    train: Split
    validation: Split


def open_corpus(data: DataArguments) -> Corpus:
    """Find the corpus that the settings name; reads no story yet.

    Where the dataset has no validation of its own, a seeded share of its stories is held out.

    Raises:
        UserError: the file, folder, Hub dataset or one of its files does not exist or is of an
            unknown kind, or a folder leaves open which file is meant.
    """
    train, validation = _find_splits(data)
    if validation is None:
        return hold_out(train, data.validation_share, data.validation_seed)
    return Corpus(train, validation)


def _find_splits(data: DataArguments) -> tuple[Split, Split | None]:
    if data.dataset == TOY:
        return _toy(data), None
    path = local_path("dataset", data.dataset)
    with readable("dataset", path):
        if path.is_file():
            if data.train_file is not None:
                raise UserError(f"train_file: {path} is a file itself; give the folder instead")
            other = None if data.validation_file is None else [Path(data.validation_file)]
            return _local_files([path], data), _local_files(other, data) if other else None
        if path.is_dir():
            return _folder(path, data)
    looks_local = data.dataset.startswith((".", "/", "~")) or path.suffix in SUFFIXES
    if looks_local or data.dataset.count("/") != 1:
        raise UserError(
            f"dataset: {data.dataset} is not there; give a file or folder that exists,"
            " owner/name of a dataset on the Hub, or `toy`"
        )
    return _hub(data)


def _toy(data: DataArguments) -> Split:
    from tinystories_hf import toy

    code = hashlib.sha256(Path(toy.__file__).read_bytes()).hexdigest()
    return Split(
        {"toy": {"stories": data.toy_stories, "seed": data.toy_seed, "code_sha256": code}},
        lambda: toy.toy_stories(data.toy_stories, data.toy_seed),
        data.toy_stories,
    )


def _folder(folder: Path, data: DataArguments) -> tuple[Split, Split | None]:
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    train = _pick(folder, files, "train_file", data.train_file, ("train",))
    validation = _pick(
        folder, files, "validation_file", data.validation_file, ("valid", "validation", "val")
    )
    if not train:
        listed = ", ".join(path.name for path in files) or "none"
        raise UserError(
            f"dataset: no file in {folder} has `train` in its name; name one with train_file"
            f" ({', '.join(SUFFIXES)} files there: {listed})"
        )
    return _local_files(train, data), _local_files(validation, data) if validation else None


def _pick(
    folder: Path, files: list[Path], key: str, chosen: str | None, words: tuple[str, ...]
) -> list[Path]:
    """Return the files of a split: the chosen one, else those with one of the words in the name."""
    if chosen is not None:
        matching = [path for path in folder.iterdir() if fnmatch.fnmatch(path.name, chosen)]
        if not matching:
            raise UserError(f"{key}: no file {chosen} in {folder}")
        return sorted(matching)
    found = [p for p in files if set(words) & set(re.split(r"[^a-z]+", p.stem.lower()))]
    if len({re.sub(r"-\d+-of-\d+$", "", path.stem) for path in found}) > 1:
        raise UserError(
            f"dataset: several files in {folder} could be meant"
            f" ({', '.join(path.name for path in found)}); choose with {key}"
        )
    return found


def _hub(data: DataArguments) -> tuple[Split, Split | None]:
    """Describe a Hub dataset; a pinned commit needs no network until stories are read."""
    from tinystories_hf.download import resolve_commit

    commit = data.dataset_revision
    if commit is None or not re.fullmatch(r"[0-9a-f]{40}", commit):
        commit = resolve_commit(data.dataset, "dataset", data.dataset_revision)
    if data.train_file is not None:
        validation = data.validation_file
        return (
            _hub_file(data, commit, data.train_file),
            None if validation is None else _hub_file(data, commit, validation),
        )
    if data.validation_file is not None:
        raise UserError("validation_file: also name the train_file of the Hub dataset")
    validation = data.validation_split
    return (
        _hub_split(data, commit, data.train_split),
        None if validation is None else _hub_split(data, commit, validation),
    )


def _hub_file(data: DataArguments, commit: str, name: str) -> Split:
    def read() -> Iterator[str]:
        from tinystories_hf.download import HubFile, download_files, resolve_commit

        resolve_commit(data.dataset, "dataset", commit)
        if data.streaming:
            return _read_file(HubFile(data.dataset, commit, name), data.text_column)
        path = download_files(data.dataset, "dataset", commit, [name]) / name
        if not path.is_file():
            raise UserError(f"dataset: {data.dataset} has no file {name} at {commit}")
        return _read_file(path, data.text_column)

    if Path(name).suffix not in SUFFIXES:
        raise UserError(f"dataset: {name} is none of {', '.join(SUFFIXES)}")
    return Split({"hub": data.dataset, "commit": commit, "file": name}, read)


def _hub_split(data: DataArguments, commit: str, split: str) -> Split:
    def read() -> Iterator[str]:
        import datasets

        from tinystories_hf.download import explain, resolve_commit

        resolve_commit(data.dataset, "dataset", commit)
        try:
            rows = datasets.load_dataset(
                data.dataset, split=split, revision=commit, streaming=data.streaming
            )
            names = rows.column_names or list(next(iter(rows), {}))  # a stream may have to look
        except (ValueError, datasets.exceptions.DatasetsError) as error:
            raise UserError(
                f"dataset: cannot read split {split} of {data.dataset}: {error} Name others with"
                " train_split and validation_split; validation_split null holds stories out"
            ) from error
        except Exception as error:  # whatever a client throws when the network fails
            raise explain(error, data.dataset, "dataset", commit) from error
        require_column(data.dataset, data.text_column, names)
        table = rows.select_columns([data.text_column]).with_format("arrow")

        def records() -> Iterator[str | None]:
            try:
                for block in table.iter(1000):
                    yield from block[data.text_column].to_pylist()
            except Exception as error:
                raise explain(error, data.dataset, "dataset", commit) from error

        return stories_of_records(data.dataset, records())

    identity = {"hub": data.dataset, "commit": commit, "split": split, "column": data.text_column}
    return Split(identity, read)


def _local_files(paths: list[Path], data: DataArguments) -> Split:
    files: list[dict[str, Any]] = []
    for path in paths:
        with readable("dataset", path):
            if not path.is_file():
                raise UserError(f"dataset: there is no file {path}")
            if path.suffix not in SUFFIXES:
                raise UserError(f"dataset: {path} is none of {', '.join(SUFFIXES)}")
            size = path.stat().st_size
            files.append({"name": path.name, "bytes": size, "sha256": file_sha256(path)})
    text = all(path.suffix == ".txt" for path in paths)
    return Split(
        {"files": files, "column": None if text else data.text_column},
        lambda: itertools.chain.from_iterable(_read_file(path, data.text_column) for path in paths),
        sum(file["bytes"] for file in files) if text else None,
        "bytes" if text else "stories",
    )


def hold_out(split: Split, share: float, seed: int) -> Corpus:
    """Part one split in two by a keyed hash of each story's text.

    The same stories are held out whatever their order, and equal stories always fall on the same
    side, so that no copy of a validation story is trained on.
    """
    key = seed.to_bytes(16, "little", signed=True)
    bound = int(share * 2**64)

    def held(story: str) -> bool:
        digest = hashlib.blake2b(story.encode(), digest_size=8, key=key).digest()
        return int.from_bytes(digest, "little") < bound

    identity = {**split.identity, "held_out_share": share, "held_out_seed": seed}

    def part(name: str, wanted: bool) -> Split:
        return Split(
            {**identity, "part": name},
            lambda: (story for story in split.read() if held(story) == wanted),
            split.total,
            split.unit,
        )

    return Corpus(part("train", False), part("validation", True))


def _read_file(path: Path | HubFile, text_column: str) -> Iterator[str]:
    with readable("dataset", path):
        if path.suffix == ".txt":
            yield from read_text(path)
        else:
            records = read_jsonl if path.suffix == ".jsonl" else read_parquet
            yield from stories_of_records(str(path), records(path, text_column))


def read_text(path: Path | HubFile) -> Iterator[str]:
    r"""Yield the stories of a text file, separated by `<|endoftext|>` on its own line or inline.

    The newlines next to a separator belong to the layout, not to the story; what follows the last
    separator is a story unless it is blank. Line ends `\r\n` and `\r` read as `\n`; a byte-order
    mark is skipped.

    Raises:
        UserError: the file is not UTF-8, or 64 million characters hold no separator.
    """
    rest, mark = "", "\ufeff"  # "utf-8-sig" would take the first byte of a mark for an empty file
    with path.open(encoding="utf-8", newline=None) as stream:
        while True:
            try:
                block = stream.read(BLOCK)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path} is not UTF-8 ({error.reason}, byte {_first_bad_byte(path)});"
                    " convert it first, for instance with iconv"
                ) from None
            if not block:
                break
            block, mark = block.removeprefix(mark), ""
            *stories, rest = (rest + block).split(END_OF_TEXT)
            for story in stories:
                yield story.strip("\n")
            if len(rest) > MAX_STORY_CHARACTERS:
                raise UserError(
                    f"{path} has over {MAX_STORY_CHARACTERS >> 20} million characters without"
                    f" {END_OF_TEXT}; put that line after each story, or use .jsonl"
                )
    if rest.strip():
        yield rest.strip("\n")


def _first_bad_byte(path: Path | HubFile) -> int:
    """Return the offset of the first byte that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    read = 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                return read - pending + error.start
            read += len(block)
    return read - len(decoder.getstate()[0])


def read_jsonl(path: Path | HubFile, text_column: str) -> Iterator[str]:
    """Yield the text of each JSON line; blank lines are skipped.

    Raises:
        UserError: a line is not UTF-8, not a JSON object, has no text under `text_column`, or has
            over 64 million bytes.
    """
    with path.open("rb") as stream:
        lines = iter(lambda: stream.readline(MAX_STORY_CHARACTERS), b"")
        for number, line in enumerate(lines, start=1):
            where = f"{path}, line {number}"
            if len(line) == MAX_STORY_CHARACTERS:
                raise UserError(f"{where} is too long; give each story a line of its own")
            if not line.removeprefix(codecs.BOM_UTF8).strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where} is not JSON in UTF-8: {error}") from None
            if not isinstance(record, dict):
                raise UserError(f"{where} is not a JSON object")
            require_column(where, text_column, list(record))
            yield require_text(where, record[text_column])


def read_parquet(path: Path | HubFile, text_column: str) -> Iterator[str | None]:
    """Yield the text of each row of a Parquet file.

    Raises:
        UserError: not a Parquet file, a damaged one, or it has no `text_column`.
    """
    import pyarrow
    from pyarrow import parquet

    rows = 0
    try:
        source = path if isinstance(path, Path) else path.open("rb")
        with parquet.ParquetFile(source) as table:
            require_column(str(path), text_column, table.schema_arrow.names)
            for batch in table.iter_batches(batch_size=1000, columns=[text_column]):
                yield from batch.column(text_column).to_pylist()
                rows += len(batch)
            if rows != table.metadata.num_rows:  # a damaged page may be left out without a word
                raise OSError(f"{rows} of its {table.metadata.num_rows} rows can be read")
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, KeyError) as error:
        raise UserError(f"{path} is not a Parquet file, or damaged: {error}") from None


def require_column(where: str, text_column: str, columns: list[str]) -> None:
    """Raise a `UserError` unless the column is there."""
    if text_column not in columns:
        raise UserError(
            f"{where} has no column {text_column!r}; name the one that holds the story with"
            f" text_column (there: {', '.join(map(str, columns)) or 'none'})"
        )


def require_text(where: str, value: object) -> str:
    """Return a value that is text, or raise a `UserError`."""
    if not isinstance(value, str):
        raise UserError(f"{where} holds {brief(value)} where text belongs")
    try:
        value.encode()
        return value
    except UnicodeEncodeError as error:  # JSON can spell half of a pair of surrogates
        half = value[error.start]
        raise UserError(f"{where} holds {half!a} at character {error.start}: no text") from None


def stories_of_records(where: str, records: Iterable[str | None]) -> Iterator[str]:
    """Yield the stories of records; one with a separator in its text holds several.

    Raises:
        UserError: a record holds no text.
    """
    for number, record in enumerate(records, start=1):
        *stories, rest = require_text(f"{where}: record {number}", record).split(END_OF_TEXT)
        yield from (story.strip("\n") for story in stories)
        if not stories or rest.strip():
            yield rest.strip("\n") if stories else rest
