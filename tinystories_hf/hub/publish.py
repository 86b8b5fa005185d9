"""Publishing a run on the Hugging Face Hub: the checks before it starts, one commit when it ends.

What is published is the run directory's own files, each push one commit: `main` is never half a
model. `HF_ENDPOINT` and `HF_TOKEN` work as everywhere in Hugging Face.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants

from tinystories_hf.config.arguments import HubArguments
from tinystories_hf.core import run_record
from tinystories_hf.core.console import script_command
from tinystories_hf.core.errors import RunError, UserError
from tinystories_hf.core.files import check_readable, reporting_full_disk
from tinystories_hf.evaluation.report.card import CARD_FILE, render_card, write_card
from tinystories_hf.hub.client import FOR_A_CHECKPOINT, FOR_THE_MODEL, Patience, hub_error
from tinystories_hf.hub.repository import (
    HUB_FILES,
    MAIN_BRANCH,
    ContentCheck,
    Repository,
    commit_files,
    open_repository,
    other_content,
)
from tinystories_hf.web.onnx_export import EXPORT_RECORD, FP32, ONNX_FOLDER, Q8, check_onnx_export

# All that a model folder publishes; what is not named (optimizer state, pickles, caches) stays.
_MODEL_FILES = (
    *("config.json", "generation_config.json"),
    *("model*.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json"),
)
RUN_FILES = (
    *(CARD_FILE, run_record.RUN_RECORD, run_record.SAMPLES_FILE),
    *("*_results.json", "evaluation.md", "*.png"),
)
# Of a run alone: the checkpoints that become branches are not exported.
ONNX_FILES = (f"{ONNX_FOLDER}/*.onnx", f"{ONNX_FOLDER}/{EXPORT_RECORD}")
REQUIRED = ("config.json", "model.safetensors", "tokenizer.json", CARD_FILE, run_record.RUN_RECORD)
# Models of checkpoints that are to become branches; each goes when it is published.
WAITING = "unpublished"
# What scripts/export_onnx.py makes, by its names in a repository.
EXPORTED = {f"{ONNX_FOLDER}/{name}" for name in (FP32, Q8, EXPORT_RECORD)}


def check_repository(
    hub: HubArguments, run_dir: Path, run_id: str | None, revision: str = MAIN_BRANCH
) -> Repository:
    """Find out before any work whether a run may be published, and create its repository.

    `run_id` is that of the run so far, None for one that begins: a repository that holds anything
    of another run is refused.

    Raises:
        UserError: as `open_repository`.
    """
    name = hub.hub_model_id or run_dir.name
    wanted = Repository(name, revision, hub.hub_private_repo, hub.hub_overwrite)
    return open_repository(wanted, _of_the_run(run_id, hub.hub_strategy != "end"))


def publish(run_dir: Path, destination: Repository) -> str:
    """Upload a finished run as one commit, with a card in its repository's name; return the URL.

    Files whose bytes are there already are not uploaded again.

    Raises:
        UserError: the run is not finished.
        RunError: the disk is full, the ONNX files are of other weights, a file holds the Hub token,
            the repository holds something else, or the upload failed for good. The run directory is
            complete all the same.
    """
    record = _finished_record(run_dir)
    with reporting_full_disk(run_dir, "writing the card"):
        write_card(run_dir, destination.repo_id)
    message = f"Publish {run_dir.name} of tinystories_hf"
    try:
        _check_onnx(run_dir)
        _commit(staged_files(run_dir), destination, record.run_id, message, FOR_THE_MODEL)
        _publish_waiting(run_dir, destination, record.run_id, FOR_THE_MODEL)
    except Exception as error:
        reason = error if isinstance(error, UserError) else hub_error(error, destination.repo_id)
        raise RunError(
            f"{run_dir} is whole but not published to {destination}: {reason}; to publish it:"
            f" {_retry_command(run_dir, destination)}"
        ) from error
    return f"{constants.ENDPOINT}/{destination.repo_id}"


def publish_checkpoint(checkpoint: Path, run_dir: Path, destination: Repository, step: int) -> None:
    """Make a saved checkpoint the branch `step-N`; where that fails, keep its model for later.

    A failure here is told and does not stop the training: what is kept is tried again at the next
    checkpoint and at the end.

    Raises:
        RunError: the disk is full, and of a kind that needs copies.
    """
    files = [*_matching(checkpoint, _MODEL_FILES).values(), run_dir / run_record.RUN_RECORD]
    with reporting_full_disk(run_dir, "keeping a checkpoint to publish"):
        _keep(files, run_dir / WAITING / f"step-{step}")
    run_id = run_record.read_record(run_dir).run_id
    try:
        _publish_waiting(run_dir, destination, run_id, FOR_A_CHECKPOINT)
    except Exception as error:
        reason = error if isinstance(error, UserError) else hub_error(error, destination.repo_id)
        print(f"not yet published: step-{step} ({reason}); tried again later", file=sys.stderr)


def _keep(files: list[Path], folder: Path) -> None:
    """Make a folder of further names for files: it takes no space, and outlives the checkpoint."""
    aside = folder.with_name(f".{folder.name}.unfinished")
    for stale in (aside, folder):
        shutil.rmtree(stale, ignore_errors=True)
    aside.mkdir(parents=True)
    for path in files:
        try:
            (aside / path.name).hardlink_to(path)
        except OSError:  # a file system without such names
            shutil.copy2(path, aside)
    aside.rename(folder)


def describe_push(
    run_dir: Path, destination_name: str, stated: Mapping[str, Any] | None = None
) -> str:
    """Return what a push would upload, with sizes, and the card it would carry; see `render_card`.

    Raises:
        UserError: as `check_finished_run`.
    """
    check_finished_run(run_dir)
    card = render_card(run_dir, destination_name, stated)
    sizes = {name: path.stat().st_size for name, path in staged_files(run_dir).items()}
    sizes[CARD_FILE] = len(card.encode())
    lines = [f"{size:>12,}  {name}" for name, size in sorted(sizes.items())]
    total = f"{sum(sizes.values()):>12,}  bytes for {destination_name}"
    return "\n".join([*lines, total, "", card])


def staged_files(run_dir: Path) -> dict[str, Path]:
    """Return what of a run directory is published, by its name in the repository."""
    return _matching(run_dir, (*_MODEL_FILES, *RUN_FILES, *ONNX_FILES))


def _retry_command(run_dir: Path, destination: Repository) -> str:
    """Return the command line that publishes a run again."""
    words = ["--model", str(run_dir), "--repo", destination.repo_id]
    if destination.revision != MAIN_BRANCH:
        words += ["--revision", destination.revision]
    if destination.private:
        words.append("--private")
    if destination.overwrite:
        words.append("--overwrite")
    return script_command("push_to_hub.py", *words)


def _matching(folder: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    return {path.relative_to(folder).as_posix(): path for path in found if path.is_file()}


def check_finished_run(run_dir: Path) -> run_record.RunRecord:
    """Return the record of a run that may be published.

    Raises:
        UserError: it is not finished, lacks a file, or its ONNX files are of other weights.
    """
    record = _finished_record(run_dir)
    _check_onnx(run_dir)
    return record


def _check_onnx(run_dir: Path) -> None:
    if _matching(run_dir, ONNX_FILES):
        check_onnx_export(run_dir)


def _finished_record(run_dir: Path) -> run_record.RunRecord:
    check_readable(run_dir, "model")
    record = run_record.read_record(run_dir)
    missing = [name for name in REQUIRED if not (run_dir / name).exists()]
    if record.sessions[-1].status != "finished" or missing:
        what = f"lacks {', '.join(missing)}" if missing else "has not come to its end"
        raise UserError(f"{run_dir} {what}; finish it with --resume_from_checkpoint first")
    return record


def _of_the_run(run_id: str | None, with_steps: bool = False) -> ContentCheck:
    return lambda api, destination: _check_content(api, destination, run_id, with_steps)


def _check_content(
    api: HfApi, destination: Repository, run_id: str | None, with_steps: bool
) -> None:
    """Raise a `UserError` where publishing would touch what is not of this run."""
    if destination.overwrite:
        return
    branches = {branch.name for branch in api.list_repo_refs(destination.repo_id).branches}
    wanted = {destination.revision} & branches
    if with_steps:
        wanted |= {name for name in branches if name.startswith("step-")}
    for revision in sorted(wanted):
        names = set(api.list_repo_files(destination.repo_id, revision=revision)) - HUB_FILES
        if names and _run_id_of(api, destination.repo_id, revision, names) != run_id:
            raise other_content(replace(destination, revision=revision), names)


def _run_id_of(api: HfApi, repo_id: str, revision: str, names: set[str]) -> str | None:
    """Return the run_id in the `run.json` of a revision; an empty text where there is none."""
    if run_record.RUN_RECORD not in names:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        path = api.hf_hub_download(
            repo_id, run_record.RUN_RECORD, revision=revision, local_dir=folder
        )
        try:
            return str(json.loads(Path(path).read_text(encoding="utf-8"))["run_id"])
        except (ValueError, KeyError, TypeError):
            return ""


def _publish_waiting(
    run_dir: Path, destination: Repository, run_id: str, patience: Patience
) -> None:
    """Publish the checkpoints that wait, oldest first; each goes when it is up."""
    folders = (run_dir / WAITING).glob("step-*")
    for folder in sorted(folders, key=lambda path: int(path.name.partition("-")[2])):
        branch = replace(destination, revision=folder.name)
        files = _matching(folder, (*_MODEL_FILES, run_record.RUN_RECORD))
        _commit(files, branch, run_id, f"Publish {folder.name} of {run_dir.name}", patience)
        shutil.rmtree(folder)
    if (run_dir / WAITING).is_dir() and not any((run_dir / WAITING).iterdir()):
        (run_dir / WAITING).rmdir()


def _commit(
    files: dict[str, Path],
    destination: Repository,
    run_id: str,
    message: str,
    patience: Patience,
) -> None:
    """Publish files of a run: on `main` beside others unless `overwrite` is set, else alone."""
    check = _of_the_run(run_id)
    if destination.revision == MAIN_BRANCH and not destination.overwrite:
        commit_files(files, destination, check, message, patience, _export_of_other_weights)
    else:
        commit_files(files, destination, check, message, patience)


def _export_of_other_weights(others: set[str]) -> set[str]:
    """Return the export that a repository holds and the run does not."""
    return others & EXPORTED if f"{ONNX_FOLDER}/{EXPORT_RECORD}" in others else set()
