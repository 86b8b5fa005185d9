"""Names that users of Transformers, nanoGPT and llama2.c type, and what does the same here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

# Names, and what to do instead; a setting of ours is in braces. A row counts where all of its
# settings are known: the scripts differ in theirs.
_ROWS = (
    # training
    ("lr peak_lr max_lr", "give {learning_rate}"),
    (
        "batch_size bs train_batch_size per_gpu_train_batch_size micro_batch_size total_batch_size",
        "give {global_batch_size}, the sequences of an optimizer step;"
        " {per_device_train_batch_size} limits those that a device takes at once",
    ),
    (
        "gradient_accumulation_steps gradient_accumulation_step gradient_accumulation"
        " grad_accum_steps grad_accumulation accumulation_steps",
        "leave it out: it follows from {global_batch_size}, {per_device_train_batch_size} and the"
        " number of processes",
    ),
    ("auto_find_batch_size", "leave it out: {per_device_train_batch_size} null does that"),
    ("eval_batch_size per_gpu_eval_batch_size", "give {per_device_eval_batch_size}"),
    ("epochs epoch num_epochs n_epochs max_epochs", "give {num_train_epochs}"),
    ("max_iters max_train_steps num_train_steps num_steps total_steps steps", "give {max_steps}"),
    ("max_train_samples", "give {max_steps}, which ends the run earlier"),
    ("warmup warmup_iters num_warmup_steps", "give {warmup_steps}"),
    ("warmup_ratio", "give {warmup_steps}: below 1 it is a share of the run"),
    ("scheduler lr_scheduler lr_schedule", "give {lr_scheduler_type}"),
    (
        "decay_lr",
        "give {lr_scheduler_type}: linear and cosine fall to 0, constant_with_warmup stays",
    ),
    ("lr_decay_iters", "leave it out: the schedule ends with {max_steps}"),
    ("min_lr", "leave it out: {lr_scheduler_type} linear and cosine end at 0"),
    ("wd l2 adam_weight_decay weight_decay_rate", "give {weight_decay}"),
    ("beta1", "give {adam_beta1}"),
    ("beta2", "give {adam_beta2}"),
    ("betas adam_betas", "give {adam_beta1} and {adam_beta2}"),
    ("eps epsilon adam_eps", "give {adam_epsilon}"),
    ("grad_clip clip_grad clip_grad_norm gradient_clipping", "give {max_grad_norm}"),
    (
        "optim optimizer adafactor",
        "leave it out: it is AdamW, see {weight_decay} and {adam_beta1}",
    ),
    (
        "fp16 half fp16_full_eval",
        "launch with `accelerate launch --mixed_precision fp16`, or give {bf16}",
    ),
    ("dtype torch_dtype precision mixed_precision amp", "give {bf16}: true, false or auto"),
    ("tf32 bf16_full_eval", "leave it out: training uses TF32 where the GPU has it, and {bf16}"),
    ("compile", "give {torch_compile}"),
    (
        "gradient_checkpointing",
        "it is not supported; a smaller {per_device_train_batch_size} needs less memory and gives"
        " the same training",
    ),
    (
        "load_best_model_at_end metric_for_best_model early_stopping_patience",
        "it is not supported: the model of the last step is the result; {save_total_limit} keeps"
        " earlier ones",
    ),
    # the machine
    (
        "device use_cpu no_cuda cpu",
        "set CUDA_VISIBLE_DEVICES in the environment: the number of a GPU, or nothing for the CPU",
    ),
    (
        "num_gpus n_gpu gpus num_processes nproc_per_node ddp backend ddp_backend local_rank",
        "leave it out: `accelerate launch --num_processes N` starts N processes",
    ),
    (
        "deepspeed deepspeed_config fsdp fsdp_config",
        "launch with `accelerate launch --config_file configs/accelerate/fsdp.yaml`, which shards"
        " the model",
    ),
    # the run directory, what is watched
    ("out_dir save_dir outdir out output model_dir", "give {output_dir}"),
    (
        "overwrite_output_dir overwrite force",
        "a run is never overwritten: remove it, give another {output_dir}, or continue it with"
        " {resume_from_checkpoint} auto",
    ),
    ("resume resume_from load_checkpoint checkpoint", "give {resume_from_checkpoint} auto"),
    ("eval_interval eval_every evaluation_steps eval_freq", "give {eval_steps}"),
    (
        "eval_strategy evaluation_strategy",
        "give {eval_steps}: a run evaluates every so many steps, and at its end",
    ),
    ("eval_iters max_eval_samples", "give {max_eval_rows}"),
    ("eval_only do_eval do_predict", "leave it out: scripts/evaluate.py measures a finished run"),
    ("do_train", "leave it out: scripts/train.py trains"),
    ("save_strategy", "give {save_steps}: a run saves every so many steps, and at its end"),
    (
        "save_interval save_every checkpoint_interval always_save_checkpoint checkpointing_steps"
        " checkpoint_steps",
        "give {save_steps}",
    ),
    ("max_checkpoints keep_checkpoints", "give {save_total_limit}"),
    ("log_interval log_every log_every_n_steps logging_strategy", "give {logging_steps}"),
    (
        "logging_dir",
        "leave it out: trackers of {report_to} write into {output_dir}; TENSORBOARD_LOGGING_DIR in"
        " the environment moves those of tensorboard",
    ),
    ("wandb_log use_wandb wandb", "give {report_to} wandb"),
    ("tensorboard use_tensorboard", "give {report_to} tensorboard"),
    ("log_with with_tracking tracker", "give {report_to}"),
    ("wandb_project", "give {report_to} wandb, and WANDB_PROJECT in the environment"),
    ("wandb_run_name wandb_name experiment_name", "give {run_name}"),
    ("disable_tqdm", "leave it out: training prints lines, see {logging_steps}"),
    ("shuffle_seed", "give {data_seed}"),
    ("num_workers workers", "give {dataloader_num_workers}"),
    ("num_threads threads n_threads", "set OMP_NUM_THREADS in the environment"),
    # the model
    ("n_layer n_layers num_hidden_layers layers", "give {num_layers}"),
    ("n_head n_heads num_attention_heads heads", "give {num_heads}"),
    ("n_kv_heads num_key_value_heads", "leave it out: each of {num_heads} has keys of its own"),
    ("n_embd dim d_model embed_dim embedding_size emb_dim", "give {hidden_size}"),
    ("n_inner ffn_dim mlp_dim d_ff hidden_dim", "give {intermediate_size}"),
    ("multiple_of", "leave it out: {intermediate_size} is the width of the MLP"),
    ("hidden_act activation", "give {activation_function}"),
    ("norm_eps layer_norm_eps", "give {layer_norm_epsilon}"),
    ("dropout", "give {attention_dropout}, {embed_dropout} and {resid_dropout}"),
    ("attn_dropout attn_pdrop", "give {attention_dropout}"),
    ("embd_dropout embd_pdrop", "give {embed_dropout}"),
    ("resid_pdrop", "give {resid_dropout}"),
    ("bias", "leave it out: GPT-Neo has the biases that it has"),
    ("flash_attn use_flash_attention attn_impl", "give {attn_implementation}"),
    (
        "block_size context ctx_len max_seq_len max_seq_length seq_len seq_length sequence_length"
        " n_ctx max_length",
        "give {context_length}, and {max_position_embeddings} for the model",
    ),
    ("n_positions max_positions", "give {max_position_embeddings}"),
    (
        "model_name_or_path model_name init_from pretrained model",
        "a run begins with random weights; given ones are not supported yet. Continue a run of"
        " {output_dir} with {resume_from_checkpoint}",
    ),
    (
        "model_type config_name config_overrides",
        "leave it out: the model is a GPT-Neo, its shape is {hidden_size}, {num_layers} and"
        " {num_heads}",
    ),
    # the text
    ("dataset_name data data_dir dataset_dir data_path dataset_path input_file", "give {dataset}"),
    ("tokenizer_name tokenizer_path tokenizer_name_or_path vocab_source", "give {tokenizer}"),
    ("vocab", "give {vocab_size}"),
    ("validation_split_percentage", "give {validation_share}: 0.05 is 5 per cent"),
    (
        "dataset_config_name dataset_config subset",
        "leave it out: {train_file} and {validation_file} choose files of {dataset}",
    ),
    ("train_files training_file", "give {train_file}, a name or a pattern"),
    ("validation_files eval_file val_file valid_file dev_file", "give {validation_file}"),
    ("test_file", "leave it out: a run trains and validates; see {validation_file}"),
    ("separator delimiter", "give {story_separator}"),
    ("eos eos_token_id end_of_text", "give {eos_token}"),
    ("text_column_name text_field text_key dataset_text_field", "give {text_column}"),
    ("cache_dir overwrite_cache", "rows are kept in {prepared_dir}, and made anew for other text"),
    ("preprocessing_num_workers num_proc", "leave it out: preparation uses what the machine has"),
    # the Hub
    ("repo_id hub_repo push_to_hub_model_id hub_repo_id", "give {hub_model_id}"),
    ("hub_private private", "give {hub_private_repo}"),
    ("hub_revision", "leave it out: scripts/push_to_hub.py publishes to a branch"),
    ("hub_always_push", "leave it out: see {hub_strategy}"),
    (
        "temperature top_k top_p max_new_tokens num_return_sequences num_samples prompt start",
        "leave it out: scripts/generate.py tells stories of a finished run; see {sample_prompts}",
    ),
    # stories and measurements of a finished model
    ("model_name_or_path model_name pretrained init_from checkpoint", "give {model}"),
    ("out_dir", "give {model} and {prompt}"),
    ("start text input", "give {prompt}"),
    ("max_length max_tokens length num_tokens", "give {max_new_tokens}"),
    ("num_samples n num_stories", "give {num_return_sequences}"),
    ("num_beam beams beam_size", "give {num_beams}"),
    ("do_sample", "leave it out: {temperature} 0 takes the likeliest token, above 0 samples"),
    ("tasks suites", "give {suite}"),
    ("per_device_eval_batch_size eval_batch_size", "give {batch_size}"),
)

_SETTING = re.compile(r"\{(\w+)\}")


def suggest_flag(name: str, known: Collection[str], prefix: str = "") -> str:
    """Return what to do in place of an unknown setting, to be appended to an error about it.

    `known` are the settings that there are, and `prefix` is put before those that are named.
    """
    plain = name.replace("-", "_").lower()
    for names, hint in _ROWS:
        settings = _SETTING.findall(hint)
        if plain in names.split() and known and set(settings) <= set(known):
            return "; " + _SETTING.sub(rf"{prefix}\1", hint)
    close = difflib.get_close_matches(plain, list(known), n=1, cutoff=0.8)
    return f"; did you mean {prefix}{close[0]}?" if close else "; --help lists all settings"
