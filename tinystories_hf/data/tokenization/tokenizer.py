"""The tokenizer, loaded from the Hub or a folder, or trained; any fast tokenizer is supported.

GPT-Neo has a single special token, `<|endoftext|>`, for BOS, EOS and padding
(https://huggingface.co/EleutherAI/gpt-neo-125m). This token, or the setting `eos_token`, is
appended to every story and is learned like any other token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tinystories_hf.config.data_arguments import DataArguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.data.sources import parse_tokenizer
from tinystories_hf.data.splits import END_OF_TEXT
from tinystories_hf.data.tokenization.cut_tokenizer import can_be_cut

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tinystories_hf.data.tokenization.saved_tokenizer import (
        PreTrainedTokenizerFast as StoryTokenizerFast,
    )

# The trainer allocates memory for all entries before it reads text (540 MB for 2^28), and aborts
# the process if there is not enough.
MOST_ENTRIES = 1 << 24
FILES = ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"]
FILES += ["special_tokens_map.json", "added_tokens.json", "config.json"]
FILES += ["vocab.txt", "tokenizer.model", "spiece.model"]  # of BERT, Llama and T5


def load_tokenizer(data: DataArguments, vocab_size: int | None) -> StoryTokenizerFast:
    """Load `data.tokenizer` from a folder or the Hub, and check its size and its pinned hashes.

    `vocab_size` is None for a pretrained model, whose embedding may have more rows. If it is less
    than the size of a byte-level BPE, the caller has to cut the tokenizer (`cut_tokenizer.py`).

    Raises:
        UserError: it does not exist, has no token `data.eos_token`, its size does not fit
            `vocab_size`, or its content differs from the hashes in the configuration.
    """
    from transformers import AutoTokenizer

    from tinystories_hf.core.download import download_files
    from tinystories_hf.data.tokenization.saved_tokenizer import story_tokenizer

    name = data.tokenizer
    folder = parse_tokenizer(name).path
    if folder is None:
        folder = download_files(name, "tokenizer", data.tokenizer_revision, FILES)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # a broken tokenizer.json can raise any type of exception
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"tokenizer: {name} does not contain a tokenizer: {reason}; give another --tokenizer"
        ) from error
    check_tokenizer(tokenizer, data, vocab_size)
    return story_tokenizer(
        tokenizer.backend_tokenizer, data.eos_token, data.context_length, tokenizer.unk_token
    )


def train_tokenizer(
    stories: Iterable[str], vocab_size: int, context_length: int, eos_token: str = END_OF_TEXT
) -> StoryTokenizerFast:
    """Train a byte-level BPE of exactly `vocab_size` entries; `eos_token` has id 0.

    Raises:
        UserError: `vocab_size` is too small for all bytes, or larger than the text supports.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from tinystories_hf.data.tokenization.saved_tokenizer import story_tokenizer

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size <= len(alphabet):
        raise UserError(
            f"vocab_size {vocab_size} is too small for a byte-level BPE; use 257 or more"
        )
    if vocab_size > MOST_ENTRIES:
        raise UserError(f"vocab_size {vocab_size} is more than any text supports; lower it")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[eos_token],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(stories, trainer)
    if backend.get_vocab_size() != vocab_size:
        raise UserError(
            f"the text supports a vocabulary of {backend.get_vocab_size()}, not vocab_size"
            f" {vocab_size}; lower vocab_size or give more text"
        )
    return story_tokenizer(backend, eos_token, context_length)


def reopen_tokenizer(folder: Path, context_length: int) -> StoryTokenizerFast:
    """Load the tokenizer of a prepared folder with the settings it had when it was saved."""
    from transformers import AutoTokenizer

    from tinystories_hf.data.tokenization.saved_tokenizer import story_tokenizer

    saved = AutoTokenizer.from_pretrained(folder)
    return story_tokenizer(
        saved.backend_tokenizer, saved.eos_token, context_length, saved.unk_token
    )


def check_tokenizer(
    tokenizer: PreTrainedTokenizerFast, data: DataArguments, vocab_size: int | None
) -> None:
    """Check that a tokenizer matches the configuration.

    Transformers can silently build an empty tokenizer, so the size is checked first.

    Raises:
        UserError: as `load_tokenizer`.
    """
    if not tokenizer.is_fast:
        raise UserError(f"tokenizer: {data.tokenizer} has no fast version; give a tokenizer.json")
    if vocab_size is not None and not (vocab_size < len(tokenizer) and can_be_cut(tokenizer)):
        check_size(tokenizer, data, vocab_size)
    vocabulary = tokenizer.get_vocab()
    if max(vocabulary.values()) >= len(tokenizer):
        raise UserError(
            f"tokenizer: {data.tokenizer} has ids up to {max(vocabulary.values())} but only"
            f" {len(tokenizer)} entries; number its entries from 0 without gaps"
        )
    if data.eos_token not in tokenizer.get_added_vocab():
        own = tokenizer.eos_token
        hint = "one that it has" if own is None else f"its own EOS token, {own}"
        raise UserError(
            f"tokenizer: {data.tokenizer} has no special token {data.eos_token}; set eos_token to"
            f" {hint}"
        )
    pins = (data.tokenizer_vocab_sha256, data.tokenizer_merges_sha256)
    found = (vocab_sha256(tokenizer), merges_sha256(tokenizer))
    for part, pin, content in zip(("vocab", "merges"), pins, found, strict=True):
        if pin is not None and pin != content:
            has = f"has sha256 {content}" if content else "does not exist"
            raise UserError(
                f"tokenizer: the {part} of {data.tokenizer} {has}, but"
                f" tokenizer_{part}_sha256 expects {pin}; use the tokenizer that the"
                " configuration was written for, or remove this setting"
            )


def check_size(tokenizer: PreTrainedTokenizerFast, data: DataArguments, vocab_size: int) -> None:
    """Check that a tokenizer has `vocab_size` entries.

    Raises:
        UserError: it does not.
    """
    if len(tokenizer) != vocab_size:
        raise UserError(
            f"tokenizer: {data.tokenizer} has {len(tokenizer)} entries but vocab_size is"
            f" {vocab_size}; set vocab_size to {len(tokenizer)} or choose another tokenizer"
        )


def vocab_sha256(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the sha256 of the vocabulary, serialized like GPT-2's vocab.json.

    It is computed from the loaded tokenizer and does not depend on how a repository stores it.
    """
    by_id = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    return hashlib.sha256(json.dumps(by_id).encode()).hexdigest()


def merges_sha256(tokenizer: PreTrainedTokenizerFast) -> str | None:
    """Return the sha256 of the merges, serialized like GPT-2's merges.txt; None without merges."""
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"].get("merges")
    if merges is None:
        return None
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    return hashlib.sha256("\n".join(["#version: 0.2", *lines, ""]).encode()).hexdigest()


def content_sha256(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the sha256 of everything that determines the ids of a text."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
