"""Loss suite: the mean loss over every token of a split, independent of the batch size.

The Trainer's eval_loss is only a training signal: it predicts 511 of the 512 tokens of a packed
sequence, omits the incomplete last sequence, and averages over batches. Published losses are
computed here.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tinystories_hf.core.device import full_precision
from tinystories_hf.core.errors import UserError
from tinystories_hf.core.processes import is_main_process
from tinystories_hf.evaluation.intervals import Interval, block_length, ratio_interval
from tinystories_hf.evaluation.validation import (
    PACKED,
    PROTOCOLS,
    ScoringWindows,
    TokenizedStories,
    Validation,
    scoring_windows,
    tokenize_stories,
)
from tinystories_hf.model.modeling import GPTNeoForCausalLM

Losses = np.ndarray[Any, np.dtype[np.float64]]
# The limit for the logits of models that compute all of them at once: those of 512 tokens with a
# vocabulary of 50,257 take 103 MB in fp32.
LOGITS_BYTES = 2**28
# Marks a loss that is not computed yet. A model's loss may be NaN or infinite, but not -inf.
_UNKNOWN = -math.inf


@dataclass(frozen=True)
class PositionLoss:
    """The mean loss of the tokens whose position in their window is in [first, end)."""

    first: int
    end: int
    loss: float
    tokens: int


@dataclass(frozen=True)
class TokenLoss:
    """The loss of one protocol over stories.

    `loss` is in nats per token, including the end of each story. `bits_per_byte` divides the same
    sum by the UTF-8 bytes of the stories, which makes it comparable across tokenizers. Intervals
    are 95% bootstrap intervals over stories, for packed stories over blocks of neighbours.
    """

    protocol: str
    loss: float
    loss_interval: Interval | None
    perplexity: float
    bits_per_byte: float
    bits_per_byte_interval: Interval | None
    stories: int
    tokens: int
    bytes: int
    by_position: list[PositionLoss]


@dataclass(frozen=True)
class SplitLoss:
    """The loss over a complete split by both protocols.

    `in_training` is the number of stories that also occur in the training split. `not_in_training`
    is the loss over the other stories by both protocols, None if those are all stories or none.
    Both are None if training is streamed.
    """

    packed: TokenLoss
    by_story: TokenLoss
    stories: int
    in_training: int | None
    not_in_training: dict[str, TokenLoss] | None


def split_loss(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    validation: Validation,
    *,
    context_length: int,
    batch_size: int,
    scratch: Path | None = None,
    quiet: bool = False,
) -> SplitLoss:
    """Compute the loss over a validation split.

    In a distributed run each process computes its share and all return the same result. Computed
    losses are kept in files that start with `scratch` (a path for each model) until the suite is
    complete, so that an interrupted evaluation resumes.

    Raises:
        UserError: the tokenizer has no EOS token, or all stories are empty.
    """
    stories = tokenize_stories(tokenizer, validation.texts)
    if not stories.bytes.any():
        raise UserError(
            "dataset: all validation stories are empty; check validation_file and text_column"
        )
    known = validation.in_training
    everything = np.ones(len(validation.texts), dtype=bool)
    fresh = everything if known is None else ~known
    complete, rest = {}, {}
    blocks = {PACKED: block_length(len(stories.starts), len(stories.ids), context_length)}
    for protocol in PROTOCOLS:
        scored = scoring_windows(stories, protocol, context_length)
        losses = score_tokens(
            model, scored, batch_size, f"loss, {protocol}", scratch=scratch, quiet=quiet
        )
        positions = window_positions(scored)
        block = blocks.get(protocol, 1)
        complete[protocol] = summarize_losses(
            stories, losses, positions, protocol, everything, block
        )
        if not fresh.all() and stories.bytes[fresh].any():
            rest[protocol] = summarize_losses(stories, losses, positions, protocol, fresh, block)
    if scratch is not None:
        for path in scratch.parent.glob(f"{scratch.name}-*-{_rank()}.npy"):
            path.unlink()
    return SplitLoss(
        packed=complete["packed"],
        by_story=complete["by_story"],
        stories=len(fresh),
        in_training=None if known is None else int(known.sum()),
        not_in_training=rest or None,
    )


def score_tokens(
    model: PreTrainedModel,
    scored: ScoringWindows,
    batch_size: int,
    what: str = "loss",
    *,
    scratch: Path | None = None,
    quiet: bool = False,
) -> Losses:
    """Return the negative log-likelihood of every target in nats, (tokens,)."""
    state = PartialState()
    losses = _open_losses(scored, batch_size, scratch)
    lengths = scored.windows[:, 1] - scored.windows[:, 0]
    order = np.argsort(-lengths, kind="stable")  # batches of similar length
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    training = model.training
    model.eval()
    hidden = True if quiet or not is_main_process() else None  # None: shown on a terminal
    own = batches[state.process_index :: state.num_processes]
    tokens = [int((scored.windows[batch, 1] - scored.windows[batch, 2]).sum()) for batch in own]
    with tqdm(total=sum(tokens), unit=" tokens", unit_scale=True, desc=what, disable=hidden) as bar:
        for batch, count in zip(own, tokens, strict=True):
            windows = scored.windows[batch]
            if (losses[windows[:, 2]] == _UNKNOWN).any():
                found = _window_losses(model, scored, windows)
                for (begin, end, counted), row in zip(windows.tolist(), found, strict=True):
                    losses[counted:end] = row[counted - begin : end - begin]
            bar.update(count)
    model.train(training)
    mine: Losses = np.array(losses)
    return mine if state.num_processes == 1 else np.max(gather_object([mine]), axis=0)


def _open_losses(scored: ScoringWindows, batch_size: int, scratch: Path | None) -> Losses:
    """Return the losses computed so far, (tokens,), memory-mapped if `scratch` is given."""
    shape = (len(scored.targets),)
    if scratch is None:
        return np.full(shape, _UNKNOWN)
    parts = (scored.inputs, scored.targets, scored.windows, np.array([batch_size]))
    digest = hashlib.blake2b(b"".join(part.tobytes() for part in parts), digest_size=8).hexdigest()
    path = scratch.with_name(f"{scratch.name}-{digest}-{_rank()}.npy")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".unfinished.npy")
        np.save(aside, np.full(shape, _UNKNOWN))
        aside.replace(path)
    losses: Losses = np.load(path, mmap_mode="r+")
    return losses


def _rank() -> str:
    state = PartialState()
    return f"{state.process_index}of{state.num_processes}"


@torch.inference_mode()
@full_precision()
def _window_losses(
    model: PreTrainedModel, scored: ScoringWindows, windows: np.ndarray[Any, Any]
) -> Losses:
    """Return the losses of windows, (windows, longest); those beyond a window are invalid.

    Shorter windows are padded at the end, which does not affect the positions before it.
    """
    width = int((windows[:, 1] - windows[:, 0]).max())
    inputs, targets = (torch.zeros(len(windows), width, dtype=torch.long) for _ in range(2))
    for row, (begin, end, _) in enumerate(windows.tolist()):
        inputs[row, : end - begin] = torch.from_numpy(scored.inputs[begin:end])
        targets[row, : end - begin] = torch.from_numpy(scored.targets[begin:end])
    inputs, targets = inputs.to(model.device), targets.to(model.device)
    if isinstance(model, GPTNeoForCausalLM):
        return model.token_losses(inputs, targets).double().cpu().numpy()
    rows = max(1, LOGITS_BYTES // (4 * width * model.get_input_embeddings().weight.shape[0]))
    found = []
    for part in range(0, len(windows), rows):
        logits = model(inputs[part : part + rows], use_cache=False).logits.float()
        labels = targets[part : part + rows]
        found.append(functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none"))
    return torch.cat(found).double().cpu().numpy()


def window_positions(scored: ScoringWindows) -> np.ndarray[Any, Any]:
    """Return the position of each token in the window in which it is scored, (tokens,)."""
    positions = np.empty(len(scored.targets), dtype=np.int64)
    for begin, end, counted in scored.windows.tolist():
        positions[counted:end] = np.arange(counted - begin, end - begin)
    return positions


def summarize_losses(
    stories: TokenizedStories,
    losses: Losses,
    positions: np.ndarray[Any, Any],
    protocol: str,
    chosen: np.ndarray[Any, np.dtype[np.bool_]],
    block: int = 1,
) -> TokenLoss:
    """Return the loss over the `chosen` stories, (stories,); `block`: see `ratio_interval`."""
    nats = np.add.reduceat(losses, stories.starts)[chosen]
    tokens, text_bytes = stories.lengths[chosen], stories.bytes[chosen]
    counted = np.repeat(chosen, stories.lengths)
    loss = nats.sum() / tokens.sum()
    return TokenLoss(
        protocol=PROTOCOLS[protocol],
        loss=float(loss),
        loss_interval=ratio_interval(nats, tokens, block),
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        bits_per_byte=bits_per_byte(nats, text_bytes),
        bits_per_byte_interval=ratio_interval(nats / math.log(2), text_bytes, block),
        stories=len(nats),
        tokens=int(tokens.sum()),
        bytes=int(text_bytes.sum()),
        by_position=_by_position(losses[counted], positions[counted]),
    )


def bits_per_byte(nats: Losses, text_bytes: np.ndarray[Any, Any]) -> float:
    """Return the sum of the losses of stories in bits, divided by their bytes, (stories,) each."""
    return float((nats / math.log(2)).sum() / text_bytes.sum())


def _by_position(losses: Losses, positions: np.ndarray[Any, Any]) -> list[PositionLoss]:
    """Return the mean loss at positions 0, 1, 2 to 3, 4 to 7 and so on."""
    bins = np.ceil(np.log2(positions + 1)).astype(np.int64)
    sums, counts = np.bincount(bins, weights=losses), np.bincount(bins)
    return [
        PositionLoss(
            0 if k == 0 else 2 ** (k - 1), 2**k, float(sums[k] / counts[k]), int(counts[k])
        )
        for k in np.flatnonzero(counts).tolist()
    ]
