"""A built page with two models, and a browser that shows it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GPTNeoConfig, PreTrainedTokenizerFast

pytest.importorskip("onnx", reason="needs the packages of the extra `onnx`")
pytest.importorskip("playwright", reason="needs playwright, of the extra `dev`")
from playwright.sync_api import Browser

from tests.conftest import made_once
from tests.support.page.browser import (
    Reader,
    chromium,
    open_browser,
    reading,
    require_libraries,
    served,
)
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
