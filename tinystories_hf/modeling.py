"""The model: a plain `GPTNeoForCausalLM` in the shape that the settings give.

Two traps of GPT-Neo that every port has to respect: attention scores are not divided by the root of
the head dimension, and every second layer sees only the last `window_size` tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import (
    GenerationConfig,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    PreTrainedTokenizerFast,
)

from tinystories_hf.arguments import ModelArguments


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


def build_config(model: ModelArguments, tokenizer: PreTrainedTokenizerFast) -> GPTNeoConfig:
    """Return the configuration of the model; bos, eos and pad are the tokenizer's."""
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
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_model(
    model: ModelArguments, tokenizer: PreTrainedTokenizerFast, context_length: int
) -> GPTNeoForCausalLM:
    """Return a model with fresh weights in fp32, drawn from torch's global generator."""
    built = GPTNeoForCausalLM(build_config(model, tokenizer))
    built.generation_config = story_generation_config(tokenizer, context_length)
    return built


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


def count_parameters(model: GPTNeoForCausalLM) -> ParameterReport:
    """Count the parameters of a GPT-Neo, each tensor once."""
    total = sum(parameter.numel() for parameter in model.parameters())
    tokens = model.transformer.wte.weight.numel()
    positions = model.transformer.wpe.weight.numel()
    return ParameterReport(total, tokens, positions, total - tokens - positions)
