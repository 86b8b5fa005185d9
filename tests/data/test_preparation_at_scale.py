"""Measure a gigabyte of text; it takes minutes: `python -m pytest -m slow -s`."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, environment

NAMES = ("Lily", "Tom", "Mia", "Ben", "Sara", "Max", "Anna", "Tim", "Sue", "Jack")


def write_a_gigabyte(source: Path, path: Path) -> None:
    """Repeat the real stories in a new order each time, with other names and a number added."""
    stories = [
        part.strip("\n") for part in source.read_text(encoding="utf-8").split("<|endoftext|>")
    ]
    draw = random.Random(0)
    written = 0
    with path.open("w", encoding="utf-8") as stream:
        while written < 10**9:
            draw.shuffle(stories)
            for story in stories:
                one, other = draw.sample(NAMES, 2)
                varied = f"{story.replace(one, other)} {draw.randrange(10**6)}\n<|endoftext|>\n"
                written += stream.write(varied)


def run_measured(command: list[str], folder: Path) -> tuple[float, int]:
    """Return the seconds and the peak memory in bytes of a process and all its children."""
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(
        command, env={**environment(folder / "home"), "OMP_NUM_THREADS": "2"}, cwd=folder
    )
    tree = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            family = [tree, *tree.children(recursive=True)]
            peak = max(peak, sum(member.memory_info().rss for member in family))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.1)
    assert process.wait() == 0
    return time.perf_counter() - start, peak


@pytest.mark.slow
def test_a_gigabyte_is_prepared_fast_in_little_memory(shared: Path, tmp_path: Path) -> None:
    write_a_gigabyte(shared / "data/tinystories/TinyStories-train.txt", tmp_path / "gb.txt")
    tokenizer = str(shared / "data/gpt-neo-tokenizer")
    command = [sys.executable, str(ROOT / "scripts/prepare_data.py"), "--dataset", "gb.txt"]
    command += ["--tokenizer", tokenizer, "--prepared_dir", "prepared"]
    seconds, peak = run_measured(command, tmp_path)
    again, _ = run_measured(command, tmp_path)
    (manifest,) = (tmp_path / "prepared").glob("*/manifest.json")
    content = json.loads(manifest.read_text())
    tokens = sum(content[split]["tokens_in"] for split in ("train", "validation"))
    print(
        f"\n{tokens:,} tokens, {tokens / seconds:,.0f} tokens/s, peak {peak / 1e9:.2f} GB,"
        f" from the cache in {again:.1f} s"
    )
    assert peak < 2e9
    assert tokens / seconds > 0.8e6
    assert again < 5


ASK = """
import random, sys, time
from tests.evaluation.suites.test_memorization import generations
from tinystories_hf.config.command_line import parse_arguments
from tinystories_hf.data.readers.text_files import read_text
from tinystories_hf.evaluation.suites.memorization import compare
from tinystories_hf.evaluation.suites.training_index import load_training_index
from pathlib import Path

start = time.perf_counter()
data = parse_arguments(["--dataset", "gb.txt", "--prepared_dir", "prepared"]).data
index = load_training_index(data, quiet=True)
opened = time.perf_counter()
if len(sys.argv) > 1:
    stories = [story for _, story in zip(range(2000), read_text(Path("gb.txt")))]
    parts = generations(stories, 2637, 0)  # six of them are as long as a generated story
    texts = [" ".join(sum(parts[at : at + 6], [])) for at in range(0, len(parts), 6)]
    asked = time.perf_counter()
    compare(texts, texts, index)
    seconds = time.perf_counter() - asked
    words = sum(len(text.split()) for text in texts)
    print(f"{len(texts)} generations, {words} words: {seconds:.1f} s", flush=True)
else:
    made = index.manifest
    print(f"{made.stories:,} stories, {made.words:,} words: {opened - start:.1f} s", flush=True)
"""


@pytest.mark.slow
def test_a_gigabyte_is_indexed_and_searched_in_minutes(shared: Path, tmp_path: Path) -> None:
    write_a_gigabyte(shared / "data/tinystories/TinyStories-train.txt", tmp_path / "gb.txt")
    (tmp_path / "ask.py").write_text(ASK)
    command = ["env", f"PYTHONPATH={ROOT}", sys.executable, "ask.py"]
    building, most = run_measured(command, tmp_path)
    asking, peak = run_measured([*command, "ask"], tmp_path)
    print(f"built in {building:.0f} s, {most / 1e9:.2f} GB")
    print(f"asked in {asking:.0f} s, {peak / 1e9:.2f} GB")
    assert building < 15 * 60
    assert asking < 2 * 60
    assert max(most, peak) < 3e9
