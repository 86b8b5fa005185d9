"""Faulty input, files and browsers: the page shows a message and stays usable."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx", reason="needs the packages of the extra `onnx`")
pytest.importorskip("playwright", reason="needs playwright, of the extra `dev`")
from playwright.sync_api import Browser

from tests.support.page.browser import (
    Reader,
    reading,
    served,
)
from tests.web.conftest import PROMPT
from tests.web.test_page_in_browser import choose


def test_an_empty_beginning_is_asked_for(reader: Reader) -> None:
    reader.generate("   ")
    assert reader.problem() == "Write a prompt, or choose one of the examples."
    assert reader.page.evaluate("document.activeElement.id") == "prompt"
    reader.page.click("#beginnings button >> nth=0")
    reader.slide("#length", 16)
    reader.generate()
    assert reader.problem() == ""
    assert reader.words() > 0


def test_an_endless_beginning_is_cut_from_the_left_and_said(reader: Reader) -> None:
    reader.slide("#length", 16)
    reader.generate("He ran and ran and ran. " * 40_000 + "Then he")
    figures = reader.page.inner_text(".figures")
    assert "does not fit the context; only its last 496 tokens are used" in figures
    assert reader.problem() == ""
    assert reader.words() > 0
    reader.generate(PROMPT)
    assert "longer" not in reader.page.inner_text(".figures")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100_000])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (Path.unlink, r"is missing on this server \(404\)"),
        (truncate, "is incomplete: only 0.1 MB of [0-9.]+ MB arrived"),
        (flip, "is damaged: it differs from the file that this page was built with"),
        (lengthen, "is damaged: it differs from the file that this page was built with"),
    ],
    ids=["missing", "truncated", "damaged", "longer"],
)
@pytest.mark.parametrize("file", ["models/endless/onnx/model.onnx"])
def test_a_model_that_cannot_be_loaded_is_said_and_the_others_tell(
    browser: Browser,
    site: Path,
    tmp_path: Path,
    file: str,
    damage: Callable[[Path], Any],
    says: str,
) -> None:
    broken = Path(shutil.copytree(site, tmp_path / "site"))
    damage(broken / file)
    with served(broken) as url, reading(browser, url) as reader:
        reader.slide("#length", 16)
        reader.generate(PROMPT)
        assert file in reader.problem()
        assert re.search(says, reader.problem()), reader.problem()
        choose(reader, "run")
        reader.generate()
        assert reader.problem() == ""
        assert reader.status() == "Done."
        shutil.copy2(site / file, broken / file)
        choose(reader, "endless")
        reader.generate()
        assert reader.problem() == ""
        assert reader.words() > 0


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("delete window.WebAssembly", "This browser does not support WebAssembly"),
        (
            "WebAssembly.Memory = function () {"
            " throw new RangeError('WebAssembly.Memory(): could not allocate memory') }",
            "There is not enough memory for endless",
        ),
    ],
    ids=["no WebAssembly", "no memory"],
)
def test_a_browser_that_cannot_run_a_model_is_told_so(
    browser: Browser, address: str, script: str, says: str
) -> None:
    opened = browser.new_context()
    opened.add_init_script(script)
    reader = Reader(opened.new_page())
    reader.page.goto(address)
    reader.page.wait_for_selector("#ask:not([inert])")
    reader.generate(PROMPT)
    assert says in reader.problem()
    assert reader.page.is_enabled("#generate")
    opened.close()
