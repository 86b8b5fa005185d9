"""The settings that a pretrained model decides: its shape, positions, tokenizer and context."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from tinystories_hf.config.model_arguments import ModelArguments
from tinystories_hf.config.parsing import Setting, convert_setting, local_path
from tinystories_hf.core.download import download_files, resolve_commit
from tinystories_hf.core.errors import UserError
from tinystories_hf.core.files import check_readable
from tinystories_hf.core.run_record import RUN_RECORD, read_record

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# In Transformers 5.23 every configuration of AutoModelForCausalLM has the first name or an alias of
# it, except those of MPT and Whisper.
POSITIONS = ("max_position_embeddings", "max_seq_len", "max_target_positions")
# The published models were trained with it, whatever their configurations say (TinyStories-33M,
# discussion 12); other models are evaluated in windows of the same length.
PAPER_CONTEXT = 512
GPT_NEO = "gpt_neo"
DROPOUTS = ("attention_dropout", "embed_dropout", "resid_dropout")
# What every model has.
SHAPE = ("hidden_size", "num_layers", "num_heads", "vocab_size", "max_position_embeddings")
# Settings of a GPT-Neo that its configuration has under the same name.
_GPT_NEO_SHAPE = (
    *("intermediate_size", "window_size", "activation_function", "layer_norm_epsilon"),
    "initializer_range",
)
_TOKENIZER_FILES = ["tokenizer_config.json", "special_tokens_map.json"]


def add_pretrained_settings(settings: Mapping[str, Setting]) -> dict[str, Setting]:
    """Add what `model_name_or_path` decides to merged settings; without it, return them unchanged.

    The commit of a model on the Hub becomes its `model_revision`, so that everything is read from
    the same one. Context length: that of the run that trained it, for other models 512 or their
    maximum.

    Raises:
        UserError: there is no such model, or a setting contradicts it.
    """
    chosen = settings.get("model_name_or_path", Setting(None, ""))
    if chosen.value in (None, "null", "none", "None"):
        return dict(settings)
    asked = settings.get("model_revision", Setting(None, "")).value
    name, commit = find_pretrained(str(convert_setting(chosen, str)), asked)
    config = _read_config(name, commit)
    shape = _shape(config)
    found = {key: Setting(value, f"{name}: {key}") for key, value in shape.items()}
    _check_shape(name, config.model_type, settings, shape)
    context = _recorded_context(name) or min(PAPER_CONTEXT, shape["max_position_embeddings"])
    found["context_length"] = Setting(context, f"{name}: context_length")
    if "tokenizer" not in settings:
        folder = Path(name) if commit is None else _download_tokenizer_files(name, commit)
        found["tokenizer"] = Setting(name, f"{name}: tokenizer")
        found["tokenizer_revision"] = Setting(commit, f"{name}: tokenizer_revision")
        eos_token = _eos_token(folder)
        if eos_token is not None:
            found["eos_token"] = Setting(eos_token, f"{name}: eos_token")
    elif settings["tokenizer"].value == "train":
        raise UserError(
            f"tokenizer: a newly trained tokenizer does not fit the embedding of {name}; omit it to"
            " use the model's own, or train a model from random weights"
        )
    fixed = {
        "model_name_or_path": Setting(name, chosen.where),
        "model_revision": Setting(commit, chosen.where),
    }
    return {**found, **settings, **fixed}


def find_pretrained(name: str, revision: str | None) -> tuple[str, str | None]:
    """Return the path of a folder and None, or a Hub name and its commit.

    Raises:
        UserError: there is no such folder or model.
    """
    folder = local_path("model_name_or_path", name)
    check_readable(folder, "model_name_or_path")
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"model_revision: {name} is a folder, which has no revisions; omit it")
        return str(folder), None
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(
            f"model_name_or_path: {name} is not a folder; give the folder of a model or owner/name"
            " of a model on the Hub"
        )
    try:
        return name, resolve_commit(name, "base model", revision)
    except UserError as error:
        raise UserError(f"model_name_or_path: {error}") from error


def _read_config(name: str, commit: str | None) -> PreTrainedConfig:
    from transformers import AutoConfig

    if commit is None and not (Path(name) / "config.json").is_file():
        checkpoints = sorted(Path(name).glob("checkpoint-*/config.json"), key=_step)
        hint = f"; its newest checkpoint is {checkpoints[-1].parent}" if checkpoints else ""
        raise UserError(f"model_name_or_path: {name} is not a model: it has no config.json{hint}")
    try:
        return AutoConfig.from_pretrained(name, revision=commit)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"model_name_or_path: cannot load {name}: {reason}") from error


def _step(path: Path) -> int:
    return int(path.parent.name.rpartition("-")[2]) if path.parent.name[-1].isdigit() else 0


def positions_in(config: PreTrainedConfig) -> int | None:
    """Return the number of positions in the configuration of a model, None without a limit."""
    text = config.get_text_config(decoder=True)
    found = [getattr(text, name, None) for name in POSITIONS]
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def _shape(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the settings of `ModelArguments` that describe a model of any architecture."""
    text = config.get_text_config(decoder=True)
    shape = {
        "hidden_size": text.hidden_size,
        "num_layers": text.num_hidden_layers,
        "num_heads": getattr(text, "num_attention_heads", 1),
        "vocab_size": text.vocab_size,
        # A model without a limit, such as Mamba, can be trained on rows of any length.
        "max_position_embeddings": positions_in(config) or 2**31,
    }
    if config.model_type == GPT_NEO:
        shape |= {key: getattr(config, key) for key in (*_GPT_NEO_SHAPE, *DROPOUTS)}
        shape["attention_types"] = list(config.attention_layers)
    return shape


def _check_shape(
    name: str, model_type: str, settings: Mapping[str, Setting], shape: Mapping[str, Any]
) -> None:
    """Raise a `UserError` if a setting contradicts the model, or does not exist for it."""
    hints = get_type_hints(ModelArguments)
    free = {"attn_implementation", "model_name_or_path", "model_revision", "resize_embedding"}
    if model_type == GPT_NEO:
        free |= set(DROPOUTS)
    for key in (hints.keys() & settings.keys()) - free:
        setting = settings[key]
        if key not in shape:
            raise UserError(f"{setting.where}: {name} is a {model_type}, without {key}; omit it")
        given, actual = convert_setting(setting, hints[key]), shape[key]
        if key == "attention_types" and given and len(actual) % len(given) == 0:
            given = given * (len(actual) // len(given))  # the pattern repeats
        if key == "intermediate_size":
            given, actual = (value or 4 * shape["hidden_size"] for value in (given, actual))
        if given != actual:
            raise UserError(f"{setting.where}: {given}, but {name} has {actual}; omit it")


def _recorded_context(name: str) -> int | None:
    """Return the context length of the run that a folder belongs to, None for other models."""
    for folder in (Path(name), Path(name).parent):
        if (folder / RUN_RECORD).is_file():
            return int(read_record(folder).configuration["data"]["context_length"])
    return None


def _download_tokenizer_files(name: str, commit: str) -> Path:
    return download_files(name, "base model", commit, _TOKENIZER_FILES)


def _eos_token(folder: Path) -> str | None:
    """Return the EOS token in the files of a tokenizer, None if they name none."""
    for name in _TOKENIZER_FILES:
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            token = content.get("eos_token")
        except (OSError, ValueError, AttributeError):
            continue
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            return token
    return None
