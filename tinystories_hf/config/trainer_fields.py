"""The fields of the installed `transformers.TrainingArguments`, read without importing it.

A field is a setting of this package under the same name (`arguments.py`), refused
(`REFUSED_FIELDS`), or passed through to the Trainer as it is. A field of a newer Transformers is
passed through.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import operator
from pathlib import Path
from typing import Any, Literal

# Fields that contradict a promise of this package: why, or what to use instead. Settings of this
# package are in braces.
_BATCH = "it is computed from {global_batch_size}, {per_device_train_batch_size} and the number of"
_ROWS = "all rows are packed sequences of the same length; see {context_length}"
_METRICS = "an evaluation during training computes the loss; scripts/evaluate.py computes the rest"
_COMPILED = "{torch_compile} compiles the transformer layers with PyTorch's default backend"
_LAUNCHER = (
    "launch with `accelerate launch --config_file configs/accelerate/fsdp.yaml`, which shards the"
    " model"
)
_FP32 = "evaluations during training use the precision of the training, final losses are in fp32"
_RESUME = "resuming would not be exact"
_PUSH = "the finished run is published in one commit; see {hub_strategy}"
REFUSED_FIELDS: dict[str, str] = {
    "gradient_accumulation_steps": f"omit it: {_BATCH} processes",
    "auto_find_batch_size": f"{_BATCH} processes, null chooses the batch per device",
    "accelerator_config": f"{_BATCH} processes, and the order of the rows from {{data_seed}}",
    "per_gpu_train_batch_size": f"{_BATCH} processes",
    "per_gpu_eval_batch_size": "use {per_device_eval_batch_size}",
    "warmup_ratio": "use {warmup_steps}: a value below 1 is a fraction of the run",
    "dataloader_drop_last": "rows that do not fill a step are always left out of an epoch",
    "dataloader_in_order": f"{_RESUME} if rows came in another order",
    "train_sampling_strategy": _ROWS,
    "group_by_length": _ROWS,
    "length_column_name": _ROWS,
    "remove_unused_columns": _ROWS,
    "label_names": _METRICS,
    "include_for_metrics": _METRICS,
    "include_inputs_for_metrics": _METRICS,
    "batch_eval_metrics": _METRICS,
    "eval_do_concat_batches": _METRICS,
    "eval_use_gather_object": _METRICS,
    "eval_accumulation_steps": _METRICS,
    "prediction_loss_only": _METRICS,
    "include_num_input_tokens_seen": "tokens_seen is always logged; rows have no padding",
    "include_tokens_per_second": "tokens per second are always logged",
    "label_smoothing_factor": "the loss is computed without the logits that it needs",
    "use_liger_kernel": "this package has a fused loss of its own",
    "liger_kernel_config": "this package has a fused loss of its own",
    "fp16": "launch with `accelerate launch --mixed_precision fp16`, or use {bf16}",
    "full_determinism": "use {deterministic}",
    "tf32": "omit it: TF32 is used if the GPU supports it; see also {bf16}",
    "half_precision_backend": "use {bf16}: true, false or auto",
    "bf16_full_eval": _FP32,
    "fp16_full_eval": _FP32,
    "torch_compile_backend": _COMPILED,
    "torch_compile_mode": _COMPILED,
    "torchdynamo": _COMPILED,
    "use_cache": "training does not use the cache; the saved model does",
    "logging_nan_inf_filter": "a NaN or infinite loss ends the run instead of being hidden",
    "logging_dir": "omit it: the trackers of {report_to} write into {output_dir}; the environment"
    " variable TENSORBOARD_LOGGING_DIR changes this for tensorboard",
    "save_only_model": f"{_RESUME} without the optimizer; see {{save_total_limit}}",
    "save_on_each_node": "all machines share the run directory",
    "save_safetensors": "omit it: weights are always saved as safetensors",
    "enable_jit_checkpoint": "omit it: SIGTERM always saves the last step",
    "ignore_data_skip": f"{_RESUME} on other rows",
    "restore_callback_states_from_checkpoint": "omit it: a resumed run is restored completely",
    "overwrite_output_dir": "a run is never overwritten: delete it, use another {output_dir}, or"
    " resume it with {resume_from_checkpoint} auto",
    "hub_token": "the Hub token cannot be a setting; use `hf auth login` or HF_TOKEN",
    "hub_always_push": _PUSH,
    "hub_revision": "omit it; scripts/push_to_hub.py publishes to a branch",
    "push_to_hub_model_id": "use {hub_model_id}",
    "push_to_hub_organization": "use {hub_model_id}",
    "push_to_hub_token": "the Hub token cannot be a setting; use `hf auth login` or HF_TOKEN",
    "do_train": "omit it: scripts/train.py always trains",
    "do_eval": "omit it; scripts/evaluate.py evaluates a finished run",
    "do_predict": "omit it; scripts/evaluate.py evaluates a finished run",
    "use_cpu": "set the environment variable CUDA_VISIBLE_DEVICES to an empty string for the CPU",
    "no_cuda": "set the environment variable CUDA_VISIBLE_DEVICES to an empty string for the CPU",
    "local_rank": "omit it; `accelerate launch --num_processes N` starts N processes",
    "ddp_backend": "omit it; `accelerate launch` chooses the backend",
    "fsdp": _LAUNCHER,
    "fsdp_config": _LAUNCHER,
    "deepspeed": _LAUNCHER,
    "parallelism_config": _LAUNCHER,
}
# Fields that are passed through and do not change the weights: they may change on resume.
WATCHING = frozenset(
    {
        *("logging_strategy", "logging_first_step", "log_on_each_node", "log_level"),
        *("log_level_replica", "project", "trackio_space_id", "trackio_bucket_id"),
        *("trackio_static_space_id", "eval_strategy", "eval_delay", "eval_on_start"),
        *("save_strategy", "dataloader_pin_memory", "dataloader_persistent_workers"),
        *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "ddp_timeout"),
        *("ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_find_unused_parameters"),
        *("ddp_static_graph", "debug", "skip_memory_metrics", "torch_empty_cache_steps"),
    }
)
_PLAIN = {"bool": bool, "int": int, "float": float, "dict": dict, "list": list[str], "str": str}


def installed_fields(package: Path | None = None) -> dict[str, Any]:
    """Return the type hint of each field of `TrainingArguments`, from the source of Transformers.

    Importing it would take seconds, even for `--help`. `package` is the folder of Transformers, by
    default the installed one.
    """
    return _fields(package or _transformers_folder())


def enum_values(name: str) -> tuple[str, ...]:
    """Return the values of an enumeration of Transformers that a field takes."""
    return _enumerations(_transformers_folder())[name]


@functools.cache
def _transformers_folder() -> Path:
    found = importlib.util.find_spec("transformers")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


@functools.cache
def _fields(package: Path) -> dict[str, Any]:
    source = (package / "training_args.py").read_text(encoding="utf-8")
    (declared,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments"
    )
    enumerations = _enumerations(package)
    return {
        node.target.id: _hint(node.annotation, enumerations)
        for node in declared.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


@functools.cache
def _enumerations(package: Path) -> dict[str, tuple[str, ...]]:
    """Return the values of the enumerations in the modules that `TrainingArguments` uses."""
    found: dict[str, tuple[str, ...]] = {}
    for module in ("training_args.py", "trainer_utils.py"):
        tree = ast.parse((package / module).read_text(encoding="utf-8"))
        for node in (node for node in tree.body if isinstance(node, ast.ClassDef)):
            values = [each.value for each in node.body if isinstance(each, ast.Assign)]
            texts = [v.value for v in values if isinstance(v, ast.Constant)]
            if texts and all(isinstance(text, str) for text in texts):
                found[node.name] = tuple(map(str, texts))
    return found


def _hint(annotation: ast.expr, enumerations: dict[str, tuple[str, ...]]) -> Any:
    """Return the type hint that `convert_setting` understands: plain types, choices and None."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    # A list of something else, such as that of `debug`, can also be given as text.
    members = [m for m in _members(annotation) if ast.unparse(m) != "list[DebugOption]"]
    names = [ast.unparse(member).partition("[")[0].rpartition(".")[2] for member in members]
    chosen = next((enumerations[name] for name in names if name in enumerations), None)
    optional = [None] if "None" in names or "NoneType" in names else []
    if "dict" in names:
        names = [name for name in names if name != "str"]  # the text would be JSON
    # In the order of _PLAIN: text is what nothing else fits.
    hints = [Literal[chosen]] if chosen else [_PLAIN[name] for name in _PLAIN if name in names]
    return functools.reduce(operator.or_, [*(hints or [str]), *optional])


def _members(annotation: ast.expr) -> list[ast.expr]:
    """Return the members of a union, written with `|`, `Union` or `Optional`."""
    if isinstance(annotation, ast.BinOp):
        return [*_members(annotation.left), *_members(annotation.right)]
    if isinstance(annotation, ast.Subscript):
        name = ast.unparse(annotation.value).rpartition(".")[2]
        inside = annotation.slice
        if name == "Union":
            parts = inside.elts if isinstance(inside, ast.Tuple) else [inside]
            return [member for part in parts for member in _members(part)]
        if name == "Optional":
            return [*_members(inside), ast.Constant(None)]
    return [annotation]
