"""GPT-Neo as an ONNX graph, with its cache as flat inputs and outputs.

The names and shapes of inputs and outputs are those of Optimum's decoders with a cache, which
transformers.js expects too.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.models.gpt_neo import modeling_gpt_neo as stock

from tinystories_hf.model.modeling import GPTNeoForCausalLM

# The first opset in which GELU is one operation; ONNX Runtime has it since 1.17 (2024).
OPSET = 20
# Sizes of the example inputs: all different, and none is 1. The exporter would make a size of 1
# constant, although it names the dimension: such a graph fails in the first Reshape of a longer
# text.
BATCH, LENGTH, PAST = 2, 3, 4
LENGTH_NAME, PAST_NAME = "sequence_length", "past_sequence_length"


class FlatCacheGPTNeo(nn.Module):
    """The weights of a GPT-Neo with a forward pass written for export.

    Transformers' forward pass can be exported too, but it slices its masks from a stored matrix in
    each layer, by lengths from the layer before: the exporter simplifies growing expressions for
    the same length, which takes 500 s for XS instead of 12 s. The token embedding is stored once,
    as the head needs it (hidden, vocabulary): transposing it would copy it at every token, and
    8-bit weights would store it twice.
    """

    def __init__(self, model: GPTNeoForCausalLM) -> None:
        super().__init__()
        self.config = model.config
        self.head_shape = (
            model.config.num_heads,
            model.config.hidden_size // model.config.num_heads,
        )
        self.wpe = model.transformer.wpe
        self.blocks = model.transformer.h
        self.ln_f = model.transformer.ln_f
        self.wte = nn.Buffer(model.transformer.wte.weight.detach().T.contiguous())

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past_key_values: tuple[torch.Tensor, ...],
    ) -> tuple[torch.Tensor, ...]:
        """Return the logits (batch, length, vocabulary) and the keys and values of each layer.

        `input_ids` and `position_ids` are (batch, length), `attention_mask` (batch, past + length);
        keys and values are (batch, heads, past, head_dim), and returned with `length` more
        positions.
        """
        shape = input_ids.shape
        embedded = self.wte.index_select(1, input_ids.flatten()).T.unflatten(0, shape)
        hidden_states = embedded + self.wpe(position_ids)
        masks = self._masks(attention_mask, past_key_values[0].shape[2], shape[1])
        present: list[torch.Tensor] = []
        for layer, block in enumerate(self.blocks):
            mask = masks[self.config.attention_layers[layer]]
            past = past_key_values[2 * layer : 2 * layer + 2]
            attended, keys_and_values = self._attend(block, hidden_states, mask, past)
            hidden_states = hidden_states + attended
            present += keys_and_values
            inner = block.mlp.act(block.mlp.c_fc(block.ln_2(hidden_states)))
            hidden_states = hidden_states + block.mlp.c_proj(inner)
        return self.ln_f(hidden_states) @ self.wte, *present

    def _masks(
        self, attention_mask: torch.Tensor, past: int, length: int
    ) -> dict[str, torch.Tensor]:
        """Return the additive mask of each kind of layer, (batch, 1, length, keys)."""
        query = torch.arange(past, past + length)[:, None]
        key = torch.arange(past + length)[None, :]
        seen = (key <= query) & attention_mask.bool()[:, None, None, :]
        near = seen & (key > query - self.config.window_size)
        # Not infinity: a query without keys, such as padding, would become NaN.
        never = torch.finfo(torch.float32).min
        return {
            "global": torch.where(seen, 0.0, never),
            "local": torch.where(near, 0.0, never),
        }

    def _attend(
        self,
        block: stock.GPTNeoBlock,
        hidden_states: torch.Tensor,
        mask: torch.Tensor,
        past: tuple[torch.Tensor, ...],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the attention of one layer, (batch, length, hidden), and all keys and values."""
        attention = block.attn.attention
        normed = block.ln_1(hidden_states)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        query, key, value = (
            project(normed).unflatten(-1, self.head_shape).transpose(1, 2)
            for project in projections
        )
        key, value = torch.cat((past[0], key), 2), torch.cat((past[1], value), 2)
        # GPT-Neo does not divide by the square root of the head dimension.
        weights = torch.softmax(query @ key.transpose(-1, -2) + mask, -1)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        return attention.out_proj(mixed), [key, value]


def cache_names(layers: int, prefix: str) -> list[str]:
    """Return the names of the keys and values of all layers, in the order of the graph."""
    return [f"{prefix}.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]


def write_graph(model: GPTNeoForCausalLM, path: Path) -> None:
    """Export a GPT-Neo in fp32, with caches as inputs and outputs, and dynamic sizes.

    Raises:
        RuntimeError: the exporter fixed a size, or failed.
    """
    import onnx

    layers = model.config.num_layers
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            FlatCacheGPTNeo(model).eval(),
            example_inputs(model),
            dynamo=True,
            input_names=[
                *("input_ids", "attention_mask", "position_ids"),
                *cache_names(layers, "past_key_values"),
            ],
            output_names=["logits", *cache_names(layers, "present")],
            dynamic_shapes=_free_sizes(layers),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None  # for the type checker: only None if a path was given
    graph = program.model_proto
    _strip(graph)
    graph.graph.input[1].type.tensor_type.shape.dim[1].dim_param = f"{PAST_NAME} + {LENGTH_NAME}"
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, str(path))


def example_inputs(model: stock.GPTNeoForCausalLM) -> tuple[Any, ...]:
    """Return example inputs, whose sizes all differ (see `BATCH`)."""
    heads, layers = model.config.num_heads, model.config.num_layers
    cache = (BATCH, heads, PAST, model.config.hidden_size // heads)
    return (
        torch.zeros(BATCH, LENGTH, dtype=torch.long),
        torch.ones(BATCH, PAST + LENGTH, dtype=torch.long),
        torch.zeros(BATCH, LENGTH, dtype=torch.long),
        tuple(torch.zeros(cache) for _ in range(2 * layers)),
    )


def _free_sizes(layers: int) -> dict[str, Any]:
    """Return the dynamic sizes of each input; the exporter fails if it makes one constant."""
    batch, length, past = map(torch.export.Dim, ("batch_size", LENGTH_NAME, PAST_NAME))
    return {
        "input_ids": {0: batch, 1: length},
        "attention_mask": {0: batch, 1: torch.export.Dim.AUTO},  # a sum of two sizes has no name
        "position_ids": {0: batch, 1: length},
        "past_key_values": tuple({0: batch, 2: past} for _ in range(2 * layers)),
    }


def _strip(graph: Any) -> None:
    """Remove the exporter's metadata: source lines and the paths of their files."""
    graph.ClearField("metadata_props")
    graph.graph.ClearField("metadata_props")
    for part in (*graph.graph.node, *graph.graph.initializer, *graph.graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for value in (*graph.graph.input, *graph.graph.output):
        value.ClearField("metadata_props")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's messages about missing libraries and to its own developers."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
