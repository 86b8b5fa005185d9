"""Every setting of a run: four dataclasses, and `parse_arguments` that fills them.

Values come from dataclass defaults < YAML (with `base:` for deltas) < command line. A setting
without a default here must stand in the configuration: hyperparameters live in `configs/`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tinystories_hf.config.parsing import (
    option,
)
from tinystories_hf.core.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DEFAULT_CONFIG = CONFIGS / "xs.yaml"


# The largest micro-batch chosen when none is given. On the CPU the rate grows little beyond 8 rows
# (docs/benchmarks.md, "How the cost grows"), and memory little with each row: no logits are held.
MAX_AUTO_BATCH = 128
FLASH_REFUSED = (
    "Transformers' flash_attention_2 for GPT-Neo drops the window of the local layers, so that"
    " every position past it is wrong"
)


# What a shell and a plain YAML text leave as a backslash and a letter.
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "\\": "\\"}


def _positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if value is not None and value <= 0:
            raise UserError(f"{name} must be positive, got {value}")


def _not_negative(owner: object, *names: str) -> None:
    for name in names:
        if getattr(owner, name) < 0:
            raise UserError(f"{name} must not be negative, got {getattr(owner, name)}")


def _in_unit_interval(owner: object, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(owner, name) < 1:
            raise UserError(f"{name} must lie in [0, 1), got {getattr(owner, name)}")


@dataclass(frozen=True)
class ModelArguments:
    """The shape of the GPT-Neo model; names are those of `transformers.GPTNeoConfig`."""

    hidden_size: int = option("width of the model")
    num_layers: int = option("number of blocks")
    num_heads: int = option("attention heads; must divide hidden_size")
    vocab_size: int = option("rows of the token embedding; must equal the tokenizer's size")
    max_position_embeddings: int = option("learned positions; at least context_length")
    intermediate_size: int | None = option("width of the MLP; null is 4 x hidden_size", None)
    attention_types: list[str] = option(
        "pattern of attention layers, repeated: global and local", ["global", "local"]
    )
    window_size: int = option("tokens that a local layer looks back on", 256)
    activation_function: str = option("activation of the MLP", "gelu_new")
    attention_dropout: float = option("dropout on attention weights", 0.0)
    embed_dropout: float = option("dropout on embeddings", 0.0)
    resid_dropout: float = option("dropout on what each sublayer adds to the residual", 0.0)
    layer_norm_epsilon: float = option("epsilon of the layer norms", 1e-5)
    initializer_range: float = option("standard deviation of initial weights", 0.02)
    attn_implementation: str = option("sdpa (fast) or eager (stock); the same numbers", "sdpa")

    def __post_init__(self) -> None:
        if self.attn_implementation not in ("sdpa", "eager"):
            why = f"; {FLASH_REFUSED}" if "flash" in self.attn_implementation else ""
            raise UserError(
                f"attn_implementation must be sdpa or eager, got {self.attn_implementation}{why}"
            )
        _positive(
            self,
            *("hidden_size", "num_layers", "num_heads", "vocab_size", "max_position_embeddings"),
            *("intermediate_size", "window_size", "layer_norm_epsilon", "initializer_range"),
        )
        _in_unit_interval(self, "attention_dropout", "embed_dropout", "resid_dropout")
        if self.hidden_size % self.num_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads};"
                " change one of them"
            )
        if not self.attention_types or set(self.attention_types) - {"global", "local"}:
            raise UserError(
                f"attention_types must list `global` and `local` only, got {self.attention_types}"
            )
        if self.num_layers % len(self.attention_types):
            raise UserError(
                f"num_layers {self.num_layers} is not a multiple of the"
                f" {len(self.attention_types)} attention_types {self.attention_types};"
                " change one of them"
            )


@dataclass(frozen=True)
class DataArguments:
    """Where the stories and the tokenizer come from, and how stories become rows."""

    dataset: str = option(
        "a dataset on the Hub, a file (.txt, .jsonl, .json, .csv, .parquet; but for the last, also"
        " .gz, .zst, .bz2, .lz4), a folder of such files, a pattern such as 'data/*.txt', a folder"
        " that datasets.save_to_disk has written, or `toy`"
    )
    tokenizer: str = option(
        "a tokenizer on the Hub, a folder, or `train` (a byte-level BPE of vocab_size entries)"
    )
    context_length: int = option("tokens in a row")
    dataset_revision: str | None = option(
        "commit, tag or branch of the Hub dataset", None, belongs_to="dataset"
    )
    train_split: str = option("training split of a Hub dataset", "train", belongs_to="dataset")
    validation_split: str | None = option(
        "validation split of a Hub dataset; null holds stories out",
        "validation",
        belongs_to="dataset",
    )
    train_file: str | None = option(
        "training file inside the Hub dataset or folder, or a pattern such as 'data/train-*'",
        None,
        belongs_to="dataset",
    )
    validation_file: str | None = option(
        "validation file inside the Hub dataset or folder, or a pattern", None, belongs_to="dataset"
    )
    text_column: str = option(
        "column or key that holds the story, in all data but .txt; a.b is the field b of a", "text"
    )
    story_separator: str = option(
        r"what divides the stories of a .txt file, such as '\n' (a story a line), '\n\n' or '</s>'",
        "<|endoftext|>",
    )
    validation_share: float = option(
        "share of stories held out where the dataset has no validation of its own", 0.05
    )
    validation_seed: int = option("seed of the choice of held-out stories", 0)
    toy_stories: int = option("number of stories in the toy corpus", 20_000)
    toy_seed: int = option("seed of the toy corpus", 0)
    tokenizer_revision: str | None = option(
        "commit, tag or branch of the Hub tokenizer", None, belongs_to="tokenizer"
    )
    tokenizer_vocab_sha256: str | None = option(
        "expected sha256 of the vocabulary, written as GPT-2's vocab.json",
        None,
        belongs_to="tokenizer",
    )
    tokenizer_merges_sha256: str | None = option(
        "expected sha256 of the merges, written as GPT-2's merges.txt",
        None,
        belongs_to="tokenizer",
    )
    eos_token: str = option(
        "special token of the tokenizer that follows each story, and begins and pads texts",
        "<|endoftext|>",
        belongs_to="tokenizer",
    )
    drop_null: bool = option("leave out and count records whose text is null", False)
    drop_empty: bool = option("leave out stories without any text", False)
    repair_mojibake: bool = option("repair double-encoded quotes and dashes", False)
    drop_duplicates: bool = option("keep the first of stories that are equal to the letter", False)
    drop_validation_overlap: bool = option(
        "leave validation stories out that also stand in training", False
    )
    streaming: bool = option(
        "read and tokenize the training stories while training, for a corpus larger than the disk",
        False,
    )
    shuffle_buffer: int = option("rows among which the next is drawn; streaming only", 10_000)
    prepared_dir: str | None = option(
        "where prepared rows are cached; null is $HF_HOME/tinystories_hf", None
    )

    def __post_init__(self) -> None:
        _positive(self, "toy_stories", "shuffle_buffer")
        if not self.eos_token:
            raise UserError("eos_token must not be empty; name a special token of the tokenizer")
        if self.context_length < 2:
            raise UserError(f"context_length must be at least 2, got {self.context_length}")
        if not 0 < self.validation_share < 1:
            raise UserError(
                f"validation_share must lie between 0 and 1, got {self.validation_share}"
            )
        if not self.separator:
            raise UserError("story_separator is empty; name what divides stories, such as '\\n'")

    @property
    def separator(self) -> str:
        r"""Return what divides stories: `\n` typed as two characters is one; line ends are `\n`."""
        typed = re.sub(r"\\([nrtf\\])", lambda found: _ESCAPES[found[1]], self.story_separator)
        return typed.replace("\r\n", "\n").replace("\r", "\n")


Scheduler = Literal["linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt"]


@dataclass(frozen=True)
class RunArguments:
    """How the model is trained; names are those of `transformers.TrainingArguments`.

    The batch is stated once, in sequences per optimizer step; `plan_batch` derives the rest. A
    number of steps below 1 is a share of the whole run, as in Transformers.
    """

    output_dir: str = option("the run directory; becomes a model folder")
    global_batch_size: int = option("sequences per optimizer step, over all processes")
    learning_rate: float = option("peak learning rate of AdamW")
    per_device_train_batch_size: int | None = option(
        f"sequences per forward pass of a process; null takes the largest that fits, up to"
        f" {MAX_AUTO_BATCH}",
        None,
    )
    per_device_eval_batch_size: int = option("sequences per forward pass in evaluation", 8)
    num_train_epochs: float = option("passes over the training rows", 1.0)
    max_steps: int = option("optimizer steps; overrides num_train_epochs where positive", -1)
    lr_scheduler_type: Scheduler = option("schedule of the learning rate", "linear")
    warmup_steps: float = option("warm-up steps; below 1, a share of the run", 0.0)
    weight_decay: float = option("AdamW weight decay, on matrices only", 0.0)
    adam_beta1: float = option("AdamW beta1", 0.9)
    adam_beta2: float = option("AdamW beta2", 0.999)
    adam_epsilon: float = option("AdamW epsilon", 1e-8)
    max_grad_norm: float = option("gradient clipping; 0 switches it off", 1.0)
    bf16: bool | Literal["auto"] = option("bf16 autocast; auto: where the hardware has it", "auto")
    torch_compile: bool | Literal["auto"] = option(
        "compile the blocks for training; auto: on a GPU, where it pays", "auto"
    )
    seed: int = option("seed of initial weights, dropout and samples", 42)
    data_seed: int | None = option("seed of the order of rows; null is `seed`", None)
    logging_steps: float = option("log every so many steps; below 1, a share of the run", 10.0)
    eval_steps: float = option(
        "evaluate and write samples every so many steps; below 1, a share of the run", 0.1
    )
    save_steps: float = option(
        "save a checkpoint every so many steps; below 1, a share of the run", 0.1
    )
    save_total_limit: int | None = option("checkpoints to keep; null keeps all", 2)
    max_eval_rows: int | None = option(
        "validation rows used while training; the final loss always takes all", None
    )
    sample_prompts: list[str] = option(
        "beginnings that are told to their end at each evaluation",
        [
            "Once upon a time there was",
            "One day, a little girl named Lily",
            "Tom and Mia went to the park.",
        ],
    )
    dataloader_num_workers: int = option("processes that read rows ahead", 0)
    report_to: list[str] = option("trackers, such as tensorboard, wandb, trackio", [])
    run_name: str | None = option("name of the run in trackers; null is output_dir", None)
    resume_from_checkpoint: bool | str = option(
        "auto: continue the run in output_dir from its newest whole checkpoint, or begin it; true:"
        " continue it; or the checkpoint to continue from",
        False,
    )

    def __post_init__(self) -> None:
        _positive(
            self,
            *("global_batch_size", "per_device_train_batch_size", "per_device_eval_batch_size"),
            *("learning_rate", "num_train_epochs", "adam_epsilon", "logging_steps", "eval_steps"),
            *("save_steps", "save_total_limit", "max_eval_rows"),
        )
        _not_negative(self, "warmup_steps", "weight_decay", "max_grad_norm", "seed")
        _not_negative(self, "dataloader_num_workers")
        if self.seed >= 2**32:
            raise UserError(f"seed must be below 2^32, as NumPy wants it, got {self.seed}")
        _in_unit_interval(self, "adam_beta1", "adam_beta2")
        if self.max_steps == 0 or self.max_steps < -1:
            raise UserError(f"max_steps must be positive, or -1 for none, got {self.max_steps}")
        for name in ("warmup_steps", "logging_steps", "eval_steps", "save_steps"):
            value = getattr(self, name)
            if value > 1 and value != int(value):
                raise UserError(f"{name} above 1 counts steps and must be whole, got {value}")


@dataclass(frozen=True)
class HubArguments:
    """Whether and where the run is published; names are those of `transformers.TrainingArguments`.

    The token is never a setting: it comes from `hf auth login` or from HF_TOKEN.
    """

    push_to_hub: bool = option("publish the run on the Hub when it is trained", False)
    hub_model_id: str | None = option(
        "repository, such as me/tinystories-xs; null is the name of output_dir under your account",
        None,
    )
    hub_private_repo: bool = option("make the repository private if it is created", False)
    hub_strategy: Literal["end", "checkpoint-revisions"] = option(
        "checkpoint-revisions also publishes each checkpoint, as the branch step-N", "end"
    )
    license: str | None = option(
        "licence of the weights, for the model card, as the Hub names it, such as mit",
        None,
        belongs_to="dataset",
    )
    language: list[str] = option(
        "languages of the text, for the model card, such as en", [], belongs_to="dataset"
    )
    hub_overwrite: bool = option("replace a repository that holds something else", False)

    def __post_init__(self) -> None:
        if not self.push_to_hub and (self.hub_strategy != "end" or self.hub_overwrite):
            raise UserError("hub_strategy and hub_overwrite need push_to_hub; add --push_to_hub")
        if self.license == "" or "" in self.language:
            raise UserError("license and language must not be empty; leave out what is not known")


@dataclass(frozen=True)
class GenerationArguments:
    """How stories are told; names are those of `transformers.GenerationConfig`."""

    max_new_tokens: int | None = option("tokens to add at most; null: up to the context", None)
    num_return_sequences: int = option("stories per prompt", 1)
    temperature: float = option("0 takes the likeliest token each time", 1.0)
    top_k: int = option("sample among the k likeliest tokens; 0: among all", 0)
    top_p: float = option("sample among the likeliest tokens of this total probability", 1.0)
    num_beams: int = option("beams; more than 1 searches instead of sampling", 1)
    seed: int = option("seed of the samples", 42)
    batch_size: int = option("stories told at once", 64)

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_return_sequences", "num_beams", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if self.temperature < 0 or self.top_k < 0 or self.seed < 0:
            raise UserError("temperature, top_k and seed must not be negative")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must lie in (0, 1], got {self.top_p}")
        if self.num_beams < self.num_return_sequences and self.searches:
            raise UserError(
                f"num_return_sequences {self.num_return_sequences} needs a temperature above 0, or"
                " as many num_beams: a search finds one best story"
            )

    @property
    def searches(self) -> bool:
        """Tell whether the likeliest text is searched for, instead of one being sampled."""
        return self.temperature == 0 or self.num_beams > 1
