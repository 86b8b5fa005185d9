"""Random calls from Python into the C++ of the package, most of them fit and many of them hostile.

    python -m tests.support.hostile_calls {kernels,words,index} CALLS SOURCES [FLAGS...]

Compiles the C++ of the folder SOURCES with FLAGS on top. Prints how many calls came back from C++,
and how many were refused by an exception. Sanitizers report what else happens; see
tests/test_sanitizers.py.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tinystories_hf.core import native

REFUSALS = (ValueError, IndexError, RuntimeError, TypeError, MemoryError, OverflowError)
# Around vectors of 16, and around the tiles of keys of every head dimension.
LENGTHS = (0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129)
Call = Callable[[], object]


def kernel_calls(draw: random.Random) -> Iterator[Call]:
    """Yield calls of the attention and of the cross-entropy, in turn."""
    import torch

    while True:
        torch.manual_seed(draw.getrandbits(32))
        torch.set_num_threads(draw.choice((1, 1, 2, 3)))
        yield from attention_calls(draw)
        yield loss_call(draw)
        yield cross_entropy_call(draw)


def attention_calls(draw: random.Random) -> Iterator[Call]:
    """Yield a call forwards and one backwards."""
    import torch

    from tinystories_hf.model import kernels

    dim = draw.choice(kernels.HEAD_DIMS if fit(draw) else (1, 5, 128))
    heads, batch, length = draw.randrange(1, 4), draw.randrange(3), draw.choice(LENGTHS)
    if dim == 4 and draw.random() < 0.1:
        length = draw.choice((511, 512, 513))
    settings = kernels.AttentionSettings(
        heads=heads if fit(draw) else draw.choice((0, -1, heads + 1, 2**40)),
        window=draw.choice(
            (1, 2, 16, 17, max(1, length - 1), length + 1, 2**62) if fit(draw) else (0, -1)
        ),
        dropout=draw.choice(
            (0.0, 0.1, 0.5, 1.0, 1 - 1e-12) if fit(draw) else (-0.1, 1.1, float("nan"))
        ),
        seed=draw.choice((0, 7, 2**63 - 1)),
    )
    shape = (batch, length, heads * dim)
    inputs = [spoilt(draw, torch.randn(shape)) for _ in range(3)]
    yield partial(kernels.attention_forward, settings, *inputs)
    sums = torch.zeros(batch, heads, length)
    rest = [spoilt(draw, x) for x in (torch.randn(shape), torch.randn(shape), sums)]
    yield partial(kernels.attention_backward, settings, *rest, *inputs)


def loss_call(draw: random.Random) -> Call:
    """Return a call of one of the two losses of the head."""
    import torch

    from tinystories_hf.model.cross_entropy import causal_lm_loss, token_losses

    vocabulary, hidden = draw.choice((1, 2, 63, 64, 65, 130)), draw.randrange(1, 5)
    batch, length = draw.randrange(4), draw.choice(LENGTHS[:9])
    states = torch.randn(batch, length, hidden, requires_grad=draw.random() < 0.5)
    weight = torch.randn(vocabulary, hidden, dtype=draw.choice((torch.float32, torch.bfloat16)))
    labels = hostile_labels(draw, (batch, length), vocabulary)
    if draw.random() < 0.5:
        return partial(token_losses, states.flatten(0, 1), weight, labels.flatten())
    return partial(causal_lm_loss, states, weight.float(), labels)


def cross_entropy_call(draw: random.Random) -> Call:
    import torch

    from tinystories_hf.model import kernels

    vocabulary, tokens = draw.choice((0, 1, 2, 63, 64, 65, 130)), draw.choice((0, 1, 15, 16, 32))
    logits = torch.randn(vocabulary, tokens) * draw.choice((1, 100, float("inf"), float("nan")))
    logits = logits.to(draw.choice((torch.float32, torch.bfloat16, torch.float16)))
    labels = spoilt(draw, hostile_labels(draw, (tokens,), vocabulary, 0.0))
    logits, gradient = spoilt(draw, logits), draw.random() < 0.5
    return partial(kernels.cross_entropy_, logits, labels, with_gradient=gradient)


def hostile_labels(
    draw: random.Random, shape: tuple[int, ...], vocabulary: int, other_type: float = 0.3
) -> Any:
    """Return labels that lie in the vocabulary or are -100, but for one of them in some cases."""
    import torch

    labels = torch.randint(max(1, vocabulary), shape)
    labels[torch.rand(shape) < 0.3] = -100
    flat = labels.view(-1)
    if len(flat):
        flat[draw.randrange(len(flat))] = vocabulary - 1
    if len(flat) and draw.random() < 0.3:
        wrong = (vocabulary, vocabulary + 1, -1, -99, -101, 5_000_000, 2**62, -(2**63))
        flat[draw.randrange(len(flat))] = draw.choice(wrong)
    if draw.random() < other_type:
        types = (torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.float32)
        labels = labels.to(draw.choice(types))
    return labels


def fit(draw: random.Random) -> bool:
    """Return whether this part of a call is one that C++ can do something with."""
    return draw.random() < 0.95


def spoilt(draw: random.Random, tensor: Any) -> Any:
    """Return a tensor as it is, or now and then as none of the kernels takes it."""
    import torch

    if fit(draw):
        return tensor
    changes: list[Callable[[Any], Any]] = [
        lambda x: x.to("meta"),
        lambda x: x.double(),
        lambda x: x[:-1],
        lambda x: x[..., 1:],
        lambda x: x[None],
        lambda x: torch.stack([x, x], -1)[..., 0],
        lambda x: x.transpose(0, -1),
        lambda x: x[:1].expand_as(x),
        lambda x: x.new_empty(0),
        lambda x: x.to_sparse(),
    ]
    try:
        return draw.choice(changes)(tensor)
    except RuntimeError:  # an empty tensor cannot be changed in some of the ways
        return tensor


PIECES = (
    *(" ", "  ", "\n", "\t", "a", "Lily", " cat", "42", "'", "'s", "'ll", "'r", "!", "?!", "..."),
    *("x" * 300, "\0", "\x7f", "\x1c", "é", "日本", "🙂", "<|endoftext|>", "<|"),
)


def word_calls(draw: random.Random) -> Iterator[Call]:
    """Yield calls of a tokenizer that begins anew now and then, and may spell words too long."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from tinystories_hf.data.tokenization import tokenize

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: at for at, token in enumerate(["<|endoftext|>", *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(["<|endoftext|>"])

    class Spelling:
        """The tokenizer, but each word is spelled several times over."""

        def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
            return backend.encode_batch_fast([text * 5 for text in texts], **options)

    while True:
        tokenize._MAX_WORDS = draw.choice((4, 64, 1 << 18))
        tokenize._MAX_UNKNOWN = draw.choice((1, 8, 1 << 14))
        words = tokenize.WordTokenizer(SimpleNamespace(eos_token_id=0, backend_tokenizer=backend))
        if draw.random() < 0.3:
            words._backend = Spelling()
        for _ in range(10):
            stories = [
                "".join(draw.choices(PIECES[: draw.choice((16, 99))], k=draw.randrange(20)))
                for _ in range(draw.randrange(5))
            ]
            yield partial(words, stories)


def index_calls(draw: random.Random) -> Iterator[Call]:
    """Yield questions to an index, of which one in four has a damaged file."""
    from tinystories_hf.data.splits import Split
    from tinystories_hf.evaluation.suites.training_index import TrainingIndex, write_index

    def text(most: int) -> list[str]:
        return [draw.choice("abcdefghij") for _ in range(draw.randrange(most))]

    while True:
        stories = [" ".join(text(30)) for _ in range(draw.randrange(1, 6))]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_index(folder, stories, Split({}, lambda _: iter(())), [])
            if draw.random() < 0.25:
                damage(draw, folder)
            try:
                index = TrainingIndex(folder)
            except ValueError as error:
                yield partial(refuse, error)
                continue
            # In memory of its own, whose ends a sanitizer sees.
            index._words = np.array(index._words)  # type: ignore[assignment]
            for _ in range(5):
                texts = [text(20) for _ in range(draw.randrange(4))]
                k = draw.randrange(4)
                grams = [tuple(draw.choices("abcdefghijz", k=k)) for _ in range(draw.randrange(6))]
                yield partial(index.counts, grams)
                yield partial(index.nearest, texts, k)
                yield partial(index.longest_runs, texts)


def damage(draw: random.Random, folder: Path) -> None:
    """Cut a file of an index short, lengthen it, or change a byte of it."""
    path = folder / draw.choice(["words.raw", "starts.npy", "manifest.json", "vocabulary.txt"])
    content = bytearray(path.read_bytes())
    at = draw.randrange(len(content) + 1)
    if draw.random() < 0.5 and at < len(content):
        content[at] = draw.randrange(256)
    path.write_bytes(content[:at] if draw.random() < 0.3 else content)


def refuse(error: ValueError) -> None:
    raise error


PARTS: dict[str, Callable[[random.Random], Iterator[Call]]] = {
    "kernels": kernel_calls,
    "words": word_calls,
    "index": index_calls,
}


def main() -> None:
    """Call until so many calls have come back from C++."""
    part, calls, sources, *flags = sys.argv[1:]
    native._SOURCES, native._FLAGS = Path(sources), (*native._FLAGS, *flags)
    ends: Counter[str] = Counter()
    for call in PARTS[part](random.Random(0)):
        try:
            call()
            ends["returned"] += 1
        except REFUSALS:
            ends["refused"] += 1
        if ends["returned"] == int(calls):
            break
    print(f"{ends['returned']} returned, {ends['refused']} refused")


if __name__ == "__main__":
    main()
