"""What the README says is done: its commands parse, its snippets run, its numbers are recorded."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from tests.conftest import ROOT
from tests.support.forked import code, run_forked
from tinystories_hf.benchmark.run import parse_benchmark_arguments
from tinystories_hf.config.command_line import parse_arguments
from tinystories_hf.evaluation.arguments import parse_evaluation_arguments
from tinystories_hf.generation.arguments import parse_generation_arguments
from tinystories_hf.hub.arguments import SpaceRequest, parse_push_arguments
from tinystories_hf.web.arguments import parse_export_arguments, parse_page_arguments

README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
EVALUATION = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
RUNNING = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
SCALING = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
DATA = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "page.md").read_text(encoding="utf-8")
LAUNCHER_FLAGS = {
    **dict.fromkeys(("--config_file", "--num_processes", "--num_machines", "--machine_rank"), 1),
    **dict.fromkeys(("--main_process_ip", "--main_process_port"), 1),
    "-q": 0,
}


def commands(text: str) -> list[list[str]]:
    """Return the words of each command in the shell blocks of a page."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in blocks.splitlines()]
    return [words for words in lines if words]


SCRIPT_COMMANDS = [
    words
    for text in (README, RESULTS, BENCHMARKS, EVALUATION, RUNNING, SCALING, DATA, PAGE)
    for words in commands(text)
    if any(word.startswith("scripts/") for word in words)
]

# Those that the scripts begin with, too.
SCRIPT_COMMANDS += [
    shlex.split(line)
    for path in sorted((ROOT / "scripts").glob("*.py"))
    for line in re.findall(r"^    ((?:python|accelerate launch) .*)", path.read_text(), re.M)
]


@pytest.mark.parametrize("words", SCRIPT_COMMANDS, ids=" ".join)
def test_a_command_of_the_readme_or_of_a_script_is_one_the_scripts_take(words: list[str]) -> None:
    position = next(index for index, word in enumerate(words) if word.startswith("scripts/"))
    script, flags = words[position], words[position + 1 :]
    before = words[:position]
    if before[:2] == ["accelerate", "launch"]:
        before = before[2:]
        while before:
            flag = before.pop(0)
            values = [before.pop(0) for _ in range(LAUNCHER_FLAGS[flag])]
            if flag == "--config_file":
                assert (ROOT / values[0]).exists()
    assert (ROOT / script).exists()
    if script == "scripts/generate.py":
        parse_generation_arguments(flags)
    elif script == "scripts/push_to_hub.py":
        assert isinstance(parse_push_arguments(flags), SpaceRequest) == ("--site" in flags)
    elif script == "scripts/export_onnx.py":
        parse_export_arguments(flags)
    elif script == "scripts/build_page.py":
        parse_page_arguments(flags)
    elif script == "scripts/evaluate.py":
        parse_evaluation_arguments(flags)
    elif script == "scripts/benchmark.py":
        parse_benchmark_arguments([str(ROOT / f) if f.startswith("configs/") else f for f in flags])
    elif "--help" not in flags:
        parse_arguments([str(ROOT / f) if f.startswith("configs/") else f for f in flags])


def documented_launches() -> list[list[str]]:
    """Return what each command of the documentation gives to `accelerate launch`."""
    files = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
    comments = "\n".join(path.read_text(encoding="utf-8") for path in files)
    comments = comments.replace("\\\n#", " ")
    lines = re.findall(r"^#   (accelerate launch .*)", comments, re.MULTILINE)
    every = [*SCRIPT_COMMANDS, *(shlex.split(line) for line in lines)]
    return [words[2:] for words in every if words[:2] == ["accelerate", "launch"]]


@pytest.mark.parametrize("words", documented_launches(), ids=" ".join)
def test_a_documented_launch_begins_without_a_list_of_the_launchers_defaults(
    words: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("psutil.cpu_count", lambda **_: 64)
    words = ["0" if word == "N" else word for word in words]
    _validate_launch_command(launch_command_parser().parse_args(words))
    assert caplog.text == ""


def test_the_quickstart_needs_no_launcher_and_takes_one_gpu() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    quickstart = makefile.split("\nquickstart:")[1].split("\n\n")[0]
    assert "accelerate" not in quickstart
    assert "$(BIN)/python scripts/train.py" in quickstart
    assert 'CUDA_VISIBLE_DEVICES="$${CUDA_VISIBLE_DEVICES-0}"' in quickstart


def test_make_targets_of_the_readme_exist() -> None:
    targets = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert {"quickstart", "test"} <= set(targets)
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}:" in makefile for target in targets)
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()


def test_the_workflow_and_the_commit_hooks_run_what_make_runs() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))
    runs = workflow["jobs"]["test"]["strategy"]["matrix"]["include"]
    assert {run["target"] for run in runs} == {"test", "test-oldest", "test-latest"}
    assert all(f"{run['target']}" in makefile for run in runs)
    assert workflow["permissions"] == {"contents": "read"}
    checks = makefile.split("\ncheck:")[1].split("\n\n")[0]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    entries = [hook["entry"].split()[0] for hook in hooks["repos"][0]["hooks"]]
    assert {Path(entry).name for entry in entries} == set(re.findall(r"\(BIN\)/([\w-]+)", checks))


@pytest.mark.parametrize("snippet", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_a_snippet_of_the_readme_runs(snippet: str, trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "xs").symlink_to(trained_run)
    home = {"HF_HOME": str(tmp_path / "home")}
    done = run_forked(tmp_path, code, snippet, [], variables=home)
    assert done.returncode == 0, done.stderr


def table(text: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table after a heading."""
    lines = text.split(heading, 1)[1].splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_configuration_table_is_what_the_files_say() -> None:
    header, _, *rows = table(README, "## Configuration")
    for column, name in enumerate(header[1:], start=1):
        path = ROOT / "configs" / name.strip("`")
        settings: dict[str, Any] = {}
        for part in parse_arguments(["--config", str(path)]):
            settings |= asdict(part)
        for row in rows:
            keys = re.findall(r"`(\w+)`", row[0])
            if keys:
                expected = " / ".join(str(settings[key]) for key in keys)
                assert row[column] == expected, (name, row[0])


def test_every_path_of_the_layout_exists_and_every_room_is_in_it() -> None:
    tree = README.split("## Layout")[1].split("```")[1]
    named = [re.match(r"((?:[\w./]+/(?:, )?)+)", line) for line in tree.splitlines()[1:] if line]
    paths = [
        path
        if path.startswith(("configs", "scripts", "tests", "docs", "tiny"))
        else f"tinystories_hf/{path}"
        for found in named
        if found
        for path in found[1].strip(", ").split(", ")
    ]
    assert all((ROOT / path).is_dir() for path in paths), paths
    rooms = {path.parent.name for path in (ROOT / "tinystories_hf").glob("*/__init__.py")}
    assert {f"tinystories_hf/{room}/" for room in rooms} <= set(paths)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_every_path_and_link_of_the_documentation_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:tinystories_hf|tests|configs|scripts)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\(([\w./-]+)[)#]", text):
        assert (page.parent / link).exists(), link


def test_the_pages_that_lead_are_short() -> None:
    assert len(README.splitlines()) <= 150
    assert len(SCALING.splitlines()) <= 120


STATED = README.split("## Results")[1].split("## Quick start")[0]


@pytest.mark.parametrize("text", [STATED, RESULTS], ids=["README", "docs/results.md"])
def test_a_loss_that_is_stated_is_one_that_is_recorded(text: str) -> None:
    recorded = {
        number
        for path in (ROOT / "docs" / "results").rglob("eval_results.json")
        for number in (
            f"{json.loads(path.read_text())['loss']['packed'][key]:.4f}"
            for key in ("loss", "bits_per_byte")
        )
    }
    stated = set(re.findall(r"\b\d\.\d{4}\b", text))
    assert stated
    assert stated <= recorded
