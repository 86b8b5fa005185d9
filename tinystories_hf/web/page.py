"""Build the page: a static folder with the models and the JavaScript libraries.

Any web server can host it, and it loads nothing from elsewhere. `page.json` lists the models, the
facts of their cards, and the size and sha256 of each file.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub import ModelCard

from tinystories_hf.core.errors import RunError, UserError, reporting_unreadable
from tinystories_hf.core.files import check_readable, check_writable, file_sha256, write_json
from tinystories_hf.evaluation.report.card import CARD_FILE
from tinystories_hf.evaluation.suites.stories import PACKAGE_PROMPTS
from tinystories_hf.web import onnx_export
from tinystories_hf.web.libraries import (
    WASM,
    Library,
    cdn_url,
    fetch_library,
    import_map,
    locked_libraries,
)
from tinystories_hf.web.onnx_export import EXPORT_RECORD, FP32, ONNX_FOLDER, Q8, WEIGHTS_FILE

STATIC = Path(__file__).with_name("static")
MANIFEST = "page.json"
SPACE_CARD = "README.md"
BUILT_BY = "tinystories_hf"
DTYPES = {"q8": Q8, "fp32": FP32}
Dtype = Literal["q8", "fp32"]
_MODEL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
MOST_BEGINNINGS = 5
MIT = Path(__file__).with_name("MIT.txt")


@dataclass(frozen=True)
class SiteModel:
    """The entry of a model in `page.json`; `context` in tokens, `end` the EOS token id."""

    name: str
    folder: str
    dtype: Dtype
    context: int
    end: int
    facts: str
    source: str
    files: list[dict[str, Any]]


def build_page(models: Mapping[str, Path], out: Path, dtype: Dtype = "q8") -> str:
    """Build the page for models by their names; return a summary.

    An existing page is replaced when the new one is complete.

    Raises:
        UserError: a model has no export or an outdated one, `out` has other content, or the
            libraries cannot be downloaded.
    """
    _refuse_others(out)
    for place in (out.parent, out):
        check_writable(place, "out")
    for name, folder in models.items():
        check_page_model(name, folder, dtype)
    libraries = {library.name: fetch_library(library) for library in locked_libraries()}
    cdn = None in libraries.values()
    work = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for path in STATIC.iterdir():
        shutil.copyfile(path, work / path.name)  # without permissions: the package may be read-only
    index = (STATIC / "index.html").read_text(encoding="utf-8")
    (work / "index.html").write_text(index.replace("IMPORT_MAP", import_map(cdn)), encoding="utf-8")
    if not cdn:
        _add_libraries(work / "lib", libraries)
    entries = [_add_model(work, name, folder, dtype) for name, folder in models.items()]
    manifest = {
        "built_by": BUILT_BY,
        "models": [asdict(entry) for entry in entries],
        "beginnings": _beginnings(models.values()),
        "wasm": _wasm(cdn),
        "libraries": [
            {"name": library.package, "url": library.url, "licence": library.licence}
            for library in locked_libraries()
        ],
    }
    write_json(work / MANIFEST, manifest)
    (work / SPACE_CARD).write_text(_space_card(models), encoding="utf-8")
    if out.exists():
        shutil.rmtree(out)
    work.rename(out)
    return _summary(out, cdn)


def check_page_model(name: str, folder: Path, dtype: Dtype) -> None:
    """Raise a `UserError` if a model has no ONNX files, or files of other weights."""
    check_readable(folder, name)
    if not (folder / WEIGHTS_FILE).is_file():
        raise UserError(f"{name}: {folder} is not a model folder: it has no {WEIGHTS_FILE}")
    try:
        onnx_export.check_onnx_export(folder, [DTYPES[dtype]])
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def is_page(folder: Path) -> bool:
    """Return whether a folder is a page built by this package."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest["built_by"] == BUILT_BY)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _refuse_others(out: Path) -> None:
    with reporting_unreadable("out", out):
        if out.is_dir() and any(out.iterdir()) and not is_page(out):
            raise UserError(f"out: {out} has other content; choose another folder")
        if out.exists() and not out.is_dir():
            raise UserError(f"out: {out} is a file; choose another folder")


def _add_libraries(folder: Path, cached: Mapping[str, Path | None]) -> None:
    """Copy the libraries with their licences."""
    folder.mkdir()
    for library in locked_libraries():
        source = cached[library.name]
        assert source is not None  # for the type checker: None only without npm
        for file in library.files:
            shutil.copyfile(source / file.to, folder / file.to)
        _add_licence(library, folder)


def _add_licence(library: Library, folder: Path) -> None:
    name = library.name.rpartition("/")[2]
    if (folder / f"{name}.LICENSE.txt").exists():
        return
    text = MIT.read_text(encoding="utf-8").replace("COPYRIGHT", library.copyright)
    (folder / f"{name}.LICENSE.txt").write_text(f"{library.package}\n\n{text}", encoding="utf-8")


def _wasm(cdn: bool) -> dict[str, Any]:
    (found,) = (
        (library, file)
        for library in locked_libraries()
        for file in library.files
        if file.to == WASM
    )
    url = cdn_url(*found) if cdn else f"lib/{WASM}"
    return {"url": url, "bytes": found[1].bytes, "sha256": found[1].sha256}


def _add_model(work: Path, name: str, folder: Path, dtype: Dtype) -> SiteModel:
    target = work / "models" / name
    (target / ONNX_FOLDER).mkdir(parents=True)
    names = [file for file in _MODEL_FILES if (folder / file).is_file()]
    names.append(f"{ONNX_FOLDER}/{DTYPES[dtype]}")
    for file in names:
        shutil.copyfile(folder / file, target / file)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    record = json.loads((folder / ONNX_FOLDER / EXPORT_RECORD).read_text(encoding="utf-8"))
    loss, source = _from_the_card(folder)
    bits = {"q8": "8-bit weights", "fp32": "fp32"}[dtype]
    return SiteModel(
        name=name,
        folder=f"models/{name}",
        dtype=dtype,
        context=_context(folder, config),
        end=config["eos_token_id"],
        facts=f"{record['parameters']:,} parameters, {bits}; {loss}",
        source=source,
        files=[
            {
                "url": f"models/{name}/{file}",
                "bytes": (target / file).stat().st_size,
                "sha256": file_sha256(target / file),
            }
            for file in names
        ],
    )


def _context(folder: Path, config: dict[str, Any]) -> int:
    """Return the context length of the model, as `context_length` does."""
    path = folder / "generation_config.json"
    generation = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    positions = int(config["max_position_embeddings"])
    return min(positions, generation.get("max_length") or positions)


def _from_the_card(folder: Path) -> tuple[str, str]:
    """Return the loss and the origin of the model, from its card."""
    if not (folder / CARD_FILE).is_file():
        return "no card with its loss", "it has no card with its training data"
    data = ModelCard.load(folder / CARD_FILE).data
    losses = [result for result in data.eval_results or [] if result.metric_type == "loss"]
    datasets = [data.datasets] if isinstance(data.datasets, str) else data.datasets or []
    trained = ", ".join(datasets) or (losses[0].dataset_name if losses else "unnamed data")
    source = f"trained on {trained}; licence of the weights: {data.license or 'not stated'}"
    if not losses:
        return "its card has no loss", source
    return f"loss {losses[0].metric_value:.4f} nats per token on its validation split", source


def _beginnings(folders: Any) -> list[str]:
    """Return example prompts from the cards of the models, or else this package's."""
    found: list[str] = []
    for folder in folders:
        widget = _card_data(folder).get("widget") or []
        found += [entry["text"] for entry in widget if entry.get("text")]
    found = found or yaml.safe_load(PACKAGE_PROMPTS.read_text(encoding="utf-8"))
    return list(dict.fromkeys(found))[:MOST_BEGINNINGS]


def _space_card(models: Mapping[str, Path]) -> str:
    """Return the README of a static Space for the page.

    It names a licence, and TinyStories, if the cards of all models do.
    """
    cards = [_card_data(folder) for folder in models.values()]
    head: dict[str, Any] = {
        "title": "Stories from a small model",
        "emoji": "📖",
        "colorFrom": "green",
        "colorTo": "gray",
        "sdk": "static",
        "app_file": "index.html",
        "pinned": False,
        "tags": ["transformers.js"],
    }
    licences = {card.get("license") for card in cards}
    if len(licences) == 1 and None not in licences:
        head["license"] = licences.pop()
    if all("tinystories" in (card.get("tags") or []) for card in cards):
        head["tags"].insert(0, "tinystories")
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    return (
        f"---\n{front}---\n\nStories generated in the browser by {', '.join(models)}: small"
        " language models, trained with tinystories_hf.\n"
    )


def _card_data(folder: Path) -> dict[str, Any]:
    if not (folder / CARD_FILE).is_file():
        return {}
    data: dict[str, Any] = ModelCard.load(folder / CARD_FILE).data.to_dict()
    return data


def _summary(out: Path, cdn: bool) -> str:
    sizes = {path: path.stat().st_size for path in out.rglob("*") if path.is_file()}
    parts = {
        "models": sum(size for path, size in sizes.items() if out / "models" in path.parents),
        "libraries": sum(size for path, size in sizes.items() if out / "lib" in path.parents),
    }
    page = sum(sizes.values()) - sum(parts.values())
    libraries = f"libraries {parts['libraries'] / 1e6:.1f} MB"
    if cdn:
        libraries = "libraries loaded from a CDN, since npm is not installed here"
    return f"{out}: page {page / 1e3:.0f} kB, models {parts['models'] / 1e6:.1f} MB, {libraries}"


def serve(folder: Path, port: int) -> None:
    """Serve a folder on loopback until interrupted, after printing the address.

    Raises:
        RunError: the port is in use; the page has been built.
    """
    handler = functools.partial(_QuietHandler, directory=str(folder))
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise RunError(
            f"port: {port} is not available ({error.strerror}); choose another"
        ) from None
    print(f"serving http://127.0.0.1:{server.server_address[1]}/ until Ctrl+C", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass
