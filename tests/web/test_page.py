"""Building the page: what goes into it, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants

from tests.conftest import ROOT, environment
from tests.support.page.browser import npm, require_libraries
from tests.support.page.measure import table
from tinystories_hf.core.console import command_line
from tinystories_hf.core.errors import RunError, UserError
from tinystories_hf.core.files import file_sha256
from tinystories_hf.web import libraries, page
from tinystories_hf.web.arguments import parse_page_arguments
from tinystories_hf.web.libraries import import_map, locked_libraries
from tinystories_hf.web.page import build_page

OWN_FILES = sorted(path for path in page.STATIC.iterdir() if path.is_file())


@pytest.fixture
def without_npm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Leave the machine without npm, and without what it once fetched."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))


@contextmanager
def command(out: Path, run: Path, home: Path) -> Iterator[tuple[str, str]]:
    """Build a page and serve it by the command line; yield its two lines. Ctrl+C ends it well."""
    flags = ["--model", str(run), "--out", str(out), "--serve", "--port", "0"]
    with subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "build_page.py"), *flags],
        env=environment(home, HF_HOME=constants.HF_HOME),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline(), process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0


def test_the_command_builds_and_serves_a_page_that_holds_all_it_needs(
    exported_run: Path, tmp_path: Path
) -> None:
    require_libraries()
    out = tmp_path / "sites" / "mine"
    with command(out, exported_run, tmp_path / "home") as (built, serving):
        says = r"built .*mine: page \d+ kB, models [\d.]+ MB, libraries 14.8 MB"
        assert re.match(says, built)
        (address,) = re.findall(r"serving (http://127\.0\.0\.1:\d+/) until Ctrl\+C", serving)
        with urllib.request.urlopen(address, timeout=10) as answer:
            assert b"Stories from a small model" in answer.read()
    manifest = json.loads((out / "page.json").read_text())
    (model,) = manifest["models"]
    assert model["name"] == "run"
    assert model["context"] == 64
    names = [entry["url"] for entry in model["files"]]
    assert "models/run/onnx/model_quantized.onnx" in names
    for entry in [*model["files"], manifest["wasm"]]:
        assert file_sha256(out / entry["url"]) == entry["sha256"]
        assert (out / entry["url"]).stat().st_size == entry["bytes"]
    index = (out / "index.html").read_text()
    (mapped,) = re.findall(r'<script type="importmap">(.*)</script>', index)
    imported = json.loads(mapped)
    for path in imported["imports"].values():
        assert (out / path).is_file()
    for library in ("transformers", "onnxruntime-web"):
        assert "icense" in (out / "lib" / f"{library}.LICENSE.txt").read_text()
    assert not list(out.parent.glob(".*"))


def test_the_page_weighs_less_than_60_kilobytes_without_models_and_libraries(
    exported_run: Path, tmp_path: Path, without_npm: None
) -> None:
    build_page({"run": exported_run}, tmp_path / "site")
    files = [path for path in (tmp_path / "site").rglob("*") if path.is_file()]
    own = [path for path in files if tmp_path / "site" / "models" not in path.parents]
    assert len(own) > len(OWN_FILES)
    assert sum(path.stat().st_size for path in own) < 60_000


def test_without_npm_the_page_names_a_cdn_and_says_so(
    exported_run: Path, tmp_path: Path, without_npm: None
) -> None:
    said = build_page({"run": exported_run}, tmp_path / "site")
    assert "libraries loaded from a CDN, since npm is not installed here" in said
    assert not (tmp_path / "site" / "lib").exists()
    manifest = json.loads((tmp_path / "site" / "page.json").read_text())
    assert manifest["wasm"]["url"].startswith("https://cdn.jsdelivr.net/npm/onnxruntime-web@")
    mapped = json.loads(import_map(cdn=True))
    assert set(mapped["imports"].values()) == set(mapped["integrity"])
    for library in locked_libraries():
        assert any(library.package in url for url in mapped["integrity"])


def test_a_library_that_is_not_what_is_locked_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    library = locked_libraries()[0]
    cached = tmp_path / "tinystories_hf" / "page" / f"transformers-{library.version}"
    cached.mkdir(parents=True)
    for file in library.files:
        (cached / file.to).write_text("something else")
    with pytest.raises(UserError, match=r"differs from libraries\.json; remove .* and build"):
        libraries.fetch_library(library)


def test_a_package_that_npm_cannot_get_is_one_sentence(
    exported_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm()
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    says = r"npm could not download @huggingface/transformers@[\d.]+: npm error code ECONNREFUSED"
    with pytest.raises(UserError, match=says):
        build_page({"run": exported_run}, tmp_path / "site")
    assert not (tmp_path / "site").exists()
    assert not list((tmp_path / "tinystories_hf").rglob("*.unfinished"))


def test_a_page_is_replaced_by_the_next_and_nothing_else_is(
    exported_run: Path, tmp_path: Path, without_npm: None
) -> None:
    site = tmp_path / "site"
    build_page({"old": exported_run}, site)
    build_page({"new": exported_run}, site)
    assert [path.name for path in (site / "models").iterdir()] == ["new"]
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "diary.txt").write_text("dear diary")
    with pytest.raises(UserError, match=r"out: .*mine has other content"):
        build_page({"run": exported_run}, mine)
    assert (mine / "diary.txt").read_text() == "dear diary"


def test_a_model_that_is_not_exported_or_no_longer_is_names_the_command(
    exported_run: Path, tmp_path: Path, without_npm: None
) -> None:
    run = Path(shutil.copytree(exported_run, tmp_path / "run"))
    command = f"run {command_line('export', '--model', str(run))}"
    weights = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(weights + b" ")
    with pytest.raises(UserError, match=f"was exported from other weights; {command}"):
        build_page({"run": run}, tmp_path / "site")
    (run / "model.safetensors").write_bytes(weights)
    (run / "onnx" / "model_quantized.onnx").write_bytes(b"half")
    with pytest.raises(UserError, match=f"has changed since its export; {command}"):
        build_page({"run": run}, tmp_path / "site")
    shutil.rmtree(run / "onnx")
    with pytest.raises(UserError, match=f"is not exported; {command}"):
        build_page({"run": run}, tmp_path / "site")
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--model", "runs/xs"], "give --model and --out"),
        (["--out", "site"], "give --model and --out"),
        (["--model", "runs/xs", "--models", "xs=b", "--out", "s"], "the name xs is given twice"),
        (["--models", "runs/small", "--out", "s"], "'runs/small' is not NAME=DIR"),
        (["--models", "../x=b", "--out", "s"], "is not NAME=DIR"),
        (["--model", "a", "--out", "s", "--dtype", "int4"], "'int4' is neither q8 nor fp32"),
        (["--model", "a", "--out", "s", "--port", "99999"], "'99999' is not a port"),
        (["--model", "a", "--out", "s", "--sevre"], "unknown flag --sevre"),
    ],
)
def test_a_wrong_command_line_names_the_fix(flags: list[str], says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        parse_page_arguments(flags)


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour as #rrggbb (WCAG 2.2)."""
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return sum(w * s for w, s in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_the_contrast_named_beside_each_colour_is_its_contrast_and_enough() -> None:
    style = (page.STATIC / "style.css").read_text()
    themes = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(themes) == 2
    for theme in themes:
        ground = luminance(*re.findall(r"--page: (#\w{6});", theme))
        named = re.findall(r"--(\w+): (#\w{6}); /\* ([\d.]+) \*/", theme)
        assert [name for name, _, _ in named] == ["text", "quiet", "line", "accent", "problem"]
        for name, colour, contrast in named:
            high, low = sorted((luminance(colour), ground), reverse=True)
            assert float(contrast) == pytest.approx((high + 0.05) / (low + 0.05), abs=0.005)
            assert float(contrast) >= (3 if name == "line" else 4.5)


def test_the_figures_of_the_docs_are_those_that_were_recorded() -> None:
    recorded = json.loads((ROOT / "docs" / "results" / "page-cpu.json").read_text())
    assert table(recorded) in (ROOT / "docs" / "page.md").read_text(encoding="utf-8")
    assert not recorded["git_dirty"]
    fp32, q8 = (recorded["loss"][name] for name in ("model.onnx", "model_quantized.onnx"))
    assert q8 <= 1.01 * fp32
    assert recorded["largest_difference"] < 1e-4
    assert recorded["telling"]["q8"]["loaded_ms"] < 1000
    assert recorded["telling"]["q8"]["tokens_per_second"]["median"] >= 60


def test_nothing_of_the_libraries_is_in_the_package() -> None:
    assert {path.suffix for path in OWN_FILES} == {".html", ".css", ".js"}
    assert all(path.stat().st_size < 20_000 for path in OWN_FILES)


def test_a_space_states_of_its_models_what_all_their_cards_state(tmp_path: Path) -> None:
    heads = {
        "a": "license: mit\ntags: [tinystories]",
        "b": "license: mit\ntags: [gpt_neo]",
        "c": "license: cc-by-4.0",
        "d": None,
    }
    for name, head in heads.items():
        (tmp_path / name).mkdir()
        if head is not None:
            (tmp_path / name / "README.md").write_text(f"---\n{head}\n---\n", encoding="utf-8")

    def stated(*names: str) -> tuple[str | None, list[str]]:
        text = page._space_card({name: tmp_path / name for name in names})
        data: dict[str, Any] = yaml.safe_load(text.split("---")[1])
        assert "2305.07759" not in text
        return data.get("license"), data["tags"]

    assert stated("a") == ("mit", ["tinystories", "transformers.js"])
    assert stated("a", "b") == ("mit", ["transformers.js"])
    assert stated("c") == ("cc-by-4.0", ["transformers.js"])
    assert stated("a", "c") == (None, ["transformers.js"])
    assert stated("a", "d") == (None, ["transformers.js"])


TELL = """
import { Storyteller } from "./storyteller.js";

// Pieces as SentencePiece has them: a text that is decoded loses the space that it begins with.
const pieces = ["<end>", "\u2581Once", "\u2581there", "\u2581was", "\u2581a", "\u2581fox", "es"];
const tokenizer = {
  decode: (ids) => ids.map((id) => pieces[id]).join("").replaceAll("\u2581", " ").trimStart(),
};
// The likeliest token is always the next one, and at last the end.
const model = async ({ input_ids }) => {
  const data = new Float32Array(pieces.length);
  data[(Number(input_ids.data.at(-1)) + 1) % pieces.length] = 9;
  return { logits: { data, dims: [1, 1, pieces.length] } };
};
class Tensor { constructor(type, data) { this.data = data; } }
const library = { Tensor, random: { Random: class {} } };
const storyteller = new Storyteller(library, tokenizer, model, { context: 32, end: 0 });
const how = { temperature: 0, length: 20, seed: 0, signal: { aborted: false } };
let text = tokenizer.decode([1]);
for await (const step of storyteller.generate([1], how)) text += step.text;
console.log(text);
"""


def test_words_of_any_tokenizer_keep_their_spaces_on_the_page(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node")
    for path in page.STATIC.glob("*.js"):
        shutil.copy(path, tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    (tmp_path / "tell.js").write_text(TELL, encoding="utf-8")
    done = subprocess.run(
        [node, "tell.js"], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.stdout.strip() == "Once there was a foxes", done.stderr


def test_a_port_that_is_taken_is_a_failure_after_the_page_was_built(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(RunError, match=r"^port: \d+ is not available"):
            page.serve(tmp_path, taken.getsockname()[1])
