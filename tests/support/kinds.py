"""Small fast tokenizers of every kind there is, trained on the toy corpus.

Each is made once in a process: two trainings of a WordPiece give two vocabularies.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from tinystories_hf.data.toy import toy_stories

SIZE = 300


@cache
def word_level() -> PreTrainedTokenizerFast:
    """Return whole words, most of them unknown; decoded with spaces between them."""
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=SIZE, special_tokens=["<unk>", "<|endoftext|>"])
    return _trained(backend, trainer, eos_token="<|endoftext|>", unk_token="<unk>")


@cache
def word_piece() -> PreTrainedTokenizerFast:
    """Return BERT's kind: lower case, a template around each text, its end `[SEP]`."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=True)
    marks = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    trainer = trainers.WordPieceTrainer(vocab_size=SIZE, special_tokens=marks)
    found = _trained(
        backend, trainer, eos_token="[SEP]", bos_token="[CLS]", pad_token="[PAD]", unk_token="[UNK]"
    )
    return _with_template(found, "[CLS]", "[SEP]")


@cache
def unigram() -> PreTrainedTokenizerFast:
    """Return T5's kind: pieces that begin with their space, which a decoded text loses."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=SIZE, special_tokens=["<unk>", "</s>"], unk_token="<unk>"
    )
    return _trained(backend, trainer, eos_token="</s>", unk_token="<unk>")


@cache
def byte_fallback() -> PreTrainedTokenizerFast:
    """Return Llama's kind: BPE of characters, other characters in bytes, `<s>` before each text."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )  # fmt: skip
    marks = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=SIZE + 100, special_tokens=marks)
    found = _trained(backend, trainer, eos_token="</s>", bos_token="<s>", unk_token="<unk>")
    return _with_template(found, "<s>")


KINDS = [word_level, word_piece, unigram, byte_fallback]


def _trained(
    backend: Tokenizer, trainer: trainers.Trainer, **marks: str
) -> PreTrainedTokenizerFast:
    backend.train_from_iterator(toy_stories(100, 0), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **marks)


def _with_template(
    tokenizer: PreTrainedTokenizerFast, before: str, after: str = ""
) -> PreTrainedTokenizerFast:
    marks = [(mark, tokenizer.convert_tokens_to_ids(mark)) for mark in (before, after) if mark]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{before} $A {after}".strip(), special_tokens=marks
    )
    return tokenizer


def saved(tokenizer: PreTrainedTokenizerFast, folder: Path) -> tuple[str, ...]:
    """Save a tokenizer; return the flags of train.py that name it."""
    tokenizer.save_pretrained(folder)
    return (
        *("--tokenizer", str(folder), "--vocab_size", str(len(tokenizer))),
        *("--eos_token", str(tokenizer.eos_token)),
    )
