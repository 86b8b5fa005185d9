"""The page as somebody meets it: a real browser, a real model, no network but loopback."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoConfig, PreTrainedTokenizerFast

pytest.importorskip("onnx", reason="needs the packages of the extra `onnx`")
pytest.importorskip("playwright", reason="needs playwright, of the extra `dev`")
from playwright.sync_api import Browser

from tests.conftest import made_once
from tests.support.loopback_hub import LoopbackHub
from tests.support.page_browser import (
    Reader,
    axe_source,
    chromium,
    open_browser,
    reading,
    require_libraries,
    served,
)
from tinystories_hf.hub.publish import RunRepository, publish
from tinystories_hf.model.modeling import GPTNeoForCausalLM
from tinystories_hf.web import onnx_export
from tinystories_hf.web.page import build_page

CONTEXT = 512
PROMPT = "Once upon a time there was"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as found:
        yield found


def export_endless(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Export a model of random words that never ends: there is time to stop it."""
    end = tokenizer.eos_token_id
    config = GPTNeoConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        num_layers=2,
        num_heads=16,
        max_position_embeddings=CONTEXT,
        attention_types=[[["global", "local"], 1]],
        initializer_range=0.1,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end),
    )
    torch.manual_seed(0)
    model = GPTNeoForCausalLM(config)
    with torch.no_grad():
        texts = map(tokenizer.decode, range(len(tokenizer)))
        are_words = torch.tensor([bool(re.fullmatch(" [A-Za-z]+", text)) for text in texts])
        model.transformer.ln_f.bias += 1
        model.transformer.wte.weight += are_words[:, None] * 0.05
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    onnx_export.export_onnx(folder)


@pytest.fixture(scope="session")
def models(exported_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a model that goes on for ever, and a trained run."""
    chromium()
    require_libraries()
    tokenizer = AutoTokenizer.from_pretrained(exported_run)
    endless = made_once(
        tmp_path_factory, "endless", lambda folder: export_endless(folder, tokenizer)
    )
    return {"endless": endless, "run": exported_run}


@pytest.fixture(scope="session")
def site(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the page in fp32, whose text is PyTorch's."""

    def make(folder: Path) -> None:
        assert "CDN" not in build_page(models, folder / "site", "fp32")

    return made_once(tmp_path_factory, "site", make) / "site"


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with served(site) as url:
        yield url


@pytest.fixture
def reader(browser: Browser, address: str) -> Iterator[Reader]:
    """Open the page; at the end nothing was asked of others and the console is empty."""
    with reading(browser, address) as found:
        yield found
        assert found.hosts <= {"127.0.0.1", "localhost"}
        assert found.console == []


def choose(reader: Reader, *names: str) -> None:
    for box in reader.page.locator("#models label").all():
        box.locator("input").set_checked(box.inner_text().strip() in names)


def greedy(folder: Path, prompt: str) -> str:
    """Return what stock Transformers tells when it takes the likeliest token each time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    context = model.generation_config.max_length or model.config.max_position_embeddings
    told = model.generate(ids, do_sample=False, max_length=context)[0, ids.shape[1] :]
    text: str = tokenizer.decode(told, skip_special_tokens=True)
    return prompt + text


def test_a_story_streams_is_stopped_and_gets_another_ending(reader: Reader) -> None:
    reader.page.fill("#prompt", PROMPT)
    reader.page.click("#generate")
    reader.page.wait_for_function("document.querySelectorAll('.word').length > 5")
    assert reader.status() == "Generating …"
    early = reader.words()
    reader.page.wait_for_function(f"document.querySelectorAll('.word').length > {early + 5}")
    reader.page.click("#stop")
    reader.page.wait_for_function("document.querySelector('#status').textContent === 'Stopped.'")
    (stopped,) = reader.stories()
    assert stopped.startswith(PROMPT)
    assert "; stopped" in reader.page.inner_text(".figures")
    tokens = int(reader.page.locator("article").get_attribute("data-tokens") or 0)
    assert 10 < tokens < CONTEXT - 10
    reader.slide("#length", 48)
    reader.generate(button="#again")
    (first,) = reader.stories()
    reader.generate(button="#again")
    (second,) = reader.stories()
    assert first.startswith(PROMPT)
    assert second.startswith(PROMPT)
    assert len({stopped, first, second}) == 3


def test_the_same_seed_tells_the_same_story(reader: Reader) -> None:
    reader.slide("#length", 48)
    told = []
    for _ in range(2):
        reader.generate(PROMPT)
        told += reader.stories()
    assert told[0] == told[1]
    assert "48 tokens" in reader.page.inner_text(".figures")
    assert reader.page.inner_text(".figures").endswith("; the length is reached")


def test_another_model_tells_and_the_likeliest_text_is_that_of_pytorch(
    reader: Reader, models: dict[str, Path]
) -> None:
    reader.slide("#temperature", 0)
    for names in (["endless"], ["run"], ["endless", "run"]):
        choose(reader, *names)
        reader.generate(PROMPT)
        assert reader.page.locator("article h2").all_text_contents() == names
        assert reader.stories() == [greedy(models[name], PROMPT) for name in names]
    assert len(set(reader.stories())) == 2


def test_two_models_that_load_at_once_both_tell(reader: Reader) -> None:
    choose(reader, "endless", "run")
    reader.slide("#length", 16)
    reader.generate(PROMPT)
    assert reader.problem() == ""
    assert all("; " in figures for figures in reader.page.locator(".figures").all_text_contents())


def test_each_column_says_what_the_card_of_its_model_says(
    reader: Reader, exported_run: Path
) -> None:
    choose(reader, "run", "endless")
    reader.generate(PROMPT)
    endless, run = reader.page.locator(".facts").all_text_contents()
    assert endless.endswith("parameters, fp32; no card with its loss")
    results = json.loads((exported_run / "eval_results.json").read_text())
    parameters = json.loads((exported_run / "run.json").read_text())["parameters"]["total"]
    loss = results["loss"]["packed"]["loss"]
    assert run.startswith(f"{parameters:,} parameters, fp32; loss {loss:.4f} nats per token")
    listed = reader.page.locator("#sources li").all_text_contents()
    assert any(line.startswith("run: trained on ") for line in listed)


def test_how_sure_the_model_was_shows_by_pointer_and_by_arrow_keys(reader: Reader) -> None:
    reader.slide("#length", 32)
    reader.generate(PROMPT)
    reader.page.hover(".word >> nth=3")
    pointed = reader.page.inner_text(".sure")
    assert "probability" in pointed
    bars = reader.page.locator(".sure li").all_inner_texts()
    shares = [float(bar.split()[-1].rstrip("%")) for bar in bars]
    assert len(shares) == 5
    assert shares == sorted(shares, reverse=True)
    reader.page.focus(".story")
    reader.page.keyboard.press("ArrowRight")
    assert reader.page.locator(".word.current").count() == 1
    assert reader.page.inner_text(".sure") != pointed


def test_everything_can_be_done_by_keyboard(reader: Reader) -> None:
    reader.page.focus("#prompt")
    reader.page.keyboard.press("Control+A")
    reader.page.keyboard.type(PROMPT)
    reached = []
    for _ in range(20):
        reader.page.keyboard.press("Tab")
        reached.append(reader.page.evaluate("document.activeElement.id"))
        if reached[-1] == "length":
            reader.page.keyboard.press("Home")
        if reached[-1] == "generate":
            break
    assert {"temperature", "length", "generate"} <= set(reached)
    reader.page.keyboard.press("Enter")
    reader.page.wait_for_function("document.querySelector('#status').textContent === 'Done.'")
    assert "16 tokens" in reader.page.inner_text(".figures")


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


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return axe_source(tmp_path_factory.mktemp("axe"))


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible_and_fits_the_screen(
    browser: Browser, address: str, axe: str, scheme: str, width: int
) -> None:
    size = {"width": width, "height": 740}
    with reading(browser, address, viewport=size, color_scheme=scheme) as reader:
        reader.page.evaluate(axe)
        assert violations(reader) == []
        reader.slide("#length", 32)
        choose(reader, "endless", "run")
        reader.generate(PROMPT)
        reader.page.hover(".word >> nth=2")
        assert violations(reader) == []
        wide = reader.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width
        reader.generate(" ")
        assert violations(reader) == []


def violations(reader: Reader) -> list[str]:
    """Return what axe-core finds, in words."""
    found = reader.page.evaluate("axe.run()")["violations"]
    return [f"{entry['id']}: {[node['html'] for node in entry['nodes']]}" for entry in found]


def test_axe_finds_what_is_wrong(browser: Browser, address: str, axe: str) -> None:
    """The negative control: a label gone, and grey on white."""
    with reading(browser, address) as reader:
        reader.page.evaluate("document.querySelector('label[for=prompt]').remove()")
        reader.page.evaluate("document.querySelector('h1').style.color = '#cccccc'")
        reader.page.evaluate(axe)
        found = [entry.partition(":")[0] for entry in violations(reader)]
        assert {"label", "color-contrast"} <= set(found)


def test_a_published_model_tells_in_transformers_js_by_its_name(
    mine: LoopbackHub, client: list[float], reader: Reader, exported_run: Path
) -> None:
    """What stands in docs/page.md, with a Hub on loopback in the place of the real one."""
    publish(exported_run, RunRepository("me/tiny").create())
    told = reader.page.evaluate(
        """async ([host, prompt]) => {
            const { env, pipeline } = await import("@huggingface/transformers");
            Object.assign(env, { remoteHost: host, useBrowserCache: false, useWasmCache: false });
            env.backends.onnx.wasm.wasmPaths = { wasm: "lib/onnxruntime.wasm" };
            env.backends.onnx.wasm.numThreads = 1;
            const storyteller = await pipeline("text-generation", "me/tiny", { dtype: "fp32" });
            const settings = { do_sample: false, max_new_tokens: 32 };
            return (await storyteller(prompt, settings))[0].generated_text;
        }""",
        [f"{mine.url}/", PROMPT],
    )
    assert len(told) > len(PROMPT)
    assert greedy(exported_run, PROMPT).startswith(told)
    assert any("onnx/model.onnx" in request for request in mine.requests)
