"""The model card: `model_card.md` filled with the facts of a run directory, and nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinystories_hf.callbacks import SAMPLES_FILE
from tinystories_hf.provenance import read_record

CARD_FILE = "README.md"
TRAIN_RESULTS = "train_results.json"
EVAL_RESULTS = "eval_results.json"
PACKAGE = Path(__file__).resolve().parent


def template_path() -> Path:
    """Return the card's template: at the top of a checkout, inside an installed package."""
    checkout = PACKAGE.parent / "model_card.md"
    return checkout if checkout.exists() else PACKAGE / "model_card.md"


def render_card(run_dir: Path, model_id: str | None = None) -> str:
    """Return the model card of a finished run.

    Raises:
        jinja2.UndefinedError: the run directory lacks a fact that the card states.
    """
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string(template_path().read_text(encoding="utf-8"))
    return template.render(card_facts(run_dir, model_id or run_dir.as_posix()))


def card_facts(run_dir: Path, model_id: str) -> dict[str, Any]:
    """Collect what the card states from the files of the run."""
    record = asdict(read_record(run_dir))
    configuration = record["configuration"]
    dataset = record["dataset"]
    results = json.loads((run_dir / TRAIN_RESULTS).read_text(encoding="utf-8"))
    evaluation = json.loads((run_dir / EVAL_RESULTS).read_text(encoding="utf-8"))
    last_samples = (run_dir / SAMPLES_FILE).read_text(encoding="utf-8").split("\n## Step ")[-1]
    return {
        **configuration,
        "name": run_dir.name,
        "model_id": model_id,
        "dataset": dataset,
        "hub_dataset": dataset["train"]["source"].get("hub"),
        "parameters": record["parameters"],
        "prompts": configuration["training"]["sample_prompts"],
        "results": results,
        "evaluation": evaluation["validation"],
        "samples": last_samples.partition("\n")[2].strip().split("\n\n"),
        "session": record["sessions"][-1],
    }


def write_card(run_dir: Path) -> None:
    """Render the card into the run directory."""
    (run_dir / CARD_FILE).write_text(render_card(run_dir), encoding="utf-8")
