"""Mix several datasets: each is prepared alone, then rows of each are taken by weight.

The rows of a mixture are as many as the weights allow without a repeated row. Each dataset
contributes its first rows, exactly its share of them; a run shuffles all rows together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from tinystories_hf.config.data_arguments import DataArguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.core.files import appearing, free_bytes, reporting_full_disk
from tinystories_hf.data.manifest import (
    STORIES_FOLDER,
    MixedRows,
    PreparedData,
    SplitManifest,
    load_prepared,
    rows_file,
    write_manifest,
)
from tinystories_hf.data.packing import RowWriter
from tinystories_hf.data.rows_dataset import write_dataset_files
from tinystories_hf.data.sources import parse_dataset
from tinystories_hf.data.splits import Corpus, OptionalStory, ReportProgress, Split


def parts_of(data: DataArguments) -> list[DataArguments]:
    """Return the settings of each dataset of a mixture, or of the only dataset.

    Settings that qualify a dataset, such as its revision, belong to the first one.
    """
    alone = replace(data, other_datasets=[], dataset_weights=[])
    defaults: dict[str, Any] = {
        declared.name: declared.default
        for declared in fields(DataArguments)
        if declared.metadata["belongs_to"] == "dataset"
        and declared.name not in ("other_datasets", "dataset_weights")
    }
    return [alone, *(replace(alone, dataset=name, **defaults) for name in data.other_datasets)]


def chain_corpora(data: DataArguments, corpora: Sequence[Corpus]) -> Corpus:
    """Return the stories of several corpora one after the other, for evaluations."""
    return Corpus(
        _chain(data, [corpus.train for corpus in corpora]),
        _chain(data, [corpus.validation for corpus in corpora]),
    )


def _chain(data: DataArguments, splits: Sequence[Split]) -> Split:
    def stories(advance: ReportProgress) -> Iterator[OptionalStory]:  # noqa: ARG001, mixed units
        return chain.from_iterable(split.read() for split in splits)

    parts = zip(data.dataset_weights, splits, strict=True)
    mixture = [{"weight": weight, **split.identity} for weight, split in parts]
    return Split({"mixture": mixture}, stories)


def shares(available: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Return how many rows to take of each dataset: the most whose shares are exact to one row.

    Args:
        available: the rows of each dataset.
        weights: positive numbers, such as 0.9 and 0.1; only their ratios matter.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    parts = [weight / sum(exact) for weight in exact]
    total = min(int(rows / part) for rows, part in zip(available, parts, strict=True))
    whole = [int(total * part) for part in parts]
    # The largest remainders are rounded up, as far as rows are left.
    order = sorted(range(len(parts)), key=lambda i: (whole[i] - total * parts[i], i))
    for index in order[: total - sum(whole)]:
        whole[index] += whole[index] < available[index]
    return whole


def mix_prepared(data: DataArguments, parts: Sequence[PreparedData], root: Path) -> PreparedData:
    """Return the rows of a mixture, from the cache if they were mixed before.

    Raises:
        UserError: a dataset is too small for its share, or the disk is full.
    """
    weights = data.dataset_weights
    taken = shares([part.manifest.split("train").rows for part in parts], weights)
    for name, rows in zip([data.dataset, *data.other_datasets], taken, strict=True):
        if rows == 0:
            raise UserError(f"dataset_weights: {name} has no row for its share; use more text")
    key = [[part.manifest.fingerprint for part in parts], weights]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    folder = root / f"mixture-{data.context_length}-{digest}"
    if not folder.exists():
        needed = sum(part.manifest.split("train").file_bytes for part in parts)
        if free_bytes(folder) < needed:
            raise UserError(
                f"prepared_dir: the mixture needs up to {needed / 1e6:,.0f} MB at {root}; free some"
                " space or choose another prepared_dir"
            )
        new = appearing(folder, "prepared_dir", "mixing")
        with reporting_full_disk(folder, "mixing"), new as work:
            if work is not None:
                _write(work, data, parts, taken, folder.name)
    return load_prepared(folder, parts[0].tokenizer)


def _write(
    work: Path,
    data: DataArguments,
    parts: Sequence[PreparedData],
    taken: Sequence[int],
    fingerprint: str,
) -> None:
    first = parts[0].manifest
    whole = [part.manifest.split("validation").rows for part in parts]
    manifest = replace(
        first,
        fingerprint=fingerprint,
        seconds=round(sum(part.manifest.seconds for part in parts), 3),
        mixture=_mixed_rows(data, parts, taken),
        train=_write_split(work, "train", data, parts, taken),
        validation=_write_split(work, "validation", data, parts, whole),
    )
    tables = [parquet.read_table(part.path / STORIES_FOLDER) for part in parts]
    parquet.write_table(pa.concat_tables(tables), work / STORIES_FOLDER)
    parts[0].tokenizer.save_pretrained(work / "tokenizer")
    write_manifest(work, manifest)
    write_dataset_files(work, manifest)


def _mixed_rows(
    data: DataArguments, parts: Sequence[PreparedData], taken: Sequence[int]
) -> list[MixedRows]:
    names = [parse_dataset(name).short_name for name in (data.dataset, *data.other_datasets)]
    there = [part.manifest.split("train").rows for part in parts]
    columns = zip(names, data.dataset_weights, taken, there, strict=True)
    return [MixedRows(name, weight, rows, most - rows) for name, weight, rows, most in columns]


def _write_split(
    work: Path, name: str, data: DataArguments, parts: Sequence[PreparedData], taken: Sequence[int]
) -> SplitManifest:
    """Copy the first rows of each dataset, and return the sums of the counts."""
    path = rows_file(work, name)
    path.parent.mkdir()
    counts = [part.manifest.split(name) for part in parts]
    with RowWriter(path, data.context_length, len(parts[0].tokenizer)) as writer:
        for part, rows in zip(parts, taken, strict=True):
            column = part.rows(name).with_format("arrow")[:rows]["input_ids"]
            for block in column.chunks:
                writer.write(block.flatten().to_numpy())
    parts_and_weights = zip(data.dataset_weights, counts, strict=True)
    mixture = [{"weight": weight, **count.source} for weight, count in parts_and_weights]
    sums: dict[str, Any] = {
        key: sum(getattr(count, key) for count in counts)
        for key, value in asdict(counts[0]).items()
        if isinstance(value, int)
    }
    sums |= {"rows": writer.rows, "tokens_out": writer.rows * data.context_length}
    sums["tokens_dropped"] = sums["tokens_in"] - sums["tokens_out"]
    sums["file_bytes"] = path.stat().st_size
    tail = [token for count in counts for token in count.tail] if name == "validation" else []
    return SplitManifest(source={"mixture": mixture}, tail=tail, **sums)
