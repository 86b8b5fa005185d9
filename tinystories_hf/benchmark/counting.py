"""The matrix operations of a training step, computed from the shape of the model."""

from __future__ import annotations

from tinystories_hf.config.model_arguments import ModelArguments

# Bytes that a step moves for each fp32 parameter: the weight is read in both passes, the gradient
# written and read, then AdamW reads three values and writes three.
MOVED_BYTES = 10 * 4


def inner_size(shape: ModelArguments) -> int:
    """Return the hidden size of the MLP."""
    return shape.intermediate_size or 4 * shape.hidden_size


def matrix_weights(shape: ModelArguments) -> int:
    """Return the number of matrix weights that a token is multiplied with, including the head."""
    hidden = shape.hidden_size
    blocks = shape.num_layers * (4 * hidden**2 + 2 * hidden * inner_size(shape))
    return blocks + hidden * shape.vocab_size


def keys_seen(shape: ModelArguments, kind: str, context: int) -> float:
    """Return the mean number of keys that a position of a `global` or `local` layer attends to."""
    window = min(context, shape.window_size if kind == "local" else context)
    return window - window * (window - 1) / (2 * context)


def attention_operations(shape: ModelArguments, kind: str, context: int) -> int:
    """Return the operations of a token in all layers of a kind: 12 x hidden for each key seen."""
    types = [shape.attention_types[n % len(shape.attention_types)] for n in range(shape.num_layers)]
    return round(12 * shape.hidden_size * types.count(kind) * keys_seen(shape, kind, context))


def operations_per_token(shape: ModelArguments, context: int) -> int:
    """Return the matrix operations of a token, forward and backward, causal halves not counted.

    6 for each weight of a matrix; attention 12 x hidden for each key that is seen, on average.
    """
    seen = sum(attention_operations(shape, kind, context) for kind in ("global", "local"))
    return 6 * matrix_weights(shape) + seen
