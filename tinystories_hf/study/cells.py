"""The cells of a study: which runs it consists of, read from its YAML file."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinystories_hf.config.command_line import Arguments, own_settings, parse_arguments
from tinystories_hf.config.parsing import brief
from tinystories_hf.config.yaml_files import find_config, read_yaml
from tinystories_hf.core.errors import UserError
from tinystories_hf.model.flops import training_flops_per_token

# How long a cell trains, from which its steps follow. They are written like settings.
BUDGETS = ("tokens", "flops")
# Settings that the study decides for each cell.
_DECIDED = ("output_dir", "resume_from_checkpoint", "push_to_hub", "base", "config")
_KEYS = ("base", "settings", "learning_rate_sweep", "cells")


@dataclass(frozen=True)
class Cell:
    """One run: its name, its settings on top of the configuration, and what it is for.

    `is_sweep`: it belongs to the sweep of learning rates. `by_law`: its learning rate follows from
    that sweep, and is not among the settings.
    """

    name: str
    settings: dict[str, Any]
    is_sweep: bool = False
    by_law: bool = False


@dataclass(frozen=True)
class Study:
    """The cells of a study in the order in which they run, and the configuration they share."""

    name: str
    config: Path
    cells: list[Cell]


def read_study(path: Path, changes: Sequence[str] = ()) -> Study:
    """Read the YAML file of a study.

    `base` is the configuration of all cells, `settings` are changes for all. `cells` is a list of
    mappings; a setting with a list of values makes one cell for each value (a setting that is a
    list itself is given as a list of lists). `tokens` or `flops` give the length of the runs.
    `learning_rate_sweep` is such a mapping with several values of `hidden_size` and
    `learning_rate`; cells without a learning rate then get the one that the sweep predicts.

    `changes` are further settings for all, such as `dataset=stories/`.

    Raises:
        UserError: a key or setting is unknown, a cell occurs twice, or the settings of a cell
            contradict each other; the message names the file.
    """
    content = read_yaml(path)
    unknown = content.keys() - set(_KEYS)
    if unknown:
        raise UserError(f"{path}: unknown {', '.join(sorted(unknown))}; the keys are {_KEYS}")
    if not isinstance(content.get("base"), str) or not isinstance(content.get("cells"), list):
        raise UserError(f"{path}: a study needs `base`, a configuration, and `cells`, a list")
    config = find_config(content["base"], path.parent)
    shared = _mapping(path, "settings", content.get("settings", {}))
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"settings: {change} is not `setting=value`")
        shared |= _mapping(path, "settings", {name: value})
    sweep = content.get("learning_rate_sweep")
    cells: list[Cell] = []
    if sweep is not None:
        axes = _mapping(path, "learning_rate_sweep", sweep)
        for name in ("hidden_size", "learning_rate"):
            if not isinstance(axes.get(name), list):
                raise UserError(f"{path}: learning_rate_sweep needs several values of {name}")
        cells += [Cell(f"rate-{_name(each)}", {**shared, **each}, True) for each in _grid(axes)]
    for axes in content["cells"]:
        for each in _grid(_mapping(path, "cells", axes)):
            settings = {**shared, **each}
            by_law = sweep is not None and "learning_rate" not in settings
            cells.append(Cell(_name(each), settings, by_law=by_law))
    names = [cell.name for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise UserError(
            f"{path}: " + (f"the cell {twice[0]} occurs twice" if twice else "no cells")
        )
    study = Study(path.stem, config, cells)
    for cell in cells:
        try:
            cell_arguments(study, cell)
        except UserError as error:
            raise UserError(f"{path}: the cell {cell.name}: {error}") from None
    return study


def cell_flags(cell: Cell) -> list[str]:
    """Return the flags of scripts/train.py of a cell, without its length and predicted rate."""
    return [
        word
        for key, value in cell.settings.items()
        if key not in BUDGETS
        for word in (f"--{key}", *_words(value))
    ]


def cell_arguments(study: Study, cell: Cell, learning_rate: float | None = None) -> Arguments:
    """Return the settings of a cell, with the steps that its budget gives.

    Raises:
        UserError: they contradict each other, or the budget is less than a step.
    """
    flags = cell_flags(cell)
    if learning_rate is not None:
        flags += ["--learning_rate", repr(learning_rate)]
    arguments = parse_arguments(["--config", str(study.config), *flags])
    steps = _steps(cell, arguments)
    if steps is None:
        return arguments
    return arguments._replace(training=replace(arguments.training, max_steps=steps))


def _steps(cell: Cell, arguments: Arguments) -> int | None:
    given = [name for name in BUDGETS if name in cell.settings]
    if not given:
        return None
    if len(given) > 1 or "max_steps" in cell.settings:
        raise UserError("give one of tokens, flops and max_steps")
    (name,), amount = given, cell.settings[given[0]]
    try:
        wanted = float(amount)  # YAML reads 1e12 as text
    except (TypeError, ValueError):
        raise UserError(f"{name}: expected a number, got {brief(amount)}") from None
    context = arguments.data.context_length
    per_step = arguments.training.global_batch_size * context
    if name == "flops":
        per_step *= training_flops_per_token(arguments.model, context)
    steps = math.floor(wanted / per_step + 0.5)
    if steps < 1:
        raise UserError(f"{name}: {wanted:g} is less than a step, which takes {per_step:g}")
    return steps


def _mapping(path: Path, key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{path}: {key}: expected `setting: value` lines, got {brief(value)}")
    known = own_settings().keys() | set(BUDGETS)
    for name in value:
        if name not in known or name in _DECIDED:
            why = "is decided by the study" if name in _DECIDED else "is not a setting of a run"
            raise UserError(f"{path}: {key}: {name} {why}; remove it")
    return dict(value)


def _grid(axes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return all combinations of the values of a mapping."""
    values = [
        value if isinstance(value, list) and not _is_one(name, value) else [value]
        for name, value in axes.items()
    ]
    return [dict(zip(axes, chosen, strict=True)) for chosen in itertools.product(*values)]


def _is_one(name: str, values: list[Any]) -> bool:
    """Return whether a list is one value of a setting that is a list itself."""
    declared = own_settings().get(name)
    takes_lists = declared is not None and "list" in str(declared.type)
    return takes_lists and not any(isinstance(value, list) for value in values)


def _name(settings: Mapping[str, Any]) -> str:
    return "_".join(f"{key}-{'-'.join(_words(value))}" for key, value in settings.items()).replace(
        "/", "-"
    )


def _words(value: Any) -> list[str]:
    if isinstance(value, list):
        return [word for each in value for word in _words(each)]
    if isinstance(value, Mapping):
        return [json.dumps(value)]
    if value is None or isinstance(value, bool):
        return ["null" if value is None else str(value).lower()]
    return [str(value)]
