"""Open the corpus given by `dataset`: a dataset on the Hub, files, a folder, or the toy corpus.

Stories are streamed: at most one block of text is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

from tinystories_hf.config.arguments import DataArguments
from tinystories_hf.core.errors import reporting_unreadable
from tinystories_hf.data.readers.hub_files import hub_splits
from tinystories_hf.data.readers.local_files import file_splits, folder_splits, pattern_splits
from tinystories_hf.data.sources import parse_dataset
from tinystories_hf.data.splits import Corpus, OptionalStory, ReportProgress, Split, hold_out


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
    source = parse_dataset(data.dataset)
    if source.kind == "toy":
        return _toy(data), None
    if source.path is None:
        return hub_splits(data)
    with reporting_unreadable("dataset", source.path):
        if source.kind == "file":
            return file_splits(data, [source.path])
        if source.kind == "folder":
            return folder_splits(source.path, data)
        return pattern_splits(source.path, data)


def _toy(data: DataArguments) -> Split:
    from tinystories_hf.data import toy

    def stories(advance: ReportProgress) -> Iterator[OptionalStory]:
        for story in toy.toy_stories(data.toy_stories, data.toy_seed):
            advance(1)
            yield story

    identity = {"stories": data.toy_stories, "seed": data.toy_seed, "format": toy.TOY_FORMAT}
    return Split({"toy": identity}, stories, data.toy_stories)
