"""The README and docs/: commands parse, snippets run, paths exist, numbers are recorded."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from transformers import GPTNeoConfig

from tests.conftest import ROOT
from tests.support.forked import code, run_forked
from tinystories_hf.benchmark.counting import operations_per_token
from tinystories_hf.benchmark.run import parse_benchmark_arguments
from tinystories_hf.config.command_line import parse_arguments
from tinystories_hf.evaluation.arguments import parse_evaluation_arguments
from tinystories_hf.evaluation.report.paper import TRAINING_TOKENS
from tinystories_hf.generation.arguments import parse_generation_arguments
from tinystories_hf.hub.arguments import SpaceRequest, parse_push_arguments
from tinystories_hf.model.modeling import GPTNeoForCausalLM, build_config, count_parameters
from tinystories_hf.study.arguments import parse_study_arguments
from tinystories_hf.web.arguments import parse_export_arguments, parse_page_arguments

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = {path.name: path.read_text(encoding="utf-8") for path in DOCS}
LAUNCHER_FLAGS = {
    **dict.fromkeys(("--config_file", "--num_processes", "--num_machines", "--machine_rank"), 1),
    **dict.fromkeys(("--main_process_ip", "--main_process_port", "--mixed_precision"), 1),
    "-q": 0,
}


def commands(text: str) -> list[list[str]]:
    """Return the words of each command in the shell blocks of a page."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in blocks.splitlines()]
    return [words for words in lines if words]


SCRIPT_COMMANDS = [
    words
    for text in (README, *PAGES.values())
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
def test_a_command_of_the_readme_or_of_a_script_is_one_the_scripts_take(
    words: list[str], tmp_path: Path
) -> None:
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
    elif script == "scripts/study.py":
        assert (ROOT / parse_study_arguments(flags).arguments.study).is_file()
    elif script == "scripts/benchmark.py":
        parse_benchmark_arguments([str(ROOT / f) if f.startswith("configs/") else f for f in flags])
    elif "--help" not in flags:
        flags = [str(ROOT / flag) if flag.startswith("configs/") else flag for flag in flags]
        if "--model_name_or_path" in flags:  # the model is read; here it is a folder
            GPTNeoConfig().save_pretrained(tmp_path)
            flags[flags.index("--model_name_or_path") + 1] = str(tmp_path)
        parse_arguments(flags)


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


def test_documented_make_targets_exist() -> None:
    text = README + PAGES["contributing.md"]
    targets = set(re.findall(r"^make ([\w-]+)", text, re.MULTILINE))
    assert {"quickstart", "test", "check", "test-fast"} <= targets
    targets |= set(re.findall(r"`make ([\w-]+)[`\s]", text))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    rules = re.findall(r"^([\w -]+):(?!=)", makefile, re.MULTILINE)
    assert targets <= {name for rule in rules for name in rule.split()}
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


def test_the_documented_snippets_run(trained_run: Path, tmp_path: Path) -> None:
    """All in one process: importing torch and transformers takes most of the time."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "xs").symlink_to(trained_run)
    found = [re.findall(r"```python\n(.*?)```", text, re.S) for text in (README, *PAGES.values())]
    (prepared,) = (trained_run.parent / "home" / "tinystories_hf").iterdir()
    snippets = [
        snippet.replace("PREPARED_FOLDER", str(prepared))
        for of_a_page in found
        for snippet in of_a_page
    ]
    assert len(snippets) >= 3
    home = {"HF_HOME": str(tmp_path / "home")}
    done = run_forked(tmp_path, code, "\n".join(snippets), [], variables=home)
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


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub derives them."""
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [ROOT / "README.md", *DOCS], ids=lambda path: path.name)
def test_every_path_and_link_of_the_documentation_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:tinystories_hf|tests|configs|scripts)/[\w./-]+|\w+\.md)`", text):
        named_by_a_run = path in ("README.md", "samples.md", "evaluation.md")
        assert named_by_a_run or (ROOT / path).exists(), path
    for link, anchor in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", text):
        target = page.parent / link if link else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), anchor


def test_the_index_links_every_page() -> None:
    linked = set(re.findall(r"\]\(([\w.]+)\)", PAGES["README.md"]))
    assert linked == set(PAGES) - {"README.md"}


def test_where_to_change_what_has_a_file_for_each_of_ten_questions_and_more() -> None:
    _, _, *rows = table(PAGES["architecture.md"], "## Where to change what")
    assert len(rows) >= 10
    assert all(re.search(r"`tinystories_hf/[\w/]+\.py`", row[1]) for row in rows)


def test_the_pages_that_lead_are_short() -> None:
    assert len(README.splitlines()) <= 150
    assert len(PAGES["scaling.md"].splitlines()) <= 120


STATED = README.split("## Results")[1].split("## Quick start")[0]


@pytest.mark.parametrize("text", [STATED, PAGES["results.md"]], ids=["README", "docs/results.md"])
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


def test_the_stated_speed_is_the_recorded_one() -> None:
    path = ROOT / "docs" / "results" / "benchmark-cpu.json"
    steps = json.loads(path.read_text(encoding="utf-8"))["parts"]["step"]
    ratios = [step["ours"]["median"] / step["stock"]["median"] for step in steps]
    stated = f"{min(ratios):.0f} to {max(ratios):.0f} times as fast as stock Transformers"
    assert stated in " ".join(README.split())


SHAPES = {"XS": (64, 8), "TinyStories-8M": (256, 8), "TinyStories-33M": (768, 4)}


def test_the_computed_table_of_the_scaling_page_is_what_is_computed() -> None:
    _, _, *rows = table(PAGES["scaling.md"], "## What limits a step")
    assert [row[0] for row in rows] == list(SHAPES)
    for name, *stated in rows:
        hidden_size, num_layers = SHAPES[name]
        positions = 512 if name == "XS" else 2048
        shape = replace(
            parse_arguments([]).model,
            hidden_size=hidden_size,
            num_layers=num_layers,
            max_position_embeddings=positions,
        )
        with torch.device("meta"):
            counts = count_parameters(GPTNeoForCausalLM(build_config(shape, 0)))
        operations = operations_per_token(shape, 512)
        head = 6 * hidden_size * shape.vocab_size / operations
        computed = [f"{counts.total:,}", f"{counts.blocks:,}", f"{operations / 1e6:.0f}"]
        assert stated == [*computed, f"{head:.0%}"], name


def test_the_other_numbers_of_the_scaling_page_are_computed_or_recorded() -> None:
    text = " ".join(PAGES["scaling.md"].split())
    parameters = 3_647_680
    # In bf16 each logit is written; read and widened; in fp32 read and written by log-softmax, by
    # softmax and by the mask of the labels; read and narrowed; read by two products.
    logit_bytes = 2 + (2 + 4) + 3 * (4 + 4) + (4 + 2) + 2 * 2
    # Compiled: written, read twice, overwritten by the gradient, read by two products.
    compiled_bytes = 2 + 2 * 2 + 2 + 2 * 2
    rates = {}
    for name in ("benchmark-cpu", "benchmark-preparation-cpu"):
        recorded = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text("utf-8"))
        rates[name] = recorded["parts"]["preparation"]["ours"]["median"]
    batch = parse_arguments([]).training.global_batch_size
    stated = [
        f"The {batch} sequences of an XS step are {batch // 8} per GPU on eight GPUs",
        f"{2 * 7 / 8 * 4 * parameters / 1e6:.0f} MB for XS on eight GPUs",
        f"moves about {compiled_bytes} bytes per logit, without compilation {logit_bytes}",
        f"states (16 bytes per parameter in fp32, computed) of {80 // 16} billion parameters",
        f"{rates['benchmark-cpu']:,.0f} tokens/s on two cores (measured)",
        f"{TRAINING_TOKENS / rates['benchmark-preparation-cpu'] / 60:.1f} minutes for all of",
        f"at {rates['benchmark-preparation-cpu']:,.0f} tokens/s (measured",
    ]
    assert [sentence for sentence in stated if sentence not in text] == []
