"""Hints for unknown settings: names used by Transformers, nanoGPT and llama2.c."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

from tinystories_hf.config.trainer_fields import REFUSED_FIELDS

# (unknown names, hint). Settings of this package are in braces. A hint applies only if the script
# has all settings that the hint names.
_HINTS = (
    # training
    ("lr peak_lr max_lr", "use {learning_rate}"),
    (
        "batch_size bs train_batch_size micro_batch_size total_batch_size",
        "use {global_batch_size}, the sequences per optimizer step;"
        " {per_device_train_batch_size} limits how many a device processes at once",
    ),
    (
        "gradient_accumulation_step gradient_accumulation grad_accum_steps grad_accumulation"
        " accumulation_steps",
        "omit it: it is computed from {global_batch_size}, {per_device_train_batch_size} and"
        " the number of processes",
    ),
    ("eval_batch_size", "use {per_device_eval_batch_size}"),
    ("epochs epoch num_epochs n_epochs max_epochs", "use {num_train_epochs}"),
    ("max_iters max_train_steps num_train_steps num_steps total_steps steps", "use {max_steps}"),
    ("max_train_samples", "use {max_steps} to end the run earlier"),
    ("warmup warmup_iters num_warmup_steps", "use {warmup_steps}"),
    ("scheduler lr_scheduler lr_schedule", "use {lr_scheduler_type}"),
    (
        "decay_lr",
        "use {lr_scheduler_type}: linear and cosine decay to 0, constant_with_warmup does not",
    ),
    ("lr_decay_iters", "omit it: the schedule ends at {max_steps}"),
    ("min_lr", "omit it: {lr_scheduler_type} linear and cosine decay to 0"),
    ("wd l2 adam_weight_decay weight_decay_rate", "use {weight_decay}"),
    ("beta1", "use {adam_beta1}"),
    ("beta2", "use {adam_beta2}"),
    ("betas adam_betas", "use {adam_beta1} and {adam_beta2}"),
    ("eps epsilon adam_eps", "use {adam_epsilon}"),
    ("grad_clip clip_grad clip_grad_norm gradient_clipping", "use {max_grad_norm}"),
    ("optimizer adafactor", "use {optim}"),
    ("half", "launch with `accelerate launch --mixed_precision fp16`, or use {bf16}"),
    ("dtype torch_dtype precision mixed_precision amp", "use {bf16}: true, false or auto"),
    ("compile", "use {torch_compile}"),
    (
        "early_stopping_patience",
        "omit it; {load_best_model_at_end} keeps the best model of the run",
    ),
    ("packing", "omit it: stories are always packed into rows; see {context_length}"),
    (
        "use_peft lora_r lora_alpha lora_dropout lora_target_modules",
        "omit it: {model_name_or_path} trains all weights; for LoRA, use PEFT with a trainer of"
        " your own (docs/ecosystem.md)",
    ),
    # the machine
    (
        "device cpu",
        "set the environment variable CUDA_VISIBLE_DEVICES to the index of a GPU, or to an"
        " empty string for the CPU",
    ),
    (
        "num_gpus n_gpu gpus num_processes nproc_per_node ddp backend",
        "omit it; `accelerate launch --num_processes N` starts N processes",
    ),
    (
        "deepspeed_config",
        "launch with `accelerate launch --config_file configs/accelerate/fsdp.yaml`, which"
        " shards the model",
    ),
    # the run directory, evaluation, logging
    ("out_dir save_dir outdir out output model_dir", "use {output_dir}"),
    (
        "overwrite force",
        "a run is never overwritten: delete it, use another {output_dir}, or resume it with"
        " {resume_from_checkpoint} auto",
    ),
    ("resume resume_from load_checkpoint checkpoint", "use {resume_from_checkpoint} auto"),
    ("eval_interval eval_every evaluation_steps eval_freq", "use {eval_steps}"),
    ("evaluation_strategy", "use {eval_strategy} and {eval_steps}"),
    ("eval_iters max_eval_samples", "use {max_eval_rows}"),
    ("eval_only", "omit it; scripts/evaluate.py evaluates a finished run"),
    (
        "save_interval save_every checkpoint_interval always_save_checkpoint checkpointing_steps"
        " checkpoint_steps",
        "use {save_steps}",
    ),
    ("max_checkpoints keep_checkpoints", "use {save_total_limit}"),
    ("log_interval log_every log_every_n_steps", "use {logging_steps}"),
    ("wandb_log use_wandb wandb", "use {report_to} wandb"),
    ("tensorboard use_tensorboard", "use {report_to} tensorboard"),
    ("log_with with_tracking tracker", "use {report_to}"),
    ("wandb_project", "use {report_to} wandb and the environment variable WANDB_PROJECT"),
    ("wandb_run_name wandb_name experiment_name", "use {run_name}"),
    ("shuffle_seed", "use {data_seed}"),
    ("num_workers workers", "use {dataloader_num_workers}"),
    ("num_threads threads n_threads", "set the environment variable OMP_NUM_THREADS"),
    # the model
    ("n_layer n_layers num_hidden_layers layers", "use {num_layers}"),
    ("n_head n_heads num_attention_heads heads", "use {num_heads}"),
    (
        "n_kv_heads num_key_value_heads",
        "omit it: GPT-Neo has as many key-value heads as {num_heads}",
    ),
    ("n_embd dim d_model embed_dim embedding_size emb_dim", "use {hidden_size}"),
    ("n_inner ffn_dim mlp_dim d_ff hidden_dim", "use {intermediate_size}"),
    ("multiple_of", "omit it: {intermediate_size} sets the MLP size"),
    ("hidden_act activation", "use {activation_function}"),
    ("norm_eps layer_norm_eps", "use {layer_norm_epsilon}"),
    ("dropout", "use {attention_dropout}, {embed_dropout} and {resid_dropout}"),
    ("attn_dropout attn_pdrop", "use {attention_dropout}"),
    ("embd_dropout embd_pdrop", "use {embed_dropout}"),
    ("resid_pdrop", "use {resid_dropout}"),
    ("bias", "omit it: the biases of GPT-Neo are fixed"),
    ("flash_attn use_flash_attention attn_impl", "use {attn_implementation}"),
    (
        "block_size context ctx_len max_seq_len max_seq_length seq_len seq_length sequence_length"
        " n_ctx max_length",
        "use {context_length}, and {max_position_embeddings} for the model",
    ),
    ("n_positions max_positions", "use {max_position_embeddings}"),
    (
        "model_name init_from pretrained pretrained_model model model_id base_model",
        "use {model_name_or_path} to start from its weights, or {resume_from_checkpoint} to resume"
        " the run in {output_dir}",
    ),
    (
        "model_type config_name config_overrides",
        "omit it: the model is a GPT-Neo; set its size with {hidden_size}, {num_layers} and"
        " {num_heads}",
    ),
    # the data
    ("dataset_name data data_dir dataset_dir data_path dataset_path input_file", "use {dataset}"),
    ("tokenizer_name tokenizer_path tokenizer_name_or_path vocab_source", "use {tokenizer}"),
    ("vocab", "use {vocab_size}"),
    ("validation_split_percentage", "use {validation_share}: 0.05 means 5 percent"),
    (
        "dataset_config_name subset",
        "use {dataset_config}",
    ),
    ("train_files training_file", "use {train_file}, a file name or glob pattern"),
    ("validation_files eval_file val_file valid_file dev_file", "use {validation_file}"),
    ("test_file", "omit it: there is no test split; see {validation_file}"),
    ("separator delimiter", "use {story_separator}"),
    ("eos eos_token_id end_of_text", "use {eos_token}"),
    ("text_column_name text_field text_key dataset_text_field", "use {text_column}"),
    (
        "cache_dir overwrite_cache",
        "omit it: prepared rows are cached in {prepared_dir} and rebuilt when the data changes",
    ),
    ("preprocessing_num_workers num_proc", "omit it: data preparation uses all available cores"),
    # the Hub
    ("repo_id hub_repo hub_repo_id", "use {hub_model_id}"),
    ("hub_private private", "use {hub_private_repo}"),
    (
        "temperature top_k top_p max_new_tokens num_return_sequences num_samples prompt start",
        "omit it; scripts/generate.py generates stories from a finished run; see {sample_prompts}",
    ),
    # generation and evaluation of a finished model
    ("model_name_or_path model_name pretrained init_from checkpoint", "use {model}"),
    ("out_dir", "use {model} and {prompt}"),
    ("start text input", "use {prompt}"),
    ("max_length max_tokens length num_tokens", "use {max_new_tokens}"),
    ("num_samples n num_stories", "use {num_return_sequences}"),
    ("num_beam beams beam_size", "use {num_beams}"),
    ("do_sample", "omit it: {temperature} 0 is greedy decoding, above 0 samples"),
    ("tasks suites", "use {suite}"),
    ("per_device_eval_batch_size eval_batch_size", "use {batch_size}"),
)

_SETTING = re.compile(r"\{(\w+)\}")


def suggest_flag(name: str, known: Collection[str], prefix: str = "") -> str:
    """Return a hint to append to the error about an unknown setting.

    Args:
        name: The unknown setting; dashes and upper case are accepted.
        known: The settings that exist.
        prefix: Text to put before each setting in the hint, such as `--`.
    """
    plain = name.replace("-", "_").lower()
    if plain in REFUSED_FIELDS and "global_batch_size" in known:  # the settings of a run
        return "; " + _SETTING.sub(rf"{prefix}\1", REFUSED_FIELDS[plain])
    for names, hint in _HINTS:
        settings = _SETTING.findall(hint)
        if plain in names.split() and known and set(settings) <= set(known):
            return "; " + _SETTING.sub(rf"{prefix}\1", hint)
    close = difflib.get_close_matches(plain, list(known), n=1, cutoff=0.8)
    return f"; did you mean {prefix}{close[0]}?" if close else "; --help lists all settings"
