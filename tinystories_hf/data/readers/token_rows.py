"""Read the stories of a saved dataset whose rows are token ids, as other tools prepare them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinystories_hf.core.errors import UserError
from tinystories_hf.core.files import file_sha256
from tinystories_hf.data.readers.formats import files_of, is_saved
from tinystories_hf.data.splits import OptionalStory, ReportProgress, Split

if TYPE_CHECKING:
    import datasets

IDS = "input_ids"
# A story of more ids is none: the rows have no EOS between stories.
LONGEST_STORY = 1 << 20
# Names of a training and of a validation split in a folder of `DatasetDict.save_to_disk`.
TRAIN, VALIDATION = ("train",), ("validation", "valid", "dev", "val")
Decode = Callable[[Sequence[int]], str]


def saved_rows(folder: Path, text_column: str) -> tuple[Path, Path | None] | None:
    """Return the folders of the training and the validation rows, None if this is no such dataset.

    A column of text comes first: only a dataset without `text_column` is read by its ids.
    """
    if is_saved(folder):
        train, validation = folder, None
    elif (folder / "dataset_dict.json").is_file():
        found = {path.name: path for path in folder.iterdir() if is_saved(path)}
        splits = [
            next((found[n] for n in names if n in found), None) for names in (TRAIN, VALIDATION)
        ]
        if splits[0] is None:
            return None
        train, validation = splits[0], splits[1]
    else:
        return None
    names = _open(train).column_names
    return (train, validation) if IDS in names and text_column not in names else None


def token_split(
    folder: Path, decode: Decode, eos_token_id: int, size: int, tokenizer: str
) -> Split:
    """Return the stories of rows: the ids of all rows in order, divided at each EOS.

    Args:
        folder: a folder of `Dataset.save_to_disk` with lists of ids in `input_ids`.
        decode: returns the text of the ids of a story.
        eos_token_id: the id after each story.
        size: ids must be below this.
        tokenizer: identifies the tokenizer.
    """
    rows = _open(folder)

    def stories(advance: ReportProgress) -> Iterator[OptionalStory]:
        story: list[int] = []
        for block in rows.with_format("arrow").iter(1000):
            for row in block[IDS].to_pylist():
                for token in row:
                    if not 0 <= token < size:
                        raise UserError(
                            f"dataset: {folder} has the id {token}, which the tokenizer does not"
                            " have; give the tokenizer that made the rows"
                        )
                    if token == eos_token_id:
                        yield decode(story)
                        story = []
                    else:
                        story.append(token)
                if len(story) > LONGEST_STORY:
                    raise UserError(
                        f"dataset: {folder} has {len(story):,} ids without the id {eos_token_id} of"
                        " the EOS token between stories; set eos_token to what divides them"
                    )
            advance(len(block))
        if story:
            yield decode(story)

    files = [
        {"name": f"{folder.name}/{f.name}", "sha256": file_sha256(f)} for f in files_of(folder)
    ]
    return Split({"files": files, "column": IDS, "tokenizer": tokenizer}, stories, len(rows))


def _open(folder: Path) -> datasets.Dataset:
    import datasets
    import pyarrow

    try:
        return datasets.load_from_disk(str(folder))
    except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} is not a saved dataset, or is damaged: {error}") from None
