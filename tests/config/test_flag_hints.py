"""Hints for unknown settings and flags."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from transformers import GPTNeoConfig

from tests.conftest import ROOT
from tinystories_hf.config.command_line import (
    Arguments,
    own_settings,
    parse_arguments,
    passed_fields,
)
from tinystories_hf.config.flag_hints import _HINTS, _SETTING, suggest_flag
from tinystories_hf.core.errors import UserError
from tinystories_hf.evaluation.arguments import EvaluationArguments, parse_evaluation_arguments
from tinystories_hf.generation.arguments import GenerationArguments, parse_generation_arguments

OF_TRAINING = own_settings().keys() | passed_fields().keys()
OF_GENERATION = {declared.name for declared in fields(GenerationArguments)} | {"model", "prompt"}
OF_EVALUATION = {declared.name for declared in fields(EvaluationArguments)}
SCRIPTS = (OF_TRAINING, OF_GENERATION, OF_EVALUATION)


@pytest.mark.parametrize(("names", "hint"), _HINTS, ids=[names for names, _ in _HINTS])
def test_a_hint_names_existing_settings(names: str, hint: str) -> None:
    settings = set(_SETTING.findall(hint))
    assert any(settings <= known for known in SCRIPTS)
    assert "{" not in _SETTING.sub("", hint)
    for name in names.split():
        assert any(settings <= known and name not in known for known in SCRIPTS), "it is a setting"


def test_each_name_has_one_hint_in_each_script() -> None:
    for known in SCRIPTS:
        names = Counter(
            name
            for names, hint in _HINTS
            for name in names.split()
            if _SETTING.findall(hint) and set(_SETTING.findall(hint)) <= known
        )
        assert [name for name, times in names.items() if times > 1] == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--lr", "1e-3"), "unknown flag --lr; use --learning_rate"),
        (("--fp16",), "accelerate launch --mixed_precision fp16`, or use --bf16"),
        (("--block_size=512",), "unknown flag --block_size; use --context_length, and --max_pos"),
        (("--do_train",), "--do_train; omit it: scripts/train.py always trains"),
        (("--resume",), "--resume; use --resume_from_checkpoint auto"),
        (("--save_every", "5"), "use --save_steps"),
        (
            ("--gradient_accumulation_steps", "4"),
            "it is computed from --global_batch_size",
        ),
        (("--n_layer", "4"), "use --num_layers"),
        (
            ("--warmup-ratio", "0.1"),
            "--warmup-ratio; use --warmup_steps: a value below 1",
        ),
        (("--init_from", "x"), "--model_name_or_path to start from its weights"),
        (("--LR", "1e-3"), "unknown flag --LR; use --learning_rate"),
        (("--overwrite",), "a run is never overwritten"),
        (("--num_threads", "2"), "set the environment variable OMP_NUM_THREADS$"),
        (("--checkpointing_steps", "500"), "use --save_steps$"),
        (("--eval_file", "x"), "use --validation_file$"),
        (("--prompt", "x"), "scripts/generate.py generates stories from a finished run"),
        (("--learning_rat", "1"), "did you mean --learning_rate"),
        (("--learning-rate", "1"), "did you mean --learning_rate"),
        (("--zzz", "1"), "unknown flag --zzz; --help lists all settings$"),
        (("--hlp",), "unknown flag --hlp; --help lists all settings$"),
        (("--seeds", "1"), "did you mean --seed"),
    ],
)
def test_a_flag_of_another_program_gets_a_hint(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_arguments(list(flags))


ROWS = re.findall(
    r"^\| [\w.]+ \| `(--.*?)` \| (.*) \|$", (ROOT / "docs" / "settings.md").read_text(), re.M
)


@pytest.mark.parametrize(("command", "answer"), ROWS, ids=[command for command, _ in ROWS])
def test_a_command_from_elsewhere_works_or_is_answered_as_documented(
    command: str, answer: str, tmp_path: Path
) -> None:
    GPTNeoConfig().save_pretrained(tmp_path)
    flags = [str(tmp_path) if word == "gpt2" else word for word in shlex.split(command)]
    if answer == "works":
        parse_arguments(flags)
        return
    with pytest.raises(UserError, match=re.escape(answer)):
        parse_arguments(flags)


def test_ten_commands_from_elsewhere_are_documented() -> None:
    assert len(ROWS) >= 10


def test_a_yaml_key_of_another_program_gets_a_hint(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("n_embd: 64\n")
    with pytest.raises(UserError, match=r"mine\.yaml: n_embd: unknown setting; use hidden_size$"):
        parse_arguments(["--config", str(tmp_path / "mine.yaml")])


@pytest.mark.parametrize(
    ("parse", "flag", "message"),
    [
        (parse_generation_arguments, "--max_length", "use --max_new_tokens$"),
        (parse_generation_arguments, "--model_name_or_path", "use --model$"),
        (parse_generation_arguments, "--start", "use --prompt$"),
        (parse_evaluation_arguments, "--model_name_or_path", "use --model$"),
        (parse_evaluation_arguments, "--eval_batch_size", "use --batch_size$"),
        (parse_evaluation_arguments, "--lr", "--help lists all settings$"),
    ],
)
def test_each_script_names_its_own_settings(
    parse: Callable[[list[str]], object], flag: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        parse([flag, "1"])


@pytest.mark.parametrize("name", ["lr", "fp16", "block_size", "save_every", "do_train"])
def test_only_similar_names_are_suggested(name: str) -> None:
    known = [setting for setting in OF_TRAINING if setting not in ("context_length",)]
    assert "did you mean" not in suggest_flag(name, known)


def test_help_says_that_steps_below_1_are_a_fraction_of_the_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for name in ("eval_steps", "save_steps", "logging_steps", "warmup_steps"):
        help_text = said.split(f"--{name} X ", 1)[1].split(" --", 1)[0]
        assert "below 1, a fraction of the run" in help_text, name


def test_a_sample_prompt_without_tokens_is_rejected_before_the_run(
    tiny_arguments: Callable[..., Arguments], tmp_path: Path
) -> None:
    from tinystories_hf.training.train import train

    with pytest.raises(UserError, match="the prompt '' has no tokens"):
        train(tiny_arguments("--sample_prompts", "Once", ""))
    assert not (tmp_path / "run").exists()
