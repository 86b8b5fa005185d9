"""Convert `RunArguments` to the `TrainingArguments` of Transformers."""

from __future__ import annotations

from pathlib import Path

from transformers import TrainingArguments as TrainerArguments

from tinystories_hf.config.arguments import RunArguments
from tinystories_hf.core.device import (
    Precision,
    device_type,
    has_native_bf16,
    has_tf32,
)
from tinystories_hf.core.errors import UserError
from tinystories_hf.core.launcher import launcher_precision, setting_source
from tinystories_hf.training.batch import BatchPlan
from tinystories_hf.training.trackers import check_trackers


def build_trainer_arguments(training: RunArguments, plan: BatchPlan) -> TrainerArguments:
    """Convert the training settings to the arguments of the Trainer.

    Raises:
        UserError: a tracker cannot be used, the launcher and `bf16` contradict each other, or one
            process sees several GPUs.
    """
    check_trackers(training.report_to)
    precision = choose_precision(training)
    built = TrainerArguments(
        output_dir=training.output_dir,
        per_device_train_batch_size=plan.per_device_train_batch_size,
        per_device_eval_batch_size=training.per_device_eval_batch_size,
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        num_train_epochs=training.num_train_epochs,
        max_steps=training.max_steps,
        lr_scheduler_type=training.lr_scheduler_type,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        adam_epsilon=training.adam_epsilon,
        max_grad_norm=training.max_grad_norm,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        tf32=has_tf32() or None,
        seed=training.seed,
        data_seed=training.seed if training.data_seed is None else training.data_seed,
        logging_steps=training.logging_steps,
        # The default replaces a NaN loss with the mean of the earlier ones and so hides it.
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=training.eval_steps,
        prediction_loss_only=True,
        save_strategy="steps",
        save_steps=training.save_steps,
        save_total_limit=training.save_total_limit,
        dataloader_num_workers=training.dataloader_num_workers,
        dataloader_pin_memory=device_type() == "cuda",
        report_to=list(training.report_to) or "none",
        run_name=training.run_name or Path(training.output_dir).name,
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        # Written into the saved config; training steps and evaluations do not use the cache.
        use_cache=True,
        # Without it, processes launched on the CPU form no group and each trains on its own.
        use_cpu=device_type() == "cpu",
    )
    if built.world_size != plan.num_processes:
        raise UserError(
            f"the launcher started {plan.num_processes} processes but they form a group of"
            f" {built.world_size}; start with `accelerate launch`, see configs/accelerate"
        )
    if built.n_gpu > 1:
        raise UserError(
            f"one process sees {built.n_gpu} GPUs; start one process per GPU with `accelerate"
            f" launch --config_file configs/accelerate/multi_gpu.yaml --num_processes {built.n_gpu}"
            " scripts/train.py`, or set CUDA_VISIBLE_DEVICES=0 to use one"
        )
    return built


def choose_precision(training: RunArguments) -> Precision:
    """Return the autocast type: the requested one, or the best one that the hardware supports.

    Raises:
        UserError: the setting `bf16` and the launcher request different types.
    """
    launched = launcher_precision()
    if training.bf16 == "auto":
        return launched or ("bf16" if has_native_bf16() else "no")
    requested: Precision = "bf16" if training.bf16 else "no"
    if launched not in (None, requested):
        raise UserError(
            f"bf16: the setting is {str(training.bf16).lower()}, but"
            f" {setting_source('ACCELERATE_MIXED_PRECISION')} requests mixed_precision {launched};"
            " change one of them, or set bf16 to auto"
        )
    return requested
