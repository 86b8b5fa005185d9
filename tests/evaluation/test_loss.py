from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import GPTNeoForCausalLM

from tinystories_hf.arguments import Arguments
from tinystories_hf.evaluation.loss import TokenLoss, token_loss
from tinystories_hf.modeling import build_model
from tinystories_hf.tokenizer import train_tokenizer
from tinystories_hf.toy import toy_stories

CONTEXT = 16
TOKENIZER = train_tokenizer(toy_stories(200), 320, CONTEXT)


@pytest.fixture
def model(tiny_arguments: Callable[..., Arguments]) -> GPTNeoForCausalLM:
    torch.manual_seed(0)
    built = build_model(tiny_arguments("--initializer_range", "0.3").model, TOKENIZER, CONTEXT)
    return built.eval()


def stream(length: int) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    return np.random.default_rng(length).integers(0, 320, length).astype(np.uint16)


def slow_nats(model: GPTNeoForCausalLM, ids: list[int]) -> float:
    """Score one token at a time in float64, in windows that begin with the token before them."""
    exact = model.double().requires_grad_(False)
    total = 0.0
    for position, target in enumerate(ids):
        start = position // CONTEXT * CONTEXT
        context = [model.config.eos_token_id, *ids][start : position + 1]
        logits = exact(torch.tensor([context])).logits[0, -1]
        total -= float(torch.log_softmax(logits, -1)[target])
    model.float()
    return total


@pytest.mark.parametrize("length", [1, 15, 16, 17, 50])
def test_the_loss_is_that_of_a_slow_computation_token_by_token(
    model: GPTNeoForCausalLM, length: int
) -> None:
    ids = stream(length)
    found = token_loss(model, ids, 100, context_length=CONTEXT, batch_size=2)
    nats = slow_nats(model, ids.tolist())
    assert found.tokens == length
    assert found.loss == pytest.approx(nats / length, rel=1e-6)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / 100, rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(nats / length), rel=1e-5)


def test_the_loss_is_the_same_for_every_batch_size(model: GPTNeoForCausalLM) -> None:
    losses = [
        token_loss(model, stream(777), 100, context_length=CONTEXT, batch_size=size).loss
        for size in (1, 3, 16, 1000)
    ]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)


def test_a_model_that_knows_nothing_pays_the_logarithm_of_the_vocabulary(
    model: GPTNeoForCausalLM,
) -> None:
    torch.nn.init.zeros_(model.transformer.wte.weight)
    found = token_loss(model, stream(100), 100, context_length=CONTEXT, batch_size=4)
    assert found.loss == pytest.approx(math.log(320), rel=1e-6)


def test_dropout_is_off_while_measuring_and_on_again_after(
    tiny_arguments: Callable[..., Arguments],
) -> None:
    model = build_model(tiny_arguments("--embed_dropout", "0.5").model, TOKENIZER, CONTEXT)

    def measure() -> TokenLoss:
        return token_loss(model, stream(40), 100, context_length=CONTEXT, batch_size=4)

    model.train()
    assert measure() == measure()
    assert model.training
