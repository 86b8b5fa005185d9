"""The files by which `datasets` opens a prepared folder: `load_dataset` and `load_from_disk`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from tinystories_hf.core.files import write_text
from tinystories_hf.data.manifest import ROWS_MANIFEST, Manifest, rows_file

ROWS_CARD = "README.md"


def write_dataset_files(folder: Path, manifest: Manifest) -> None:
    """Write what `Dataset.save_to_disk` writes beside the rows, and a card that names the splits.

    `load_dataset` reads the card, `load_from_disk` the other files.
    """
    import datasets

    (folder / "dataset_dict.json").write_text(
        json.dumps({"splits": manifest.prepared}), encoding="utf-8"
    )
    for split in manifest.prepared:
        path = rows_file(folder, split)
        features = datasets.Dataset.from_file(str(path)).features
        datasets.DatasetInfo(features=features).write_to_directory(str(path.parent))
        state: dict[str, Any] = {
            "_data_files": [{"filename": path.name}],
            "_fingerprint": f"{manifest.fingerprint}-{split}",
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": split,
        }
        (path.parent / "state.json").write_text(json.dumps(state), encoding="utf-8")
    write_text(folder / ROWS_CARD, rows_card(manifest))


def rows_card(manifest: Manifest) -> str:
    """Return the dataset card of prepared rows."""
    files = [{"split": name, "path": f"{name}/*.arrow"} for name in manifest.prepared]
    front_matter = {"configs": [{"config_name": "default", "data_files": files}]}
    counts = [asdict(manifest.split(name)) for name in manifest.prepared]
    keys = ("stories_kept", "tokens_in", "tokens_dropped", "rows")
    table = [f"| | {' | '.join(manifest.prepared)} |", "|---" * (len(counts) + 1) + "|"]
    table += [f"| {key} | {' | '.join(f'{part[key]:,}' for part in counts)} |" for key in keys]
    sources = {
        name: manifest.train.source if name == "train" else manifest.validation.source
        for name in manifest.prepared
    }
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(front_matter, sort_keys=False)}---\n",
            "# Packed rows\n",
            f"Stories as token ids, concatenated with `{manifest.tokenizer['eos_token']}` after"
            f" each and cut into rows of {manifest.context_length} ids (`input_ids`,"
            f" {manifest.dtype}). Prepared by tinystories_hf; `{ROWS_MANIFEST}` has all counts.\n",
            f"Tokenizer: {manifest.tokenizer['name']}, {manifest.tokenizer['size']:,} entries, in"
            f" `tokenizer/`. Cleaning: {', '.join(manifest.cleaning) or 'none'}.\n",
            *table,
            f"\nSources:\n\n```json\n{json.dumps(sources, indent=1)}\n```\n",
        ]
    )


def is_prepared(folder: Path) -> bool:
    """Return whether a folder was written by `prepare`."""
    try:
        content = json.loads((folder / ROWS_MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"fingerprint", "context_length"} <= content.keys()
