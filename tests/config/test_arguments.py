from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from tinystories_hf.config.command_line import GROUPS, Arguments, parse_arguments
from tinystories_hf.config.parsing import settings_of
from tinystories_hf.core.errors import UserError
from tinystories_hf.generation.arguments import parse_generation_arguments


def parse(config: Path, *flags: str) -> Arguments:
    return parse_arguments(["--config", str(config), *flags])


def test_without_arguments_the_xs_model_is_configured() -> None:
    assert parse_arguments([]).model.hidden_size == 64
    assert parse_arguments([]).training.output_dir == "runs/xs"


def test_names_do_not_collide_between_groups() -> None:
    names = [declared.name for cls in GROUPS.values() for declared in fields(cls)]
    assert len(names) == len(set(names))


def test_a_dataset_on_the_command_line_drops_the_revision_of_the_yaml() -> None:
    assert parse_arguments([]).data.dataset_revision is not None
    data = parse_arguments(["--dataset", "stories.txt", "--tokenizer", "./tok"]).data
    assert data.dataset_revision is None
    assert data.tokenizer_vocab_sha256 is None


def test_another_dataset_drops_the_license_and_language_of_the_yaml() -> None:
    assert (parse_arguments([]).hub.license, parse_arguments([]).hub.language) == ("mit", ["en"])
    hub = parse_arguments(["--dataset", "contes.txt"]).hub
    assert (hub.license, hub.language) == (None, [])
    flags = ["--dataset", "contes.txt", "--license", "cc-by-4.0", "--language", "fr", "br"]
    hub = parse_arguments(flags).hub
    assert (hub.license, hub.language) == ("cc-by-4.0", ["fr", "br"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--license", ""), "license and language must not be empty"),
        (("--language", "en", ""), "license and language must not be empty"),
        (("--hidden_size", "30"), "hidden_size 30 is not divisible by num_heads 4"),
        (("--num_layers", "3"), "num_layers 3 is not a multiple"),
        (("--attention_types", "sparse"), "attention_types may only contain"),
        (("--context_length", "65"), "context_length 65 is longer than max_position_embeddings 64"),
        (("--attention_dropout", "1"), r"attention_dropout must be in \[0, 1\)"),
        (("--vocab_size", "0"), "vocab_size must be positive"),
        (("--context_length", "1"), "context_length must be at least 2"),
        (("--validation_share", "1"), "validation_share must be between"),
        (("--toy_stories", "-4"), "toy_stories must be positive"),
        (("--seed", "4294967296"), r"seed must be below 2\^32"),
        (("--learning_rate", "0"), "learning_rate must be positive"),
        (("--learning_rate", "quick"), "--learning_rate: expected a number, got 'quick'"),
        (("--max_steps", "0"), "max_steps must be positive, or -1"),
        (("--eval_steps", "2.5"), "eval_steps above 1 is a number of steps"),
        (("--weight_decay", "-0.1"), "weight_decay must not be negative"),
        (("--lr_scheduler_type", "zigzag"), "use one of linear, cosine"),
        (("--bf16", "maybe"), "--bf16: expected true or false or auto"),
        (("--learning_rat", "1"), "did you mean --learning_rate?"),
        (("stray",), "unknown flag stray"),
        (("--vocab_size",), "--vocab_size"),
    ],
)
def test_an_invalid_setting_raises_an_error_that_names_it(
    tiny_config: Path, flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        parse(tiny_config, *flags)


def test_help_lists_every_setting_with_its_value(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    words = capsys.readouterr().out.split()
    for cls in GROUPS.values():
        assert {f"--{declared.name}" for declared in settings_of(cls)} <= set(words)
    assert "[5e-4]" in words or "[0.0005]" in words


def test_generation_needs_a_model_and_a_prompt() -> None:
    with pytest.raises(UserError, match="give --model and --prompt"):
        parse_generation_arguments(["--model", "runs/xs"])
    request = parse_generation_arguments(["--model", "m", "--prompt", "a", "b", "--top_k", "5"])
    assert (request.prompt, request.settings.top_k) == (["a", "b"], 5)


@pytest.mark.parametrize(
    "flags",
    [
        ("--top_p", "0"),
        ("--temperature", "-1"),
        ("--num_beams", "0"),
        ("--max_new_tokens", "0"),
        ("--temperature", "0", "--num_return_sequences", "2"),
    ],
)
def test_an_invalid_generation_setting_is_an_error(
    flags: tuple[str, ...],
) -> None:
    with pytest.raises(UserError, match=flags[0].strip("-")):
        parse_generation_arguments(["--model", "m", "--prompt", "a", *flags])


def test_an_attention_implementation_that_is_wrong_for_gpt_neo_is_rejected_with_the_reason(
    tiny_arguments: Callable[..., Arguments],
) -> None:
    assert tiny_arguments().model.attn_implementation == "sdpa"
    assert tiny_arguments("--attn_implementation", "eager").model.attn_implementation == "eager"
    with pytest.raises(UserError, match=r"must be sdpa or eager.*ignores the window of the local"):
        tiny_arguments("--attn_implementation", "flash_attention_2")
    with pytest.raises(UserError, match=r"must be sdpa or eager, got flex$"):
        tiny_arguments("--attn_implementation", "flex")
