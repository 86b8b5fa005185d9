"""The prepared folder on disk: its manifest, and how it is loaded."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinystories_hf.core.errors import UserError
from tinystories_hf.data.splits import Split
from tinystories_hf.data.tokenization import tokenizer as tokenizing

if TYPE_CHECKING:
    # Imported inside functions: while the main thread imports them (2.4 s), another hashes files.
    import datasets
    from transformers import PreTrainedTokenizerFast

SPLITS = ("train", "validation")
ROWS_MANIFEST = "manifest.json"
# The validation stories as text, and which of them occur in training; read by evaluations.
STORIES_FOLDER = "validation_stories.parquet"


@dataclass(frozen=True)
class SplitManifest:
    """All counts of one split: tokens_in = tokens_out + tokens_dropped.

    `tail` holds the dropped tokens (fewer than one row), so that an evaluation can still score
    every token once. `bytes` is the UTF-8 length of the kept stories, without separators.
    """

    source: dict[str, Any]
    stories_read: int
    stories_kept: int
    dropped_null: int
    empty_stories: int
    dropped_empty: int
    dropped_duplicates: int
    dropped_overlap: int
    mojibake_repaired: int
    bytes: int
    tokens_in: int
    tokens_out: int
    tokens_dropped: int
    rows: int
    file_bytes: int
    tail: list[int] = field(repr=False)


@dataclass(frozen=True)
class MixedRows:
    """What a dataset contributes to the training rows of a mixture."""

    dataset: str
    weight: float
    rows: int
    rows_left_out: int


@dataclass(frozen=True)
class StreamedSplit:
    """A split that is read during training: only its source is known, no counts."""

    source: dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """The content of a prepared folder and how it was prepared."""

    fingerprint: str
    context_length: int
    dtype: str
    tokenizer: dict[str, Any]
    cleaning: list[str]
    versions: dict[str, str]
    seconds: float
    train: SplitManifest | StreamedSplit
    validation: SplitManifest
    mixture: list[MixedRows] = field(default_factory=list)

    def split(self, name: str) -> SplitManifest:
        """Return the counts of `train` or `validation`.

        Raises:
            UserError: the split is streamed and has no counts.
        """
        split = self.train if name == "train" else self.validation
        if isinstance(split, StreamedSplit):
            raise UserError(f"streaming: the {name} split was not prepared; set streaming to false")
        return split

    @property
    def prepared(self) -> list[str]:
        """Return the names of the splits that are stored as rows."""
        return [name for name in SPLITS if isinstance(getattr(self, name), SplitManifest)]


@dataclass(frozen=True)
class PreparedData:
    """Packed rows ready for training, with the tokenizer that encoded them.

    If training is streamed, `train` is None and `stream` is the split that it is read from.
    """

    path: Path
    manifest: Manifest
    tokenizer: PreTrainedTokenizerFast
    train: datasets.Dataset | None
    validation: datasets.Dataset
    stream: Split | None = None

    def rows(self, split: str) -> datasets.Dataset:
        """Return the rows of `train` or `validation`.

        Raises:
            UserError: the split is streamed.
        """
        self.manifest.split(split)
        rows: datasets.Dataset = getattr(self, split)
        return rows


def load_prepared(folder: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> PreparedData:
    """Open a prepared folder; rows are memory-mapped.

    Args:
        folder: a folder written by `prepare`.
        tokenizer: the tokenizer that encoded the rows; None loads it from the folder.

    Raises:
        UserError: the folder is not a complete prepared folder, or one of its files is truncated.
    """
    import datasets

    try:
        content = json.loads((folder / ROWS_MANIFEST).read_text(encoding="utf-8"))
        train, validation = (_read_split(content.pop(name)) for name in SPLITS)
        mixture = [MixedRows(**part) for part in content.pop("mixture", [])]
        manifest = Manifest(**content, train=train, validation=validation, mixture=mixture)
        sizes = {name: rows_file(folder, name).stat().st_size for name in manifest.prepared}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} is not a complete prepared folder ({error}); remove it to prepare again"
        ) from None
    for name in manifest.prepared:
        if sizes[name] != manifest.split(name).file_bytes:
            raise UserError(
                f"{rows_file(folder, name)} is damaged; remove {folder} to prepare again"
            )
    rows = {name: datasets.Dataset.from_file(str(rows_file(folder, name))) for name in sizes}
    return PreparedData(
        folder,
        manifest,
        tokenizer or tokenizing.reopen_tokenizer(folder / "tokenizer", manifest.context_length),
        rows.get("train"),
        rows["validation"],
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest into a new prepared folder."""
    content = json.dumps(asdict(manifest), indent=1)
    (folder / ROWS_MANIFEST).write_text(content, encoding="utf-8")


def _read_split(content: dict[str, Any]) -> Any:
    return StreamedSplit(**content) if content.keys() == {"source"} else SplitManifest(**content)


def describe_rows_on_disk(prepared: PreparedData) -> str:
    """Return a human-readable table of the counts of a prepared folder."""
    manifest = prepared.manifest
    parts = [asdict(manifest.split(name)) for name in manifest.prepared]
    keys = [key for key, value in parts[0].items() if isinstance(value, int)]
    lines = [f"{'':20}" + "".join(f"{name:>16}" for name in manifest.prepared)]
    lines += [f"{key:20}" + "".join(f"{part[key]:>16,}" for part in parts) for key in keys]
    lines += [
        f"{part.dataset}: {part.rows:,} training rows, weight {part.weight},"
        f" {part.rows_left_out:,} left out"
        for part in manifest.mixture
    ]
    if isinstance(manifest.train, StreamedSplit):
        lines.append("train is streamed: its stories are tokenized and packed during training")
    tokens = sum(part["tokens_in"] for part in parts)
    return "\n".join(
        [
            *lines,
            f"{tokens:,} tokens prepared in {manifest.seconds:,.1f} s; rows of"
            f" {manifest.context_length}, {manifest.dtype}, at {prepared.path}",
        ]
    )


def token_stream(prepared: PreparedData, split: str) -> np.ndarray[Any, Any]:
    """Return all tokens of a split in order, including the tail; shape `(tokens,)`."""
    rows = prepared.rows(split).with_format("arrow")[:]["input_ids"].combine_chunks()
    tail = np.array(prepared.manifest.split(split).tail, dtype=prepared.manifest.dtype)
    return np.concatenate([rows.flatten().to_numpy(zero_copy_only=False), tail])


def rows_file(folder: Path, split: str) -> Path:
    """Return the Arrow file with the rows of a split, named as `Dataset.save_to_disk` names it."""
    return folder / split / "data-00000-of-00001.arrow"
