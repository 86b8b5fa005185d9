"""Timings of alternative implementations, which explain the choices of the fast path."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from tinystories_hf.benchmark.implementations import OURS, STOCK, Case, build_implementation
from tinystories_hf.benchmark.measure import matrix_rate, wait_for_device
from tinystories_hf.config.model_arguments import ModelArguments
from tinystories_hf.core.device import device_type
from tinystories_hf.model import kernels
from tinystories_hf.model.cross_entropy import causal_lm_loss, chunk_tokens


def measure_alternatives(shape: ModelArguments, context: int, rows: int) -> dict[str, Any]:
    """Return the best of several times in ms, forward and backward; matrix products in GFLOP/s."""
    return {
        "attention": [
            attention_alternatives(shape, head_dim, dropout, context, rows)
            for head_dim in (4, 8, 16, 32, 64)
            for dropout in (0.0, 0.1)
        ],
        "loss": [
            loss_alternatives(shape, precision, context, rows) for precision in ("fp32", "bf16")
        ],
        "products": [products(shape, dtype) for dtype in (torch.float32, torch.bfloat16)],
        "compile": [_compiled(shape, precision, context, rows) for precision in ("fp32", "bf16")],
    }


def attention_alternatives(
    shape: ModelArguments, head_dim: int, dropout: float, context: int, rows: int
) -> dict[str, Any]:
    """Time a local layer of 16 heads: Transformers, PyTorch's attention, this package's kernel."""
    heads = shape.num_heads
    layers, hidden = len(shape.attention_types), heads * head_dim
    smaller = replace(shape, hidden_size=hidden, num_layers=layers, vocab_size=16)
    case = Case("fp32", dropout, 0.0, rows)
    eager, ours = (
        build_implementation(name, smaller, case).train().transformer.h[-1].attn.attention
        for name in (STOCK, OURS)
    )
    inputs = [
        torch.randn(rows, context, heads * head_dim, device=device_type()).requires_grad_()
        for _ in ("query", "key", "value")
    ]
    named: dict[str, Callable[[], torch.Tensor]] = {
        "eager": lambda: eager._attn(*(eager._split_heads(x, heads, head_dim) for x in inputs))[0],
        "sdpa": lambda: ours._merge_heads(
            ours._sdpa(*(ours._split_heads(x, heads, head_dim) for x in inputs), dropout=dropout),
            heads,
            head_dim,
        ),
    }
    if device_type() == "cpu" and head_dim in kernels.HEAD_DIMS and kernels.kernels_available():
        named["kernel"] = lambda: ours._kernel(*inputs, dropout)
    times = {name: best(partial(_backward, run)) for name, run in named.items()}
    return {"head_dim": head_dim, "dropout": dropout, **times}


def loss_alternatives(
    shape: ModelArguments, precision: str, context: int, rows: int
) -> dict[str, Any]:
    """Time the head with its loss: full logits, `F.linear_cross_entropy`, this package's."""
    hidden = torch.randn(rows, context, shape.hidden_size, device=device_type(), requires_grad=True)
    weight = torch.randn(shape.vocab_size, shape.hidden_size, device=device_type()) / 10
    weight.requires_grad_()
    labels = torch.randint(shape.vocab_size, (rows, context), device=device_type())
    flat = labels[:, 1:].flatten()

    def whole() -> torch.Tensor:
        logits = functional.linear(hidden, weight).float()
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), flat)

    named: dict[str, Callable[[], torch.Tensor]] = {"whole logits": whole}
    if hasattr(functional, "linear_cross_entropy"):  # torch 2.13
        for name, size in (("linear_cross_entropy", None), ("the same, 256 at once", 256)):
            named[name] = partial(_linear_cross_entropy, hidden, weight, flat, size)
    named["ours"] = lambda: causal_lm_loss(hidden, weight, labels)
    return {
        "precision": precision,
        **{name: best(partial(_backward, run, precision)) for name, run in named.items()},
    }


def _linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk: int | None
) -> torch.Tensor:
    states = hidden[:, :-1].flatten(0, 1)
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        states, weight = states.to(dtype), weight.to(dtype)
    method = "auto" if chunk is None else None
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk, chunking_method=method)
    found: torch.Tensor = functional.linear_cross_entropy(states, weight, targets, options=options)
    return found


def products(shape: ModelArguments, dtype: torch.dtype) -> dict[str, Any]:
    """Measure the operations per second of the head's matrix products over one chunk of tokens.

    They are long and thin; `square` is a square product, for comparison.
    """
    weight = torch.randn(shape.vocab_size, shape.hidden_size, device=device_type()).to(dtype)
    tokens = chunk_tokens(weight)
    states = torch.randn(tokens, shape.hidden_size, device=device_type()).to(dtype)
    gradient = weight @ states.t()
    operations = 2 * tokens * weight.numel()
    named: dict[str, Callable[[], object]] = {
        "logits, (tokens, vocabulary)": lambda: states @ weight.t(),
        "logits, (vocabulary, tokens)": lambda: weight @ states.t(),
        "gradient of the states": lambda: gradient.t() @ weight,
        "gradient of the weight": lambda: gradient @ states,
    }
    rates = {name: operations / best(run, 30) / 1e6 for name, run in named.items()}
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "tokens": tokens,
        **rates,
        "square": matrix_rate(dtype) / 1e9,
    }


def _compiled(shape: ModelArguments, precision: str, context: int, rows: int) -> dict[str, Any]:
    """Time this package's step with and without compiled blocks, and the compilation itself."""
    case = Case(precision, 0.1, 0.1, rows)
    ids = torch.randint(shape.vocab_size, (rows, context), device=device_type())
    found: dict[str, Any] = {"precision": precision}
    for name in ("not compiled", "compiled"):
        torch.compiler.reset()
        model = build_implementation(OURS, shape, case).train()
        if name == "compiled":
            model.compile_training()
        run = partial(_backward, partial(_loss_of, model, ids), precision)
        start = time.perf_counter()
        run()
        first = time.perf_counter() - start
        found[name] = best(run)
        found[f"{name}, start"] = first * 1e3 - found[name]
    return found


def _loss_of(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(ids, labels=ids, skip_logits=True).loss
    return found


def best(run: Callable[[], object], times: int = 5) -> float:
    """Return the fewest milliseconds of several runs, after one warm-up run."""
    run()
    found = []
    for _ in range(times):
        wait_for_device()
        start = time.perf_counter()
        run()
        wait_for_device()
        found.append((time.perf_counter() - start) * 1e3)
    return min(found)


def _backward(run: Callable[[], torch.Tensor], precision: str = "fp32") -> None:
    with torch.autocast(device_type(), torch.bfloat16, enabled=precision == "bf16"):
        result = run()
    result.sum().backward()
