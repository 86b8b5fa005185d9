"""Read the text column of records: Parquet files, saved datasets, Arrow tables, JSON objects."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinystories_hf.config.parsing import brief
from tinystories_hf.core.errors import UserError
from tinystories_hf.data.readers.formats import files_of, require_content
from tinystories_hf.data.splits import END_OF_TEXT, OptionalStory, ReportProgress, ignore_progress

if TYPE_CHECKING:
    from tinystories_hf.core.download import HubFile


def read_parquet(
    path: Path | HubFile, text_column: str, advance: ReportProgress = ignore_progress
) -> Iterator[tuple[int, object]]:
    """Yield the number of each row of a Parquet file and its text.

    Raises:
        UserError: it is not a Parquet file, is damaged, or has no `text_column`.
    """
    import pyarrow
    from pyarrow import parquet

    with path.open("rb") as raw:
        require_content(path, raw.peek(32), "Parquet")
        size = raw.seek(0, io.SEEK_END)
        try:
            # Arrow reads a path several times faster than a file object.
            with parquet.ParquetFile(path if isinstance(path, Path) else raw) as table:
                total, rows = table.metadata.num_rows, 0
                texts_of(str(path), table.schema_arrow.empty_table(), text_column)
                batches = table.iter_batches(batch_size=1000, columns=[text_column])
                for batch in _with_progress(batches, total, size, advance):
                    for text in texts_of(str(path), batch, text_column):
                        rows += 1
                        yield rows, text
                if rows != total:  # Arrow may silently skip a damaged page
                    raise OSError(f"only {rows} of its {total} rows can be read")
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError, KeyError) as error:
            raise UserError(f"{path} is not a Parquet file, or is damaged: {error}") from None


def read_saved(
    path: Path, text_column: str, advance: ReportProgress = ignore_progress
) -> Iterator[tuple[int, object]]:
    """Yield the number of each row of a dataset written by `save_to_disk`, and its text.

    Raises:
        UserError: the folder is damaged, or has no `text_column`.
    """
    import datasets
    import pyarrow

    try:
        table = datasets.load_from_disk(str(path)).with_format("arrow")
        size = sum(file.stat().st_size for file in files_of(path))
        blocks = _with_progress(table.iter(1000), len(table), size, advance)
        found = itertools.chain.from_iterable(
            texts_of(str(path), block, text_column) for block in blocks
        )
        yield from enumerate(found, start=1)
    except (pyarrow.ArrowException, OSError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a saved dataset, or is damaged: {error}") from None


def _with_progress(
    blocks: Iterable[Any], rows: int, size: int, advance: ReportProgress
) -> Iterator[Any]:
    """Yield blocks of rows; after each, report its share of `size`."""
    seen = reported = 0
    for block in blocks:
        yield block
        seen += len(block)
        due = size * seen // rows if rows else size
        advance(due - reported)
        reported = due
    advance(size - reported)


def texts_of(where: str, table: Any, text_column: str) -> list[object]:
    """Return the texts of an Arrow table or batch; `a.b` is the field b of the column a.

    Raises:
        UserError: the column or field does not exist.
    """
    import pyarrow
    from pyarrow import compute

    require_column(where, text_column, table.schema.names)
    first, *fields = [text_column] if text_column in table.schema.names else text_column.split(".")
    column = table.column(first)
    for field in fields:
        names = [one.name for one in column.type] if pyarrow.types.is_struct(column.type) else []
        require_column(f"{where}: {first}", field, names)
        column = compute.struct_field(column, field)
    texts: list[object] = column.to_pylist()
    return texts


def text_at(where: str, record: object, text_column: str) -> object:
    """Return the value of a key in a JSON object; `a.b` is the key b of the object a.

    Raises:
        UserError: the record is not an object, or the key does not exist.
    """
    if not isinstance(record, dict):
        raise UserError(f"{where} is not a JSON object")
    require_column(where, text_column, list(record))
    if text_column in record:
        return record[text_column]
    value: object = record
    for key in text_column.split("."):
        if value is None:  # the text of a null object is null
            return None
        require_column(where, key, list(value) if isinstance(value, dict) else [])
        value = value[key]  # type: ignore[index]
    return value


def require_column(where: str, text_column: str, columns: list[str]) -> None:
    """Raise a `UserError` unless the column, or the column of which it is a field, exists."""
    if text_column not in columns and text_column.split(".")[0] not in columns:
        raise UserError(
            f"{where} has no column {text_column!r}; set text_column to the column with the story"
            f" (found: {', '.join(map(str, columns)) or 'none'})"
        )


def require_text(where: str, value: object) -> str:
    """Return the value if it is text that UTF-8 can encode.

    Raises:
        UserError: it is null, has another type, or has an unpaired surrogate.
    """
    if value is None:
        raise UserError(f"{where} is null instead of text; set drop_null to skip such records")
    if not isinstance(value, str):
        raise UserError(f"{where} is {brief(value)} instead of text; correct or remove it")
    try:
        value.encode()
        return value
    except UnicodeEncodeError as error:  # JSON can contain an unpaired surrogate
        half = value[error.start]
        raise UserError(
            f"{where} has the unpaired surrogate {half!a} at character {error.start};"
            " correct or remove it"
        ) from None


def stories_of_records(
    where: str, records: Iterable[tuple[int, object]], drop_null: bool = False
) -> Iterator[OptionalStory]:
    """Yield the stories of numbered records; a text with separators is several stories.

    Raises:
        UserError: a record has no text.
    """
    for number, record in records:
        if record is None and drop_null:
            yield None
            continue
        *stories, rest = require_text(f"{where} {number}", record).split(END_OF_TEXT)
        yield from (story.strip("\n") for story in stories)
        if not stories or rest.strip():
            yield rest.strip("\n") if stories else rest
