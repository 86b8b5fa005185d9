"""The model card: `model_card.md` filled with the facts of a run directory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from tinystories_hf.config.arguments import RunArguments
from tinystories_hf.config.pretrained import GPT_NEO
from tinystories_hf.core.files import write_text
from tinystories_hf.core.run_record import EVAL_RESULTS, SAMPLES_FILE, TRAIN_RESULTS, read_record
from tinystories_hf.core.shipped import shipped
from tinystories_hf.evaluation.report import report
from tinystories_hf.evaluation.report.paper import GPT_NEO_VOCABULARY, paper_row
from tinystories_hf.evaluation.results import read_results

CARD_FILE = "README.md"
TEMPLATE = "model_card.md"
TINYSTORIES = "roneneldan/TinyStories"
# The first version of the dataset, which the paper used and whose defects have been counted.
V1_FILES = ("TinyStories-train.txt", "TinyStories-valid.txt")
METRIC_NAMES = {
    "loss": "Loss, nats per token",
    "perplexity": "Perplexity",
    "bits_per_byte": "Bits per byte",
}


def render_card(
    run_dir: Path, model_id: str | None = None, stated: Mapping[str, Any] | None = None
) -> str:
    """Return the model card of a finished run; `model_id` is the name that its examples load.

    `stated` replaces the licence and the languages of the run record.

    Raises:
        UserError: `run.json` is missing or not a run record.
        OSError: another file of the run directory is missing.
        jinja2.UndefinedError: the run directory lacks a fact that the card states.
    """
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string(shipped(TEMPLATE).read_text(encoding="utf-8"))
    return template.render(card_facts(run_dir, model_id or run_dir.as_posix(), stated or {}))


def write_card(run_dir: Path, model_id: str | None = None) -> None:
    """Render the card into the run directory."""
    write_text(run_dir / CARD_FILE, render_card(run_dir, model_id))


def card_facts(run_dir: Path, model_id: str, stated: Mapping[str, Any]) -> dict[str, Any]:
    """Collect the variables of the template from the files of the run."""
    record = asdict(read_record(run_dir))
    configuration, dataset = record["configuration"], record["dataset"]
    results = json.loads((run_dir / TRAIN_RESULTS).read_text(encoding="utf-8"))
    evaluated = read_results(run_dir / EVAL_RESULTS)
    last_samples = (run_dir / SAMPLES_FILE).read_text(encoding="utf-8").split("\n## Step ")[-1]
    source, hub = dataset["train"]["source"], {**configuration.get("hub", {}), **stated}
    is_tinystories, is_toy = source.get("hub") == TINYSTORIES, "toy" in source
    prompts = configuration["training"]["sample_prompts"]
    # The default prompts are English: they fit only an English dataset.
    of_the_text = is_tinystories or is_toy or prompts != default_prompts()
    name = model_id.rpartition("/")[2]
    pretrained = record["pretrained"]
    model_type = pretrained["model_type"] if pretrained else GPT_NEO
    metadata = ModelCardData(
        # Only the author can give a licence, and the language of other text is not known here.
        license=hub.get("license"),
        language=hub.get("language") or (["en"] if is_tinystories or is_toy else None),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["tinystories", model_type] if is_tinystories else [model_type],
        # The Hub links to it, so that only a model on the Hub can be named.
        base_model=pretrained["name"] if pretrained and pretrained["revision"] else None,
        datasets=[source["hub"]] if "hub" in source else None,
        widget=[{"text": prompt} for prompt in prompts] if of_the_text else None,
        model_name=name,
        eval_results=_eval_results(dataset, evaluated["loss"]["packed"]) or None,
    )
    return {
        **configuration,
        "front_matter": metadata.to_yaml(),
        "architecture": "GPT-Neo"
        if model_type == GPT_NEO
        else f"causal language model ({model_type})",
        "pretrained": pretrained,
        "name": name,
        "model_id": model_id,
        "dataset": dataset,
        "hub_dataset": source.get("hub"),
        "is_tinystories": is_tinystories,
        "is_tinystories_v1": is_tinystories and source.get("file", V1_FILES[0]) in V1_FILES,
        "is_toy": is_toy,
        "parameters": record["parameters"],
        "prompts": prompts,
        "results": results,
        "loss": evaluated["loss"],
        "readings": report.readings(evaluated["loss"]),
        "with_interval": report.with_interval,
        "other_suites": report.other_suites(evaluated),
        "paper_loss": None
        if pretrained or not is_tinystories
        else _paper_loss(configuration["model"]),
        "samples": last_samples.partition("\n")[2].strip().split("\n\n"),
        "session": record["sessions"][-1],
        "resumed": len(record["sessions"]) > 1,
        "energy_kwh": _energy_kwh(record["sessions"], results["training_seconds"]),
    }


def _eval_results(dataset: dict[str, Any], loss: dict[str, Any]) -> list[EvalResult]:
    """Return the finite metrics of the packed loss, for the `model-index` of the card."""
    validation = dataset["validation"]["source"]
    on_hub = dataset["train"]["source"].get("hub")
    kind = "toy" if dataset["name"] == "toy" else "text"
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Text Generation",
            dataset_type=on_hub or kind,
            dataset_name=on_hub or dataset["name"],
            dataset_split=validation.get("split", "validation"),
            dataset_revision=validation["commit"] if on_hub else None,
            metric_type=key,
            metric_name=name,
            metric_value=loss[key],
        )
        for key, name in METRIC_NAMES.items()
        if math.isfinite(loss[key])
    ]


def default_prompts() -> list[str]:
    """Return the default sample prompts."""
    (declared,) = (one for one in fields(RunArguments) if one.name == "sample_prompts")
    assert callable(declared.default_factory)
    prompts: list[str] = declared.default_factory()
    return prompts


def _paper_loss(model: dict[str, Any]) -> float | None:
    """Return the paper's loss for the same hidden size, layers and tokenizer, or None."""
    if model["vocab_size"] != GPT_NEO_VOCABULARY:
        return None
    row = paper_row(model["hidden_size"], model["num_layers"])
    return None if row is None else row.loss


def _energy_kwh(sessions: list[dict[str, Any]], seconds: float) -> float | None:
    """Return an upper bound of the GPUs' energy: power limit x time, for a run of one session."""
    watts = sessions[-1]["power_limit_watts"]
    if watts is None or len(sessions) > 1:
        return None
    return float(watts * sessions[-1]["batch"]["num_processes"] * seconds / 3.6e6)
