"""What may be loaded, and from where: no code and no pickle of others is run."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT
from tinystories_hf.model.loading import load_model

SOURCES = sorted([*(ROOT / "tinystories_hf").rglob("*.py"), *(ROOT / "scripts").glob("*.py")])
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
RUNS = {"run", "Popen", "check_output"}


def calls(source: Path) -> list[ast.Call]:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def imports(source: Path) -> set[str]:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_nothing_unpickles_or_trusts_remote_code(source: Path) -> None:
    assert not imports(source) & PICKLES
    for call in calls(source):
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        called = ast.unparse(call.func)
        assert "trust_remote_code" not in given
        assert given.get("allow_pickle", "False") == "False"
        if called == "torch.load":
            assert given.get("weights_only") == "True"
        assert called not in ("eval", "exec")
        assert called != "yaml.load" or "_UniqueKeyLoader" in given["Loader"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_no_destructor_can_raise(source: Path) -> None:
    """A `__del__` also runs where the constructor failed; `weakref.finalize` does not."""
    assert "def __del__(" not in source.read_text(encoding="utf-8")


def is_text_without_encoding(call: ast.Call) -> bool:
    """Return whether a call reads or writes text in the encoding of the locale."""
    called = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
    given = {word.arg for word in call.keywords}
    if "encoding" in given or ast.unparse(call.func) in ("os.open", "tarfile.open"):
        return False
    if called in ("open", "fdopen"):
        modes = [part.value for part in call.args if isinstance(part, ast.Constant)]
        return not any(set(str(mode)) <= set("rwabx+") and "b" in str(mode) for mode in modes)
    of_a_path = isinstance(call.func, ast.Attribute) and called in ("read_text", "write_text")
    return of_a_path or bool(given & {"text", "universal_newlines"} and called in RUNS)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_text_never_depends_on_the_locale(source: Path) -> None:
    assert not [ast.unparse(call) for call in calls(source) if is_text_without_encoding(call)]


def test_pickled_weights_are_not_loaded(run_dir: Path, tmp_path: Path) -> None:
    pickled = Path(shutil.copytree(run_dir, tmp_path / "pickled"))
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    assert load_model(str(pickled)).config.hidden_size == 32
    (pickled / "model.safetensors").unlink()
    with pytest.raises(OSError, match="has no safetensors weights, and pickled weights are not"):
        load_model(str(pickled))


def test_a_checkpoint_of_the_trainer_needs_no_pickle_but_what_torch_reads_as_weights_only(
    run_dir: Path,
) -> None:
    for path in (run_dir / "checkpoint-20").iterdir():
        if path.suffix in (".pt", ".pth"):
            # As the Trainer reads them; the generators' states hold arrays of numpy.
            with torch.serialization.safe_globals(_numpy_globals()):
                torch.load(path, weights_only=True)
        else:
            assert path.suffix in (".json", ".safetensors")


def _numpy_globals() -> list[Any]:
    from accelerate.utils.other import TORCH_SAFE_GLOBALS

    return list(TORCH_SAFE_GLOBALS)


def test_every_dependency_is_locked_to_one_version() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    named = set(re.findall(r'^    "([A-Za-z0-9_-]+)(?:>=[\d.]+)?",$', text, flags=re.MULTILINE))
    assert {"torch", "transformers", "filelock", "hypothesis"} <= named
    locked = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    assert {name.lower().replace("_", "-") for name in named} <= locked
