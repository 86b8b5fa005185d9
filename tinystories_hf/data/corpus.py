"""Open the corpus given by `dataset`: a dataset on the Hub, files, a folder, or the toy corpus.

Stories are streamed: at most one block of text is in memory at a time.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator

from tinystories_hf.config.arguments import DataArguments
from tinystories_hf.config.parsing import local_path
from tinystories_hf.core.errors import UserError, reporting_unreadable
from tinystories_hf.data.hub_files import hub_splits
from tinystories_hf.data.local_files import file_splits, folder_splits, pattern_splits
from tinystories_hf.data.readers.formats import endings_of, is_saved
from tinystories_hf.data.splits import Corpus, OptionalStory, ReportProgress, Split, hold_out

TOY = "toy"


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
            return file_splits(data, [path])
        if path.is_dir():
            return folder_splits(path, data)
        if glob.has_magic(data.dataset):
            return pattern_splits(path, data)
    looks_local = data.dataset.startswith((".", "/", "~")) or endings_of(path.name)
    if looks_local or data.dataset.count("/") != 1:
        raise UserError(
            f"dataset: {data.dataset} does not exist; give an existing file or folder,"
            " owner/name of a dataset on the Hub, or `toy`"
        )
    return hub_splits(data)


def _toy(data: DataArguments) -> Split:
    from tinystories_hf.data import toy

    def stories(advance: ReportProgress) -> Iterator[OptionalStory]:
        for story in toy.toy_stories(data.toy_stories, data.toy_seed):
            advance(1)
            yield story

    identity = {"stories": data.toy_stories, "seed": data.toy_seed, "format": toy.TOY_FORMAT}
    return Split({"toy": identity}, stories, data.toy_stories)
