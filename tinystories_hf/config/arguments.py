"""The settings of a run as dataclasses, with their defaults, help texts and checks.

Values are taken from the dataclass defaults, then the YAML configuration, then the command line;
later sources override earlier ones. Hyperparameters have no default here and must be set in a
configuration file (`configs/`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from tinystories_hf.config.checks import in_unit_interval, not_negative, positive
from tinystories_hf.config.parsing import option
from tinystories_hf.config.trainer_fields import enum_values
from tinystories_hf.core.errors import UserError
from tinystories_hf.core.shipped import shipped

DEFAULT_CONFIG = shipped("configs") / "xs.yaml"

# Upper limit for the automatic per_device_train_batch_size. On the CPU throughput hardly grows
# beyond 8 sequences (docs/benchmarks.md, "How the cost grows"), and each further sequence takes
# little memory because the logits are never materialized.
MAX_AUTO_BATCH = 128


@dataclass(frozen=True)
class RunArguments:
    """Training settings; names follow `transformers.TrainingArguments`.

    The batch size is given once, in sequences per optimizer step; `plan_batch` derives the
    per-device batch and the accumulation steps. A number of steps below 1 is a fraction of the
    run, as in Transformers.
    """

    output_dir: str = option(
        "run directory, for checkpoints, the final model and its results",
        belongs_to="model_name_or_path",
    )
    global_batch_size: int = option("sequences per optimizer step, summed over all processes")
    learning_rate: float = option("peak learning rate")
    per_device_train_batch_size: int | None = option(
        "sequences per forward pass and process; null: the largest divisor of each process's share"
        f" of global_batch_size, at most {MAX_AUTO_BATCH}",
        None,
    )
    per_device_eval_batch_size: int | None = option(
        "sequences per forward pass during evaluation; null: 64 on a GPU, else 8", None
    )
    num_train_epochs: float = option(
        "passes over the training rows; unused if max_steps is positive", 1.0
    )
    max_steps: int = option("optimizer steps; if positive, overrides num_train_epochs", -1)
    lr_scheduler_type: str = option(
        "learning-rate schedule: linear, cosine, constant, constant_with_warmup, inverse_sqrt,"
        " warmup_stable_decay or another one of Transformers, with its lr_scheduler_kwargs",
        "linear",
    )
    warmup_steps: float = option("warm-up steps; below 1, a fraction of the run", 0.0)
    weight_decay: float = option("AdamW weight decay; not applied to biases and layer norms", 0.0)
    adam_beta1: float = option("AdamW beta1", 0.9)
    adam_beta2: float = option("AdamW beta2", 0.999)
    adam_epsilon: float = option("AdamW epsilon", 1e-8)
    max_grad_norm: float = option("maximum gradient norm for clipping; 0 disables clipping", 1.0)
    bf16: bool | Literal["auto"] = option(
        "bf16 autocast; auto: enabled if the hardware supports it", "auto"
    )
    torch_compile: bool | Literal["auto"] = option(
        "compile the transformer layers with torch.compile; auto: enabled on a GPU", "auto"
    )
    deterministic: bool = option(
        "use only deterministic algorithms: with it a run on a GPU resumes bit-identically, but is"
        " slower; on the CPU it always does",
        False,
    )
    seed: int = option("seed for the initial weights, dropout and sampled stories", 42)
    data_seed: int | None = option("seed for the order of the rows; null: same as seed", None)
    logging_steps: float = option("log every this many steps; below 1, a fraction of the run", 10.0)
    eval_steps: float = option(
        "evaluate and write samples every this many steps; below 1, a fraction of the run", 0.1
    )
    save_steps: float = option(
        "save a checkpoint every this many steps; below 1, a fraction of the run", 0.1
    )
    save_total_limit: int | None = option("number of newest checkpoints to keep; null: all", 2)
    max_eval_rows: int | None = option(
        "validation rows used during training; null: all. The final loss always uses all rows", None
    )
    sample_prompts: list[str] = option(
        "prompts to complete at each evaluation",
        [
            "Once upon a time there was",
            "One day, a little girl named Lily",
            "Tom and Mia went to the park.",
        ],
    )
    disable_tqdm: bool | None = option(
        "print a line for each log entry instead of a progress bar; null: a bar on a terminal", None
    )
    dataloader_num_workers: int = option("data-loader worker processes", 0)
    report_to: list[str] = option("experiment trackers, such as tensorboard, wandb or trackio", [])
    run_name: str | None = option(
        "run name in the trackers; null: the last part of output_dir", None
    )
    resume_from_checkpoint: bool | str = option(
        "auto: resume from the newest valid checkpoint in output_dir, or start a new run if it has"
        " none; true: resume, or fail if it has none; or the path of a checkpoint",
        False,
    )
    # Other fields of `transformers.TrainingArguments`, by name; each of them is a setting, too.
    training_arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        positive(
            self,
            *("global_batch_size", "per_device_train_batch_size", "per_device_eval_batch_size"),
            *("learning_rate", "num_train_epochs", "adam_epsilon", "logging_steps", "eval_steps"),
            *("save_steps", "save_total_limit", "max_eval_rows"),
        )
        not_negative(self, "warmup_steps", "weight_decay", "max_grad_norm", "seed")
        not_negative(self, "dataloader_num_workers")
        if self.seed >= 2**32:
            raise UserError(f"seed must be below 2^32 (NumPy's limit), got {self.seed}")
        in_unit_interval(self, "adam_beta1", "adam_beta2")
        schedules = enum_values("SchedulerType")
        if self.lr_scheduler_type not in schedules:
            raise UserError(
                f"lr_scheduler_type: {self.lr_scheduler_type} is unknown; use one of"
                f" {', '.join(schedules)}"
            )
        if self.max_steps == 0 or self.max_steps < -1:
            raise UserError(
                f"max_steps must be positive, or -1 to use num_train_epochs, got {self.max_steps}"
            )
        for name in ("warmup_steps", "logging_steps", "eval_steps", "save_steps"):
            value = getattr(self, name)
            if value > 1 and value != int(value):
                raise UserError(
                    f"{name} above 1 is a number of steps and must be an integer, got {value}"
                )


@dataclass(frozen=True)
class HubArguments:
    """Settings for publishing the run; names follow `transformers.TrainingArguments`.

    The Hub token is not a setting; it is read from `hf auth login` or from HF_TOKEN.
    """

    push_to_hub: bool = option("publish the finished run on the Hub", False)
    hub_model_id: str | None = option(
        "target repository, such as me/tinystories-xs; null: the last part of output_dir, in your"
        " own namespace",
        None,
    )
    hub_private_repo: bool = option(
        "create the repository as private; an existing one keeps its visibility", False
    )
    hub_strategy: Literal["end", "checkpoint-revisions"] = option(
        "end: publish the final model; checkpoint-revisions: also publish each checkpoint as the"
        " branch step-N",
        "end",
    )
    license: str | None = option(
        "license of the weights, for the model card; an identifier known to the Hub, such as mit",
        None,
        belongs_to="dataset",
    )
    language: list[str] = option(
        "languages of the text, for the model card; codes such as en", [], belongs_to="dataset"
    )
    hub_overwrite: bool = option(
        "overwrite the target repository if it contains another model", False
    )

    def __post_init__(self) -> None:
        if not self.push_to_hub and (self.hub_strategy != "end" or self.hub_overwrite):
            raise UserError("hub_strategy and hub_overwrite need push_to_hub; add --push_to_hub")
        if self.license == "" or "" in self.language:
            raise UserError("license and language must not be empty; omit them if unknown")
