"""Evaluates models and writes `eval_results.json`, `evaluation.md` and the model card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState

from tinystories_hf.core.device import device_type, sharing_cores
from tinystories_hf.core.errors import UserError, after_work_began
from tinystories_hf.core.files import check_writable
from tinystories_hf.core.launcher import check_launch
from tinystories_hf.core.processes import (
    is_main_process,
    on_reachable_interface,
    reporting_lost_process,
)
from tinystories_hf.core.progress import without_progress_bars
from tinystories_hf.core.run_record import EVAL_RESULTS, read_record
from tinystories_hf.evaluation.arguments import EvaluationArguments, EvaluationRequest
from tinystories_hf.evaluation.report.card import write_card
from tinystories_hf.evaluation.report.report import REPORT_FILE, write_report
from tinystories_hf.evaluation.results import Results, read_results, results_of, write_results
from tinystories_hf.evaluation.subject import load_model_to_evaluate, run_directory_of
from tinystories_hf.evaluation.suites.measure import SuiteTask, measure_suite, suite_settings

OUTPUT_DIR = "evaluations"


@without_progress_bars()  # hides those of model loading; the suites show their own
@sharing_cores()
@on_reachable_interface()
@reporting_lost_process()
def evaluate(request: EvaluationRequest) -> list[Results]:
    """Run the requested suites and write results and reports.

    With several processes the loss is distributed; the main process runs all other suites.

    Raises:
        UserError: a model, the data or a judge cannot be used, or an output folder contains the
            results of another model or of other settings.
        RunError: the same, after results were written; those are kept.
    """
    arguments = request.evaluation
    elsewhere = "choose another --output_dir"
    together = Path(arguments.output_dir or OUTPUT_DIR)
    if arguments.results:
        check_writable(together, "output_dir", elsewhere)
        found = [read_results(Path(path)) for path in arguments.results]
        print(f"report      {write_report(found, together)}")
        return found
    check_launch()
    state = PartialState(cpu=device_type() == "cpu")
    folders = [results_folder(name, arguments) for name in arguments.model]
    if len(set(folders)) < len(folders):
        raise UserError("model: two models would write to the same folder; rename or omit one")
    for folder in [*folders, *([together] if len(folders) > 1 else [])]:
        check_writable(folder, "output_dir", elsewhere)
    written: list[Path] = []
    with after_work_began(lambda: bool(written)):
        found = [
            evaluate_model(name, folder, request, state, written)
            for name, folder in zip(arguments.model, folders, strict=True)
        ]
    if is_main_process() and len(found) > 1:
        path = write_report(found, together)
        print(f"comparison  {path}", flush=True)
    state.destroy_process_group()
    return found


def results_folder(name: str, arguments: EvaluationArguments) -> Path:
    """Return the folder for the results of a model."""
    run = run_directory_of(name)
    if arguments.output_dir is None and run is not None:
        return run
    last = Path(name).resolve().name if Path(name).is_dir() else name.replace("/", "--")
    if arguments.revision is not None:
        last += f"@{arguments.revision}"
    if arguments.output_dir is not None and len(arguments.model) == 1:
        return Path(arguments.output_dir)
    return Path(arguments.output_dir or OUTPUT_DIR) / last


def evaluate_model(
    name: str, folder: Path, request: EvaluationRequest, state: PartialState, written: list[Path]
) -> Results:
    """Evaluate one model; suites already evaluated with the same settings are skipped.

    `folder` is appended to `written` once results were written to it.
    """
    arguments = request.evaluation
    subject = load_model_to_evaluate(name, arguments.revision, arguments.context_length)
    task = SuiteTask(subject, request.data, arguments, folder)
    results = results_of(folder, subject.facts)
    todo = suites_to_run(task, results)
    state.wait_for_everyone()
    for suite in todo:
        if suite != "loss" and not is_main_process():
            continue
        section = measure_suite(suite, task, quiet=not is_main_process())
        results[suite] = section
        written.append(folder)
        if is_main_process():
            write_results(folder, results)
            print(f"{suite:11} {name}: done in {section['made']['seconds']:.0f} s", flush=True)
    if is_main_process():
        write_report([results], folder)
        if folder == run_directory_of(name):
            write_card(folder, read_record(folder).configuration["hub"]["hub_model_id"])
        print(f"results     {folder / EVAL_RESULTS}, {REPORT_FILE}", flush=True)
    return results


def suites_to_run(task: SuiteTask, results: Results) -> Sequence[str]:
    """Return the suites that still have to run.

    Raises:
        UserError: a suite was already evaluated with other settings.
    """
    todo = []
    for suite in task.arguments.suites:
        if suite not in results:
            todo.append(suite)
            continue
        measured = results[suite]["made"].get("settings")
        asked = suite_settings(suite, task)
        if measured != asked:
            differ = [key for key in asked if (measured or {}).get(key) != asked[key]]
            raise UserError(
                f"{suite}: {task.folder / EVAL_RESULTS} contains results with another"
                f" {', '.join(differ)}; choose another --output_dir"
            )
        failures = sum(
            judge["failures"]["unanswered"] for judge in results[suite].get("judges", [])
        )
        if failures:
            todo.append(suite)
        else:
            print(f"{suite:11} already evaluated, skipped", flush=True)
    return todo
