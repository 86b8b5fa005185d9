from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from huggingface_hub import ModelCard

from tests.conftest import environment
from tinystories_hf.card import render_card, template_path


def test_the_card_states_the_facts_of_the_run(trained_run: Path) -> None:
    card = ModelCard.load(trained_run / "README.md")
    assert card.data.license == "mit"
    assert card.data.pipeline_tag == "text-generation"
    assert "gpt_neo" in card.data.tags
    evaluation = json.loads((trained_run / "eval_results.json").read_text())["validation"]
    assert f"{evaluation['loss']:.4f}" in card.text
    assert "37,568 parameters" in card.text
    assert "8 sequences = 512 tokens per step" in card.text
    assert "**Once upon a time**" in card.text


def test_nothing_in_the_card_is_left_open(trained_run: Path) -> None:
    text = (trained_run / "README.md").read_text()
    assert not re.search(r"\{\{|\{%|\bNone\b|\bnan\b|undefined", text)
    assert text == render_card(trained_run, "run")


def test_a_card_of_a_hub_dataset_names_it_and_its_revision(
    trained_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("run.json", "train_results.json", "eval_results.json", "samples.md"):
        (run / name).write_bytes((trained_run / name).read_bytes())
    record = json.loads((run / "run.json").read_text())
    for split in ("train", "validation"):
        source = {"hub": "roneneldan/TinyStories", "commit": "f54c", "split": split}
        record["dataset"][split]["source"] = source
    (run / "run.json").write_text(json.dumps(record))
    (run / "README.md").write_text(render_card(run))
    card = ModelCard.load(run / "README.md")
    assert card.data.datasets == ["roneneldan/TinyStories"]
    assert "at revision `f54c`" in card.text


def test_the_template_is_at_the_top_of_the_checkout() -> None:
    assert template_path().name == "model_card.md"
    assert template_path().exists()


def test_the_snippet_of_the_card_runs(trained_run: Path, tmp_path: Path) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", (trained_run / "README.md").read_text(), re.S)
    done = subprocess.run(
        [sys.executable, "-c", snippet],
        cwd=trained_run.parent,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Once upon a time")
