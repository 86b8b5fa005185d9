"""Parse the settings of a run from its configuration file and the command line."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import Field, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from tinystories_hf.config.arguments import DEFAULT_CONFIG, HubArguments, RunArguments
from tinystories_hf.config.data_arguments import DataArguments
from tinystories_hf.config.flags import StrictParser
from tinystories_hf.config.model_arguments import ModelArguments
from tinystories_hf.config.parsing import (
    Setting,
    build_dataclass,
    convert_setting,
    merge_settings,
    settings_of,
)
from tinystories_hf.config.trainer_fields import REFUSED_FIELDS, installed_fields
from tinystories_hf.config.yaml_files import yaml_layers
from tinystories_hf.core.errors import UserError


class Arguments(NamedTuple):
    """All settings of a run."""

    model: ModelArguments
    data: DataArguments
    training: RunArguments
    hub: HubArguments


# Declares a field that is passed through: no other setting belongs to it.
PASSED: Field[Any] = field(metadata={"help": "", "belongs_to": None})
GROUPS: dict[str, type[Any]] = {
    "model": ModelArguments,
    "data": DataArguments,
    "training": RunArguments,
    "hub": HubArguments,
}


def parse_arguments(
    argv: Sequence[str] | None = None,
    *,
    description: str = "",
    default_config: Path = DEFAULT_CONFIG,
) -> Arguments:
    """Parse the settings of a run.

    `--config FILE` replaces the default configuration; every other flag overrides one setting.

    Args:
        argv: The command line without the program name; `sys.argv[1:]` by default.
        description: The text that `--help` prints above the settings.
        default_config: The configuration file to read if `--config` is not given.

    Raises:
        UserError: a key or flag is unknown, a value has the wrong type or is out of range, a file
            is missing, empty or malformed, or settings contradict each other.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    chosen = StrictParser(description, add_help=False)
    chosen.add_argument("--config", metavar="FILE")
    config = Path(getattr(chosen.parse_known_args(argv)[0], "config", default_config))

    passed = passed_fields()
    known = own_settings() | dict.fromkeys(passed, PASSED)
    from_files = merge_settings(yaml_layers(config), known)

    parser = StrictParser(description)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML configuration file, or the name of one of this package"
        f" [{_short(default_config)}]",
    )
    for title, cls in GROUPS.items():
        parser.add_dataclass(f"{title} (defaults in brackets)", cls, from_files)
    parser.add_hidden(passed)
    parser.epilog = (
        "Other fields of transformers.TrainingArguments are settings, too, and are passed through:"
        f" {', '.join(sorted(passed))}."
    )
    from_flags = parser.parse_layer(argv)
    from_flags.pop("config", None)
    return build_arguments(merge_settings([from_files, from_flags], known))


def own_settings() -> dict[str, Field[Any]]:
    """Return the settings of a run that this package declares, by name."""
    return {declared.name: declared for cls in GROUPS.values() for declared in settings_of(cls)}


def passed_fields() -> dict[str, Any]:
    """Return the type of each field of Transformers' TrainingArguments that is passed through."""
    taken = own_settings().keys() | REFUSED_FIELDS.keys()
    return {name: hint for name, hint in installed_fields().items() if name not in taken}


def build_arguments(settings: Mapping[str, Setting]) -> Arguments:
    """Build the four dataclasses from merged settings and check them against each other.

    With `model_name_or_path`, its configuration is read first.

    Raises:
        UserError: a value has the wrong type or is out of range, or settings contradict each other.
    """
    if settings.get("model_name_or_path") is not None:
        from tinystories_hf.config.pretrained import add_pretrained_settings

        settings = add_pretrained_settings(settings)
    model = build_dataclass(ModelArguments, settings)
    data = build_dataclass(DataArguments, settings)
    if data.context_length > model.max_position_embeddings:
        raise UserError(
            f"context_length {data.context_length} is longer than max_position_embeddings"
            f" {model.max_position_embeddings}; lower the one or raise the other"
        )
    passed = {
        name: convert_setting(settings[name], hint)
        for name, hint in passed_fields().items()
        if name in settings
    }
    training = replace(build_dataclass(RunArguments, settings), training_arguments=passed)
    _check_streaming(data, training)
    return Arguments(model, data, training, build_dataclass(HubArguments, settings))


def _check_streaming(data: DataArguments, training: RunArguments) -> None:
    refused = [
        (training.max_steps < 1, "a stream has no known length; set max_steps"),
        (
            data.tokenizer == "train",
            "tokenizer `train` would have to read all stories first; give an existing tokenizer",
        ),
        (
            data.drop_duplicates or data.drop_validation_overlap,
            "drop_duplicates and drop_validation_overlap keep every story in memory; omit them",
        ),
        (
            training.dataloader_num_workers > 0,
            "each data-loader worker would read every story; set dataloader_num_workers to 0",
        ),
    ]
    for applies, reason in refused:
        if data.streaming and applies:
            raise UserError(f"streaming: {reason}")


def _short(path: Path) -> str:
    return str(Path(path.parent.name) / path.name)
