"""The attention of a GPU, on the CPU: filled-up heads, and the window of flash attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.model.test_attention import configuration, gradients, pair, tokens
from tinystories_hf.model import gpu_attention, kernels
from tinystories_hf.model.attention_mask import seen_keys
from tinystories_hf.model.modeling import GPTNeoForCausalLM

SDPA = functional.scaled_dot_product_attention
LENGTH = 20


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Treat the CPU as a GPU and fp64 as half precision; collect the widths of attended heads."""
    seen: set[int] = set()

    def noting(query: torch.Tensor, *args: Any, **how: Any) -> torch.Tensor:
        seen.add(query.shape[-1])
        return SDPA(query, *args, **how)

    monkeypatch.setattr(kernels, "kernels_available", lambda: False)
    monkeypatch.setattr(gpu_attention, "on_gpu", lambda _: True)
    monkeypatch.setattr(gpu_attention, "HALF", (torch.float64, torch.bfloat16))
    monkeypatch.setattr(functional, "scaled_dot_product_attention", noting)
    return seen


def model(**changes: Any) -> GPTNeoForCausalLM:
    torch.manual_seed(0)
    built: GPTNeoForCausalLM = GPTNeoForCausalLM(configuration(window_size=8, **changes)).double()
    return built


def whole_rows(ours: GPTNeoForCausalLM, ids: torch.Tensor) -> list[torch.Tensor]:
    loss = ours(ids, labels=ids, skip_logits=True).loss
    return [loss, *gradients(ours, loss).values()]


def padded_texts(ours: GPTNeoForCausalLM, ids: torch.Tensor) -> list[torch.Tensor]:
    mask = torch.ones_like(ids)
    mask[1, -7:] = 0
    logits = ours(ids, attention_mask=mask).logits
    return [logits, *gradients(ours, logits[mask == 1].square().mean()).values()]


def cached(ours: GPTNeoForCausalLM, ids: torch.Tensor) -> list[torch.Tensor]:
    first = ours(ids[:, :12], use_cache=True)
    return [
        first.logits,
        ours(ids[:, 12:14], first[1]).logits,
        ours(ids[:, 14:15], first[1]).logits,
    ]


@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize("call", [whole_rows, padded_texts, cached])
def test_filled_up_heads_change_no_bit(
    call: Callable[[GPTNeoForCausalLM, torch.Tensor], list[torch.Tensor]],
    heads: int,
    widths: set[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, ids = model(num_heads=heads), tokens(3, LENGTH)
    filled = call(ours, ids)
    assert {width % 8 for width in widths} == {0}
    widths.clear()
    monkeypatch.setattr(gpu_attention, "HALF", ())
    assert all(map(torch.equal, filled, call(ours, ids)))
    assert widths == {16 // heads}


def test_in_single_precision_heads_keep_their_width(widths: set[int]) -> None:
    whole_rows(model().float(), tokens(2, LENGTH))
    assert widths == {4}


def test_the_step_of_a_gpu_compiles_in_one_graph(widths: set[int]) -> None:
    ours, ids = model(), tokens(3, LENGTH)
    right = whole_rows(ours, ids)
    torch.compiler.reset()
    ours.transformer.whole_rows = torch.compile(  # type: ignore[method-assign]
        ours.transformer.whole_rows, backend="eager", fullgraph=True
    )
    assert all(map(torch.equal, whole_rows(ours, ids), right))
    torch.compiler.reset()


class Flash:
    """PyTorch's flash attention as its documentation describes it, for the CPU."""

    off_by = 0  # by how many keys the window is wrong
    calls = 0

    def _weights(self, query: torch.Tensor, key: torch.Tensor, left: int) -> torch.Tensor:
        length = query.shape[-2]
        seen = seen_keys(length, length, left + 1 + self.off_by, 0, query.device)
        scores = query.float() @ key.float().transpose(-1, -2)
        return scores.masked_fill(~seen, -torch.inf).softmax(-1)

    def forward(self, query: Any, key: Any, value: Any, *rest: Any, **how: Any) -> Any:
        assert rest == (None, None, query.shape[1], query.shape[1], 0.0, True, False)
        assert (how["scale"], how["window_size_right"]) == (1.0, 0)
        assert query.shape[-1] % 8 == 0
        self.calls += 1
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        weights = self._weights(query, key, how["window_size_left"])
        output = (weights @ value.float()).to(value.dtype).transpose(1, 2)
        empty = torch.empty(2, dtype=torch.int64)
        return output, query.new_empty(query.shape[:3]).float(), empty, empty, query.new_empty(0)

    def backward(self, upstream: Any, query: Any, key: Any, value: Any, *_: Any, **how: Any) -> Any:
        given = (upstream, query, key, value)
        upstream, query, key, value = (x.transpose(1, 2).float() for x in given)
        weights = self._weights(query, key, how["window_size_left"])
        of_weights = upstream @ value.transpose(-1, -2)
        of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True))
        grads = (of_scores @ key, of_scores.transpose(-1, -2) @ query)
        values = weights.transpose(-1, -2) @ upstream
        return tuple(x.transpose(1, 2).to(given[0].dtype) for x in (*grads, values))


@pytest.fixture
def flash() -> Iterator[Flash]:
    implementation = Flash()
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", implementation.forward, "CPU")
    library.impl("_flash_attention_backward", implementation.backward, "CPU")
    yield implementation
    library._destroy()


def test_the_window_is_used_only_where_the_operation_has_it_and_is_right(flash: Flash) -> None:
    here = torch.device("cpu")
    assert gpu_attention.has_known_signature()
    assert gpu_attention.computes_the_window(here)
    assert flash.calls == 1
    for wrong in (-1, 1, 200):
        flash.off_by = wrong
        assert not gpu_attention.computes_the_window(here)


def test_another_signature_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    names = gpu_attention._ARGUMENTS
    for other in (names[1:], (*names[:-1], "window_right"), (names[1], names[0], *names[2:])):
        monkeypatch.setattr(gpu_attention, "_ARGUMENTS", other)
        assert not gpu_attention.has_known_signature()


def test_without_a_gpu_there_is_no_window_and_nothing_fused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert not gpu_attention.has_flash_window()
    # On the CPU the operation does not exist.
    assert not gpu_attention.computes_the_window(torch.device("cpu"))
    assert not gpu_attention.runs_fused(4, torch.bfloat16, torch.device("cpu"), masked=True)


def test_local_layers_use_the_window_for_whole_rows_alone(
    flash: Flash, widths: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, stock = pair(window_size=8)
    monkeypatch.setattr(gpu_attention, "has_flash_window", lambda: True)
    ids = tokens(3, LENGTH)
    right = stock(ids).logits
    with torch.autocast("cpu", torch.bfloat16):
        found = ours(ids).logits
        assert flash.calls == 1  # one of the two layers is local
        assert (found - right).norm() < 0.02 * right.norm()
        flash.off_by = 3
        assert (ours(ids).logits - right).norm() > 0.05 * right.norm()
        flash.off_by, flash.calls = 0, 0
        mask = torch.ones_like(ids)
        mask[0, :3] = 0
        ours(ids, attention_mask=mask)
        cache = ours(ids[:, :6], use_cache=True)[1]  # not longer than the window
        ours(ids[:, 6:9], cache)
    ours(ids)  # not in half precision
    assert flash.calls == 0
