"""What a run leaves is a plain GPT-Neo: it loads where this package cannot even be imported."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    PreTrainedModel,
    TextGenerationPipeline,
)

from tests.conftest import environment
from tests.support.forked import train_forked
from tinystories_hf.generation.arguments import GenerationArguments
from tinystories_hf.generation.generate import generate, load_for_generation

STOCK = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tinystories_hf":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
try:
    import tinystories_hf
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the package can be imported here: the test would show nothing")

import json
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

run = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(run)
tokenizer = AutoTokenizer.from_pretrained(run)
ids = tokenizer("Once upon a time there was a cat.", return_tensors="pt").input_ids
torch.save(model(ids).logits, "logits.pt")
storyteller = pipeline("text-generation", model=run)
text = storyteller("Once upon a time")[0]["generated_text"]
many = storyteller(["Once", "Tom and Mia"], batch_size=2, do_sample=False)
print(json.dumps([type(model).__name__, tokenizer.is_fast, text, len(many)]))
"""


def pipeline_says() -> tuple[str, ...]:
    """Return what the pipeline of Transformers 5.17 says of every model with a BPE tokenizer."""
    parameters = inspect.signature(TextGenerationPipeline.postprocess).parameters
    if parameters["clean_up_tokenization_spaces"].default is not True:
        return ()
    return ("Ignoring clean_up_tokenization_spaces=True", "Passing `generation_config` together")


def load_stock(name: str, folder: Path, **extra: str) -> list[Any]:
    """Load a model where this package is absent, and return what that prints.

    Its logits are left in `folder`; a warning fails.
    """
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        [sys.executable, "-c", STOCK, name],
        cwd=folder,
        env=environment(folder / "home", **quiet, **extra),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    usual = ("Loading weights", "Device set to use", *pipeline_says())
    said = [line for line in done.stderr.splitlines() if line]
    assert [line for line in said if not any(words in line for words in usual)] == []
    told: list[Any] = json.loads(done.stdout)
    return told


def test_stock_transformers_loads_a_run_without_this_package_and_without_a_warning(
    trained_run: Path, tmp_path: Path
) -> None:
    name, fast, text, count = load_stock(str(trained_run), tmp_path)
    assert (name, fast, count) == ("GPTNeoForCausalLM", True, 2)
    assert text.startswith("Once upon a time")

    model, tokenizer = load_for_generation(str(trained_run))
    ids = tokenizer("Once upon a time there was a cat.", return_tensors="pt").input_ids
    theirs = torch.load(tmp_path / "logits.pt", weights_only=True)
    stock = AutoModelForCausalLM.from_pretrained(trained_run).eval()
    assert torch.equal(stock(ids).logits, theirs)
    torch.testing.assert_close(model(ids).logits, theirs, atol=1e-5, rtol=0)


def test_our_greedy_story_is_that_of_stock_generate(trained_run: Path) -> None:
    model, tokenizer = load_for_generation(str(trained_run))
    (ours,) = generate(model, tokenizer, ["Tom"], GenerationArguments(temperature=0))
    stock = AutoModelForCausalLM.from_pretrained(trained_run)
    ids = stock.generate(**tokenizer("Tom", return_tensors="pt"), do_sample=False)
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == ours.prompt + ours.completion


def saved(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the files of that name in a run, its checkpoints and its prepared folder."""
    paths = list(folder.rglob(name))
    assert len(paths) >= 3
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def test_every_saved_tokenizer_is_of_a_class_and_with_settings_that_others_read_right(
    trained_run: Path,
) -> None:
    for config in saved(trained_run.parent, "tokenizer_config.json"):
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert config["padding_side"] == "left"
        assert config["clean_up_tokenization_spaces"] is False
        assert config["model_input_names"] == ["input_ids", "attention_mask"]
        assert None not in config.values()


def test_the_configuration_of_a_run_is_what_stock_writes_for_its_shape(
    trained_run: Path, tmp_path: Path
) -> None:
    shape = GPTNeoConfig(
        hidden_size=32, num_layers=2, num_heads=4, vocab_size=320, max_position_embeddings=64,
        window_size=16, attention_types=[[["global", "local"], 1]], bos_token_id=0,
        eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    # A configuration that was loaded states the defaults of the embeddings and the residuals.
    for name in ("embed_dropout", "attention_dropout", "resid_dropout"):
        setattr(shape, name, 0.0)
    GPTNeoForCausalLM(shape).save_pretrained(tmp_path)
    stock = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert stock["use_cache"] is True
    for config in saved(trained_run, "config.json"):
        assert config == stock


def greedy(model: PreTrainedModel, folder: Path, prompts: list[str]) -> list[str]:
    """Return what stock Transformers generates for prompts in one batch."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    told = model.generate(**batch, do_sample=False, max_new_tokens=20)
    texts: list[str] = tokenizer.batch_decode(told, skip_special_tokens=True)
    return texts


def test_a_batch_of_prompts_is_continued_as_each_alone(trained_run: Path) -> None:
    config = GPTNeoConfig.from_pretrained(trained_run, initializer_range=0.5)
    torch.manual_seed(0)
    model = GPTNeoForCausalLM(config)  # of many words, where the tiny run knows one
    prompts = ["Once upon a time", "Once upon a time, a brave boy named Leo", "Mia"]
    together = greedy(model, trained_run, prompts)
    assert together == [greedy(model, trained_run, [prompt])[0] for prompt in prompts]
    assert all(map(str.startswith, together, prompts))


OTHER_VERSION = """
import json, sys
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

run = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(run)
model = AutoModelForCausalLM.from_pretrained(run)
batch = tokenizer(["Tom", "Once upon a time, a fox"], padding=True, return_tensors="pt")
told = model.generate(**batch, do_sample=False, max_new_tokens=20)
storyteller = pipeline("text-generation", model=run)
(one,) = storyteller("Once upon a time, a fox", do_sample=False, max_new_tokens=20)
print(json.dumps([
    transformers.__version__,
    model(tokenizer("Tom", return_tensors="pt").input_ids).logits[0, -1].tolist(),
    tokenizer.batch_decode(told, skip_special_tokens=True),
    one["generated_text"],
]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", ["transformers==4.57.6", "transformers"])
def test_both_kinds_of_run_load_and_generate_in_other_versions_of_transformers(
    version: str, trained_run: Path, shared: Path, tmp_path: Path
) -> None:
    """Needs a package index: 4.57, and the newest that it has, beside the installed PyTorch."""
    target = tmp_path / "other"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target), version]
    subprocess.run(install, check=True, timeout=600)
    flags = ("--tokenizer", str(shared / "data/gpt-neo-tokenizer"), "--vocab_size", "50257")
    train_forked(tmp_path, *flags)
    for run in (trained_run, tmp_path / "run"):
        done = subprocess.run(
            [sys.executable, "-c", OTHER_VERSION, str(run)],
            cwd=tmp_path,
            env=environment(tmp_path / "home", PYTHONPATH=str(target)),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        found, logits, told, one = json.loads(done.stdout.splitlines()[-1])
        print(f"\n{run.parent.name}: transformers {found}: {one!r}")
        assert found == version.partition("==")[2] or version == "transformers"
        model = AutoModelForCausalLM.from_pretrained(run)
        ids = AutoTokenizer.from_pretrained(run)("Tom", return_tensors="pt").input_ids
        assert logits == pytest.approx(model(ids).logits[0, -1].tolist(), abs=1e-5)
        assert told == greedy(model, run, ["Tom", "Once upon a time, a fox"])
        assert one == told[1]
