"""An installed package has the command `tinystories`, its configurations, and needs no checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment, made_once
from tinystories_hf.core import shipped as shipped_module
from tinystories_hf.core.shipped import SCRIPT_OF, as_installed

# What a checkout has beside the package.
OUTSIDE = ("configs", "scripts", "tinystories_hf", "model_card.md", "README.md", "LICENSE",
           "pyproject.toml", "docs", "tests")  # fmt: skip
SHORT = ("--toy_stories", "300", "--vocab_size", "320", "--max_steps", "4", "--eval_steps", "4",
         "--save_steps", "4", "--max_eval_rows", "4")  # fmt: skip


def build(kind: str, tree: Path, into: Path) -> Path:
    """Build a distribution of a source tree, as pip does."""
    code = f"import hatchling.build as b; print(b.build_{kind}({str(into)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return into / done.stdout.split()[-1]


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the wheel, the source distribution, and a folder `site` with both."""

    def make(folder: Path) -> None:
        pytest.importorskip("hatchling", reason="builds the wheel")
        tree = folder / "tree"
        tree.mkdir()
        for name in OUTSIDE:
            source, skipped = ROOT / name, shutil.ignore_patterns("__pycache__", "results")
            if source.is_dir():
                shutil.copytree(source, tree / name, ignore=skipped)
            else:
                shutil.copy(source, tree)
        wheel = build("wheel", tree, folder)
        archive = build("sdist", tree, folder)
        with tarfile.open(archive) as packed:
            packed.extractall(folder / "unpacked", filter="data")
        (folder / "again").mkdir()
        build("wheel", next((folder / "unpacked").iterdir()), folder / "again")
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--no-index"]
        subprocess.run([*pip, "--target", str(folder / "site"), str(wheel)], check=True)

    return made_once(tmp_path_factory, "distributions", make)


def content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def test_the_wheel_has_all_that_the_package_reads(distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    files = content(wheel)
    needed = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tinystories_hf").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    needed |= {f"tinystories_hf/scripts/{script}" for script in SCRIPT_OF.values()}
    needed |= {f"tinystories_hf/configs/{name}.yaml" for name in ("xs", "accelerate/multi_gpu")}
    needed |= {"tinystories_hf/model_card.md", "tinystories_hf/py.typed"}
    assert needed <= files.keys()
    assert not [name for name in files if name.startswith(("tests", "docs"))]


def test_the_source_distribution_builds_the_same_wheel(distributions: Path) -> None:
    (first,), (second,) = distributions.glob("*.whl"), (distributions / "again").glob("*.whl")
    assert content(first) == content(second)


# Runs several commands in one process, as their command lines would.
COMMANDS = """
import json, sys
from tinystories_hf import cli

for words in json.loads(sys.argv[1]):
    print(f"$ {' '.join(words)}", flush=True)
    sys.argv = words
    cli.main()
"""


def run_installed(
    site: Path, folder: Path, code: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    variables = environment(folder / "home", PYTHONPATH=str(site))
    variables["PATH"] = f"{site / 'bin'}{os.pathsep}{variables['PATH']}"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder, env=variables, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


RUN = ("--model", "run")
TRAIN = [["tinystories", "train", "--config", "mine.yaml", *SHORT]]
AFTER = [
    ["tinystories", "generate", *RUN, "--prompt", "Once upon a time"],
    ["tinystories", "evaluate", *RUN, "--suite", "loss,cloze"],
    ["tinystories", "export", *RUN],
    ["tinystories", "page", *RUN, "--out", "site"],
    ["tinystories", "push", *RUN, "--repo", "me/tiny", "--dry_run"],
]


@pytest.mark.parametrize(
    "after", [pytest.param(AFTER, marks=pytest.mark.slow, id="whole"), pytest.param([], id="train")]
)
def test_the_path_works_without_the_repository(
    distributions: Path, tmp_path: Path, after: list[list[str]]
) -> None:
    (tmp_path / "mine.yaml").write_text("base: quickstart\noutput_dir: run\n")
    commands = [*TRAIN, *after]
    done = run_installed(distributions / "site", tmp_path, COMMANDS, json.dumps(commands))
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    session = record["sessions"][0]
    assert session["command"].startswith("tinystories train --config mine.yaml --toy_stories 300")
    assert session["git_commit"] is None
    assert session["versions"]["tinystories_hf"] == "0.1.0"
    said = done.stdout + done.stderr
    assert not [name for name in OUTSIDE if str(ROOT / name) in said]
    # In a folder of `pip install --target` the command is not that of the interpreter.
    assert re.search(
        r"\n  (\S*tinystories|python -m tinystories_hf) generate --model run", done.stdout
    )
    if not after:
        return
    assert (tmp_path / "run" / "onnx" / "model.onnx").exists()
    assert (tmp_path / "site" / "index.html").exists()
    assert json.loads((tmp_path / "run" / "eval_results.json").read_text())["cloze"]
    assert "bytes for me/tiny" in done.stdout


def test_the_command_and_the_module_for_launchers_exist(
    distributions: Path, tmp_path: Path
) -> None:
    site = distributions / "site"
    variables = environment(tmp_path, PYTHONPATH=str(site))

    def said(*words: str) -> str:
        done = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True)
        return done.stdout + done.stderr

    listed = said(str(site / "bin" / "tinystories"))
    assert all(f"  {name} " in listed for name in SCRIPT_OF)
    assert "tinystories_hf 0.1.0\ntorch " in said(sys.executable, "-m", "tinystories_hf",
                                                 "--version")  # fmt: skip
    help_text = said(sys.executable, "-m", "tinystories_hf.train", "--help")
    assert help_text.startswith("usage: tinystories train [--FLAG VALUE ...]")
    assert "    tinystories train --config" in help_text
    assert "-m tinystories_hf.train" in help_text
    assert "scripts/" not in help_text
    wrong = said(sys.executable, "-m", "tinystories_hf", "train", "--config", "tiny")
    assert "the name of a configuration of this package: quickstart, xs, xs-paper" in wrong
    assert "unknown command fly; tinystories --help lists all" in said(
        sys.executable, "-m", "tinystories_hf", "fly"
    )
    missing = said(sys.executable, "-m", "tinystories_hf", "train", "--do_eval")
    assert "omit it; tinystories evaluate evaluates a finished run" in missing


def test_the_function_is_still_what_is_imported() -> None:
    """There is a module of that name too, for launchers."""
    from tinystories_hf import train

    assert train.__module__ == "tinystories_hf.training.train"


def test_a_message_names_what_exists_where_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "run `accelerate launch --config_file configs/accelerate/fsdp.yaml scripts/train.py`,"
        " or python scripts/push_to_hub.py --site site"
    )
    assert as_installed(text) == text
    monkeypatch.setattr(shipped_module, "is_checkout", lambda: False)
    folder = shipped_module.PACKAGE / "configs"
    assert as_installed(text) == (
        f"run `accelerate launch --config_file {folder}/accelerate/fsdp.yaml -m"
        " tinystories_hf.train`, or tinystories push --site site"
    )
