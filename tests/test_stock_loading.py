"""What a run leaves is a plain GPT-Neo: it loads where this package cannot even be imported."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, TextGenerationPipeline

from tests.conftest import environment
from tinystories_hf.arguments import GenerationArguments
from tinystories_hf.generation import generate_stories, load_for_generation

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
    (ours,) = generate_stories(model, tokenizer, ["Tom"], GenerationArguments(temperature=0))
    stock = AutoModelForCausalLM.from_pretrained(trained_run)
    ids = stock.generate(**tokenizer("Tom", return_tensors="pt"), do_sample=False)
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == ours.prompt + ours.completion
