"""The path of the quickstart where text is not UTF-8 by default: the same weights, bit for bit."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY_CONFIG, environment
from tests.support.forked import train_forked

HEROES = ("Zoë", "Tom", "Chloé", "the 龍", "Ben", "Mia")
THINGS = ("a red ball", "“a song”", "a small dog", "an old boat", "a crème", "the moon – so big")
# One process for all three scripts: each takes seconds to import what it needs.
SCRIPTS = """
import runpy, sys
for command in sys.argv[1:]:
    sys.argv = command.split("|")
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def not_utf8(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a locale of CP1252, or where none can be made, of ASCII."""
    if shutil.which("localedef"):
        place = tmp_path / "locales" / "en_US.CP1252"
        place.parent.mkdir()
        words = ["localedef", "-i", "en_US", "-f", "CP1252", str(place)]
        if subprocess.run(words, capture_output=True, check=False).returncode == 0:
            return {"LC_ALL": place.name, "LOCPATH": str(place.parent), "PYTHONUTF8": "0"}
    return {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_the_quickstart_in_a_locale_of_cp1252_gives_the_weights_of_utf8(
    tmp_path: Path, not_utf8: dict[str, str]
) -> None:
    stories = [
        f"Once upon a time {hero} had {thing}. It was number {number}. {hero} was glad."
        for number in range(12)
        for hero in HEROES
        for thing in THINGS
    ]
    text = tmp_path / "stories.txt"
    text.write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    usual, elsewhere = tmp_path / "usual", tmp_path / "elsewhere"
    usual.mkdir()
    elsewhere.mkdir()
    train_forked(usual, "--dataset", str(text))

    config = tmp_path / "tiny.yaml"
    prompts = "sample_prompts: [Zoë and the 龍]"
    changed = TINY_CONFIG.replace("sample_prompts: [Once upon a time]", prompts)
    assert prompts in changed
    config.write_text(changed, encoding="utf-8")
    flags = ["--config", str(config), "--dataset", str(text)]
    commands = [
        ["train.py", *flags],
        ["evaluate.py", "--model", "run", "--dataset", str(text), "--suite", "memorization"],
        ["generate.py", "--model", "run", "--prompt", "Once upon a time", "--max_new_tokens", "9"],
    ]
    lines = ["|".join([str(ROOT / "scripts" / name), *words]) for name, *words in commands]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPTS, *lines],
        cwd=elsewhere,
        env=environment(tmp_path / "home", PYTHONIOENCODING="cp1252", **not_utf8),
        umask=0o022,
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode("cp1252")
    assert "Zoë and the ?" in done.stdout.decode("cp1252")
    weights = "model.safetensors"
    assert (elsewhere / "run" / weights).read_bytes() == (usual / "run" / weights).read_bytes()
    assert "Zoë and the 龍" in (elsewhere / "run" / "samples.md").read_text(encoding="utf-8")
    left = [path for folder in (elsewhere, tmp_path / "home") for path in folder.rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in left if path.is_file()} == {0o644}
