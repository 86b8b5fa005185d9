"""Publish a run on the Hugging Face Hub: checks before it starts, one commit when it ends.

The files of the run directory are pushed in one commit, so that `main` is always a complete model.
`HF_ENDPOINT` and `HF_TOKEN` work as everywhere in Hugging Face.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants

from tinystories_hf.config.arguments import HubArguments
from tinystories_hf.core import run_record
from tinystories_hf.core.console import command_line
from tinystories_hf.core.errors import UserError
from tinystories_hf.core.files import check_readable, reporting_full_disk
from tinystories_hf.evaluation.report.card import CARD_FILE, render_card, write_card
from tinystories_hf.hub.client import FOR_A_CHECKPOINT, FOR_THE_MODEL, Patience, hub_error
from tinystories_hf.hub.repository import (
    HUB_FILES,
    MAIN_BRANCH,
    Repository,
    reporting_failed_push,
)
from tinystories_hf.web.onnx_export import EXPORT_RECORD, FP32, ONNX_FOLDER, Q8, check_onnx_export

# The files of a model that are published; everything else (optimizer state, pickles) stays local.
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
# Only for the final model: checkpoints that become branches are not exported.
ONNX_FILES = (f"{ONNX_FOLDER}/*.onnx", f"{ONNX_FOLDER}/{EXPORT_RECORD}")
REQUIRED = ("config.json", "model.safetensors", "tokenizer.json", CARD_FILE, run_record.RUN_RECORD)
# Models of checkpoints that are still to be published as branches; removed once published.
WAITING = "unpublished"
# The files of scripts/export_onnx.py, by their names in a repository.
EXPORTED = {f"{ONNX_FOLDER}/{name}" for name in (FP32, Q8, EXPORT_RECORD)}


@dataclass(frozen=True)
class RunRepository(Repository):
    """A repository of a run; `run_id` is None before the run has one.

    With `with_steps` the branches `step-N` must belong to the run too.
    """

    run_id: str | None = None
    with_steps: bool = False

    def check_content(self, api: HfApi) -> None:
        """Raise a `UserError` if publishing would replace files of another run."""
        if self.overwrite:
            return
        branches = {branch.name for branch in api.list_repo_refs(self.repo_id).branches}
        wanted = {self.revision} & branches
        if self.with_steps:
            wanted |= {name for name in branches if name.startswith("step-")}
        for revision in sorted(wanted):
            names = set(api.list_repo_files(self.repo_id, revision=revision)) - HUB_FILES
            if names and _run_id_of(api, self.repo_id, revision, names) != self.run_id:
                raise replace(self, revision=revision).other_content_error(names)

    def to_delete(self, others: set[str]) -> set[str]:
        """Return all other files; on `main`, unless `overwrite` is set, only an outdated export."""
        if self.revision != MAIN_BRANCH or self.overwrite:
            return others
        return others & EXPORTED if f"{ONNX_FOLDER}/{EXPORT_RECORD}" in others else set()


def check_repository(
    hub: HubArguments, run_dir: Path, run_id: str | None, revision: str = MAIN_BRANCH
) -> RunRepository:
    """Check before any work that a run may be published, and create its repository.

    `run_id` is None for a new run. A repository with files of another run is refused.

    Raises:
        UserError: as `Repository.create`.
    """
    name = hub.hub_model_id or run_dir.name
    return RunRepository(
        name,
        revision,
        hub.hub_private_repo,
        hub.hub_overwrite,
        run_id=run_id,
        with_steps=hub.hub_strategy != "end",
    ).create()


def publish(run_dir: Path, repository: RunRepository) -> str:
    """Upload a finished run as one commit, with a card that names its repository; return the URL.

    Unchanged files are not uploaded again.

    Raises:
        UserError: the run is not finished.
        RunError: the disk is full, the ONNX files belong to other weights, a file contains the Hub
            token, the repository has other content, or the upload failed. The run directory is
            complete nevertheless.
    """
    record = _finished_record(run_dir)
    repository = replace(repository, run_id=record.run_id, with_steps=False)
    with reporting_full_disk(run_dir, "writing the card"):
        write_card(run_dir, repository.repo_id)
    message = f"Publish {run_dir.name} of tinystories_hf"
    what, command = f"{run_dir} is complete but", _retry_command(run_dir, repository)
    with reporting_failed_push(what, repository, command):
        _check_onnx(run_dir)
        repository.commit(staged_files(run_dir), message, FOR_THE_MODEL)
        _publish_waiting(run_dir, repository, FOR_THE_MODEL)
    return f"{constants.ENDPOINT}/{repository.repo_id}"


def publish_checkpoint(
    checkpoint: Path, run_dir: Path, repository: RunRepository, step: int
) -> None:
    """Publish a saved checkpoint as the branch `step-N`; if that fails, keep its model for later.

    A failure is printed and does not stop the training: publishing is retried at the next
    checkpoint and at the end.

    Raises:
        RunError: the disk is full.
    """
    files = [*_matching(checkpoint, _MODEL_FILES).values(), run_dir / run_record.RUN_RECORD]
    with reporting_full_disk(run_dir, "keeping a checkpoint to publish"):
        _keep(files, run_dir / WAITING / f"step-{step}")
    run_id = run_record.read_record(run_dir).run_id
    repository = replace(repository, run_id=run_id, with_steps=False)
    try:
        _publish_waiting(run_dir, repository, FOR_A_CHECKPOINT)
    except Exception as error:
        reason = error if isinstance(error, UserError) else hub_error(error, repository.repo_id)
        print(
            f"step-{step} is not yet published ({reason}); it will be retried later",
            file=sys.stderr,
        )


def _keep(files: list[Path], folder: Path) -> None:
    """Hard-link files into a folder: it takes no space, and outlives the checkpoint."""
    aside = folder.with_name(f".{folder.name}.unfinished")
    for stale in (aside, folder):
        shutil.rmtree(stale, ignore_errors=True)
    aside.mkdir(parents=True)
    for path in files:
        try:
            (aside / path.name).hardlink_to(path)
        except OSError:  # a file system without hard links
            shutil.copy2(path, aside)
    aside.rename(folder)


def describe_push(run_dir: Path, repo_id: str, stated: Mapping[str, Any] | None = None) -> str:
    """Return the files that a push would upload, with sizes in bytes, and the card.

    Raises:
        UserError: as `check_finished_run`.
    """
    check_finished_run(run_dir)
    card = render_card(run_dir, repo_id, stated)
    sizes = {name: path.stat().st_size for name, path in staged_files(run_dir).items()}
    sizes[CARD_FILE] = len(card.encode())
    lines = [f"{size:>12,}  {name}" for name, size in sorted(sizes.items())]
    total = f"{sum(sizes.values()):>12,}  bytes for {repo_id}"
    return "\n".join([*lines, total, "", card])


def staged_files(run_dir: Path) -> dict[str, Path]:
    """Return the published files of a run directory, by their names in the repository."""
    return _matching(run_dir, (*_MODEL_FILES, *RUN_FILES, *ONNX_FILES))


def _retry_command(run_dir: Path, repository: RunRepository) -> str:
    """Return the command line that retries publishing a run."""
    words = ["--model", str(run_dir), "--repo", repository.repo_id]
    if repository.revision != MAIN_BRANCH:
        words += ["--revision", repository.revision]
    if repository.private:
        words.append("--private")
    if repository.overwrite:
        words.append("--overwrite")
    return command_line("push", *words)


def _matching(folder: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    return {path.relative_to(folder).as_posix(): path for path in found if path.is_file()}


def check_finished_run(run_dir: Path) -> run_record.RunRecord:
    """Return the run record of a run that can be published.

    Raises:
        UserError: it is not finished, lacks a file, or its ONNX files belong to other weights.
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
        what = f"lacks {', '.join(missing)}" if missing else "is not finished"
        raise UserError(f"{run_dir} {what}; finish it with --resume_from_checkpoint first")
    return record


def _run_id_of(api: HfApi, repo_id: str, revision: str, names: set[str]) -> str | None:
    """Return the run_id in the `run.json` of a revision, or an empty string."""
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


def _publish_waiting(run_dir: Path, repository: RunRepository, patience: Patience) -> None:
    """Publish the checkpoints that are still to be published, oldest first."""
    folders = (run_dir / WAITING).glob("step-*")
    for folder in sorted(folders, key=lambda path: int(path.name.partition("-")[2])):
        branch = replace(repository, revision=folder.name)
        files = _matching(folder, (*_MODEL_FILES, run_record.RUN_RECORD))
        branch.commit(files, f"Publish {folder.name} of {run_dir.name}", patience)
        shutil.rmtree(folder)
    if (run_dir / WAITING).is_dir() and not any((run_dir / WAITING).iterdir()):
        (run_dir / WAITING).rmdir()
