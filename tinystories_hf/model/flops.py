"""The size of a model and the compute of its training, from its shape alone."""

from __future__ import annotations

from dataclasses import dataclass

from tinystories_hf.config.model_arguments import ModelArguments


@dataclass(frozen=True)
class ModelSize:
    """Parameter counts by kind; the head is tied to the token embedding."""

    embedding: int
    positions: int
    blocks: int

    @property
    def total(self) -> int:
        """All parameters."""
        return self.embedding + self.positions + self.blocks


def model_size(shape: ModelArguments) -> ModelSize:
    """Return the parameter counts of a GPT-Neo; `blocks` includes the last layer norm."""
    hidden, inner = shape.hidden_size, shape.intermediate_size or 4 * shape.hidden_size
    attention = 4 * hidden**2 + hidden  # only the output projection has a bias
    mlp = 2 * hidden * inner + inner + hidden
    norms = 2 * 2 * hidden
    return ModelSize(
        embedding=shape.vocab_size * hidden,
        positions=shape.max_position_embeddings * hidden,
        blocks=shape.num_layers * (attention + mlp + norms) + 2 * hidden,
    )


def training_flops_per_token(shape: ModelArguments, context: int) -> int:
    """Return the operations of matrix products per token of a training step, forward and backward.

    6 for each weight of a matrix, the head included, and 12 x hidden size for each position of the
    context in each layer. Like a traced count, it includes scores that causal and local masks
    discard.
    """
    hidden, inner = shape.hidden_size, shape.intermediate_size or 4 * shape.hidden_size
    weights = shape.num_layers * (4 * hidden**2 + 2 * hidden * inner) + hidden * shape.vocab_size
    return 6 * weights + 12 * shape.num_layers * hidden * context
