"""The cost of a step, computed from the shape of the model: operations and bytes.

Counted is what this package does: attention without score matrices, the head by chunks, bf16
autocast over fp32 weights, AdamW. `tests/test_scaling.py` holds the counts against real tensors.
"""

from __future__ import annotations

from tinystories_hf.config.arguments import ModelArguments

FP32_BYTES, BF16 = 4, 2
# Weights, gradients and the two states of AdamW, all fp32.
STATE_BYTES = 4 * FP32_BYTES
# Read forward and backward, gradient written and read, then AdamW: 3 read, 3 written.
MOVED_BYTES = 10 * FP32_BYTES
# What the head moves through memory for each logit of a training step in bf16, where no kernel of
# ours keeps it in a cache (cross_entropy.py): the logit written; read and widened; log-softmax and
# softmax over fp32, and labels masked, each read and written; narrowed; read by two products.
LOGIT_BYTES = (
    BF16 + (BF16 + FP32_BYTES) + 3 * (FP32_BYTES + FP32_BYTES) + (FP32_BYTES + BF16) + 2 * BF16
)


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


def activation_bytes(shape: ModelArguments) -> int:
    """Return the bytes that a token leaves for the backward pass, under bf16 autocast.

    Of a block: the input of both norms (fp32) and what they remember; the input of the projections
    three times, which autocast narrows each for itself, and of the MLP; query, key, value and their
    mixture, with its log-sums; the MLP before and after its activation; where dropout is on a byte
    for each number, as a GPU's dropout keeps (PyTorch's on the CPU keeps more). Then the input of
    the last norm (fp32) and the gradient that the head makes on its way forward.
    """
    hidden = shape.hidden_size
    norms = 2 * (hidden * FP32_BYTES + 2 * FP32_BYTES)
    inputs = 4 * hidden * BF16
    attention = 4 * hidden * BF16 + shape.num_heads * FP32_BYTES
    mlp = 2 * inner_size(shape) * BF16
    dropped = 2 * hidden if shape.resid_dropout else 0
    embedded = hidden if shape.embed_dropout else 0
    block = norms + inputs + attention + mlp + dropped
    return shape.num_layers * block + hidden * (FP32_BYTES + BF16) + 2 * FP32_BYTES + embedded


def stock_activation_bytes(shape: ModelArguments, context: int) -> int:
    """Return the same of stock Transformers without dropout, eager attention and all logits.

    Its gelu_new keeps five of the MLP's width, its attention each score in fp32 and in bf16, its
    loss the log-softmax of every logit in fp32. Logits themselves come and go: 6 bytes each more.
    """
    hidden = shape.hidden_size
    norms = 2 * (hidden * FP32_BYTES + 2 * FP32_BYTES)
    narrow = (5 + 3) * hidden * BF16
    scores = shape.num_heads * context * (FP32_BYTES + BF16)
    mlp = 5 * inner_size(shape) * BF16
    block = norms + narrow + scores + mlp
    return (
        shape.num_layers * block
        + hidden * (FP32_BYTES + BF16)
        + 2 * FP32_BYTES
        + shape.vocab_size * FP32_BYTES
    )


def moved_bytes(shape: ModelArguments, tokens: int) -> int:
    """Return the bytes that a step of so many tokens moves through the memory of a GPU.

    Weights, gradients and optimizer; activations, written once and read once; the head's logits.
    """
    each = 2 * activation_bytes(shape) + LOGIT_BYTES * shape.vocab_size
    return MOVED_BYTES * parameter_count(shape) + tokens * each


def held_bytes(shape: ModelArguments) -> int:
    """Return what a GPU holds whatever the batch: states, bf16 weights, the head's gradient."""
    head = shape.hidden_size * shape.vocab_size * FP32_BYTES
    return STATE_BYTES * parameter_count(shape) + BF16 * matrix_weights(shape) + head


def sent_bytes(shape: ModelArguments, gpus: int) -> int:
    """Return what each GPU sends in a step of data parallelism: a ring that adds up gradients."""
    return round(2 * (gpus - 1) / gpus * FP32_BYTES * parameter_count(shape))


def sharded_sent_bytes(shape: ModelArguments, gpus: int) -> int:
    """Return what each GPU sends in a step of FSDP2 in bf16, as fsdp.yaml has it.

    Blocks are gathered twice, embeddings and the rest once (accelerate keeps them), in bf16;
    gradients are added up in fp32 (`hardware.add_up_in_fp32`).
    """
    blocks = block_parameters(shape) - 2 * shape.hidden_size  # the final norm is not one of them
    gathered = BF16 * (parameter_count(shape) + blocks)
    return round((gpus - 1) / gpus * (gathered + FP32_BYTES * parameter_count(shape)))


def counted_checkpoint_bytes(shape: ModelArguments) -> int:
    """Return the bytes of a checkpoint: weights and the two states of AdamW."""
    return 3 * FP32_BYTES * parameter_count(shape)


def sharded_checkpoint_bytes(shape: ModelArguments) -> int:
    """Return the same under fsdp.yaml: the weights once more, with the tied head written twice."""
    again = parameter_count(shape) + shape.hidden_size * shape.vocab_size
    return counted_checkpoint_bytes(shape) + FP32_BYTES * again
