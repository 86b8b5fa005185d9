"""Other people's files and folders: what cannot be read or written is said before any work."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.support.loopback_hub import LoopbackHub
from tests.support.loopback_state import StoredRepository
from tests.support.publishing import REPO
from tinystories_hf.benchmark.run import parse_benchmark_arguments, run_benchmark
from tinystories_hf.config.command_line import Arguments
from tinystories_hf.core.download import download_files
from tinystories_hf.core.errors import UserError
from tinystories_hf.data.prepare import prepare
from tinystories_hf.evaluation.arguments import parse_evaluation_arguments
from tinystories_hf.evaluation.evaluate import evaluate
from tinystories_hf.generation.generate import load_for_generation
from tinystories_hf.hub import publish
from tinystories_hf.hub.arguments import parse_push_arguments
from tinystories_hf.hub.push import push
from tinystories_hf.training.resume import where_to_start
from tinystories_hf.training.run_directory import lock_run_directory
from tinystories_hf.web.onnx_export import export_onnx
from tinystories_hf.web.page import build_page

CAPABILITIES_VERSION = 0x20080522
OVERRIDE_PERMISSIONS = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, for root alone


@pytest.fixture(autouse=True)
def as_a_user() -> Iterator[None]:
    """Have permissions count for root, too: on Linux that is a property of the thread."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root on a system without capabilities is refused nothing")
    libc = ctypes.CDLL(None)
    header, sets = (ctypes.c_uint32 * 2)(CAPABILITIES_VERSION, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    held = sets[0]
    sets[0] = held & ~OVERRIDE_PERMISSIONS
    assert libc.capset(header, sets) == 0
    yield
    sets[0] = held
    assert libc.capset(header, sets) == 0


def run_evaluate_script(*flags: str) -> None:
    evaluate(parse_evaluation_arguments(["--dataset", "toy", *flags]))


def push_run(run: Path) -> None:
    push(parse_push_arguments(["--model", str(run), "--repo", REPO]))


def claim(run: Path) -> None:
    with lock_run_directory(run):
        pass


def benchmark(config: str, target: Path) -> None:
    run_benchmark(parse_benchmark_arguments(["--config", config, "--json", str(target)]))


TARGETS: dict[str, Callable[[Path, Path, str], object]] = {
    "output_dir: a new run": lambda closed, _run, _config: claim(closed / "runs" / "xs"),
    "output_dir: a run that is there": lambda closed, _run, _config: claim(closed / "run"),
    "output_dir: an evaluated run": lambda closed, _run, _config: run_evaluate_script(
        "--model", str(closed / "run"), "--suite", "loss"
    ),
    "output_dir: an evaluation": lambda closed, run, _config: run_evaluate_script(
        "--model", str(run), "--output_dir", str(closed / "a")
    ),
    "output_dir: a report": lambda closed, run, _config: run_evaluate_script(
        "--results", str(run / "eval_results.json"), "--output_dir", str(closed / "a")
    ),
    "model: an export": lambda closed, _run, _config: export_onnx(closed / "run"),
    "model: a push": lambda closed, _run, _config: push_run(closed / "run"),
    "out: a page": lambda closed, run, _config: build_page({"xs": run}, closed / "site"),
    "json: a benchmark": lambda closed, _run, config: benchmark(config, closed / "a.json"),
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_folder_that_cannot_be_written_is_named_before_any_work(
    target: str, trained_run: Path, tiny_config: Path, tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    shutil.copytree(trained_run, closed / "run", ignore=shutil.ignore_patterns("checkpoint-*"))
    for folder in (closed / "run", closed):
        folder.chmod(0o555)
    before = sorted(tmp_path.rglob("*"))
    try:
        setting = target.partition(":")[0]
        with pytest.raises(
            UserError, match=rf"^{setting}: cannot write in .*: Permission denied; "
        ):
            TARGETS[target](closed, trained_run, str(tiny_config))
        assert sorted(tmp_path.rglob("*")) == before
    finally:
        for folder in (closed, closed / "run"):
            folder.chmod(0o755)


def test_prepared_rows_that_cannot_be_written_are_refused_and_those_there_are_read(
    tiny_arguments: Callable[..., Arguments], tmp_path: Path
) -> None:
    arguments = tiny_arguments()
    path = prepare(arguments.data, arguments.model.vocab_size, quiet=True).path
    path.parent.chmod(0o555)
    try:
        assert prepare(arguments.data, arguments.model.vocab_size, quiet=True).path == path
        other = tiny_arguments("--toy_stories", "200")
        with pytest.raises(
            UserError, match=r"^prepared_dir: cannot write in .*: Permission denied"
        ):
            prepare(other.data, other.model.vocab_size, quiet=True)
    finally:
        path.parent.chmod(0o755)


@pytest.mark.parametrize("refused", ["Permission denied", "No locks available"])
def test_a_cache_of_the_hub_that_cannot_be_used_is_named(
    refused: str,
    mine: LoopbackHub,
    client: list[float],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    mine.repositories["datasets", "some/stories"] = StoredRepository({"a.txt": b"Once."})
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    if refused == "No locks available":
        monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", without_locks)
    else:
        cache.chmod(0o555)
    try:
        with pytest.raises(UserError, match=rf"^HF_HOME: cannot store .* in {cache}: {refused}; "):
            download_files("some/stories", "dataset", None, ["a.txt"])
    finally:
        cache.chmod(0o755)


def without_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


READERS: dict[str, Callable[[Path], object]] = {
    "generate": lambda run: load_for_generation(str(run)),
    "evaluate": lambda run: run_evaluate_script("--model", str(run), "--suite", "loss"),
    "export": export_onnx,
    "page": lambda run: build_page({"xs": run}, run.parent / "site"),
    "push": lambda run: publish.describe_push(run, REPO),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "."])
def test_a_file_that_cannot_be_read_is_named_with_the_reason(
    reader: str, name: str, run_dir: Path
) -> None:
    (run_dir / name).chmod(0)
    try:
        with pytest.raises(UserError, match="Permission denied") as refused:
            READERS[reader](run_dir)
        assert (run_dir / name).name in str(refused.value)
        assert "convert" not in str(refused.value)
    finally:
        (run_dir / name).chmod(0o755)


def test_umask_holds_for_every_file_of_a_run(
    exported_run: Path, trained_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "new").touch()
    expected = stat.S_IMODE((tmp_path / "new").stat().st_mode)
    prepared = next(trained_run.parent.rglob("manifest.json")).parent
    for folder in (trained_run, exported_run / "onnx", prepared):
        files = [path for path in folder.rglob("*") if path.is_file()]
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in files}
        assert modes == dict.fromkeys(modes, expected)


BELOW: dict[str, Callable[[Path, Callable[..., Arguments]], object]] = {
    "model: generation": lambda run, _parse: load_for_generation(str(run)),
    "output_dir: a training": lambda run, parse: where_to_start(
        parse("--output_dir", str(run)).training
    ),
    "output_dir: a run": lambda run, _parse: lock_run_directory(run).__enter__(),
    "resume_from_checkpoint: a training": lambda run, parse: where_to_start(
        parse("--resume_from_checkpoint", str(run / "checkpoint-20")).training
    ),
    "out: a page": lambda run, _parse: build_page({"xs": run}, run / "site"),
}


@pytest.mark.parametrize("place", BELOW)
def test_what_lies_below_a_folder_that_cannot_be_entered_is_called_that(
    place: str, tiny_arguments: Callable[..., Arguments], tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    (closed / "run").mkdir(parents=True)
    closed.chmod(0)
    setting = place.partition(":")[0]
    try:
        with pytest.raises(UserError, match=rf"^{setting}: .*closed/run.* Permission denied"):
            BELOW[place](closed / "run", tiny_arguments)
    finally:
        closed.chmod(0o755)
