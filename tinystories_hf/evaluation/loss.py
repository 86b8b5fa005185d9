"""The token-exact loss: every token of a split predicted once, the same for every batch size.

The Trainer's own eval_loss is a training signal: it predicts 511 of the 512 tokens of a row, leaves
the tail out, and averages over batches. What is published comes from here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.nn import functional
from transformers import PreTrainedModel

from tinystories_hf.hardware import full_precision
from tinystories_hf.modeling import GPTNeoForCausalLM

PROTOCOL = "packed stream, windows of the context length, fp32, every token counted once"


@dataclass(frozen=True)
class TokenLoss:
    """The loss over a whole split.

    `loss` is in nats per token, an EOS after each story counted; `bits_per_byte` divides the same
    sum by the UTF-8 bytes of the stories, so that it compares across tokenizers.
    """

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int
    protocol: str = PROTOCOL


def token_loss(
    model: PreTrainedModel,
    stream: np.ndarray[Any, Any],
    text_bytes: int,
    *,
    context_length: int,
    batch_size: int,
) -> TokenLoss:
    """Return the mean negative log-likelihood of a stream of token ids, shape (tokens,).

    The stream, preceded by one EOS, is cut into windows of `context_length` that predict
    `context_length` tokens each; the last one may be shorter. In a distributed run every process
    takes its share of the windows and all return the same result.
    """
    eos = np.array([model.config.eos_token_id], dtype=np.int64)
    inputs = np.concatenate([eos, stream[:-1].astype(np.int64)])
    targets = stream.astype(np.int64)
    whole = len(targets) // context_length * context_length
    windows = [
        (part[:whole].reshape(-1, context_length), part[None, whole:]) for part in (inputs, targets)
    ]
    state = PartialState()
    training = model.training
    model.eval()
    nats = 0.0
    for rows, labels in zip(*windows, strict=True):
        starts = range(0, len(rows) if rows.size else 0, batch_size)
        for start in starts[state.process_index :: state.num_processes]:
            nats += _nats(
                model, rows[start : start + batch_size], labels[start : start + batch_size]
            )
    model.train(training)
    nats = math.fsum(gather_object([nats])) if state.num_processes > 1 else nats
    loss = nats / len(targets)
    return TokenLoss(
        loss=loss,
        perplexity=math.exp(loss) if loss < 700 else math.inf,
        bits_per_byte=nats / math.log(2) / text_bytes,
        tokens=len(targets),
        bytes=text_bytes,
    )


@torch.inference_mode()
@full_precision()
def _nats(
    model: PreTrainedModel, rows: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]
) -> float:
    """Return the summed negative log-likelihood of the labels; the sum is taken in float64."""
    input_ids = torch.from_numpy(rows).to(model.device)
    targets = torch.from_numpy(labels).to(model.device)
    if isinstance(model, GPTNeoForCausalLM):
        nats = model.token_losses(input_ids, targets)
    else:
        logits = model(input_ids, use_cache=False).logits.float()
        nats = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return float(nats.double().sum())
