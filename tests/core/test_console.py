"""What a script prints never ends it, wherever the output goes, and its commands are true."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.support.forked import run_forked, script
from tinystories_hf.benchmark.run import parse_benchmark_arguments
from tinystories_hf.config.command_line import parse_arguments
from tinystories_hf.core.console import command_line
from tinystories_hf.core.errors import UserError
from tinystories_hf.evaluation.arguments import parse_evaluation_arguments
from tinystories_hf.generation.arguments import parse_generation_arguments
from tinystories_hf.hub.arguments import parse_push_arguments
from tinystories_hf.web.arguments import parse_export_arguments, parse_page_arguments

SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
PRINTS = """
import sys
from tinystories_hf.core.script import report_user_errors

with report_user_errors():
    print(sys.argv[1])
    for stream in (sys.stdout, sys.stderr):
        for _ in range(10):
            print("once upon a time" * 1000, file=stream, flush=True)
    with open("finished.txt", "w", encoding="utf-8") as finished:
        finished.write("finished")
"""


def run_printing(
    folder: Path, streams: str = "", text: str = "", **extra: str
) -> tuple[int, bytes]:
    """Print to streams as a shell redirects them; return the exit code and what was printed."""
    command = ["sh", "-c", f'"$@" {streams}', "sh", sys.executable, "-c", PRINTS, text]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONUTF8"}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**clean, "PYTHONPATH": str(ROOT), **extra},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_runs_inside_what_makes_its_output_safe(path: Path) -> None:
    end = path.read_text(encoding="utf-8").partition("__main__")[2]
    assert re.search(r"\n    with report_user_errors\(\):\n        [^\n]+\n$", end)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_characters_that_the_output_lacks_are_replaced(tmp_path: Path, encoding: str) -> None:
    code, said = run_printing(tmp_path, "2>/dev/null", "Zoë and 龍", PYTHONIOENCODING=encoding)
    assert code == 0
    assert said.splitlines()[0] == "Zoë and 龍".encode(encoding, "replace")


@pytest.mark.parametrize("streams", ["| true", "2>&1 | head -c 1", ">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_output_does_not_end_a_script(
    tmp_path: Path, streams: str, unbuffered: str
) -> None:
    _, said = run_printing(tmp_path, streams, PYTHONUNBUFFERED=unbuffered)
    assert b"Error" not in said
    assert (tmp_path / "finished.txt").read_text(encoding="utf-8") == "finished"


def test_a_closed_terminal_does_not_end_a_script(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    terminal, end = pty.openpty()
    printing = subprocess.Popen(
        [sys.executable, "-c", PRINTS, ""],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=end,
        stdout=end,
        stderr=end,
    )
    os.close(end)
    os.close(terminal)
    assert printing.wait(timeout=20) == 0
    assert (tmp_path / "finished.txt").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_below_the_output_is_said_once(tmp_path: Path) -> None:
    code, said = run_printing(tmp_path, "> /dev/full")
    assert code == 1
    assert said.splitlines()[-1] == b"error: the output cannot be written: No space left on device"
    assert b"Traceback" not in said
    assert run_printing(tmp_path, "2> /dev/full")[0] == 0


@pytest.mark.parametrize("folder", [ROOT, ROOT / "scripts", ROOT.parent, Path("/")])
def test_a_printed_command_is_true_in_the_folder_where_it_is_printed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    python, script, *words = shlex.split(command_line("generate", "--prompt", "Tom's cat"))
    assert Path(shutil.which(python) or "").samefile(sys.executable)
    assert Path(script).samefile(ROOT / "scripts" / "generate.py")
    assert words == ["--prompt", "Tom's cat"]


def test_the_command_that_a_run_prints_last_is_one_of_generate(
    trained_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained_run.parent)
    last = (trained_run.parent / "stdout.txt").read_text(encoding="utf-8").splitlines()[-1]
    _, script, *words = shlex.split(last)
    assert Path(script).samefile(ROOT / "scripts" / "generate.py")
    assert Path(parse_generation_arguments(words).model).samefile(trained_run)


def test_a_run_that_was_moved_says_which_text_is_missing_and_what_replaces_it(
    run_dir: Path, tmp_path: Path
) -> None:
    record = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    record["configuration"]["data"] |= {"dataset": "stories.txt", "prepared_dir": "elsewhere"}
    record["dataset"]["train"]["source"] = {"file": "stories.txt", "sha256": "0"}
    (run_dir / "run.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(UserError, match=r"run.json records the dataset stories\.txt, .* --dataset"):
        parse_evaluation_arguments(["--model", str(run_dir)])
    text = str(tmp_path / "moved.txt")
    request = parse_evaluation_arguments(["--model", str(run_dir), "--dataset", text])
    assert request.data.dataset == text


def test_where_rows_were_prepared_is_forgotten_once_a_run_is_elsewhere(run_dir: Path) -> None:
    record = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    record["configuration"]["data"]["prepared_dir"] = "elsewhere"
    (run_dir / "run.json").write_text(json.dumps(record), encoding="utf-8")
    assert parse_evaluation_arguments(["--model", str(run_dir)]).data.prepared_dir is None


def train_unread(words: list[str]) -> None:
    """Train with both streams in a pipe that nobody reads."""
    ours, unread = os.pipe()
    os.close(ours)
    os.dup2(unread, 1)
    os.dup2(unread, 2)
    script("train.py", words)


def test_a_run_whose_output_nobody_reads_is_finished(tiny_config: Path, tmp_path: Path) -> None:
    words = ["--config", str(tiny_config), "--prepared_dir", str(tmp_path / "prepared")]
    assert run_forked(tmp_path, train_unread, words).returncode == 0
    assert '"status": "finished"' in (tmp_path / "run" / "run.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("parse", "words"),
    [
        (parse_arguments, ["--run_name", "TEXT"]),
        (parse_benchmark_arguments, ["--parts", "TEXT"]),
        (parse_benchmark_arguments, ["--run_name", "TEXT"]),
        (parse_evaluation_arguments, ["--model", "runs/xs", "TEXT"]),
        (parse_generation_arguments, ["--model", "runs/xs", "--prompt", "Tom", "TEXT"]),
        (parse_generation_arguments, ["--model", "TEXT", "--prompt", "Tom"]),
        (parse_push_arguments, ["--model", "runs/xs", "--repo", "TEXT"]),
        (parse_push_arguments, ["--site", "TEXT", "--space", "me/page"]),
        (parse_export_arguments, ["--model", "TEXT"]),
        (parse_page_arguments, ["--models", "a=TEXT", "--out", "site"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else " ".join(value),
)
def test_bytes_that_are_no_text_are_refused_on_every_command_line(
    parse: Callable[[list[str]], Any], words: list[str]
) -> None:
    with pytest.raises(UserError, match=r"^--\w+: expected .*, got .*h\\udce9llo"):
        parse([word.replace("TEXT", "h\udce9llo") for word in words])
