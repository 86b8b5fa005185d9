"""The settings of a run from its configuration file and its command line."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from tinystories_hf.config.arguments import (
    DEFAULT_CONFIG,
    DataArguments,
    HubArguments,
    ModelArguments,
    RunArguments,
)
from tinystories_hf.config.parsing import (
    Setting,
    StrictParser,
    build_dataclass,
    merge_settings,
    yaml_layers,
)
from tinystories_hf.core.errors import UserError


class Arguments(NamedTuple):
    """What a run is made of."""

    model: ModelArguments
    data: DataArguments
    training: RunArguments
    hub: HubArguments


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
    """Read the settings of a run; `argv` without the program's name, default `sys.argv[1:]`.

    `--config FILE` replaces the default configuration, every other flag overrides one setting.

    Raises:
        UserError: an unknown key or flag, a value of the wrong type or out of range, a missing,
            empty or malformed file, or settings that contradict each other.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    chosen = StrictParser(description, add_help=False)
    chosen.add_argument("--config", metavar="FILE")
    config = Path(getattr(chosen.parse_known_args(argv)[0], "config", default_config))

    known = {declared.name: declared for cls in GROUPS.values() for declared in fields(cls)}
    from_files = merge_settings(yaml_layers(config), known)

    parser = StrictParser(description)
    parser.add_argument(
        "--config", metavar="FILE", help=f"YAML file of settings [{_short(default_config)}]"
    )
    for title, cls in GROUPS.items():
        parser.add_dataclass(f"{title} (in brackets: the value without the flag)", cls, from_files)
    from_flags = parser.parse_layer(argv)
    from_flags.pop("config", None)
    return build_arguments(merge_settings([from_files, from_flags], known))


def build_arguments(settings: Mapping[str, Setting]) -> Arguments:
    """Build and cross-check the four dataclasses from merged settings.

    Raises:
        UserError: as `parse_arguments`.
    """
    model = build_dataclass(ModelArguments, settings)
    data = build_dataclass(DataArguments, settings)
    if data.context_length > model.max_position_embeddings:
        raise UserError(
            f"context_length {data.context_length} is longer than max_position_embeddings"
            f" {model.max_position_embeddings}; shorten the rows or give the model more positions"
        )
    training = build_dataclass(RunArguments, settings)
    _check_streaming(data, training)
    return Arguments(model, data, training, build_dataclass(HubArguments, settings))


def _check_streaming(data: DataArguments, training: RunArguments) -> None:
    refused = [
        (training.max_steps < 1, "a stream has no end; say how long to train with max_steps"),
        (
            data.tokenizer == "train",
            "tokenizer `train` reads every story first; give one that is made",
        ),
        (
            data.drop_duplicates or data.drop_validation_overlap,
            "drop_duplicates and drop_validation_overlap remember every story; leave them out",
        ),
        (
            training.dataloader_num_workers > 0,
            "each of dataloader_num_workers would read every story; set it to 0",
        ),
    ]
    for applies, reason in refused:
        if data.streaming and applies:
            raise UserError(f"streaming: {reason}")


def _short(path: Path) -> str:
    return str(Path(path.parent.name) / path.name)
