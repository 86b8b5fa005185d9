"""`eval_results.json`: every measured number of a model; all else is made from it."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinystories_hf.core.errors import UserError
from tinystories_hf.core.files import write_json
from tinystories_hf.core.run_record import EVAL_RESULTS
from tinystories_hf.evaluation.arguments import SUITES
from tinystories_hf.evaluation.subject import ModelFacts

VERSION = 1
SCHEMA = Path(__file__).with_name("eval_results.schema.json")

Results = dict[str, Any]


@functools.cache
def schema() -> Results:
    """Return the JSON schema of `eval_results.json`, in which each field is described."""
    content: Results = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return content


def check(results: Results) -> None:
    """Hold results against the schema.

    Raises:
        UserError: they do not fit; the message names the place.
    """
    import jsonschema

    try:
        jsonschema.validate(results, schema())
    except jsonschema.ValidationError as error:
        raise UserError(
            f"eval_results: {error.json_path} does not fit the schema: {error.message[:200]}"
        ) from None


def read_results(path: Path) -> Results:
    """Read a results file.

    Raises:
        UserError: it cannot be read, or does not fit the schema.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"eval_results: cannot read {path}: {error}") from None
    check(content)
    results: Results = content
    return results


def new_results(facts: ModelFacts) -> Results:
    """Return the results of a model of which nothing has been measured."""
    return {"schema_version": VERSION, "model": asdict(facts)}


def results_of(folder: Path, facts: ModelFacts) -> Results:
    """Return what has been measured of a model in a folder, nothing where nothing was.

    Raises:
        UserError: the folder holds the results of other weights.
    """
    path = folder / EVAL_RESULTS
    if not path.exists():
        return new_results(facts)
    results = read_results(path)
    if results["model"]["weights_sha256"] != facts.weights_sha256:
        raise UserError(f"{path} is of other weights; move it away, or choose another --output_dir")
    return results


def write_results(folder: Path, results: Results) -> None:
    """Write results that fit the schema, suites in their order."""
    ordered = {key: results[key] for key in ("schema_version", "model", *SUITES) if key in results}
    check(json.loads(json.dumps(ordered)))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / EVAL_RESULTS, ordered)
