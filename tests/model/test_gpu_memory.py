"""The memory of a training step on a GPU, counted from the sizes of its tensors without one."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.conftest import ROOT
from tinystories_hf.config.command_line import parse_arguments
from tinystories_hf.model import cross_entropy, gpu_attention
from tinystories_hf.model.cross_entropy import causal_lm_loss
from tinystories_hf.model.modeling import GPTNeoForCausalLM, build_config

GIGABYTE = 1e9
MATH = functional.scaled_dot_product_attention


class Counter(TorchDispatchMode):
    """Counts the bytes of all tensors that exist, in blocks of 512 like PyTorch's allocator."""

    peak = 0

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage not in self.known:
                self.known.add(storage)
                size = -(-storage.nbytes() // 512) * 512
                self.bytes += size
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self._forget, size)
        return result

    def _forget(self, size: int) -> None:
        self.bytes -= size


def fused(
    query: Any, key: Any, value: Any, *, attn_mask: Any, dropout_p: Any, is_causal: Any, scale: Any
) -> torch.Tensor:
    """The operations that PyTorch chooses on an A100 for heads that are multiples of 8."""
    if attn_mask is None:
        found = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, scale=scale
        )
    else:
        scores = torch.zeros(attn_mask.shape, dtype=query.dtype).expand(*query.shape[:3], -1)
        found = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, scores, True, dropout_p, is_causal, scale=scale
        )
    output: torch.Tensor = found[0]
    return output


def loss_in_place(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What the compiled function allocates, with a copy of the logits for what it may buffer."""
    logits.copy_(logits.clone())
    return torch.empty(len(labels))


def peak(rows: int, monkeypatch: pytest.MonkeyPatch, attention: Callable[..., Any]) -> float:
    """Return the peak of a compiled step of XS in bf16, in GB, with AdamW's states."""
    monkeypatch.setattr(functional, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(gpu_attention, "on_gpu", lambda _: True)
    monkeypatch.setattr(cross_entropy, "CPU_CHUNK_BYTES", cross_entropy.MOST_CHUNK_BYTES)
    monkeypatch.setattr(cross_entropy, "_compiled_loss", lambda: loss_in_place)
    monkeypatch.setattr(cross_entropy, "_check_labels", lambda *_: None)
    with FakeTensorMode(), Counter() as counter:
        model = GPTNeoForCausalLM(build_config(parse_arguments([]).model, 50256)).train()
        states = [torch.zeros_like(weight) for weight in model.parameters() for _ in range(2)]
        ids = torch.zeros(rows, 512, dtype=torch.long)
        with torch.autocast("cpu", torch.bfloat16):
            hidden_states = model.transformer.whole_rows(ids)
            loss = causal_lm_loss(hidden_states, model.lm_head.weight, ids, compiled=True)
        loss.backward()
        assert len(states) == 2 * len([w for w in model.parameters() if w.grad is not None])
    highest: int = counter.peak
    return highest / GIGABYTE


def test_the_specified_step_of_80_rows_fits_a_card_of_8_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    found = peak(80, monkeypatch, fused)
    assert found <= 2.5
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert f"**A step of 80 rows of XS takes {found:.1f} GB**" in page


def test_attention_that_holds_its_scores_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first test can fail: this is what PyTorch computes for heads of 4 in bf16."""
    assert peak(80, monkeypatch, MATH) > 8
