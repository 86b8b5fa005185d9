"""Time the ways from an XS to an ONNX graph, and see what comes out; see docs/page.md.

    python -m tests.support.page.measure_exporters

Prints one row for each way. The slowest takes minutes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from transformers import GPTNeoForCausalLM as StockGPTNeoForCausalLM
from transformers.cache_utils import DynamicCache

from tinystories_hf.config.command_line import parse_arguments
from tinystories_hf.model.modeling import GPTNeoForCausalLM, build_config
from tinystories_hf.web import onnx_graph

END_OF_TEXT_ID = 50256


class Wrapped(torch.nn.Module):
    """Stock's forward pass behind flat caches."""

    def __init__(self, model: StockGPTNeoForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past_key_values: tuple[torch.Tensor, ...],
    ) -> tuple[torch.Tensor, ...]:
        """Return logits and caches as `onnx_graph.FlatCacheGPTNeo` does."""
        cache = DynamicCache()
        for layer in range(len(past_key_values) // 2):
            cache.update(past_key_values[2 * layer], past_key_values[2 * layer + 1], layer)
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        layers = out.past_key_values.layers
        return out.logits, *(part for layer in layers for part in (layer.keys, layer.values))


def names(layers: int) -> tuple[list[str], list[str]]:
    """Return the names of inputs and outputs."""
    inputs = ["input_ids", "attention_mask", "position_ids"]
    return (
        inputs + onnx_graph.cache_names(layers, "past_key_values"),
        ["logits", *onnx_graph.cache_names(layers, "present")],
    )


def trace(model: StockGPTNeoForCausalLM, path: Path) -> None:
    """Export by tracing."""
    inputs, outputs = names(model.config.num_layers)
    caches, rows = inputs[3:] + outputs[1:], [*inputs[:3], "logits"]
    torch.onnx.export(
        Wrapped(model),
        onnx_graph.example_inputs(model),
        str(path),
        dynamo=False,
        input_names=inputs,
        output_names=outputs,
        dynamic_axes={
            **{name: {0: "batch", 1: "length"} for name in rows},
            **{name: {0: "batch", 2: "length"} for name in caches},
        },
        opset_version=17,
    )


def dynamo(model: StockGPTNeoForCausalLM, path: Path) -> None:
    """Export stock's forward pass by dynamo, every size inferred."""
    inputs, outputs = names(model.config.num_layers)
    free = torch.export.Dim.AUTO
    program = torch.onnx.export(
        Wrapped(model),
        onnx_graph.example_inputs(model),
        dynamo=True,
        input_names=inputs,
        output_names=outputs,
        dynamic_shapes={
            **{name: {0: free, 1: free} for name in inputs[:3]},
            "past_key_values": tuple({0: free, 2: free} for _ in inputs[3:]),
        },
        opset_version=onnx_graph.OPSET,
        verbose=False,
    )
    assert program is not None
    program.save(path)


def main() -> None:
    """Export in each way and print what came out."""
    config = build_config(parse_arguments(["--config", "configs/xs.yaml"]).model, END_OF_TEXT_ID)
    stock = StockGPTNeoForCausalLM(config).eval()
    ours = GPTNeoForCausalLM(config).eval()
    parameters = 4 * sum(parameter.numel() for parameter in ours.parameters())
    ways: list[tuple[str, Callable[[Any, Path], None], Any]] = [
        ("dynamo, ours", onnx_graph.write_graph, ours),
        ("tracing, stock", trace, stock),
        ("dynamo, stock", dynamo, stock),
    ]
    with tempfile.TemporaryDirectory() as folder, onnx_graph._quiet(), torch.no_grad():
        for what, export, model in ways:
            path, begun = Path(folder) / "model.onnx", time.perf_counter()
            export(model, path)
            seconds, size = time.perf_counter() - begun, path.stat().st_size
            nodes = len(onnx.load(path).graph.node)
            times = f"{size / parameters:.2f} times the weights"
            print(f"{what}: {seconds:.1f} s, {nodes:,} nodes, {times}", flush=True)


if __name__ == "__main__":
    main()
