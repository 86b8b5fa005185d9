"""What a GPU computes, how fast and how exactly: the first measurements on a new card.

It needs no data and takes a few minutes. Everything also runs on the CPU, where the tests run it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from tinystories_hf.benchmark.implementations import (
    OURS,
    PRECISIONS,
    STOCK,
    Case,
    Step,
    build_implementation,
    training_step,
)
from tinystories_hf.benchmark.measure import wait_for_device
from tinystories_hf.config.arguments import RunArguments
from tinystories_hf.config.command_line import Arguments
from tinystories_hf.config.model_arguments import ModelArguments
from tinystories_hf.core.device import (
    deterministic_algorithms,
    device_type,
    full_precision,
    has_native_bf16,
    missing_for_compilation,
    restoring_precision,
)
from tinystories_hf.core.errors import UserError
from tinystories_hf.model import gpu_attention
from tinystories_hf.model.attention import GPTNeoAttention
from tinystories_hf.training.batch import plan_batch

_Numbers = dict[str, Any]
MEASURED_STEPS = 12


def measure_gpu(arguments: Arguments) -> _Numbers:
    """Measure the attention, the step and its exactness on a GPU.

    Raises:
        UserError: there is no GPU.
    """
    if not torch.cuda.is_available():
        raise UserError("parts: gpu needs a CUDA GPU, and PyTorch finds none; omit it")
    card = torch.cuda.get_device_properties(0)
    return {
        "card": {
            "capability": f"{card.major}.{card.minor}",
            "memory_bytes": card.total_memory,
            "cuda": torch.version.cuda,
            "flash_window": gpu_attention.has_flash_window(),
            "missing_for_compilation": missing_for_compilation(),
        },
        **measure_device(arguments),
    }


def measure_device(arguments: Arguments) -> _Numbers:
    """Return what can be measured on any device: the parts of `measure_gpu` but for the card."""
    half = "bf16" if has_native_bf16() else "fp16"
    shape, context = arguments.model, arguments.data.context_length
    batch = plan_batch(arguments.training, 1).per_device_train_batch_size
    ids = torch.randint(shape.vocab_size, (batch, context))
    steps, compiled = step_times(shape, arguments.training, ids, half)
    return {
        "attention": attention_of_layers(shape, context, half),
        "steps": steps,
        "operations": longest_operations(compiled),
        "tf32_errors": tf32_errors(),
        "same_gradients": same_gradients(shape, arguments.training, ids[:16], half),
    }


def attention_of_layers(shape: ModelArguments, context: int, half: str) -> list[_Numbers]:
    """Return for each kind of layer and precision whether it is fused, and its error against fp64.

    The error is the norm of the difference relative to that of the result, for the output of a
    layer and for the gradient of its input.
    """
    torch.manual_seed(0)
    model = build_implementation(OURS, shape, Case("fp32", 0.0, 0.0, 2))
    hidden, upstream = torch.randn(2, 2, context, shape.hidden_size)
    head_dim, found = shape.hidden_size // shape.num_heads, []
    layers = {
        block.attn.attention.attention_type: block.attn.attention for block in model.transformer.h
    }
    for kind, layer in layers.items():
        exact = _output_and_gradient(copy.deepcopy(layer).cpu().double(), hidden, upstream, None)
        for precision in ("fp32", half):
            dtype = PRECISIONS[precision]
            autocast = None if precision == "fp32" else dtype
            results = _output_and_gradient(layer, hidden, upstream, autocast)
            errors = [
                ((a - b).norm() / b.norm()).item() for a, b in zip(results, exact, strict=True)
            ]
            device = torch.device(device_type())
            is_fused = gpu_attention.runs_fused(head_dim, dtype, device, masked=kind == "local")
            found.append(
                {
                    "layer": kind,
                    "precision": precision,
                    "fused": is_fused,
                    "output_error": errors[0],
                    "gradient_error": errors[1],
                }
            )
    return found


def _output_and_gradient(
    layer: GPTNeoAttention,
    hidden: torch.Tensor,
    upstream: torch.Tensor,
    autocast: torch.dtype | None,
) -> list[torch.Tensor]:
    weight = layer.q_proj.weight
    given = hidden.to(weight.device, weight.dtype).requires_grad_()
    with _autocast(autocast), full_precision():
        output = layer(given)[0]
        (grad,) = torch.autograd.grad(output, given, upstream.to(output.device, output.dtype))
    return [x.detach().double().cpu() for x in (output, grad)]


def _autocast(dtype: torch.dtype | None) -> Any:
    return nullcontext() if dtype is None else torch.autocast(device_type(), dtype)


def step_times(
    shape: ModelArguments, training: RunArguments, ids: torch.Tensor, half: str
) -> tuple[list[_Numbers], Step]:
    """Time training steps of several kinds; also return the step as it is by default.

    Rows that do not fit the memory are halved.
    """
    compiles = missing_for_compilation() is None
    kinds: dict[str, tuple[str, str, bool, bool]] = {
        "default": (OURS, half, compiles, True),
        "local layers with a mask": (OURS, half, compiles, False),
        "not compiled": (OURS, half, False, True),
        "fp32": (OURS, "fp32", compiles, True),
        "stock": (STOCK, half, False, True),
    }
    if not gpu_attention.has_flash_window():
        del kinds["local layers with a mask"]
    found, default = [], None
    for kind, (name, precision, compiled, window) in kinds.items():

        def prepared(model: PreTrainedModel, window: bool = window) -> None:
            for module in model.modules():
                if isinstance(module, GPTNeoAttention):
                    module.may_use_window = window

        rows = ids
        while len(rows):
            case = Case(precision, shape.attention_dropout, shape.resid_dropout, len(rows))
            chosen = replace(training, torch_compile=compiled)
            try:
                step = training_step(name, shape, chosen, case, rows, prepared)
                found.append({"step": kind, "precision": precision, **_times(step, len(rows))})
                default = default or step
                break
            except torch.OutOfMemoryError:
                rows = rows[: len(rows) // 2]
                print(f"{kind}: out of memory, trying {len(rows)} rows", flush=True)
        print(f"{'gpu':16} {found[-1]}", flush=True)
    assert default is not None
    return found, default


def _times(step: Step, rows: int) -> _Numbers:
    """Time a step; `host_milliseconds` is how long the host takes to launch it."""
    start = time.perf_counter()
    step()
    wait_for_device()
    first = time.perf_counter() - start
    step()
    on_gpu = device_type() == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    wait_for_device()
    start, tokens = time.perf_counter(), 0
    for _ in range(MEASURED_STEPS):
        tokens += step()
    launched = time.perf_counter() - start
    wait_for_device()
    seconds = time.perf_counter() - start
    return {
        "rows": rows,
        "milliseconds": 1e3 * seconds / MEASURED_STEPS,
        "host_milliseconds": 1e3 * launched / MEASURED_STEPS,
        "tokens_per_second": tokens / seconds,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "first_step_seconds": first,
    }


def longest_operations(step: Step, number: int = 14) -> list[_Numbers]:
    """Return the operations of a step that take the most time on the device."""
    activity = ProfilerActivity.CUDA if device_type() == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiled:
        step()
        wait_for_device()
    events = profiled.key_averages()
    on_cpu = activity == ProfilerActivity.CPU

    def microseconds(event: Any) -> float:
        return float(event.self_cpu_time_total if on_cpu else event.self_device_time_total)

    return [
        {
            "operation": event.key[:80],
            "launches": event.count,
            "milliseconds": microseconds(event) / 1e3,
        }
        for event in sorted(events, key=microseconds, reverse=True)[:number]
    ]


@contextmanager
def _tf32() -> Iterator[None]:
    general: Any = torch.backends
    with restoring_precision():
        general.fp32_precision = "tf32"
        yield


def tf32_errors() -> _Numbers:
    """Return the errors of a matrix product against fp64: with TF32, and where losses are computed.

    Both after a compilation, which changes how PyTorch applies its settings.
    """
    if missing_for_compilation() is None:
        torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
    square = torch.randn(512, 512, device=device_type())
    exact = square.double() @ square.double()

    def error() -> float:
        return float((square @ square - exact).norm() / exact.norm())

    with _tf32():
        found = {"training": error()}
        with full_precision():
            found["losses"] = error()
    return found


def same_gradients(
    shape: ModelArguments, training: RunArguments, ids: torch.Tensor, half: str
) -> dict[str, bool]:
    """Return whether a step twice gives gradients with the same bits, without and with the setting.

    The setting is `deterministic`.
    """
    found = {}
    for name, enabled in (("default", False), ("deterministic", True)):
        with deterministic_algorithms(enabled):
            grads = [_gradients(shape, training, ids, half) for _ in range(2)]
        found[name] = all(map(torch.equal, *grads))
    return found


def _gradients(
    shape: ModelArguments, training: RunArguments, ids: torch.Tensor, half: str
) -> list[torch.Tensor]:
    case = Case(half, shape.attention_dropout, shape.resid_dropout, len(ids))
    model = build_implementation(OURS, shape, case).train()
    if training.torch_compile and missing_for_compilation() is None and device_type() == "cuda":
        model.compile_training()
    ids = ids.to(device_type())
    torch.manual_seed(1)
    with _autocast(PRECISIONS[half]):
        model(ids, labels=ids, skip_logits=True).loss.backward()
    return [weight.grad for weight in model.parameters() if weight.grad is not None]
