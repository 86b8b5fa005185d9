"""The command line as a newcomer meets it: quick help, and bad input that changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT, TINY_CONFIG, environment, seconds_of_children
from tests.support.forked import launched
from tinystories_hf.data.tokenization.tokenizer import train_tokenizer
from tinystories_hf.data.toy import toy_stories

Run = Callable[..., subprocess.CompletedProcess[str]]
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_answers_in_under_two_seconds(launch_script: Run, script: str) -> None:
    start = seconds_of_children()
    done = launch_script(script, "--help")
    assert seconds_of_children() - start < 2
    assert done.returncode == 0
    assert f"python scripts/{script}" in done.stdout or f"launch scripts/{script}" in done.stdout


def test_importing_the_package_and_parsing_import_nothing_heavy() -> None:
    code = (
        "import sys, tinystories_hf; tinystories_hf.parse_arguments([]);"
        "print({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_a_table_of_contents(script: str) -> None:
    assert len((ROOT / "scripts" / script).read_text().splitlines()) < 60


def write_inputs(work: Path) -> None:
    """Write the good and bad files that the cases below name."""
    (work / "tiny.yaml").write_text(TINY_CONFIG)
    (work / "unknown.yaml").write_text("base: tiny.yaml\nlerning_rate: 1e-3\n")
    (work / "word.yaml").write_text("base: tiny.yaml\nlearning_rate: fast\n")
    (work / "nothing.yaml").write_text("")
    (work / "empty.txt").write_text("")
    (work / "short.txt").write_text("Hi.\n<|endoftext|>\n")
    (work / "latin.txt").write_bytes(b"Zo\xe9 ran.\n<|endoftext|>\n" * 50)
    (work / "story.jsonl").write_text(json.dumps({"story": "Once."}) + "\n")
    pq.write_table(pa.table({"story": ["Once."]}), work / "story.parquet")
    (work / "taken" / "checkpoint-5").mkdir(parents=True)
    train_tokenizer(toy_stories(200), 320, 64).save_pretrained(work / "tok")
    train_tokenizer(toy_stories(200), 300, 64).save_pretrained(work / "other")


TOK = ("--tokenizer", "tok")
BAD_INPUT = {
    "unknown YAML key": (("--config", "unknown.yaml"), "unknown.yaml: lerning_rate"),
    "misspelt flag": (("--lerning_rate", "1e-3"), "--lerning_rate; did you mean --learning_rate?"),
    "string for a number": (
        ("--config", "word.yaml"),
        "word.yaml: learning_rate: expected a number",
    ),
    "empty YAML": (("--config", "nothing.yaml"), "nothing.yaml is empty"),
    "missing YAML": (("--config", "nowhere.yaml"), "configuration file nowhere.yaml not found"),
    "missing file": (("--dataset", "nowhere.txt"), "nowhere.txt does not exist"),
    "missing file and tokenizer": (
        ("--dataset", "nowhere.txt", "--tokenizer", "me/tok"),
        "nowhere.txt does not exist",
    ),
    "no text column": (("--dataset", "story.parquet", *TOK), "no column 'text'; set text_column"),
    "no text key": (("--dataset", "story.jsonl", *TOK), "story.jsonl, line 1 has no column 'text'"),
    "empty corpus": (("--dataset", "empty.txt", *TOK), "empty.txt has no train stories"),
    "less than one row": (("--dataset", "short.txt", *TOK), "fewer than one row of context_length"),
    "not UTF-8": (("--dataset", "latin.txt", *TOK), "latin.txt is not UTF-8"),
    "tokenizer mismatch": (("--tokenizer", "other"), "other has 300 entries but vocab_size is 320"),
    "indivisible heads": (
        ("--hidden_size", "30"),
        "hidden_size 30 is not divisible by num_heads 4",
    ),
    "indivisible batch": (("--per_device_train_batch_size", "3"), "global_batch_size 8 over 1"),
    "context too long": (("--context_length", "128"), "longer than max_position_embeddings 64"),
    "another run": (("--output_dir", "taken"), "taken already contains a run (checkpoint-5)"),
    "batch above corpus": (("--global_batch_size", "4096"), "exceeds the"),
    "no Hub for the dataset": (("--dataset", "me/stories"), "could not reach http://127.0.0.1:9"),
    "no Hub for the tokenizer": (("--tokenizer", "me/tok"), "could not reach http://127.0.0.1:9"),
}


# By the true command, in little processor time: refused before the stack is imported, and by the
# files that are read. What the Hub refuses is launched below.
COMMANDS = ("unknown YAML key", "tokenizer mismatch")


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_sentence_and_changes_nothing(
    run_script: Run, launch_script: Run, tmp_path: Path, case: str
) -> None:
    flags, message = BAD_INPUT[case]
    work = tmp_path / "work"
    write_inputs(work)
    if "--config" not in flags:
        flags = ("--config", "tiny.yaml", *flags)
    if case == "batch above corpus":  # the rows are fine, and stay prepared
        assert run_script("prepare_data.py", "--config", "tiny.yaml").returncode == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    if case in COMMANDS:
        start = seconds_of_children()
        done = launch_script("train.py", *flags)
        assert seconds_of_children() - start < 10
    else:
        done = run_script("train.py", *flags)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before
    assert not (work / "run").exists()


def test_two_processes_that_do_not_divide_the_batch_are_refused(
    run_script: Run, tmp_path: Path
) -> None:
    write_inputs(tmp_path / "work")
    flags = ("--config", "tiny.yaml", "--global_batch_size", "7")
    done = run_script("train.py", *flags, **launched(0, 2, port=29500))
    assert done.returncode == 2
    assert "global_batch_size 7 is not divisible by 2 processes; use 6 or 8" in done.stderr


def test_the_mission_command_without_a_hub_says_how_to_give_local_files(launch_script: Run) -> None:
    start = seconds_of_children()
    done = launch_script("train.py")
    assert seconds_of_children() - start < 10
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "could not reach http://127.0.0.1:9" in line
    assert "--dataset FILE_OR_FOLDER" in line or "--tokenizer FOLDER" in line


def test_stories_are_told_from_the_command_line(
    run_script: Run, trained_run: Path, tmp_path: Path
) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "generate.py"), "--model", "run"]
    flags = ["--prompt", "Once upon a time", "--num_return_sequences", "2"]
    launched = subprocess.run(
        [*command, *flags],
        cwd=trained_run.parent,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout.count("Once upon a time") == 2
    assert launched.stderr == "", "no library has anything to say to a user"
    again = run_script("generate.py", "--model", str(trained_run), *flags)
    assert again.stdout == launched.stdout


def test_preparing_reports_every_count_and_trains_no_model(run_script: Run, tmp_path: Path) -> None:
    write_inputs(tmp_path / "work")
    done = run_script("prepare_data.py", "--config", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    for word in ("stories_read", "tokens_in", "tokens_dropped", "rows", "bytes"):
        assert word in done.stdout
    assert not (tmp_path / "work" / "run").exists()
