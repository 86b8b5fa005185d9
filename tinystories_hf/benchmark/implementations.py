"""The three that are compared, with the same shape, rows, dropouts, precision and optimizer.

`stock` is what Transformers gives: its GPT-Neo with eager attention, `run_clm`'s way of preparing
rows, `pipeline` for stories. `ours` is this package. `gpt2` is the best that a user could pick
instead: Transformers' GPT-2 of the same shape with SDPA and torch.compile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoTokenizer,
    GPT2Config,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    set_seed,
)

from tinystories_hf.config.arguments import RunArguments
from tinystories_hf.config.model_arguments import ModelArguments
from tinystories_hf.core.device import device_type, should_compile
from tinystories_hf.core.progress import without_progress_bars
from tinystories_hf.data.readers.text_files import read_text
from tinystories_hf.model.modeling import GPTNeoForCausalLM, build_config

STOCK, OURS, GPT2 = "stock", "ours", "gpt2"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# A training step; it returns its number of tokens.
Step = Callable[[], int]


@contextmanager
def quiet_benchmark() -> Iterator[None]:
    """Hide the progress bars and warnings of the libraries."""
    import datasets

    verbosity, shown = transformers.logging.get_verbosity(), datasets.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        with without_progress_bars():
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if shown:
            datasets.enable_progress_bars()


@dataclass(frozen=True)
class Case:
    """A training case: precision, and the dropout of attention and of everything else."""

    precision: str
    attention_dropout: float
    other_dropout: float
    rows: int

    def __str__(self) -> str:
        return (
            f"{self.precision}, attention dropout {self.attention_dropout:g}, others"
            f" {self.other_dropout:g}, {self.rows} rows"
        )


def build_implementation(name: str, shape: ModelArguments, case: Case) -> PreTrainedModel:
    """Return one of the compared implementations with random weights, on the device."""
    set_seed(42)
    if name == GPT2:
        config = GPT2Config(
            vocab_size=shape.vocab_size,
            n_embd=shape.hidden_size,
            n_layer=shape.num_layers,
            n_head=shape.num_heads,
            n_positions=shape.max_position_embeddings,
            n_inner=shape.intermediate_size,
            attn_pdrop=case.attention_dropout,
            embd_pdrop=case.other_dropout,
            resid_pdrop=case.other_dropout,
            attn_implementation="sdpa",
            bos_token_id=shape.vocab_size - 1,
            eos_token_id=shape.vocab_size - 1,
        )
        gpt2 = transformers.GPT2LMHeadModel(config).to(device_type())
        gpt2.loss_type = "ForCausalLM"  # the default, set to avoid a warning
        return gpt2
    dropped = replace(
        shape,
        attention_dropout=case.attention_dropout,
        embed_dropout=case.other_dropout,
        resid_dropout=case.other_dropout,
    )
    config = build_config(dropped, shape.vocab_size - 1)
    known = GPTNeoForCausalLM if name == OURS else transformers.GPTNeoForCausalLM
    return known(config).to(device_type())


def training_step(
    name: str,
    shape: ModelArguments,
    training: RunArguments,
    case: Case,
    rows: torch.Tensor,
    prepare: Callable[[PreTrainedModel], None] = lambda _: None,
) -> Step:
    """Return one optimizer step of an implementation on rows (rows, context_length).

    Like the Trainer's: forward, backward, clipping, fused AdamW, for fp16 with loss scaling.
    `prepare` is called with the model before it is compiled.
    """
    torch.compiler.reset()  # or earlier cases would count as recompilations
    model = build_implementation(name, shape, case).train()
    prepare(model)
    if name == OURS and should_compile(training.torch_compile):
        model.compile_training()
    if name == GPT2:
        # The shape never changes.
        model.compile(dynamic=False)
    alone = {"skip_logits": True} if name == OURS else {}
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        weight_decay=training.weight_decay,
        fused=True,
    )
    rows = rows.to(device_type())
    dtype = PRECISIONS[case.precision]
    scaler = torch.amp.GradScaler(device_type(), enabled=case.precision == "fp16")

    def step() -> int:
        with torch.autocast(device_type(), dtype, enabled=case.precision != "fp32"):
            loss = model(input_ids=rows, labels=rows, use_cache=False, **alone).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return rows.numel()

    return step


def evaluation_step(name: str, shape: ModelArguments, case: Case, context: int) -> Any:
    """Return one evaluation of random rows: the loss of Transformers' model, or this package's."""
    model = build_implementation(name, shape, case).eval()
    rows = torch.randint(shape.vocab_size, (case.rows, context), device=device_type())

    @torch.inference_mode()
    def evaluate() -> int:
        if name == OURS:
            model.token_losses(rows, rows)
        else:
            model(input_ids=rows, labels=rows, use_cache=False)
        return rows.numel()

    return evaluate


def prepare_stock(text: Path, tokenizer_folder: Path, context: int, folder: Path) -> int:
    """Prepare rows as `run_clm` does: tokenize and group by `datasets.map`, then save."""
    import datasets

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)

    def tokenize(batch: dict[str, list[str]]) -> Any:
        ended = [story + tokenizer.eos_token for story in batch["text"]]
        return tokenizer(ended)

    def group(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {key: list(chain.from_iterable(batch[key])) for key in batch}
        whole = len(joined["input_ids"]) // context * context
        rows = {
            key: [ids[start : start + context] for start in range(0, whole, context)]
            for key, ids in joined.items()
        }
        rows["labels"] = [list(row) for row in rows["input_ids"]]
        return rows

    texts = datasets.Dataset.from_dict({"text": list(read_text(text))})
    tokenized = texts.map(tokenize, batched=True, remove_columns="text")
    rows = tokenized.map(group, batched=True)
    rows.save_to_disk(folder)
    return len(rows) * context


def generate_with_stock(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[list[int]],
    max_new_tokens: int,
) -> int:
    """Generate stories with `pipeline`, one at a time; return the number of generated tokens."""
    model.generation_config.max_length = (
        None  # or it would warn that max_new_tokens takes precedence
    )
    generator = transformers.pipeline(
        "text-generation", model=model, tokenizer=tokenizer, device=model.device
    )
    generated = 0
    for prompt in prompts:
        (story,) = generator(
            tokenizer.decode(prompt),
            max_new_tokens=max_new_tokens,
            do_sample=True,
            temperature=1.0,
            return_tensors=True,
        )
        generated += len(story["generated_token_ids"]) - len(prompt)
    return generated
