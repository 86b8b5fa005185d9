"""How long a text a causal language model can read, for every architecture of Transformers."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

# Over all configurations that AutoModelForCausalLM knows in Transformers 5.23, the first name is
# there under that name or an alias of it; MPT and Whisper have the others.
NAMES = ("max_position_embeddings", "max_seq_len", "max_target_positions")
# The published models were trained on it, whatever their configurations say (TinyStories-33M,
# discussion 12); other models are read in windows of the same length.
PAPER_CONTEXT = 512


def max_positions(model: PreTrainedModel) -> int | None:
    """Return the most tokens that a model can read at once.

    None is no limit: Bloom adds a bias by distance, Mamba and its like read token by token.
    """
    config = model.config.get_text_config(decoder=True)
    found = [getattr(config, name, None) for name in NAMES]
    limits = [value for value in found if isinstance(value, int) and value > 0]
    if not limits:
        return None
    # RoBERTa and its like number their positions from the padding's index on.
    offsets = [
        module.padding_idx + 1
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        and module.num_embeddings == limits[0]
        and module.padding_idx is not None
        and module is not model.get_input_embeddings()
    ]
    return limits[0] - max(offsets, default=0)


def context_length(model: PreTrainedModel) -> int:
    """Return the longest text that stories are generated to.

    It is what the generation configuration says, which for a run is what it was trained on, and no
    more than the model can read; a model that states neither gets 512.
    """
    limits = (max_positions(model), model.generation_config.max_length)
    return min((limit for limit in limits if limit), default=PAPER_CONTEXT)
