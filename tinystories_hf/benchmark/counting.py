"""The cost of a step, computed from the shape of the model: operations and bytes.

Counted for this package: attention without score matrices, the head in chunks, bf16 autocast over
fp32 weights, AdamW.
"""

from __future__ import annotations

from tinystories_hf.config.arguments import ModelArguments

FP32_BYTES, BF16 = 4, 2
# Read forward and backward, gradient written and read, then AdamW: 3 read, 3 written.
MOVED_BYTES = 10 * FP32_BYTES


def block_parameters(shape: ModelArguments) -> int:
    """Return the parameters of all blocks and the final norm."""
    hidden, inner = shape.hidden_size, inner_size(shape)
    attention = 4 * hidden**2 + hidden  # query, key and value without a bias
    mlp = 2 * hidden * inner + inner + hidden
    return shape.num_layers * (attention + mlp + 4 * hidden) + 2 * hidden


def parameter_count(shape: ModelArguments) -> int:
    """Return the number of parameters; the tied head counts once."""
    return block_parameters(shape) + shape.hidden_size * (
        shape.vocab_size + shape.max_position_embeddings
    )


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


def counted_checkpoint_bytes(shape: ModelArguments) -> int:
    """Return the bytes of a checkpoint: weights and the two states of AdamW."""
    return 3 * FP32_BYTES * parameter_count(shape)


def sharded_checkpoint_bytes(shape: ModelArguments) -> int:
    """Return the same under fsdp.yaml: the weights once more, with the tied head written twice."""
    again = parameter_count(shape) + shape.hidden_size * shape.vocab_size
    return counted_checkpoint_bytes(shape) + FP32_BYTES * again
