"""Every field of Transformers' TrainingArguments is ours, passed through, or refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import typing
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import transformers
from transformers import TrainingArguments

from tests.conftest import ROOT
from tinystories_hf.config.command_line import (
    Arguments,
    own_settings,
    parse_arguments,
    passed_fields,
)
from tinystories_hf.config.trainer_fields import REFUSED_FIELDS, WATCHING, installed_fields
from tinystories_hf.core.errors import UserError
from tinystories_hf.training.batch import plan_batch
from tinystories_hf.training.trainer_arguments import build_trainer_arguments

# Made by unpacking both wheels and printing `sorted(installed_fields(folder))`.
RECORDED = json.loads((Path(__file__).parent / "fields_of_training_arguments.json").read_text())
OLDEST, NEWEST = RECORDED
# Values that differ from the default and that Transformers accepts.
VALUES = {
    "debug": "underflow_overflow",
    "log_level": "info",
    "log_level_replica": "error",
    "metric_for_best_model": "eval_loss",
    "eval_strategy": "epoch",
    "optim_args": "rank=64",
    "torch_empty_cache_steps": "3",
    "dataloader_multiprocessing_context": "spawn",
}
NEEDED = {
    "dataloader_prefetch_factor": ("--dataloader_num_workers", "1"),
    "dataloader_persistent_workers": ("--dataloader_num_workers", "1"),
    "activation_checkpointing_kwargs": ("--activation_checkpointing",),
    "gradient_checkpointing_kwargs": ("--gradient_checkpointing",),
}


def test_the_package_is_tested_with_the_oldest_version_that_it_supports() -> None:
    assert f"transformers>={OLDEST.removesuffix('.0')}" in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("version", RECORDED)
def test_each_field_is_ours_passed_through_or_refused(version: str) -> None:
    unknown = set(RECORDED[version]) - own_settings().keys() - REFUSED_FIELDS.keys()
    assert unknown - passed_fields().keys() <= {
        "activation_checkpointing",
        "activation_checkpointing_kwargs",
    }
    assert not own_settings().keys() & REFUSED_FIELDS.keys()
    assert not WATCHING - set(RECORDED[NEWEST]), "not a field"
    assert not WATCHING & REFUSED_FIELDS.keys()


def test_the_source_says_what_the_class_says() -> None:
    found = installed_fields()
    assert found.keys() == {declared.name for declared in fields(TrainingArguments)}
    if transformers.__version__ in RECORDED:
        assert sorted(found) == RECORDED[transformers.__version__]
    for declared in fields(TrainingArguments):
        default = declared.default
        if isinstance(default, (bool, int, float, str)) and declared.name != "report_to":
            hint = found[declared.name]
            kinds = (hint,) if get_origin(hint) is None else get_args(hint)
            value = getattr(default, "value", default)  # of an enumeration
            fits = value in kinds or type(value) in kinds or (type(value) is int and float in kinds)
            assert fits, (declared.name, hint)


def example(name: str, hint: Any) -> tuple[str, Any]:
    """Return the flag of a value that is not the default, and the value."""
    default: Any = next(f.default for f in fields(TrainingArguments) if f.name == name)
    members = get_args(hint) if get_origin(hint) not in (None, typing.Literal) else (hint,)
    first = members[0]
    if name in VALUES:
        text = VALUES[name]
        return text, int(text) if first is int else text
    if get_origin(first) is typing.Literal:
        value = next(choice for choice in get_args(first) if choice != getattr(default, "value", 0))
        return value, value
    if first is bool:
        return str(not default).lower(), not default
    if first is int:
        return str((default or 0) + 1), (default or 0) + 1
    if first is float:
        return str((default or 0) + 0.5), (default or 0) + 0.5
    if first is dict:
        return '{"min_lr": 0.1}', {"min_lr": 0.1}
    return ("some", ["some"]) if get_origin(first) is list else ("some", "some")


@pytest.mark.parametrize("name", sorted(passed_fields()))
def test_a_field_that_is_passed_through_arrives(
    name: str, tiny_arguments: Callable[..., Arguments]
) -> None:
    flag, value = example(name, passed_fields()[name])
    arguments = tiny_arguments(*NEEDED.get(name, ()), f"--{name}", flag)
    assert arguments.training.training_arguments[name] == value
    built = build_trainer_arguments(arguments.training, plan_batch(arguments.training, 1))
    arrived = getattr(built, name)
    if name.endswith("checkpointing"):
        assert built.gradient_checkpointing is True
    elif name == "debug":
        assert [option.value for option in arrived] == [value]
    else:
        assert getattr(arrived, "value", arrived) == value


@pytest.mark.parametrize("name", sorted(set(RECORDED[NEWEST]) & REFUSED_FIELDS.keys()))
def test_a_field_that_is_refused_says_why_or_what_to_use(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"--{name}(;|: the Hub token)"):
        parse_arguments([f"--{name}", "1"])
    (tmp_path / "mine.yaml").write_text(f"{name}: 1\n")
    with pytest.raises(UserError, match=rf"mine\.yaml: {name}: unknown setting; ."):
        parse_arguments(["--config", str(tmp_path / "mine.yaml")])


def test_a_field_of_a_newer_version_passes_through_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Path(transformers.__file__).parent
    for module in ("training_args.py", "trainer_utils.py"):
        shutil.copy(package / module, tmp_path)
    source = (tmp_path / "training_args.py").read_text()
    marker = "    output_dir: "
    added = "    brand_new: Optional[float] = field(default=None)\n"
    (tmp_path / "training_args.py").write_text(source.replace(marker, added + marker, 1))
    assert installed_fields(tmp_path)["brand_new"] == float | None
    monkeypatch.setattr(
        "tinystories_hf.config.command_line.installed_fields", lambda: installed_fields(tmp_path)
    )
    assert parse_arguments(["--brand_new", "2"]).training.training_arguments == {"brand_new": 2.0}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optim", "adamw"], "--optim: expected adamw_torch, .*got 'adamw'"),
        (["--lr_scheduler_kwargs", "fast"], "--lr_scheduler_kwargs: expected a mapping, such as"),
        (["--lr_scheduler_kwargs", "[1]"], "expected a mapping"),
        (["--lr_scheduler_type", "cosin"], "cosin is unknown; use one of linear, cosine"),
        (["--neftune_noise_alpha", "much"], "expected a number or null"),
        (["--ddp_timeout", "1.5"], "expected an integer"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_arguments(flags)


def test_yaml_takes_mappings_and_flags_take_json(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        f"base: {ROOT / 'configs' / 'xs.yaml'}\nlr_scheduler_kwargs: {{num_decay_steps: 20}}\n"
        "optim: adafactor\n"
    )
    flags = ["--lr_scheduler_kwargs", '{"num_decay_steps": 20}', "--optim", "adafactor"]
    for words in (["--config", str(tmp_path / "mine.yaml")], flags):
        assert parse_arguments(words).training.training_arguments == {
            "lr_scheduler_kwargs": {"num_decay_steps": 20},
            "optim": "adafactor",
        }


def test_help_names_the_fields_without_importing_torch() -> None:
    code = (
        "import sys, tinystories_hf.config.command_line as c\n"
        "try:\n    c.parse_arguments(['--help'])\n"
        "except SystemExit:\n    print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    *text, imported = done.stdout.splitlines()
    assert imported == "[]", done.stderr
    (line,) = (line for line in text if "optim_target_modules" in line)
    assert all(f" {name}" in line for name in passed_fields())
