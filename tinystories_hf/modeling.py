"""The model: GPT-Neo in the shape that the settings give, several times as fast as stock.

`GPTNeoForCausalLM` is Transformers' class of that name with another way to the same numbers. Its
weights, their names, its initialization and all that it saves are the stock model's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    GPTNeoConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.gpt_neo import modeling_gpt_neo as stock

from tinystories_hf import attention  # noqa: F401  (makes "sdpa" known to GPT-Neo)
from tinystories_hf.arguments import FLASH_REFUSED, ModelArguments
from tinystories_hf.cross_entropy import causal_lm_loss, token_losses
from tinystories_hf.files import check_readable


class GPTNeoModel(stock.GPTNeoModel):
    """The blocks of GPT-Neo with `attn_implementation` "sdpa" (the default) or "eager"."""

    _supports_sdpa = True

    def __init__(self, config: GPTNeoConfig) -> None:
        super().__init__(config)
        if config.activation_function == "gelu_new":
            # The same function in one operation instead of eight.
            for block in self.h:
                block.mlp.act = nn.GELU(approximate="tanh")

    def whole_rows(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the last hidden states of rows without padding, (batch, length, hidden).

        As `forward` does, without its search for paddings, packings and caches, which waits for
        the device at every step.
        """
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden_states = self.drop(self.wte(input_ids) + self.wpe(positions))
        for block in self.h:
            hidden_states = block(hidden_states)[0]
        last: torch.Tensor = self.ln_f(hidden_states)
        return last


class GPTNeoForCausalLM(stock.GPTNeoForCausalLM):
    """GPT-Neo whose loss is computed without the logits of the whole batch."""

    _supports_sdpa = True

    def __init__(self, config: GPTNeoConfig) -> None:
        if "flash" in (config._attn_implementation or ""):
            raise ValueError(f"{FLASH_REFUSED}; use sdpa or eager")
        stock.GPTNeoPreTrainedModel.__init__(self, config)
        self.transformer = GPTNeoModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.compiled_rows: Callable[[torch.Tensor], torch.Tensor] | None = None
        self.post_init()

    def compile_training(self) -> None:
        """Compile the blocks for training steps, which all have one shape.

        Evaluation and generation, whose shapes change, are not compiled again and again. Names of
        weights stay what they are.
        """
        self.compiled_rows = torch.compile(self.transformer.whole_rows, dynamic=False)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the logits, or with `labels` the loss and no logits.

        Arguments are those of the stock model; `num_items_in_batch` is as in `causal_lm_loss`.
        """
        rest = {
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
        }
        if labels is None:
            return super().forward(
                input_ids,
                **rest,
                use_cache=use_cache,
                return_dict=return_dict,
                logits_to_keep=logits_to_keep,
                **kwargs,
            )
        if input_ids is not None and all(value is None for value in rest.values()):
            compiled = self.compiled_rows if self.training else None
            outputs = CausalLMOutputWithPast()
            hidden_states = (compiled or self.transformer.whole_rows)(input_ids)
        else:
            outputs = self.transformer(input_ids, **rest, use_cache=False, **kwargs)
            hidden_states = outputs.last_hidden_state
        return CausalLMOutputWithPast(
            loss=causal_lm_loss(hidden_states, self.lm_head.weight, labels, num_items_in_batch),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def save_pretrained(
        self,
        save_directory: Any,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Save as stock does, also from the state of a sharded model.

        That state names tied weights twice and they share no memory, by which stock finds them.
        """
        if state_dict is not None:
            tied = self.all_tied_weights_keys
            state_dict = {name: state_dict[name] for name in state_dict if name not in tied}
        super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)

    @torch.inference_mode()
    def token_losses(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of each label in nats, in the model's own precision.

        Both are (batch, length), without padding; `labels[:, i]` follows `input_ids[:, i]`.
        """
        hidden_states = self.transformer.whole_rows(input_ids).flatten(0, 1)
        losses = token_losses(hidden_states, self.lm_head.weight, labels.flatten())
        return losses.view(labels.shape)


@dataclass(frozen=True)
class ParameterReport:
    """Where the parameters are; tied weights count once."""

    total: int
    token_embedding: int
    position_embedding: int
    blocks: int

    def __str__(self) -> str:
        return (
            f"{self.total:,} parameters = {self.token_embedding:,} token embedding (tied head)"
            f" + {self.position_embedding:,} positions + {self.blocks:,} blocks and final norm"
        )


def build_config(model: ModelArguments, eos_token_id: int) -> GPTNeoConfig:
    """Return the configuration of the model; one token begins, ends and pads a story."""
    repeats = model.num_layers // len(model.attention_types)
    return GPTNeoConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        intermediate_size=model.intermediate_size,
        max_position_embeddings=model.max_position_embeddings,
        attention_types=[[model.attention_types, repeats]],
        window_size=model.window_size,
        activation_function=model.activation_function,
        attention_dropout=model.attention_dropout,
        embed_dropout=model.embed_dropout,
        resid_dropout=model.resid_dropout,
        layer_norm_epsilon=model.layer_norm_epsilon,
        initializer_range=model.initializer_range,
        bos_token_id=eos_token_id,
        eos_token_id=eos_token_id,
        pad_token_id=eos_token_id,
    )


def build_model(
    model: ModelArguments, tokenizer: PreTrainedTokenizerFast, context_length: int
) -> GPTNeoForCausalLM:
    """Return a model with fresh weights in fp32, drawn from torch's global generator."""
    config = build_config(model, tokenizer.eos_token_id)
    config._attn_implementation = model.attn_implementation
    built = GPTNeoForCausalLM(config)
    built.generation_config = story_generation_config(tokenizer, context_length)
    return built


def load_model(name: str, revision: str | None = None) -> PreTrainedModel:
    """Load a causal language model from a folder or the Hub; a GPT-Neo takes the fast path.

    Weights are read from safetensors alone. Of a repository that has none, such as the published
    TinyStories models, Transformers takes the conversion that the Hub's own bot proposes.

    Raises:
        OSError, ValueError: there is no such model, or its weights are pickled.
        UserError: a file of it cannot be read.
    """
    check_readable(Path(name), "model")
    config = AutoConfig.from_pretrained(name, revision=revision)
    known = GPTNeoForCausalLM if config.model_type == "gpt_neo" else AutoModelForCausalLM
    try:
        return known.from_pretrained(name, revision=revision, use_safetensors=True)
    except OSError as error:
        if "safetensors" not in str(error):
            raise
        raise OSError(
            f"{name} has no weights as safetensors, and pickled ones are not loaded; convert it at"
            " https://huggingface.co/spaces/safetensors/convert, or load and save it once with"
            " Transformers"
        ) from error


def whole_model(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model, or where it is sharded (FSDP2) a copy with all of its weights.

    A sharded model computes nothing unless all processes do so together. They have to call this
    together, too; the copy is each one's own.
    """
    is_sharded = isinstance(model, FSDPModule)
    if not is_sharded:
        return model
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    with torch.random.fork_rng(devices=[]):  # training goes on as if nothing had been drawn
        copy = GPTNeoForCausalLM(model.config)
    copy.to(model.device).load_state_dict(weights)
    copy.generation_config = model.generation_config
    return copy


def story_generation_config(
    tokenizer: PreTrainedTokenizerFast, context_length: int
) -> GenerationConfig:
    """Return how the model tells stories unless asked otherwise: sampled, to their own end.

    Positions past the trained context are random (TinyStories-33M, discussion 12) or do not exist,
    so the length stops there.
    """
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_length=context_length,
        do_sample=True,
        temperature=1.0,
    )


def count_parameters(model: stock.GPTNeoForCausalLM) -> ParameterReport:
    """Count the parameters of a GPT-Neo, each tensor once."""
    total = sum(parameter.numel() for parameter in model.parameters())
    tokens = model.transformer.wte.weight.numel()
    positions = model.transformer.wpe.weight.numel()
    return ParameterReport(total, tokens, positions, total - tokens - positions)
