"""Training that starts from the weights of a model: of a run, a checkpoint, the Hub, any family."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoForCausalLM,
    PreTrainedModel,
)

from tests.support.forked import run_forked, script, train_forked
from tests.support.loopback_hub import LoopbackHub
from tests.support.loopback_state import Account, StoredRepository
from tests.support.publishing import REPO, TOKEN, published
from tests.support.soak import Kill, fork, soak
from tinystories_hf.config.command_line import Arguments, parse_arguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.data.tokenization.tokenizer import train_tokenizer
from tinystories_hf.data.toy import toy_stories
from tinystories_hf.evaluation.subject import load_model_to_evaluate
from tinystories_hf.training.train import train

OTHER_STORIES = ("--toy_seed", "5", "--toy_stories", "200")
SIZE = 300
TINY: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 48},
    "llama": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
              "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 48},
}  # fmt: skip


@pytest.fixture
def base(trained_run: Path, tmp_path: Path) -> Path:
    """Return a copy of a finished run, beside which others are trained."""
    return Path(shutil.copytree(trained_run, tmp_path / "base"))


def loss_of(folder: Path, part: str = "eval_results.json") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / part).read_text())["loss"]["packed"]
    return content


def pretrained_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "run.json").read_text())["pretrained"]
    return content


def test_training_goes_on_from_the_loss_of_the_base_and_beats_a_fresh_start(
    base: Path, tmp_path: Path
) -> None:
    flags = (*OTHER_STORIES, "--max_steps", "60", "--learning_rate", "1e-3", "--eval_steps", "60",
             "--save_steps", "60", "--logging_steps", "30")  # fmt: skip
    said = train_forked(tmp_path, "--model_name_or_path", str(base), *flags).stdout
    measured = run_forked(
        tmp_path, script, "evaluate.py",
        ["--model", str(base), "--suite", "loss", "--dataset", "toy", *OTHER_STORIES,
         "--output_dir", "measured"],
        variables={"HF_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert measured.returncode == 0, measured.stderr
    before = pretrained_of(tmp_path / "run")["loss"]["packed"]["loss"]
    assert before == pytest.approx(loss_of(tmp_path / "measured")["loss"], abs=1e-6)
    assert f"base, validation {before:.4f} nats per token" in said

    train_forked(tmp_path, *flags, run="fresh")
    after, fresh = (loss_of(tmp_path / run)["loss"] for run in ("run", "fresh"))
    assert after < before
    assert after < fresh

    card = (tmp_path / "run" / "README.md").read_text()
    assert f"{before:.4f} nats per token" in card
    assert "trained only" not in card
    stock = GPTNeoForCausalLM.from_pretrained(tmp_path / "run")
    assert stock.config.max_position_embeddings == 64
    assert stock.generation_config.max_length == 64


def test_a_run_that_started_from_weights_and_is_killed_resumes_bit_identically(
    base: Path, tmp_path: Path
) -> None:
    draw = random.Random(3)
    kills = [
        Kill("preparing", draw.uniform(0, 0.3)),
        Kill("first second", draw.uniform(0, 1)),
        Kill("training", draw.uniform(0, 0.02), draw.randint(1, 9)),
        Kill("saving", draw.uniform(0, 0.15)),
        Kill("finishing", draw.uniform(0, 0.5)),
    ]
    more = ("--model_name_or_path", str(base), "--toy_seed", "5", "--output_dir", "run")
    assert soak(tmp_path, kills, 20, begin=fork, more=more).total() >= 4
    records = [pretrained_of(tmp_path / name / "run") for name in ("reference", "disturbed")]
    losses = [record["loss"]["packed"]["loss"] for record in records]
    assert losses[0] == losses[1], "that of the base, not of a checkpoint"


@pytest.fixture
def arguments_from(tiny_arguments: Callable[..., Arguments]) -> Callable[..., Arguments]:
    """Return a function that parses the settings of a short run from the weights of a folder."""

    def parse(folder: Path, *flags: str) -> Arguments:
        short = ("--max_steps", "2", "--global_batch_size", "2", *OTHER_STORIES)
        return tiny_arguments("--model_name_or_path", str(folder), *short, *flags)

    return parse


def test_the_model_decides_shape_tokenizer_and_context(
    base: Path, arguments_from: Callable[..., Arguments]
) -> None:
    for folder in (base, base / "checkpoint-10"):
        found = parse_arguments(
            ["--model_name_or_path", str(folder), "--output_dir", "x", "--resid_dropout", "0.2"]
        )
        assert (found.model.hidden_size, found.model.vocab_size) == (32, 320)
        assert found.model.attention_types == ["global", "local"]
        assert (found.data.context_length, found.data.tokenizer) == (64, str(folder))
        assert (found.model.resid_dropout, found.model.embed_dropout) == (0.2, 0.0)
        assert found.data.dataset == "roneneldan/TinyStories"
    assert arguments_from(base, "--context_length", "32").data.context_length == 32


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--hidden_size", "64"], "--hidden_size: 64, but .*base has 32; omit it"),
        (["--attention_types", "global"], "but .*base has .'global', 'local'.; omit it"),
        (["--context_length", "65"], "longer than max_position_embeddings 64"),
        (["--tokenizer", "train"], "newly trained tokenizer does not fit"),
        (["--model_revision", "v1"], "is a folder, which has no revisions"),
    ],
)
def test_a_setting_that_contradicts_the_model_is_refused_by_name(
    base: Path, arguments_from: Callable[..., Arguments], flags: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        arguments_from(base, *flags)


def test_what_is_no_model_is_refused_with_the_fix(base: Path, tmp_path: Path) -> None:
    (base / "config.json").unlink()
    for name, message in (
        (str(base), "has no config.json; its newest checkpoint is .*checkpoint-20"),
        (str(tmp_path / "nowhere"), "is not a folder"),
        (str(base / "run.json"), "is not a folder"),
    ):
        with pytest.raises(UserError, match=message):
            parse_arguments(["--model_name_or_path", name, "--output_dir", "x"])
    with pytest.raises(UserError, match="output_dir is not set"):
        parse_arguments(["--model_name_or_path", str(base / "checkpoint-20")])
    with pytest.raises(UserError, match="need model_name_or_path"):
        parse_arguments(["--resize_embedding"])


def test_other_weights_are_not_resumed_from(
    base: Path, arguments_from: Callable[..., Arguments]
) -> None:
    train(arguments_from(base))
    with pytest.raises(UserError, match="pretrained_weights was"):
        train(arguments_from(base / "checkpoint-10", "--resume_from_checkpoint", "auto"))


def test_a_tokenizer_with_other_entries_is_refused_or_resizes_the_embedding(
    base: Path, arguments_from: Callable[..., Arguments], tmp_path: Path
) -> None:
    other = str(tmp_path / "tok")
    train_tokenizer(toy_stories(200, 9), 400, 64).save_pretrained(other)
    with pytest.raises(UserError, match=r"has 400 entries, but .* 320 rows.*--resize_embedding"):
        train(arguments_from(base, "--tokenizer", other))
    train_tokenizer(toy_stories(200, 9), 320, 64).save_pretrained(tmp_path / "same-size")
    with pytest.raises(UserError, match="its entries are not those of the tokenizer of"):
        train(arguments_from(base, "--tokenizer", str(tmp_path / "same-size")))
    arguments = arguments_from(base, "--tokenizer", other, "--resize_embedding")
    train(arguments)
    run = Path(arguments.training.output_dir)
    resized = AutoModelForCausalLM.from_pretrained(run)
    assert resized.config.vocab_size == len(AutoTokenizer.from_pretrained(run)) == 400
    assert json.loads((run / "run.json").read_text())["configuration"]["model"]["vocab_size"] == 400


@pytest.mark.parametrize("stories", [1, 3])
def test_text_of_a_few_rows_trains_or_is_refused_with_the_rows_needed(
    base: Path, arguments_from: Callable[..., Arguments], tmp_path: Path, stories: int
) -> None:
    for name, number in (("train.txt", stories), ("valid.txt", 3)):
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / name).write_text("\n<|endoftext|>\n".join(toy_stories(number, 3)))
    text = ("--dataset", str(tmp_path / "text"), "--train_file", "train.txt",
            "--validation_file", "valid.txt")  # fmt: skip
    with pytest.raises(UserError, match=r"global_batch_size 64 exceeds the \d+ training rows"):
        train(arguments_from(base, *text, "--global_batch_size", "64"))
    train(arguments_from(base, *text, "--global_batch_size", "1"))


def test_a_generation_configuration_that_cannot_be_saved_does_not_lose_the_run(
    base: Path, arguments_from: Callable[..., Arguments]
) -> None:
    """Transformers loads, and refuses to save, a temperature without sampling."""
    old = {"temperature": 0.7, "do_sample": False, "max_length": 2048}
    (base / "generation_config.json").write_text(json.dumps(old))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "temperature": 0.7, "top_k": 3}))
    arguments = arguments_from(base)
    train(arguments)
    saved = json.loads((Path(arguments.training.output_dir) / "generation_config.json").read_text())
    assert (saved["do_sample"], saved["temperature"], saved["max_length"]) == (True, 1.0, 64)


def test_a_model_with_more_positions_than_are_trained_keeps_them(
    base: Path, arguments_from: Callable[..., Arguments]
) -> None:
    arguments = arguments_from(base, "--context_length", "16")
    train(arguments)
    run = Path(arguments.training.output_dir)
    saved = GPTNeoForCausalLM.from_pretrained(run)
    assert saved.transformer.wpe.weight.shape[0] == 64
    assert saved.generation_config.max_length == 16
    assert "context 16" in (run / "README.md").read_text()


def tiny(kind: str, folder: Path) -> PreTrainedModel:
    """Save a model of another family, in bf16 as they are published, with its tokenizer."""
    config = AutoConfig.for_model(
        kind, vocab_size=SIZE, bos_token_id=0, eos_token_id=0, **TINY[kind]
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    train_tokenizer(toy_stories(100), SIZE, 48).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return model


@pytest.mark.parametrize("kind", TINY)
def test_any_causal_model_of_the_hub_trains_and_is_published(
    kind: str, hub: LoopbackHub, tmp_path: Path
) -> None:
    """Trained, evaluated, generated from, and published with its base model."""
    tiny(kind, tmp_path / "made")
    name = f"someone/tiny-{kind}"
    hub.accounts[TOKEN] = Account("me")
    hub.repositories["models", name] = StoredRepository(
        {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    )
    train_forked(
        tmp_path, "--model_name_or_path", name, "--max_steps", "10", "--push_to_hub",
        "--hub_model_id", REPO, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN,
    )  # fmt: skip
    run = tmp_path / "run"
    commit = hub.repositories["models", name].commit
    record = json.loads((run / "run.json").read_text())
    assert (record["pretrained"]["name"], record["pretrained"]["revision"]) == (name, commit)
    assert record["pretrained"]["license"] == "apache-2.0"
    assert "window_size" not in record["configuration"]["model"]
    assert loss_of(run)["loss"] < record["pretrained"]["loss"]["packed"]["loss"]

    card: Any = ModelCard(published(hub)["README.md"].decode())
    assert card.data.base_model == name
    assert kind in card.data.tags
    assert f"causal language model ({kind})" in card.text
    assert "licence apache-2.0" in card.text

    evaluated = load_model_to_evaluate(str(run))
    assert evaluated.model.dtype == torch.float32
    done = run_forked(
        tmp_path, script, "generate.py", ["--model", str(run), "--prompt", "Once", "--seed", "1"],
        variables={"HF_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert done.stdout.startswith("Once"), done.stderr


def test_a_setting_that_another_family_does_not_have_is_refused(tmp_path: Path) -> None:
    tiny("llama", tmp_path / "made")
    start = ["--model_name_or_path", str(tmp_path / "made"), "--output_dir", str(tmp_path / "run")]
    with pytest.raises(UserError, match="is a llama, without window_size; omit it"):
        parse_arguments([*start, "--window_size", "8"])
    compiled = parse_arguments(
        [*start, "--torch_compile", "true", "--dataset", "toy", "--toy_stories", "200",
         "--global_batch_size", "2", "--prepared_dir", str(tmp_path / "rows")],
    )  # fmt: skip
    with pytest.raises(UserError, match="not for a llama"):
        train(compiled)


def test_pickled_weights_are_refused(base: Path, arguments_from: Callable[..., Arguments]) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    (base / "model.safetensors").unlink()
    torch.save(model.state_dict(), base / "pytorch_model.bin")
    with pytest.raises(UserError, match="no safetensors weights"):
        train(arguments_from(base))
