"""The maximum context length of a causal language model, for every architecture of Transformers."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from tinystories_hf.config.pretrained import PAPER_CONTEXT, positions_in


def max_positions(model: PreTrainedModel) -> int | None:
    """Return the maximum number of positions of a model, or None without a limit.

    Bloom has none, with its bias by distance, and neither have Mamba and other recurrent models.
    """
    limit = positions_in(model.config)
    if limit is None:
        return None
    # RoBERTa and similar models number their positions from the padding index on.
    offsets = [
        module.padding_idx + 1
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        and module.num_embeddings == limit
        and module.padding_idx is not None
        and module is not model.get_input_embeddings()
    ]
    return limit - max(offsets, default=0)


def context_length(model: PreTrainedModel) -> int:
    """Return the maximum length of generated stories in tokens, the prompt included.

    This is `max_length` of the generation configuration, which for a run is its context length,
    and at most the model's positions; 512 for a model that has neither.
    """
    limits = (max_positions(model), model.generation_config.max_length)
    return min((limit for limit in limits if limit), default=PAPER_CONTEXT)
