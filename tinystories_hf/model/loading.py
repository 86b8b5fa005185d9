"""Load a causal language model, to use it or to train from its weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from tinystories_hf.config.model_arguments import ModelArguments
from tinystories_hf.config.pretrained import DROPOUTS, GPT_NEO
from tinystories_hf.core.errors import UserError
from tinystories_hf.core.files import check_readable
from tinystories_hf.model.modeling import GPTNeoForCausalLM, story_generation_config

# What Transformers takes for the precision of the stored weights.
AS_STORED = "auto"


def load_model(
    name: str,
    revision: str | None = None,
    *,
    dtype: torch.dtype | str = AS_STORED,
    config: PreTrainedConfig | None = None,
) -> PreTrainedModel:
    """Load a causal language model from a folder or the Hub; a GPT-Neo as this package's class.

    Weights are only read from safetensors. For a repository without them, such as the published
    TinyStories models, Transformers uses the conversion proposed by the Hub's bot.

    Raises:
        OSError, ValueError: there is no such model, or its weights are pickled.
        UserError: a file of it cannot be read.
    """
    check_readable(Path(name), "model")
    config = config or AutoConfig.from_pretrained(name, revision=revision)
    known = GPTNeoForCausalLM if config.model_type == GPT_NEO else AutoModelForCausalLM
    try:
        return known.from_pretrained(
            name, revision=revision, config=config, dtype=dtype, use_safetensors=True
        )
    except OSError as error:
        if "safetensors" not in str(error):
            raise
        raise OSError(
            f"{name} has no safetensors weights, and pickled weights are not loaded; convert it at"
            " https://huggingface.co/spaces/safetensors/convert, or load and save it once with"
            " Transformers"
        ) from error


def load_pretrained(
    model: ModelArguments, tokenizer: PreTrainedTokenizerFast, context_length: int
) -> PreTrainedModel:
    """Load the model that training starts from, in fp32, with the dropouts of the settings.

    Raises:
        UserError: it cannot be loaded, or its vocabulary is not that of the tokenizer.
    """
    name, revision = str(model.model_name_or_path), model.model_revision
    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
        if config.model_type == GPT_NEO:
            config.update({dropout: getattr(model, dropout) for dropout in DROPOUTS})
        config._attn_implementation = model.attn_implementation
        loaded = load_model(name, revision, dtype=torch.float32, config=config)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"model_name_or_path: cannot load {name}: {reason}") from error
    _fit_vocabulary(loaded, model, tokenizer)
    loaded.config.bos_token_id = loaded.config.eos_token_id = tokenizer.eos_token_id
    loaded.config.pad_token_id = tokenizer.pad_token_id
    loaded.generation_config = story_generation_config(tokenizer, context_length)
    return loaded


def _fit_vocabulary(
    loaded: PreTrainedModel, model: ModelArguments, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Check that a tokenizer is that of the model, or resize the embedding if that is asked for.

    Raises:
        UserError: the tokenizer has other entries, or more than the embedding has rows.
    """
    name, rows = model.model_name_or_path, loaded.get_input_embeddings().weight.shape[0]
    if model.resize_embedding:
        loaded.resize_token_embeddings(len(tokenizer), mean_resizing=True)
        return
    fix = "use the model's own, or add --resize_embedding"
    if len(tokenizer) > rows:
        raise UserError(
            f"tokenizer: it has {len(tokenizer)} entries, but the embedding of {name} has {rows}"
            f" rows; {fix}"
        )
    try:
        own = AutoTokenizer.from_pretrained(name, revision=model.model_revision)
    except (OSError, ValueError):
        return  # a model without a tokenizer, such as TinyStories-1M
    if own.get_vocab() != tokenizer.get_vocab():
        raise UserError(f"tokenizer: its entries are not those of the tokenizer of {name}; {fix}")


def unsharded_model(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model, or, if it is sharded (FSDP2), a copy with all of its weights.

    Collective: a sharded model only computes if all processes do, so all of them must call this;
    each gets its own copy.
    """
    is_sharded = isinstance(model, FSDPModule)
    if not is_sharded:
        return model
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    with torch.random.fork_rng(devices=[]):  # the random state of the training is restored
        if isinstance(model, GPTNeoForCausalLM):
            copy = GPTNeoForCausalLM(model.config)
        else:
            copy = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    copy.to(model.device).load_state_dict(weights)
    copy.generation_config = model.generation_config
    return copy
