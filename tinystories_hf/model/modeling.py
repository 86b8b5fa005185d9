"""GPT-Neo with faster attention and loss than Transformers' class, and the same results.

`GPTNeoForCausalLM` has the weights, weight names, initialization and saved files of Transformers'
class of that name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import (
    GenerationConfig,
    GenerationMixin,
    GPTNeoConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.gpt_neo import modeling_gpt_neo as stock

from tinystories_hf.config.model_arguments import ModelArguments
from tinystories_hf.model.attention import ChosenAttention, GPTNeoAttention, take_word
from tinystories_hf.model.attention_mask import block_mask
from tinystories_hf.model.cross_entropy import (
    causal_lm_loss,
    is_hooked,
    is_plain_linear,
    token_losses,
)

# Transformers has renamed arguments before: these are those of the installed version.
MODEL_SIGNATURE = inspect.signature(stock.GPTNeoModel.forward)
CAUSAL_LM_SIGNATURE = inspect.signature(stock.GPTNeoForCausalLM.forward)
MODEL_ARGUMENTS = tuple(MODEL_SIGNATURE.parameters)[1:-1]
CAUSAL_LM_ARGUMENTS = tuple(CAUSAL_LM_SIGNATURE.parameters)[1:-1]


def _signed(signature: inspect.Signature, *more: str) -> Callable[[Any], Any]:
    """Give a method this signature and `more` switches: Transformers inspects it."""
    *named, rest = signature.parameters.values()
    switches = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False) for name in more
    ]

    def sign(method: Any) -> Any:
        method.__signature__ = signature.replace(parameters=[*named, *switches, rest])
        return method

    return sign


def _by_name(names: Sequence[str], args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(names, args, strict=False)), **kwargs}


class GPTNeoModel(ChosenAttention, stock.GPTNeoModel):
    """The blocks of GPT-Neo."""

    def __init__(self, config: GPTNeoConfig) -> None:
        word = take_word(config)
        super().__init__(config)
        for block in self.h:
            GPTNeoAttention.take_over(block.attn.attention, word)
            if config.activation_function == "gelu_new":
                # The same activation function in one operation instead of eight.
                block.mlp.act = nn.GELU(approximate="tanh")

    @_signed(MODEL_SIGNATURE)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what Transformers' class returns, for the same arguments."""
        given = _by_name(MODEL_ARGUMENTS, args, kwargs)
        windows = {block.attn.attention.window for block in self.h}
        given["attention_mask"] = block_mask(self, windows, **given)
        return super().forward(**given)

    def whole_rows(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the last hidden states of rows without padding, (batch, length, hidden).

        Unlike `forward` it does not check for padding, packed sequences and caches, which would
        synchronize with the device at every step.
        """
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden_states = self.drop(self.wte(input_ids) + self.wpe(positions))
        for block in self.h:
            hidden_states = block(hidden_states)[0]
        last: torch.Tensor = self.ln_f(hidden_states)
        return last


class GPTNeoForCausalLM(ChosenAttention, stock.GPTNeoForCausalLM, GenerationMixin):
    """GPT-Neo that can return the loss without the logits of the batch."""

    def __init__(self, config: GPTNeoConfig) -> None:
        take_word(config)
        stock.GPTNeoPreTrainedModel.__init__(self, config)
        self.transformer = GPTNeoModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.compiled_rows: Callable[[torch.Tensor], torch.Tensor] | None = None
        self.post_init()

    def compile_training(self) -> None:
        """Compile the blocks and the loss for training steps, which all have the same shape.

        Evaluation and generation, whose shapes vary, run without compilation. The names of the
        weights do not change.
        """
        self.compiled_rows = torch.compile(self.transformer.whole_rows, dynamic=False)

    @_signed(CAUSAL_LM_SIGNATURE, "skip_logits")
    def forward(self, *args: Any, skip_logits: bool = False, **kwargs: Any) -> Any:
        """Return what Transformers' class returns, for the same arguments.

        With `skip_logits`, return the loss without the logits, which are then never held for the
        whole batch (unless this call itself is being compiled, or the head is not plain), and
        create no cache unless `use_cache` is True.

        Raises:
            ValueError: `skip_logits` without `labels`.
        """
        if not skip_logits:
            return super().forward(*args, **kwargs)
        given = _by_name(CAUSAL_LM_ARGUMENTS, args, kwargs)
        given = {name: value for name, value in given.items() if value is not None}
        if "labels" not in given:
            raise ValueError("skip_logits returns only the loss, which needs labels")
        return_dict = given.pop("return_dict", True)
        given["use_cache"] = given.get("use_cache", False)
        # Other loss functions and losses of some positions are left to Transformers. So are
        # compiled ones: the loop over chunks would be unrolled for each length.
        is_usual = (
            not torch.compiler.is_compiling()
            and self.loss_function is ForCausalLMLoss
            and "logits_to_keep" not in given
            and "ignore_index" not in given
        )
        if is_usual and is_plain_linear(self.lm_head):
            outputs = self._fused_loss(**given)
        else:
            found = super().forward(**given, return_dict=True)
            outputs = CausalLMOutputWithPast(**{k: found[k] for k in found if k != "logits"})
        return outputs if return_dict else outputs.to_tuple()

    def _fused_loss(
        self,
        *,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
        shift_labels: torch.Tensor | None = None,
        **given: Any,
    ) -> CausalLMOutputWithPast:
        """Return the loss from the head's weight, without calling the head."""
        more: dict[str, Any] = {}
        if self._is_whole_rows(given):
            compiled = self.compiled_rows if self.training else None
            hidden_states = (compiled or self.transformer.whole_rows)(given["input_ids"])
        else:
            more = dict(self.transformer(**given, return_dict=True))
            hidden_states = more.pop("last_hidden_state")
        loss = causal_lm_loss(
            hidden_states,
            self.lm_head.weight,
            labels,
            num_items_in_batch,
            shift_labels,
            compiled=self.training and self.compiled_rows is not None,
        )
        return CausalLMOutputWithPast(loss=loss, **more)

    def _is_whole_rows(self, given: dict[str, Any]) -> bool:
        return (
            set(given) == {"input_ids", "use_cache"}
            and not given["use_cache"]
            and not self.config.output_attentions
            and not self.config.output_hidden_states
            and not is_hooked(self.transformer)
        )

    def save_pretrained(
        self,
        save_directory: Any,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Save as Transformers does, also from the state dict of a sharded model.

        There tied weights appear twice without shared memory, by which Transformers detects them.
        """
        if state_dict is not None:
            tied = self.all_tied_weights_keys
            state_dict = {name: state_dict[name] for name in state_dict if name not in tied}
        super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)

    @torch.inference_mode()
    def token_losses(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of each label in nats, in the precision of the model.

        Both are (batch, length), without padding; `labels[:, i]` is the token after
        `input_ids[:, i]`.
        """
        if self._is_whole_rows({"input_ids": input_ids, "use_cache": False}):
            states = self.transformer.whole_rows(input_ids)
        else:
            states = self.transformer(input_ids, use_cache=False, return_dict=True)[0]
        if is_plain_linear(self.lm_head):
            losses = token_losses(states.flatten(0, 1), self.lm_head.weight, labels.flatten())
            return losses.view(labels.shape)
        rows = zip(states, labels, strict=True)  # the logits of one row at a time
        return torch.stack(
            [
                functional.cross_entropy(self.lm_head(row).float(), expected, reduction="none")
                for row, expected in rows
            ]
        )


@dataclass(frozen=True)
class ParameterReport:
    """The parameter counts; tied weights count once, so that a tied head counts 0."""

    total: int
    token_embedding: int
    position_embedding: int
    blocks: int
    output_head: int = 0

    def __str__(self) -> str:
        head = f" + {self.output_head:,} head" if self.output_head else ""
        return (
            f"{self.total:,} parameters = {self.token_embedding:,} token embedding"
            f"{'' if head else ' (tied head)'} + {self.position_embedding:,} positions"
            f" + {self.blocks:,} blocks and final norm{head}"
        )


def build_config(model: ModelArguments, eos_token_id: int) -> GPTNeoConfig:
    """Return the configuration of the model; BOS, EOS and padding are the same token."""
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
    """Return a model with random fp32 weights, drawn from torch's global generator."""
    config = build_config(model, tokenizer.eos_token_id)
    config._attn_implementation = model.attn_implementation
    built = GPTNeoForCausalLM(config)
    built.generation_config = story_generation_config(tokenizer, context_length)
    return built


def story_generation_config(
    tokenizer: PreTrainedTokenizerFast, context_length: int
) -> GenerationConfig:
    """Return the default generation configuration: sampling at temperature 1, up to the EOS token.

    `max_length` is the trained context: positions past it are untrained (TinyStories-33M,
    discussion 12) or do not exist.
    """
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_length=context_length,
        do_sample=True,
        temperature=1.0,
    )


def count_parameters(model: PreTrainedModel) -> ParameterReport:
    """Count the parameters of a causal language model; tied tensors count once."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    total = sum(parameter.numel() for parameter in model.parameters())
    tokens = embedding.weight.numel()
    positions = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module is not embedding and module is not head
    )
    own_head = 0 if head.weight is embedding.weight else head.weight.numel()
    blocks = total - tokens - positions - own_head
    return ParameterReport(total, tokens, positions, blocks, own_head)
