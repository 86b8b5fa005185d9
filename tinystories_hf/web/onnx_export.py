"""Export a model folder to `onnx/`, in fp32 and 8 bits, checked against PyTorch.

The layout is that of transformers.js and Optimum, so that both load a published repository:
`onnx/model.onnx` (dtype "fp32"), `onnx/model_quantized.onnx` (dtype "q8").
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from tinystories_hf.core import environment
from tinystories_hf.core.console import command_line
from tinystories_hf.core.errors import RunError, UserError
from tinystories_hf.core.files import (
    check_readable,
    check_writable,
    file_sha256,
    reporting_full_disk,
    sync,
    write_json,
)
from tinystories_hf.core.progress import without_progress_bars
from tinystories_hf.evaluation.suites.cloze import cloze_items
from tinystories_hf.evaluation.validation import encode
from tinystories_hf.model.loading import load_model
from tinystories_hf.model.modeling import GPTNeoForCausalLM
from tinystories_hf.model.positions import context_length
from tinystories_hf.web.onnx_graph import cache_names, write_graph

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

ONNX_FOLDER = "onnx"
FP32, Q8 = "model.onnx", "model_quantized.onnx"
EXPORT_RECORD = "export.json"
WEIGHTS_FILE = "model.safetensors"
# Tolerances of logits (absolute, and relative to the largest one): fp32 sums in another order
# differed by 5e-6 for a trained XS.
ABSOLUTE, RELATIVE = 1e-4, 1e-5
# The largest relative increase of the loss by 8-bit weights that is accepted.
MOST_LOSS_OF_8_BITS = 0.01
CACHED_STEPS = 64

_Ids = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class ExportRecord:
    """The record `export.json`: what was exported, from which weights, and how exactly.

    `safetensors_sha256` is the digest of the file; `weights_sha256` of `eval_results.json` is that
    of the tensors. `largest_difference` is between the fp32 logits and PyTorch's. The losses, in
    nats per token, are over `tokens` tokens of the sentences of the cloze suite.
    """

    safetensors_sha256: str
    parameters: int
    files: dict[str, dict[str, Any]]
    largest_difference: float
    tokens: int
    loss_fp32: float
    loss_8_bit: float
    created: str
    git_commit: str | None
    versions: dict[str, str]

    def __str__(self) -> str:
        sizes = [f"{name} {entry['bytes'] / 1e6:.2f} MB" for name, entry in self.files.items()]
        more = 100 * (self.loss_8_bit / self.loss_fp32 - 1)
        return (
            f"{', '.join(sizes)}; logits within {self.largest_difference:.1e} of PyTorch's; 8 bits"
            f" change the loss by {more:+.2f}% ({self.loss_fp32:.4f} to {self.loss_8_bit:.4f},"
            f" {self.tokens:,} tokens)"
        )


@without_progress_bars()
def export_onnx(folder: Path) -> ExportRecord:
    """Write `onnx/` into a model folder, replacing an older export once the new one is checked.

    Raises:
        UserError: a required package is not installed, the folder has no GPT-Neo with a fast
            tokenizer, or it cannot be written to.
        RunError: the graph differs from the model, 8 bits lose too much, or the disk is full.
    """
    _require_packages()
    check_readable(folder, "model")
    check_writable(folder, "model", "copy it to a folder that you can write to")
    model, tokenizer = _load(folder)
    texts = [item.prompt + item.continuations[item.right] for item in cloze_items()]
    ids = text_ids(tokenizer, texts)
    work = tempfile.TemporaryDirectory(dir=folder, prefix=".onnx.unfinished-")
    with work as name, reporting_full_disk(folder, "writing the ONNX files"):
        fp32, q8 = Path(name) / FP32, Path(name) / Q8
        write_graph(model, fp32)
        difference = largest_difference(model, fp32, ids)
        quantize(fp32, q8)
        losses = [graph_loss(path, ids, context_length(model)) for path in (fp32, q8)]
        _refuse_lossy(*losses)
        record = ExportRecord(
            safetensors_sha256=file_sha256(folder / WEIGHTS_FILE),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            files={path.name: _describe(path) for path in (fp32, q8)},
            largest_difference=difference,
            tokens=len(ids),
            loss_fp32=losses[0],
            loss_8_bit=losses[1],
            created=environment.now(),
            git_commit=environment.git_state()[0],
            versions=environment.library_versions("onnx", "onnxruntime", "onnxscript"),
        )
        _move_in([fp32, q8], folder / ONNX_FOLDER, record)
    return record


def check_onnx_export(folder: Path, names: Sequence[str] | None = None) -> None:
    """Check that exported files are unchanged and belong to the weights beside them.

    `names` are the required graphs, by default all existing ones. Needs none of the packages for
    exporting.

    Raises:
        UserError: there is no export, it belongs to other weights, or a graph is changed or
        missing.
    """
    command = command_line("export", "--model", str(folder))
    path = folder / ONNX_FOLDER / EXPORT_RECORD
    if not path.is_file():
        raise UserError(f"{folder} is not exported; run {command}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        # Records of earlier versions have another key.
        weights = record.get("safetensors_sha256") or record["weights_sha256"]
        stored = {name: entry["sha256"] for name, entry in record["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is not an export record; run {command}") from None
    if weights != file_sha256(folder / WEIGHTS_FILE):
        raise UserError(f"{folder} was exported from other weights; run {command}")
    there = {graph.name for graph in path.parent.glob("*.onnx")}
    for name in sorted(names or there | set(stored)):
        graph = path.parent / name
        if name in there and name not in stored:
            raise UserError(f"{graph} was not created by {command}; remove it")
        if name not in there or file_sha256(graph) != stored[name]:
            raise UserError(f"{graph} has changed since its export; run {command}")


def _require_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"exporting needs the package {error.name}; install the onnx extra with"
            " `pip install --constraint constraints.txt --editable '.[onnx]'`"
        ) from None


def _load(folder: Path) -> tuple[GPTNeoForCausalLM, PreTrainedTokenizerFast]:
    if not (folder / WEIGHTS_FILE).is_file():
        raise UserError(f"model: {folder} is not a model folder: it has no {WEIGHTS_FILE}")
    try:
        kind = AutoConfig.from_pretrained(folder).model_type
        if kind != "gpt_neo":
            raise UserError(
                f"model: {folder} is a {kind}; only GPT-Neo is supported; use Optimum for others"
            )
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = load_model(str(folder))
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"model: cannot load {folder}: {error}") from None
    assert isinstance(model, GPTNeoForCausalLM)  # for the type checker
    return model.float().eval(), tokenizer


def text_ids(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> _Ids:
    """Return the ids of concatenated texts, each followed by an EOS, (tokens,)."""
    ids = [token for text in texts for token in (*encode(tokenizer, text), tokenizer.eos_token_id)]
    return np.array(ids, dtype=np.int64)


def open_graph(path: Path) -> InferenceSession:
    """Open a graph on the CPU, with the number of threads of PyTorch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_graph(
    session: InferenceSession,
    input_ids: _Ids,
    attention_mask: _Ids,
    past_key_values: Sequence[Floats] | None = None,
) -> tuple[Floats, list[Floats]]:
    """Return the logits (batch, length, vocabulary) and the caches after `input_ids`.

    `input_ids` is (batch, length), `attention_mask` (batch, past + length) with zeros for padding
    on the left; `past_key_values` is None at the start of a text.
    """
    caches = [value for value in session.get_inputs() if value.name.startswith("past_key_values")]
    if past_key_values is None:
        heads, size = caches[0].shape[1], caches[0].shape[3]
        past_key_values = [np.zeros((len(input_ids), heads, 0, size), np.float32)] * len(caches)
    positions = np.maximum(attention_mask.cumsum(1) - 1, 0)[:, -input_ids.shape[1] :]
    feeds = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": positions}
    names = cache_names(len(caches) // 2, "past_key_values")
    feeds |= dict(zip(names, past_key_values, strict=True))
    logits, *present = session.run(None, feeds)
    return logits, present


def largest_difference(model: GPTNeoForCausalLM, path: Path, ids: _Ids) -> float:
    """Compare a graph with PyTorch on the first tokens of a text; return the largest difference.

    Compared are texts of one token, of a few, and of the full context, alone and in a batch of
    three with padding, and then token by token with the cache.

    Raises:
        RunError: the logits differ by more than the rounding of fp32.
    """
    session, context = open_graph(path), context_length(model)
    ids = np.resize(ids, context)
    largest = 0.0
    for length in sorted({1, 2, context // 3, context}):
        for rows in (1, 3):
            batch, mask = left_padded(ids[:length], rows)
            logits, _ = run_graph(session, batch, mask)
            what = f"{rows} rows of {length} tokens"
            largest = max(largest, _compare(_logits(model, batch, mask), logits, mask, what))
    whole = _logits(model, ids[None], np.ones_like(ids[None]))
    first = max(1, context - CACHED_STEPS)
    logits, cache = run_graph(session, ids[None, :first], np.ones((1, first), np.int64))
    for step in range(first, context):
        seen = np.ones((1, step + 1), np.int64)
        logits, cache = run_graph(session, ids[None, step : step + 1], seen, cache)
        what = f"token {step + 1} after a cache"
        one = np.ones((1, 1), np.int64)
        largest = max(largest, _compare(whole[:, step : step + 1], logits, one, what))
    return largest


def left_padded(ids: _Ids, rows: int) -> tuple[_Ids, _Ids]:
    """Return rows with the same end and increasing left padding, and their mask, (rows, tokens)."""
    batch, mask = np.tile(ids, (rows, 1)), np.ones((rows, len(ids)), np.int64)
    for row in range(1, rows):
        gone = row * len(ids) // (rows + 1)
        batch[row, :gone], mask[row, :gone] = 0, 0
    return batch, mask


@torch.inference_mode()
def _logits(model: GPTNeoForCausalLM, batch: _Ids, mask: _Ids) -> Floats:
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    found = model(
        input_ids=torch.from_numpy(batch),
        attention_mask=torch.from_numpy(mask),
        position_ids=torch.from_numpy(positions),
    )
    logits: Floats = found.logits.numpy()
    return logits


def _compare(expected: Floats, found: Floats, mask: _Ids, what: str) -> float:
    real = mask.astype(bool)
    expected, found = expected[real], found[real]
    difference = float(np.abs(expected - found).max())
    if not difference <= ABSOLUTE + RELATIVE * float(np.abs(expected).max()):
        raise RunError(
            f"the exported graph differs from the model: for {what} the logits differ by"
            f" {difference:.2e}; nothing was written"
        )
    return difference


def quantize(fp32: Path, path: Path) -> None:
    """Write a graph with 8-bit weights: matrices per column, embeddings per tensor.

    Activations are quantized dynamically. The token embedding stays tied to the head.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    log = logging.getLogger()
    level = log.level
    log.setLevel(logging.ERROR)  # it recommends a preprocessing step that this graph does not need
    try:
        quantize_dynamic(fp32, path, weight_type=QuantType.QInt8, per_channel=True)
    finally:
        log.setLevel(level)


def graph_loss(path: Path, ids: _Ids, context: int) -> float:
    """Return the loss of a graph in nats per token, over windows of the context length.

    The first token of each window is not predicted.
    """
    session, total, count = open_graph(path), 0.0, 0
    for start in range(0, len(ids) - 1, context - 1):
        window = ids[start : start + context]
        logits, _ = run_graph(session, window[None], np.ones((1, len(window)), np.int64))
        scores = torch.from_numpy(logits[0, :-1]).double().log_softmax(-1)
        total -= float(scores.gather(1, torch.from_numpy(window[1:, None])).sum())
        count += len(window) - 1
    return total / count


def _refuse_lossy(fp32: float, q8: float) -> None:
    if not q8 <= fp32 * (1 + MOST_LOSS_OF_8_BITS):
        raise RunError(
            f"8-bit weights raise the loss from {fp32:.4f} to {q8:.4f}, more than"
            f" {MOST_LOSS_OF_8_BITS:.0%}; nothing was written"
        )


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _move_in(files: Sequence[Path], folder: Path, record: ExportRecord) -> None:
    """Replace the files of a folder; the record is removed first and written last."""
    folder.mkdir(exist_ok=True)
    (folder / EXPORT_RECORD).unlink(missing_ok=True)
    for path in files:
        sync(path)
        path.replace(folder / path.name)
    write_json(folder / EXPORT_RECORD, asdict(record))
