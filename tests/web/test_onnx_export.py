"""The exported graph is the model: real text, any length and batch, with and without its cache."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoConfig

from tests.conftest import made_once
from tinystories_hf.core.errors import RunError, UserError
from tinystories_hf.core.files import file_sha256
from tinystories_hf.evaluation.validation import encode
from tinystories_hf.model.modeling import GPTNeoForCausalLM

onnx = pytest.importorskip("onnx", reason="needs the packages of the extra `onnx`")
from tinystories_hf.web import onnx_export, onnx_graph  # noqa: E402

PROMPT = "Once upon a time there was a little girl named Lily. She had a"


def xs_model(seed: int) -> GPTNeoForCausalLM:
    """Return an XS with weights large enough that its logits are a trained model's, to about 20."""
    config = GPTNeoConfig(
        vocab_size=50257,
        hidden_size=64,
        num_layers=8,
        num_heads=16,
        max_position_embeddings=512,
        attention_types=[[["global", "local"], 4]],
        initializer_range=0.2,
    )
    torch.manual_seed(seed)
    model = GPTNeoForCausalLM(config)
    model.eval()
    return model


@pytest.fixture(scope="session")
def xs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an XS and its graph."""

    def make(folder: Path) -> None:
        model = xs_model(seed=0)
        model.save_pretrained(folder)
        onnx_graph.write_graph(model, folder / "model.onnx")

    return made_once(tmp_path_factory, "xs", make)


def real_ids(shared: Path) -> np.ndarray:
    tokenizer = AutoTokenizer.from_pretrained(shared / "data" / "gpt-neo-tokenizer")
    text = (shared / "data" / "tinystories" / "TinyStories-valid.txt").read_text()
    return np.array(encode(tokenizer, text[:10_000])[:512], dtype=np.int64)


@pytest.mark.parametrize("rows", [1, 3])
def test_xs_gives_the_logits_of_stock_transformers_at_every_length(
    xs: Path, shared: Path, rows: int
) -> None:
    stock = AutoModelForCausalLM.from_pretrained(xs, attn_implementation="eager").eval()
    session, ids = onnx_export.open_graph(xs / "model.onnx"), real_ids(shared)
    for length in (1, 2, 7, 100, 256, 257, 400, 511, 512) if rows == 1 else (1, 100, 257, 512):
        batch, mask = onnx_export.left_padded(ids[:length], rows)
        positions = np.maximum(mask.cumsum(1) - 1, 0)
        with torch.inference_mode():
            expected = stock(
                input_ids=torch.from_numpy(batch),
                attention_mask=torch.from_numpy(mask),
                position_ids=torch.from_numpy(positions),
            ).logits.numpy()
        logits, _ = onnx_export.run_graph(session, batch, mask)
        assert 5 < np.abs(expected).max() < 100
        assert np.abs(logits - expected)[mask.astype(bool)].max() < 1e-4, length


@pytest.mark.parametrize("rows", [1, 3])
def test_xs_gives_the_same_logits_token_by_token_with_its_cache(
    xs: Path, shared: Path, rows: int
) -> None:
    session, ids = onnx_export.open_graph(xs / "model.onnx"), real_ids(shared)
    batch, mask = onnx_export.left_padded(ids, rows)
    whole, _ = onnx_export.run_graph(session, batch, mask)
    cache = None
    for step in range(512):
        seen = mask[:, : step + 1]
        logits, cache = onnx_export.run_graph(session, batch[:, step : step + 1], seen, cache)
        real = seen[:, -1].astype(bool)
        assert np.abs(logits[real, 0] - whole[real, step]).max() < 1e-4


def test_greedy_text_is_that_of_stock_transformers(xs: Path, shared: Path) -> None:
    stock = AutoModelForCausalLM.from_pretrained(xs).eval()
    session = onnx_export.open_graph(xs / "model.onnx")
    ids = real_ids(shared)[None, :32]
    expected = stock.generate(
        torch.from_numpy(ids), do_sample=False, max_length=300, pad_token_id=50256
    )
    told, cache, given = ids, None, ids
    while told.shape[1] < expected.shape[1]:
        logits, cache = onnx_export.run_graph(session, given, np.ones_like(told), cache)
        given = logits[:, -1:].argmax(-1)
        told = np.concatenate([told, given], axis=1)
    assert told.tolist() == expected.tolist()


def test_a_graph_holds_each_weight_once_and_no_path_of_this_machine(xs: Path) -> None:
    parameters = sum(parameter.numel() for parameter in xs_model(seed=0).parameters())
    assert parameters == 3_647_680
    assert (xs / "model.onnx").stat().st_size <= 1.05 * 4 * parameters
    content = (xs / "model.onnx").read_bytes()
    assert str(Path(onnx_graph.__file__).parent).encode() not in content
    assert str(Path(torch.__file__).parent).encode() not in content


def test_8_bits_hold_xs_in_less_than_4_5_megabytes(xs: Path, tmp_path: Path) -> None:
    onnx_export.quantize(xs / "model.onnx", tmp_path / "q8.onnx")
    assert (tmp_path / "q8.onnx").stat().st_size < 4_500_000


def test_a_graph_of_other_weights_is_refused(xs: Path) -> None:
    other = xs_model(seed=0)
    with torch.no_grad():
        other.transformer.h[7].mlp.c_proj.bias[0] += 0.01
    ids = np.arange(600, dtype=np.int64)
    with pytest.raises(
        RunError, match=r"differs from the model: for 1 rows of 1 tokens .* differ by"
    ):
        onnx_export.largest_difference(other, xs / "model.onnx", ids)


def test_a_graph_that_the_exporter_fixed_to_one_token_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an example of one token gives: the reason for sizes that are all different."""
    config = GPTNeoConfig(
        vocab_size=97,
        hidden_size=8,
        num_layers=1,
        num_heads=2,
        max_position_embeddings=16,
        attention_types=[[["global"], 1]],
        eos_token_id=0,
        bos_token_id=0,
    )
    model = GPTNeoForCausalLM(config).eval()
    monkeypatch.setattr(onnx_graph, "LENGTH", 1)
    with pytest.raises(Exception, match="sequence_length"):
        onnx_graph.write_graph(model, tmp_path / "model.onnx")


def hashes(found: Any) -> Iterator[tuple[str, str]]:
    """Yield each hash in JSON with the name it goes by; files have one of their own each."""
    for key, value in found.items() if isinstance(found, dict) else ():
        if key.endswith("_sha256") and value is not None:
            yield key, value
        yield from hashes(value)
    for value in found if isinstance(found, list) else ():
        yield from hashes(value)


def test_a_hash_has_one_meaning_in_all_files_of_a_run(exported_run: Path) -> None:
    names = ("run.json", "eval_results.json", "onnx/export.json", "checkpoint-20/checkpoint.json")
    meanings: dict[str, set[str]] = {}
    for name in names:
        for key, value in hashes(json.loads((exported_run / name).read_text(encoding="utf-8"))):
            meanings.setdefault(key, set()).add(value)
    assert {"weights_sha256", "safetensors_sha256", "vocab_sha256"} <= meanings.keys()
    assert [key for key, values in meanings.items() if len(values) > 1] == []


def test_an_export_that_an_earlier_version_recorded_is_still_read(
    exported_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(exported_run, tmp_path / "run"))
    path = run / "onnx" / "export.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["weights_sha256"] = record.pop("safetensors_sha256")
    path.write_text(json.dumps(record), encoding="utf-8")
    onnx_export.check_onnx_export(run)


def test_an_export_says_what_it_was_made_from_and_how_near_it_is(exported_run: Path) -> None:
    record = json.loads((exported_run / "onnx" / "export.json").read_text())
    assert record["safetensors_sha256"] == file_sha256(exported_run / "model.safetensors")
    for name in ("model.onnx", "model_quantized.onnx"):
        path = exported_run / "onnx" / name
        assert record["files"][name]["sha256"] == file_sha256(path)
    assert 0 < record["largest_difference"] < 1e-4
    assert record["loss_8_bit"] <= record["loss_fp32"] * 1.01
    assert {"onnx", "onnxruntime", "onnxscript", "torch"} <= set(record["versions"])
    assert not list(exported_run.glob(".onnx*"))


def test_the_loss_of_a_graph_is_that_of_the_model(exported_run: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported_run)
    ids = np.array(encode(tokenizer, PROMPT * 5), dtype=np.int64)[:60]
    model = AutoModelForCausalLM.from_pretrained(exported_run).eval()
    with torch.inference_mode():
        total = sum(
            model(window[None], labels=window[None]).loss.item() * (len(window) - 1)
            for window in (torch.from_numpy(ids[:32]), torch.from_numpy(ids[31:]))
        )
    found = onnx_export.graph_loss(exported_run / "onnx" / "model.onnx", ids, context=32)
    assert found == pytest.approx(total / (len(ids) - 1), rel=1e-5)


def test_8_bits_that_lose_too_much_are_refused() -> None:
    onnx_export._refuse_lossy(2.0, 2.019)
    for loss in (2.021, float("nan")):
        with pytest.raises(RunError, match=r"8-bit weights raise the loss from 2.0000"):
            onnx_export._refuse_lossy(2.0, loss)


def test_a_folder_that_cannot_be_exported_is_one_sentence(
    exported_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"not a model folder: it has no model\.safetensors"):
        onnx_export.export_onnx(tmp_path)
    other = Path(shutil.copytree(exported_run, tmp_path / "gpt2"))
    settings = {"model_type": "gpt2", "vocab_size": 8, "n_embd": 8, "n_layer": 1, "n_head": 1}
    (other / "config.json").write_text(json.dumps(settings))
    with pytest.raises(
        UserError, match="is a gpt2; only GPT-Neo is supported; use Optimum for others"
    ):
        onnx_export.export_onnx(other)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"needs the package onnxscript; install .*\[onnx\]"):
        onnx_export.export_onnx(exported_run)
