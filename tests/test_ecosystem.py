"""Every row of docs/ecosystem.md: other libraries, with the versions that the page states.

    pytest -m slow -s tests/test_ecosystem.py

Needs a package index. The libraries are installed into an environment of their own, beside those of
this one.
"""

from __future__ import annotations

import re
import site
import subprocess
import venv
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY_CONFIG, environment

PAGE = (ROOT / "docs" / "ecosystem.md").read_text(encoding="utf-8")
VERSIONS = dict(re.findall(r"^\| ([\w-]+) \| ([\d.]+) \|", PAGE, re.M))
OTHERS = ("peft", "trl", "lm-eval", "transformer-lens", "tensorboard", "wandb", "trackio")
SNIPPETS = {
    section.partition("\n")[0]: code
    for section in PAGE.split("\n## ")
    for code in re.findall(r"```py\n(.*?)```", section, re.S)
}

COMPARE_BITS = """
import math
import numpy as np
from tinystories_hf.evaluation.suites.loss import score_tokens
from tinystories_hf.evaluation.validation import BY_STORY, scoring_windows, tokenize_stories

tokenizer = AutoTokenizer.from_pretrained("runs/xs")
tokenized = tokenize_stories(tokenizer, stories)
windows = scoring_windows(tokenized, BY_STORY, 64)
losses = score_tokens(GPTNeoForCausalLM.from_pretrained("runs/xs"), windows, 4, quiet=True)
ends = tokenized.starts + tokenized.lengths - 1
ours = np.add.reduceat(losses, tokenized.starts) - losses[ends]
for nats, found, story in zip(ours, log_likelihoods, stories):
    bits = len(story.encode()) * math.log(2)
    print("bits per byte", nats / bits, -found / bits)
    assert abs(nats + found) / bits < 6e-6
"""
LOADS = """
from transformers import pipeline
assert "tinystories_hf" not in pipeline("text-generation", model="runs/merged").model.__module__
"""
READ_TENSORBOARD = """
import glob
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

(folder,) = glob.glob("run/runs/*")
events = EventAccumulator(folder).Reload()
tags = events.Tags()
print(tags)
assert any("samples" in tag for tag in tags["tensors"])
assert {"eval/final_loss", "eval/final_bits_per_byte"} <= set(tags["scalars"])
"""
AFTER = {"PEFT": LOADS, "lm-evaluation-harness": COMPARE_BITS}


def test_the_versions_of_this_environment_are_those_of_the_page() -> None:
    pinned = (ROOT / "constraints.txt").read_text()
    for name in ("transformers", "torch"):
        assert f"{name}=={VERSIONS[name]}" in pinned
    assert set(OTHERS) < set(VERSIONS)
    assert set(SNIPPETS) == {"PEFT", "TRL", "lm-evaluation-harness", "TransformerLens"}


@pytest.fixture(scope="module")
def other_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment with the other libraries, and all of this one's."""
    folder = tmp_path_factory.mktemp("other")
    venv.create(folder, with_pip=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "this_environment.pth").write_text("\n".join([*site.getsitepackages(), str(ROOT)]))
    python = folder / "bin" / "python"
    wanted = [f"{name}=={VERSIONS[name]}" for name in OTHERS]
    # trackio 0.43 needs an older Pillow than the tests have.
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    (folder / "pins.txt").write_text("\n".join(p for p in pins if not p.startswith("pillow==")))
    pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(folder / "pins.txt")]
    subprocess.run([*pip, *wanted], check=True, timeout=900)
    return python


def run_there(python: Path, folder: Path, *words: str, **extra: str) -> str:
    done = subprocess.run(
        [str(python), *words], cwd=folder, env=environment(folder / "home", **extra),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", SNIPPETS)
def test_a_documented_use_of_another_library_works(
    name: str, other_python: Path, trained_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "xs").symlink_to(trained_run)
    code = SNIPPETS[name] + AFTER.get(name, "")
    code += "\nprint('the snippet ran to its end')"
    said = run_there(other_python, tmp_path, "-c", code, HF_HUB_OFFLINE="1")
    assert said.endswith("the snippet ran to its end\n")


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_gets_the_samples_and_the_final_loss(
    tracker: str, other_python: Path, tmp_path: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY_CONFIG)
    words = [str(ROOT / "scripts" / "train.py"), "--config", "tiny.yaml", "--report_to", tracker]
    quiet = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "TRACKIO_DIR": str(tmp_path / "db")}
    run_there(other_python, tmp_path, *words, **quiet)
    if tracker == "tensorboard":
        print(run_there(other_python, tmp_path, "-c", READ_TENSORBOARD))
    else:
        where = {"wandb": "wandb/offline-run-*/*.wandb", "trackio": "db/*.db*"}[tracker]
        content = b"".join(path.read_bytes() for path in tmp_path.glob(where))
        assert b"eval/final_loss" in content
        assert b"eval/samples" in content
