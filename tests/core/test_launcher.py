"""What the launcher and the environment ask for: done, or refused by name."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.forked import launched
from tinystories_hf.config.command_line import Arguments
from tinystories_hf.core import launcher
from tinystories_hf.core.errors import UserError
from tinystories_hf.core.launcher import check_launch
from tinystories_hf.training import trainer_arguments
from tinystories_hf.training.trainer_arguments import choose_precision

Parse = Callable[..., Arguments]
LAUNCH = ["python", "accelerate", "launch"]


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*launcher.ONES_OF_A_GROUP, *launcher.SIZES_OF_MPI, "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("asked", "variable", "flags", "hardware", "expected"),
    [
        ("auto", None, [], True, "bf16"),
        ("auto", None, [], False, "no"),
        ("auto", "no", [], True, "bf16"),
        ("auto", "no", ["--mixed_precision", "no"], True, "no"),
        ("auto", "no", ["--mixed-precision=no"], True, "no"),
        ("auto", "fp16", [], True, "fp16"),
        ("auto", "bf16", [], False, "bf16"),
        ("true", "no", [], False, "bf16"),
        ("true", "bf16", [], False, "bf16"),
        ("true", "no", ["--mixed_precision", "no"], True, "true, but .* mixed_precision no;"),
        ("true", "fp16", [], True, "the setting is true, but .* mixed_precision fp16;"),
        ("false", "no", ["--mixed_precision", "no"], True, "no"),
        ("false", "no", [], True, "no"),
        ("false", "fp16", ["--mixed_precision", "fp16"], True, "fp16"),
        ("false", "bf16", [], True, "the setting is false, but .* mixed_precision bf16;"),
    ],
)
def test_what_launcher_and_settings_ask_for_is_done_or_refused_where_they_differ(
    tiny_arguments: Parse,
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    variable: str | None,
    flags: list[str],
    hardware: bool,
    expected: str,
) -> None:
    if variable is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", variable)
    monkeypatch.setattr(launcher, "launcher_command", lambda: [*LAUNCH, *flags, "scripts/train.py"])
    monkeypatch.setattr(trainer_arguments, "has_native_bf16", lambda: hardware)
    training = tiny_arguments("--bf16", asked).training
    if expected in ("no", "bf16", "fp16"):
        assert choose_precision(training) == expected
        assert choose_precision(training) == expected, "nothing is changed by asking"
    else:
        with pytest.raises(UserError, match=f"^bf16: {expected}|{expected}"):
            choose_precision(training)


def test_the_flag_of_a_true_launcher_is_known_in_its_process(
    launch_script: Callable[..., subprocess.CompletedProcess[str]],
    tiny_config: Path,
    tmp_path: Path,
) -> None:
    done = launch_script(
        "train.py",
        *("--config", str(tiny_config), "--bf16", "true"),
        launcher=("-m", "accelerate.commands.launch", "-q", "--mixed_precision", "no"),
    )
    assert done.returncode == 1
    assert "error: bf16: the setting is true, but accelerate launch requests mixed" in done.stderr
    assert not (tmp_path / "work" / "run").exists()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "1"}, r"the environment has RANK=1 without WORLD_SIZE.*`unset RANK`"),
        ({"LOCAL_RANK": "0"}, r"has LOCAL_RANK=0 without RANK.*MASTER_ADDR"),
        ({"WORLD_SIZE": "2"}, r"has WORLD_SIZE=2 without RANK, LOCAL_RANK, MASTER_ADDR"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "has RANK=2, WORLD_SIZE=2 without"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: 'two' in the environment is not an integer"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, r"OMPI_COMM_WORLD_SIZE=4 .* MPI.*`unset OMPI_COMM_WORLD"),
        ({"PMI_SIZE": "2", "WORLD_SIZE": "1"}, "PMI_SIZE=2"),
        ({"MV2_COMM_WORLD_SIZE": ""}, "MV2_COMM_WORLD_SIZE="),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, r"default_config\.yaml\) asks for .* fp8"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"},
            r"default_config\.yaml\) asks for FSDP 1.*configs/accelerate/fsdp\.yaml",
        ),
        ({"ACCELERATE_USE_FSDP": "true"}, "asks for FSDP 1"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "asks for DeepSpeed"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "asks for Megatron-LM"),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_file_or_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str], message: str
) -> None:
    left_over = tmp_path / "default_config.yaml"
    left_over.write_text("mixed_precision: fp8\n")
    monkeypatch.setattr(launcher, "default_config_file", str(left_over))
    monkeypatch.setattr(launcher, "launcher_command", lambda: LAUNCH)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        check_launch()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_MIXED_PRECISION", "fp8"),
        ("ACCELERATE_MIXED_PRECISION", "half"),
        ("ACCELERATE_DYNAMO_BACKEND", "fastest"),
        ("ACCELERATE_USE_FSDP", "true"),
        ("ACCELERATE_USE_DEEPSPEED", "true"),
    ],
)
def test_a_variable_that_no_launcher_has_set_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"^{name}={value} in the environment asks for"):
        check_launch()


def test_a_file_that_the_launcher_was_given_is_the_one_that_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    for words in (["--config_file", "mine.yaml"], ["--config_file=mine.yaml"]):
        command = [*LAUNCH, *words]
        monkeypatch.setattr(launcher, "launcher_command", lambda command=command: command)
        with pytest.raises(UserError, match=r"launch \(its flags, or mine\.yaml\) asks for"):
            check_launch()


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"RANK": "0"},
        {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "pod-0", "MASTER_PORT": "23456"},
        {"PMI_SIZE": "1"},
        {**launched(1, 2, 29500), "PMI_SIZE": "1"},
        {**launched(1, 2, 29500), "OMPI_COMM_WORLD_SIZE": "4"},
        {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
        {"ACCELERATE_USE_DEEPSPEED": "false"},
    ],
)
def test_an_environment_that_means_what_will_happen_is_taken(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    check_launch()
