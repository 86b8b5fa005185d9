"""The structure of the package: small modules in small folders, and one name for one thing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import tinystories_hf
from tests.conftest import ROOT

PACKAGE = ROOT / "tinystories_hf"
MODULES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 350
MOST_MODULES = 15


def public_names(module: Path) -> set[str]:
    """Return the names that a module defines at its top level without a leading underscore."""
    names = set()
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        for target in targets if isinstance(node, (ast.Assign, ast.AnnAssign)) else []:
            names |= {part.id for part in ast.walk(target) if isinstance(part, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def test_no_two_modules_define_the_same_public_name() -> None:
    definers = defaultdict(list)
    for module in MODULES:
        for name in public_names(module):
            definers[name].append(module.relative_to(PACKAGE).as_posix())
    assert {name: found for name, found in definers.items() if len(found) > 1} == {}


def test_no_module_is_longer_than_people_read() -> None:
    files = [*MODULES, *(ROOT / "tests").rglob("*.py")]
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    long = {path.relative_to(ROOT).as_posix(): n for path, n in lines.items() if n > MOST_LINES}
    assert long == {}


def test_no_folder_holds_more_modules_than_people_scan() -> None:
    folders = {path.parent for path in [*MODULES, *(ROOT / "tests").rglob("*.py")]}
    counts = {
        folder.relative_to(ROOT).as_posix(): len(
            set(folder.glob("*.py")) - {folder / "__init__.py"}
        )
        for folder in folders
    }
    assert {name: count for name, count in counts.items() if count > MOST_MODULES} == {}


def test_every_folder_says_what_it_is_for_and_what_to_import() -> None:
    folders = {path.parent for path in MODULES} - {PACKAGE}
    for folder in folders:
        described = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))) or ""
        assert described, folder
        assert folder.name == "core" or "`" in described, folder


def test_the_public_names_can_be_imported_and_load_nothing_heavy_before_they_are_used() -> None:
    for name in tinystories_hf.__all__:
        assert callable(getattr(tinystories_hf, name)), name
    assert set(tinystories_hf.__all__) <= set(dir(tinystories_hf))
    with pytest.raises(AttributeError, match="has no attribute 'unknown'"):
        _ = tinystories_hf.unknown
    code = "import sys, tinystories_hf; print({'torch', 'transformers'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
