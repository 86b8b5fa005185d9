r"""Measure an exported model and the page that runs it; see docs/page.md.

    python -m tests.support.page.measure --model runs/xs-150 --out docs/results/page-cpu.json \
        --text ../shared/data/tinystories/TinyStories-valid.txt

Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser
from transformers import AutoTokenizer

from tests.support.page.browser import open_browser, reading, served
from tinystories_hf.core import environment
from tinystories_hf.core.files import file_sha256, write_json
from tinystories_hf.data.splits import END_OF_TEXT
from tinystories_hf.model.loading import load_model
from tinystories_hf.model.positions import context_length
from tinystories_hf.web import onnx_export
from tinystories_hf.web.page import Dtype, build_page

PROMPT = "Once upon a time there was a little girl named Lily. She had a"
ROUNDS = 5


def measure_graphs(folder: Path, text: Path) -> dict[str, Any]:
    """Compare both files with PyTorch and with each other on real stories."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load_model(str(folder)).eval()
    stories = [story.strip() for story in text.read_text(encoding="utf-8").split(END_OF_TEXT)]
    ids = onnx_export.text_ids(tokenizer, [story for story in stories if story])
    fp32, q8 = (folder / "onnx" / name for name in (onnx_export.FP32, onnx_export.Q8))
    context = context_length(model)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": {path.name: path.stat().st_size for path in (fp32, q8)},
        "largest_difference": onnx_export.largest_difference(model, fp32, ids),
        "tokens": len(ids),
        "loss": {path.name: onnx_export.graph_loss(path, ids, context) for path in (fp32, q8)},
        "text_sha256": file_sha256(text),
    }


def measure_telling(browser: Browser, folder: Path, dtype: Dtype) -> dict[str, Any]:
    """Return milliseconds from the click to the first word, and tokens per second after it.

    `cold` begins with nothing cached, `reloaded` with the files in the browser's cache, `loaded`
    with the model in memory. A story is generated until the context is full or it ends.
    """
    with tempfile.TemporaryDirectory() as work:
        build_page({"model": folder}, Path(work) / "site", dtype)
        with served(Path(work) / "site") as url, reading(browser, url) as reader:

            def generate(button: str = "#generate") -> dict[str, float]:
                reader.generate(PROMPT if button == "#generate" else None, button)
                assert not reader.problem(), reader.problem()
                data = reader.page.evaluate("({...document.querySelector('article').dataset})")
                return {name: float(value) for name, value in data.items()}

            cold = generate()
            reader.page.reload()
            reloaded = generate()
            stories = [generate("#again") for _ in range(ROUNDS)]
    rates = [1000 * found["tokens"] / found["workingMs"] for found in stories]
    return {
        "cold_ms": cold["loadMs"] + cold["firstMs"],
        "reloaded_ms": reloaded["loadMs"] + reloaded["firstMs"],
        "loaded_ms": statistics.median(found["firstMs"] for found in stories),
        "tokens_per_second": {
            "median": statistics.median(rates),
            "lowest": min(rates),
            "highest": max(rates),
        },
        "tokens": [int(found["tokens"]) for found in stories],
    }


def table(found: dict[str, Any]) -> str:
    """Return the measurements as docs/page.md shows them."""
    fp32, q8 = onnx_export.FP32, onnx_export.Q8
    more = 100 * (found["loss"][q8] / found["loss"][fp32] - 1)
    rates = {kind: told["tokens_per_second"] for kind, told in found["telling"].items()}
    rows = [
        ("what", "fp32", "8 bits"),
        ("---", "---", "---"),
        ("file, bytes", *(f"{found['bytes'][name]:,}" for name in (fp32, q8))),
        ("largest difference of logits from PyTorch's", f"{found['largest_difference']:.1e}", ""),
        (
            f"loss over {found['tokens']:,} tokens, nats per token",
            f"{found['loss'][fp32]:.4f}",
            f"{found['loss'][q8]:.4f} ({more:+.3f}%)",
        ),
        *(
            (
                f"first word, {what}, ms",
                *(f"{found['telling'][kind][f'{what}_ms']:,.0f}" for kind in ("fp32", "q8")),
            )
            for what in ("cold", "reloaded", "loaded")
        ),
        (
            "tokens per second, median (lowest to highest)",
            *(
                f"{rates[kind]['median']:.0f} ({rates[kind]['lowest']:.0f} to"
                f" {rates[kind]['highest']:.0f})"
                for kind in ("fp32", "q8")
            ),
        ),
    ]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    commit = (found["git_commit"] or "")[:10]
    where = f"{found['device']}, {found['browser']}, at commit `{commit}`."
    return "\n".join([*lines, "", where])


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="exported run directory")
    parser.add_argument("--text", type=Path, required=True, help="stories between end of texts")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    flags = parser.parse_args()
    found = measure_graphs(flags.model, flags.text)
    with open_browser() as browser:
        found["browser"] = f"Chromium {browser.version}, headless, WASM, one thread"
        kinds: tuple[Dtype, ...] = ("q8", "fp32")
        found["telling"] = {kind: measure_telling(browser, flags.model, kind) for kind in kinds}
    commit, dirty = environment.git_state()
    exported = json.loads((flags.model / "onnx" / onnx_export.EXPORT_RECORD).read_text())
    found |= {
        "safetensors_sha256": exported["safetensors_sha256"],
        "created": environment.now(),
        "git_commit": commit,
        "git_dirty": dirty,
        "versions": exported["versions"],
        "device": environment.describe_device("cpu"),
    }
    write_json(flags.out, found)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
