"""Prepare rows: read stories, clean and tokenize them, and pack them into rows of equal length.

The prepared folder holds the rows in `train/` and `validation/`, the validation stories as text,
the tokenizer, and `manifest.json` with all counts. `datasets.load_dataset` and
`datasets.load_from_disk` open it. It is cached under a fingerprint of everything that determines
its content, is created by one rename, and is the only data that a run reads. With `streaming` it
holds only the validation split, whose stories are not looked up in training: see `streaming.py`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from pyarrow import parquet

from tinystories_hf.config.data_arguments import DataArguments
from tinystories_hf.config.parsing import local_path
from tinystories_hf.core.errors import UserError, reporting_unreadable
from tinystories_hf.core.files import appearing, free_bytes, reporting_full_disk
from tinystories_hf.data import cleaning, corpus
from tinystories_hf.data.cleaning import CleaningCounts, story_digest
from tinystories_hf.data.packing import RowWriter, row_dtype
from tinystories_hf.data.sources import parse_tokenizer
from tinystories_hf.data.splits import Corpus, Split, no_stories_error, stories_with_progress
from tinystories_hf.data.tokenization import tokenizer as tokenizing
from tinystories_hf.data.tokenization.cut_tokenizer import CutRecord, cut_by_file, cut_by_stories
from tinystories_hf.data.tokenization.tokenize import WordTokenizer

if TYPE_CHECKING:
    # Imported inside functions: while the main thread imports it (2.4 s), another hashes files.
    from transformers import PreTrainedTokenizerFast
from tinystories_hf.data.manifest import (
    STORIES_FOLDER,
    Manifest,
    PreparedData,
    SplitManifest,
    StreamedSplit,
    load_prepared,
    rows_file,
    write_manifest,
)
from tinystories_hf.data.mixture import mix_prepared, parts_of
from tinystories_hf.data.rows_dataset import write_dataset_files

# The version of prepared folders, part of the name that they are cached by. Raise it when the same
# text and settings give other rows or other files; tests/data/test_golden_rows.py fails until then.
# No test covers the training of a tokenizer: raise it also when `train_tokenizer` changes.
ROWS_FORMAT = 2
# Stories per call of the tokenizer: enough to keep its threads busy, and small in memory. 256 to
# 1,000 were equally fast (1.8 million tokens/s on 2 cores), 4,000 was slower.
STORIES_PER_BATCH = 512


def prepare(data: DataArguments, vocab_size: int | None, *, quiet: bool = False) -> PreparedData:
    """Return the packed rows of a corpus, from the cache if they were prepared before.

    The stories of a split are concatenated with an EOS after each and cut into rows. Each row has
    `input_ids`, exactly `context_length` token ids of type `packing.row_dtype`. Several datasets
    are prepared alone and then mixed (`mixture.py`). With `streaming`, only the validation rows are
    prepared. `vocab_size` is None for any size; a tokenizer that is trained needs one.

    Raises:
        UserError: the corpus or tokenizer cannot be used, or a split is shorter than one row.
    """
    if data.other_datasets:
        if data.token_counts is None and vocab_size is not None:
            tokenizing.check_size(tokenizing.load_tokenizer(data, None), data, vocab_size)
        parts = [prepare(part, vocab_size, quiet=quiet) for part in parts_of(data)]
        return mix_prepared(data, parts, prepared_root(data))
    tokenizer = whole = cut = None
    with ThreadPoolExecutor(1) as pool:  # hash large files while the libraries are imported
        opening = pool.submit(corpus.open_corpus, data)
        try:
            if parse_tokenizer(data.tokenizer).kind != "train":
                tokenizer = tokenizing.load_tokenizer(data, vocab_size)
        finally:  # if both are wrong, the error of the corpus is raised
            found = opening.result()
    if tokenizer is not None and vocab_size is not None and len(tokenizer) > vocab_size:
        whole, tokenizer = tokenizer, None
        if data.token_counts is not None:
            tokenizer, cut = cut_by_file(whole, vocab_size, data)
        elif data.streaming:
            raise UserError(
                "streaming: the stories would have to be counted first to choose"
                f" {vocab_size} tokens; give --token_counts, or vocab_size {len(whole)}"
            )
    elif data.token_counts is not None:
        raise UserError("token_counts: nothing is cut; lower vocab_size, or omit token_counts")
    fingerprint = _fingerprint(data, found, tokenizer or whole, vocab_size, counted=not tokenizer)
    folder = prepared_root(data) / fingerprint
    with reporting_unreadable("prepared_dir", folder):
        made = folder.exists()
    if not made:
        if not data.streaming:
            check_disk_for_rows(folder, found)
        new = appearing(folder, "prepared_dir", "preparing")
        with reporting_full_disk(folder, "preparing"), new as work:
            if work is not None:
                if tokenizer is None:
                    assert vocab_size is not None
                    tokenizer, cut = _tokenizer_of_stories(data, found, vocab_size, whole, quiet)
                _write(work, data, found, tokenizer, fingerprint, quiet, cut)
    prepared = load_prepared(folder, tokenizer)
    return replace(prepared, stream=found.train) if data.streaming else prepared


def _tokenizer_of_stories(
    data: DataArguments,
    found: Corpus,
    vocab_size: int,
    whole: PreTrainedTokenizerFast | None,
    quiet: bool,
) -> tuple[PreTrainedTokenizerFast, CutRecord | None]:
    """Train a tokenizer on the training stories, or cut `whole` to their most common tokens."""
    if not any(story and story.strip() for story in found.train.read()):
        raise no_stories_error(data.dataset, "train", found.train)
    what = "training the tokenizer" if whole is None else "counting tokens"
    seen = stories_with_progress(found.train, what, quiet)
    stories = (story for story in seen if story is not None)
    context = data.context_length
    if whole is None:
        return tokenizing.train_tokenizer(stories, vocab_size, context, data.eos_token), None
    return cut_by_stories(whole, vocab_size, stories, data)


def check_disk_for_rows(folder: Path, found: Corpus) -> None:
    """Raise a `UserError` if the rows of a text are sure not to fit on the disk."""
    # A token takes two bytes and covers four to five characters of English. Compressed text has
    # fewer bytes than characters, so that this is an underestimate for it.
    needed = found.train.text_bytes // 2
    free = free_bytes(folder)
    if free < needed:
        raise UserError(
            f"prepared_dir: the rows need about {needed / 1e6:,.0f} MB, but {free / 1e6:,.0f} MB"
            f" are free at {folder.parent}; free some space or choose another prepared_dir"
        )


def prepared_root(data: DataArguments) -> Path:
    """Return the folder that contains all prepared folders."""
    if data.prepared_dir is not None:
        return local_path("prepared_dir", data.prepared_dir)
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "tinystories_hf"


def _fingerprint(
    data: DataArguments,
    found: Corpus,
    tokenizer: PreTrainedTokenizerFast | None,
    vocab_size: int | None,
    *,
    counted: bool,
) -> str:
    """Return the name of the prepared folder: different inputs give different names.

    `counted`: the tokenizer depends on the training stories too.
    """
    kind = f"train {vocab_size}"
    if tokenizer is not None:
        kind = tokenizing.content_sha256(tokenizer) + (f" cut {vocab_size}" if counted else "")
    parts = {
        "format": ROWS_FORMAT,
        "tokenizers": metadata.version("tokenizers"),
        "train": found.train.identity,
        "validation": found.validation.identity,
        "cleaning": cleaning.options(data),
        "context_length": data.context_length,
        "tokenizer": kind,
        "eos_token": data.eos_token,
        "streaming": data.streaming,
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    # The dataset's name is for people. File systems allow 255 bytes, up to four per character.
    return f"{Path(data.dataset).stem[:50]}-{data.context_length}-{digest[:16]}"


def _write(
    work: Path,
    data: DataArguments,
    found: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    fingerprint: str,
    quiet: bool,
    cut: CutRecord | None,
) -> None:
    """Write all files of a prepared folder into `work`."""
    start = time.perf_counter()
    train_counts, validation_counts = CleaningCounts(), CleaningCounts()
    in_training: dict[bytes, bool] = {}
    texts: list[str] = []

    def look_up(batch: list[str]) -> None:
        in_training.update(dict.fromkeys(in_training.keys() & set(map(story_digest, batch)), True))

    write = partial(_write_split, work, data, tokenizer, quiet)
    train: SplitManifest | StreamedSplit = StreamedSplit(found.train.identity)
    if not data.streaming:
        once = replace(data, drop_duplicates=False, drop_validation_overlap=False)
        validation_read = cleaning.clean(found.validation.read(), once, CleaningCounts())
        in_training = dict.fromkeys(map(story_digest, validation_read), False)
        train = write("train", found.train, train_counts, look_up)
    exclude = train_counts.digests if data.drop_validation_overlap else set[bytes]()
    validation = write("validation", found.validation, validation_counts, texts.extend, exclude)
    known = [in_training.get(story_digest(text)) for text in texts]  # None: not looked up
    parquet.write_table(pa.table({"text": texts, "in_training": known}), work / STORIES_FOLDER)
    tokenizer.save_pretrained(work / "tokenizer")
    manifest = Manifest(
        fingerprint=fingerprint,
        context_length=data.context_length,
        dtype=row_dtype(len(tokenizer)).name,
        tokenizer={
            "name": parse_tokenizer(data.tokenizer).short_name,
            "revision": data.tokenizer_revision,
            "size": len(tokenizer),
            "vocab_sha256": tokenizing.vocab_sha256(tokenizer),
            "merges_sha256": tokenizing.merges_sha256(tokenizer),
            "content_sha256": tokenizing.content_sha256(tokenizer),
            "eos_token": tokenizer.eos_token,
            "cut": None if cut is None else asdict(cut),
        },
        cleaning=cleaning.options(data),
        versions={name: metadata.version(name) for name in ("tokenizers", "datasets")},
        seconds=round(time.perf_counter() - start, 3),
        train=train,
        validation=validation,
    )
    write_manifest(work, manifest)
    write_dataset_files(work, manifest)


def _write_split(
    work: Path,
    data: DataArguments,
    tokenizer: PreTrainedTokenizerFast,
    quiet: bool,
    name: str,
    split: Split,
    counts: CleaningCounts,
    see: Callable[[list[str]], None],
    other_split: Set[bytes] = frozenset(),
) -> SplitManifest:
    """Write the rows of one split and return its counts; `see` is called with each batch."""
    stories = cleaning.clean(
        stories_with_progress(split, f"preparing {name}", quiet), data, counts, other_split
    )
    text_bytes = 0
    tokenize = WordTokenizer(tokenizer)
    path = rows_file(work, name)
    path.parent.mkdir()
    with RowWriter(path, data.context_length, len(tokenizer)) as writer:
        while batch := list(islice(stories, STORIES_PER_BATCH)):
            text_bytes += sum(len(story.encode()) for story in batch)
            see(batch)
            writer.write(tokenize(batch))
    if not counts.stories_kept:
        raise no_stories_error(data.dataset, name, split)
    if not writer.rows:
        raise UserError(
            f"dataset: the {name} split of {data.dataset} has {writer.tokens_in} tokens, fewer than"
            f" one row of context_length {data.context_length}; add text, or lower"
            " context_length" + (", or raise validation_share" if name == "validation" else "")
        )
    kept = asdict(counts)
    del kept["digests"]
    return SplitManifest(
        source=split.identity,
        **kept,
        bytes=text_bytes,
        tokens_in=writer.tokens_in,
        tokens_out=writer.rows * data.context_length,
        tokens_dropped=len(writer.tail),
        rows=writer.rows,
        file_bytes=path.stat().st_size,
        tail=writer.tail.tolist(),
    )
