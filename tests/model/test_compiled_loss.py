"""The loss of a compiled training step, as on a GPU, here without the kernels of the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional

from tests.model.test_cross_entropy import VOCABULARY, given, stock_loss
from tinystories_hf.core.device import missing_for_compilation
from tinystories_hf.model import cross_entropy, kernels
from tinystories_hf.model.cross_entropy import causal_lm_loss, chunk_bytes_for

pytestmark = [
    pytest.mark.launches,  # the compiler, for each shape and dtype
    pytest.mark.skipif(
        missing_for_compilation() is not None, reason=f"torch.compile: {missing_for_compilation()}"
    ),
]


@pytest.fixture(autouse=True)
def _without_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(kernels, "kernels_available", lambda: False)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def chunks_of(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "chunk_tokens", lambda _: tokens)


@pytest.mark.parametrize("tokens", [1, 37, 50, 111])
def test_it_is_the_cross_entropy_of_pytorch(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """111 tokens, some of them ignored: chunks of 1, odd ones, uneven ones, and all at once."""
    chunks_of(tokens, monkeypatch)
    states, weight, labels = given()
    loss = causal_lm_loss(states, weight, labels, compiled=True)
    exact = tuple(x.detach().double().requires_grad_() for x in (states, weight))
    right = stock_loss(exact[0], exact[1], labels)
    assert abs(loss.item() - right.item()) <= 2e-6 * right.item()
    loss.backward()
    right.backward()
    for ours, of_logits in zip((states, weight), exact, strict=True):
        assert ours.grad is not None
        assert of_logits.grad is not None
        assert (ours.grad - of_logits.grad).norm() <= 2e-6 * of_logits.grad.norm()


def test_accumulated_batches_make_the_gradient_of_one_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chunks_of(37, monkeypatch)
    states, weight, labels = given()
    causal_lm_loss(states, weight, labels, compiled=True).backward()
    assert weight.grad is not None
    whole = weight.grad.clone()
    weight.grad.zero_()
    counted = (labels[:, 1:] != -100).sum()
    for row in range(len(labels)):
        part = slice(row, row + 1)
        causal_lm_loss(states[part], weight, labels[part], counted, compiled=True).backward()
    assert (weight.grad - whole).norm() <= 2e-6 * whole.norm()


@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, 1.0), (torch.float16, 2.0**16)])
def test_under_autocast_it_is_as_exact_as_the_logits_in_that_dtype(
    dtype: torch.dtype, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the scale at which GradScaler starts for fp16."""
    chunks_of(37, monkeypatch)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale > 1)
    grads = []
    for name in ("exact", "stock", "ours"):
        states, weight, labels = given(torch.float64 if name == "exact" else torch.float32)
        with torch.autocast("cpu", dtype, enabled=name != "exact"):
            if name == "ours":
                loss = causal_lm_loss(states, weight, labels, compiled=True)
            else:
                logits = functional.linear(states, weight)
                wide = logits if name == "exact" else logits.float()
                loss = functional.cross_entropy(wide[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        scaled: torch.Tensor = scaler.scale(loss)
        scaled.backward()
        assert states.grad is not None
        assert weight.grad is not None
        grads.append([each.double() / scale for each in (states.grad, weight.grad)])
    for exact, stock, ours in zip(*grads, strict=True):
        assert (ours - exact).norm() < 1.1 * (stock - exact).norm()


def test_labels_that_the_stock_model_refuses_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks_of(37, monkeypatch)
    states, weight, labels = given()
    for label in (VOCABULARY, -1, -101):
        labels[2, 7] = label
        with pytest.raises(IndexError, match=f"^Target {label} is out of bounds"):
            causal_lm_loss(states, weight, labels, compiled=True)
    everything_ignored = torch.full_like(labels, -100)
    assert causal_lm_loss(states, weight, everything_ignored, compiled=True).isnan()


def test_the_logits_held_at_once_fit_the_memory_that_is_free() -> None:
    """Of every card: a sixteenth of it at most, where the least is not more, and 512 MB at most."""
    gigabyte = 2**30
    for free in (gigabyte, 3 * gigabyte, 7 * gigabyte, 15 * gigabyte, 79 * gigabyte):
        assert cross_entropy.LEAST_CHUNK_BYTES <= chunk_bytes_for(free) <= free / 16
    assert chunk_bytes_for(7 * gigabyte) == 2**28
    assert chunk_bytes_for(139 * gigabyte) == 2**29
    assert chunk_bytes_for(0) == cross_entropy.LEAST_CHUNK_BYTES
