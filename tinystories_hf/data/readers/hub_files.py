"""The splits of a dataset on the Hub: by the names of its splits, or by files of it."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator

from tinystories_hf.config.data_arguments import DataArguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.data.readers.formats import KINDS, format_of, is_text
from tinystories_hf.data.readers.split_files import matching, note_single_shard, other_shards
from tinystories_hf.data.readers.tables import require_column, stories_of_records, texts_of
from tinystories_hf.data.readers.text_files import read_files, separator_identity
from tinystories_hf.data.splits import OptionalStory, ReportProgress, Split


def hub_splits(data: DataArguments) -> tuple[Split, Split | None]:
    """Return the splits of a Hub dataset; a pinned commit needs no network until it is read.

    Raises:
        UserError: the dataset or revision does not exist, the Hub cannot be reached, or
            `validation_file` is set without `train_file`.
    """
    from tinystories_hf.core.download import resolve_commit

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
        from tinystories_hf.core.download import HubFile, download_files, list_files

        there = list_files(data.dataset, commit)
        apart = matching(without, there) if without else []
        names = [name for name in matching(pattern, there) if name not in apart]
        if not names:
            raise UserError(f"dataset: {data.dataset} has no file {pattern} at {commit}")
        if len(names) == 1:
            note_single_shard(names[0], other_shards(names[0], filter(format_of, there)))
        if data.streaming:
            files = [HubFile(data.dataset, commit, name) for name in names]
            return read_files(files, data, advance)
        folder = download_files(data.dataset, "dataset", commit, [glob.escape(n) for n in names])
        return read_files([folder / name for name in names], data, advance)

    if not format_of(pattern) and not glob.has_magic(pattern):
        raise UserError(f"dataset: {pattern} has an unknown format; supported formats: {KINDS}")
    identity = {"hub": data.dataset, "commit": commit, "file": pattern}
    column = {} if is_text(pattern) else {"column": data.text_column}
    if without is not None:
        identity["without"] = without
    return Split({**identity, **column, **separator_identity(data)}, stories, unit="bytes")


def _hub_split(data: DataArguments, commit: str, split: str) -> Split:
    def stories(advance: ReportProgress) -> Iterator[OptionalStory]:
        import datasets

        from tinystories_hf.core.download import download_error, resolve_commit

        resolve_commit(data.dataset, "dataset", commit)
        try:
            rows = datasets.load_dataset(
                data.dataset,
                data.dataset_config,
                split=split,
                revision=commit,
                streaming=data.streaming,
            )
            names = rows.column_names or list(next(iter(rows), {}))  # None for some streams
        except (ValueError, datasets.exceptions.DatasetsError) as error:
            raise UserError(
                f"dataset: cannot read split {split} of {data.dataset}: {error} Choose a"
                " configuration with dataset_config, or other splits with train_split and"
                " validation_split; with validation_split null, a share of the"
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
    if data.dataset_config is not None:
        identity["config"] = data.dataset_config
    return Split(identity, stories)
