"""The mission command and its publication, as they are, without the network.

On request only: on two cores with stock attention a step of the mission's 80 sequences takes two
minutes and an evaluation one. `short` steps by 8 sequences and evaluates once.

    python -m pytest -m slow -s tests/test_mission_offline.py -k short
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import LAUNCH, ROOT, environment
from tests.model.test_stock_loading import load_stock
from tests.support.loopback_hub import LoopbackHub
from tests.support.loopback_state import Account, StoredRepository
from tinystories_hf.config.command_line import parse_arguments

TOKEN = "hf_loopback"


def parquet(text: Path) -> bytes:
    """Return the stories of a text file as the Hub's own conversion holds them."""
    stories = [part.strip("\n") for part in text.read_text(encoding="utf-8").split("<|endoftext|>")]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": [story for story in stories if story]}), sink)
    return bytes(sink.getvalue())


def hub_of_the_mission(shared: Path) -> LoopbackHub:
    """Return a Hub with the dataset at the pinned commit and the tokenizer."""
    stories = shared / "data/tinystories"
    tokenizer = shared / "data/gpt-neo-tokenizer"
    dataset = StoredRepository(
        {
            "data/train-00000-of-00001.parquet": parquet(stories / "TinyStories-train.txt"),
            "data/validation-00000-of-00001.parquet": parquet(stories / "TinyStories-valid.txt"),
        },
        first_commit=parse_arguments([]).data.dataset_revision,
    )
    files = {path.name: path.read_bytes() for path in tokenizer.iterdir() if path.is_file()}
    return LoopbackHub(
        repositories={
            ("datasets", "roneneldan/TinyStories"): dataset,
            ("models", "EleutherAI/gpt-neo-125m"): StoredRepository(files),
        },
        accounts={TOKEN: Account("me")},
    )


SHORTER = {
    "whole": (),
    "short": ("--global_batch_size", "8", "--eval_steps", "20", "--save_steps", "20"),
}


@pytest.mark.slow
@pytest.mark.parametrize("length", SHORTER)
def test_the_mission_trains_publishes_and_loads_by_name(
    shared: Path, tmp_path: Path, length: str
) -> None:
    with hub_of_the_mission(shared) as hub:
        where = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
        flags = ("--max_steps", "20", "--push_to_hub", *SHORTER[length])
        done = subprocess.run(
            [*LAUNCH, str(ROOT / "scripts" / "train.py"), *flags],
            cwd=tmp_path,
            env=environment(tmp_path / "home", **where),
            capture_output=True,
            text=True,
        )
        print(done.stdout, done.stderr)
        assert done.returncode == 0
        assert f"published   {hub.url}/me/xs" in done.stdout
        other = tmp_path / "elsewhere"
        other.mkdir()
        assert load_stock("me/xs", other, **where)[0] == "GPTNeoForCausalLM"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "xs")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "runs" / "xs")
    ids = tokenizer("Once upon a time there was a cat.", return_tensors="pt").input_ids
    assert torch.equal(model(ids).logits, torch.load(other / "logits.pt", weights_only=True))
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_647_680
