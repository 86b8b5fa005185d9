"""The tokenizer: loaded from the Hub or a folder, or trained; the one place that knows its marks.

GPT-Neo has a single special token, `<|endoftext|>`: it begins a text, ends it and pads a batch
(https://huggingface.co/EleutherAI/gpt-neo-125m). It is appended to every story and learnt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tinystories_hf.arguments import DataArguments
from tinystories_hf.errors import UserError, readable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
TRAIN = "train"
# The trainer sets memory aside for all entries before it reads: 540 MB for 2^28, and it ends the
# process where there is not enough.
MOST_ENTRIES = 1 << 24
FILES = ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"]
FILES += ["special_tokens_map.json", "added_tokens.json", "config.json"]


def load_tokenizer(data: DataArguments, vocab_size: int) -> PreTrainedTokenizerFast:
    """Load `data.tokenizer` from a folder or the Hub, and check it against model and pins.

    Raises:
        UserError: there is none by that name, it has no `<|endoftext|>`, its size is not
            `vocab_size`, or its content is not what the configuration pins.
    """
    from transformers import AutoTokenizer

    from tinystories_hf.download import download_files

    name = data.tokenizer
    folder = Path(name)
    with readable("tokenizer", folder):
        is_folder = folder.is_dir()
    if not is_folder:
        if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise UserError(f"tokenizer: {name} is not a folder; give a folder or a Hub name")
        folder = download_files(name, "tokenizer", data.tokenizer_revision, FILES)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # a broken tokenizer.json brings out every kind there is
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"tokenizer: {name} holds no tokenizer: {reason}") from error
    check_tokenizer(tokenizer, data, vocab_size)
    return with_marks(tokenizer, data.context_length)


def train_tokenizer(
    stories: Iterable[str], vocab_size: int, context_length: int
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of exactly `vocab_size` entries, `<|endoftext|>` being id 0.

    Raises:
        UserError: `vocab_size` is too small for all bytes, or larger than the text supports.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

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
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(stories, trainer)
    if backend.get_vocab_size() != vocab_size:
        raise UserError(
            f"the text supports a vocabulary of {backend.get_vocab_size()}, not vocab_size"
            f" {vocab_size}; lower vocab_size or give more text"
        )
    return with_marks(PreTrainedTokenizerFast(tokenizer_object=backend), context_length)


def with_marks(tokenizer: PreTrainedTokenizerFast, context_length: int) -> PreTrainedTokenizerFast:
    """Set bos, eos and pad to `<|endoftext|>` and the length to what the model is trained on."""
    tokenizer.bos_token = tokenizer.eos_token = tokenizer.pad_token = END_OF_TEXT
    tokenizer.model_max_length = context_length
    return tokenizer


def check_tokenizer(
    tokenizer: PreTrainedTokenizerFast, data: DataArguments, vocab_size: int
) -> None:
    """Refuse a tokenizer that is not the one the configuration speaks of.

    Transformers can build an empty tokenizer without a word, so its size is checked first.

    Raises:
        UserError: as `load_tokenizer`.
    """
    if not tokenizer.is_fast:
        raise UserError(f"tokenizer: {data.tokenizer} has no fast version; give a tokenizer.json")
    if len(tokenizer) != vocab_size:
        raise UserError(
            f"tokenizer: {data.tokenizer} has {len(tokenizer)} entries but vocab_size is"
            f" {vocab_size}; set vocab_size to {len(tokenizer)} or choose another tokenizer"
        )
    if tokenizer.convert_tokens_to_ids(END_OF_TEXT) is None or END_OF_TEXT not in set(
        tokenizer.get_added_vocab()
    ):
        raise UserError(f"tokenizer: {data.tokenizer} has no special token {END_OF_TEXT}")
    pins = (data.tokenizer_vocab_sha256, data.tokenizer_merges_sha256)
    found = (vocab_sha256(tokenizer), merges_sha256(tokenizer))
    for part, pin, content in zip(("vocab", "merges"), pins, found, strict=True):
        if pin is not None and pin != content:
            raise UserError(
                f"tokenizer: the {part} of {data.tokenizer} has sha256 {content}, but"
                f" tokenizer_{part}_sha256 expects {pin}; use the tokenizer that the"
                " configuration was made for, or drop the pin"
            )


def vocab_sha256(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the sha256 of the vocabulary as the bytes of GPT-2's own vocab.json.

    Computed from the loaded tokenizer, so that it does not depend on how a repository stores it.
    """
    by_id = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    return hashlib.sha256(json.dumps(by_id).encode()).hexdigest()


def merges_sha256(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the sha256 of the merges as the bytes of GPT-2's own merges.txt."""
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    return hashlib.sha256("\n".join(["#version: 0.2", *lines, ""]).encode()).hexdigest()


def content_sha256(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the sha256 of all that decides how text becomes ids, for the fingerprint of rows."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
