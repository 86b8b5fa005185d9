"""Reads and writes `eval_results.json`, from which reports, plots and model cards are generated."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinystories_hf.core.errors import UserError
from tinystories_hf.core.files import write_json
from tinystories_hf.core.run_record import EVAL_RESULTS
from tinystories_hf.evaluation.arguments import SUITES
from tinystories_hf.evaluation.subject import ModelFacts

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

VERSION = 1
SCHEMA = Path(__file__).with_name("eval_results.schema.json")

Results = dict[str, Any]


@functools.cache
def schema() -> Results:
    """Return the JSON schema of `eval_results.json`, which describes each field."""
    content: Results = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return content


def validate_results(results: Results) -> None:
    """Validate results against the schema.

    Raises:
        UserError: they do not match the schema; the message names the field.
    """
    from jsonschema.exceptions import best_match

    error = best_match(_validator().iter_errors(results))
    if error is not None:
        raise UserError(
            f"eval_results: {error.json_path} does not match the schema: {error.message[:200]}"
        )


@functools.cache
def _validator() -> Draft202012Validator:
    # Not jsonschema.validate, which checks the schema itself again each time: 0.1 s.
    from jsonschema import Draft202012Validator

    return Draft202012Validator(schema())


def read_results(path: Path) -> Results:
    """Read and validate a results file.

    Raises:
        UserError: the file cannot be read or does not match the schema.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"eval_results: cannot read {path}: {error}") from None
    validate_results(content)
    results: Results = content
    return results


def new_results(facts: ModelFacts) -> Results:
    """Return results without any suite."""
    return {"schema_version": VERSION, "model": asdict(facts)}


def results_of(folder: Path, facts: ModelFacts) -> Results:
    """Return the results of a model in a folder, or new ones if there are none.

    Raises:
        UserError: the folder contains the results of other weights.
    """
    path = folder / EVAL_RESULTS
    if not path.exists():
        return new_results(facts)
    results = read_results(path)
    if results["model"]["weights_sha256"] != facts.weights_sha256:
        raise UserError(
            f"{path} contains the results of other weights; delete or move it, or choose another"
            " --output_dir"
        )
    return results


def write_results(folder: Path, results: Results) -> None:
    """Validate results and write them, with the suites in their usual order."""
    ordered = {key: results[key] for key in ("schema_version", "model", *SUITES) if key in results}
    validate_results(json.loads(json.dumps(ordered)))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / EVAL_RESULTS, ordered)
