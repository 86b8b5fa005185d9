"""Open the corpus given by `dataset`: a dataset on the Hub, files, a folder, or the toy corpus.

Stories are streamed: at most one block of text is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tinystories_hf.config.data_arguments import DataArguments
from tinystories_hf.core.errors import UserError, reporting_unreadable
from tinystories_hf.data.mixture import chain_corpora, parts_of
from tinystories_hf.data.readers.hub_files import hub_splits
from tinystories_hf.data.readers.local_files import file_splits, folder_splits, pattern_splits
from tinystories_hf.data.readers.token_rows import saved_rows, token_split
from tinystories_hf.data.sources import parse_dataset
from tinystories_hf.data.splits import (
    Corpus,
    OptionalStory,
    ReportProgress,
    Split,
    hold_out,
    share_of,
)
from tinystories_hf.data.tokenization import tokenizer as tokenizing


def open_corpus(data: DataArguments) -> Corpus:
    """Find the splits of the corpus in `data.dataset`, without reading any story yet.

    If the dataset has no validation split, a seeded share of its stories is held out. A note is
    printed for files of a folder that are not read, and for a shard that is read without the rest.

    Raises:
        UserError: the file, folder, Hub dataset or one of its files does not exist or has an
            unknown format, or it is ambiguous which files of a folder form a split.
    """
    if data.other_datasets:
        return chain_corpora(data, [open_corpus(part) for part in parts_of(data)])
    train, validation = _find_splits(data)
    if validation is None:
        found = hold_out(train, data.validation_share, data.validation_seed)
        train, validation = found.train, found.validation
    return Corpus(share_of(train, data.train_share), validation)


def _find_splits(data: DataArguments) -> tuple[Split, Split | None]:
    source = parse_dataset(data.dataset)
    if data.dataset_config is not None and source.kind != "hub":
        raise UserError(f"dataset_config: {data.dataset} is not a dataset on the Hub; omit it")
    if source.kind == "toy":
        return _toy(data), None
    if source.path is None:
        return hub_splits(data)
    with reporting_unreadable("dataset", source.path):
        rows = saved_rows(source.path, data.text_column) if source.path.is_dir() else None
        if rows is not None:
            return _token_splits(data, *rows)
        if source.kind == "file":
            return file_splits(data, [source.path])
        if source.kind == "folder":
            return folder_splits(source.path, data)
        return pattern_splits(source.path, data)


def _token_splits(
    data: DataArguments, train: Path, validation: Path | None
) -> tuple[Split, Split | None]:
    """Return the splits of rows of token ids, decoded by the tokenizer of the run.

    Raises:
        UserError: no tokenizer is named.
    """
    if data.tokenizer == "train":
        raise UserError(
            f"dataset: {data.dataset} has token ids instead of a column {data.text_column!r}; give"
            " the --tokenizer that made them, or the --text_column with the story"
        )
    tokenizer = tokenizing.load_tokenizer(data, None)
    decode = partial(tokenizer.backend_tokenizer.decode, skip_special_tokens=False)
    known = (tokenizer.eos_token_id, len(tokenizer), tokenizing.content_sha256(tokenizer))
    return (
        token_split(train, decode, *known),
        None if validation is None else token_split(validation, decode, *known),
    )


def _toy(data: DataArguments) -> Split:
    from tinystories_hf.data import toy

    def stories(advance: ReportProgress) -> Iterator[OptionalStory]:
        for story in toy.toy_stories(data.toy_stories, data.toy_seed):
            advance(1)
            yield story

    identity = {"stories": data.toy_stories, "seed": data.toy_seed, "format": toy.TOY_FORMAT}
    return Split({"toy": identity}, stories, data.toy_stories)
