"""The page as somebody meets it: a real browser, a real model, no network but loopback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("onnx", reason="needs the packages of the extra `onnx`")
pytest.importorskip("playwright", reason="needs playwright, of the extra `dev`")
from playwright.sync_api import Browser

from tests.support.loopback_hub import LoopbackHub
from tests.support.page.browser import (
    Reader,
    axe_source,
    reading,
)
from tests.web.conftest import CONTEXT, PROMPT
from tinystories_hf.hub.publish import RunRepository, publish


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
