from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from tests.support.forked import code, run_forked
from tinystories_hf.core.shipped import shipped
from tinystories_hf.evaluation.report.card import default_prompts, render_card


def test_the_card_states_the_facts_of_the_run(trained_run: Path) -> None:
    card = ModelCard.load(trained_run / "README.md")
    assert card.data.pipeline_tag == "text-generation"
    assert "gpt_neo" in card.data.tags
    evaluation = json.loads((trained_run / "eval_results.json").read_text())["loss"]["packed"]
    assert f"{evaluation['loss']:.4f}" in card.text
    assert "37,568 parameters" in card.text
    assert "8 sequences = 512 tokens per step" in card.text
    assert "**Once upon a time**" in card.text


def test_nothing_in_the_card_is_left_open(trained_run: Path) -> None:
    text = (trained_run / "README.md").read_text()
    assert not re.search(r"\{\{|\{%|\bNone\b|\bnan\b|undefined", text)
    assert text == render_card(trained_run, "run")


def changed(trained_run: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> str:
    """Return the card of a run whose record is another."""
    folder.mkdir()
    for name in ("run.json", "train_results.json", "eval_results.json", "samples.md"):
        (folder / name).write_bytes((trained_run / name).read_bytes())
    record = json.loads((folder / "run.json").read_text())
    change(record)
    (folder / "run.json").write_text(json.dumps(record))
    return render_card(folder)


def trained_on(**source: Any) -> Callable[[dict[str, Any]], None]:
    """Return a change of a record to another text."""

    def change(record: dict[str, Any]) -> None:
        for split in ("train", "validation"):
            record["dataset"][split]["source"] = {"commit": "f54c", **source}

    return change


# What is true of TinyStories, and of nobody else's text.
ITS_OWN = ("tinystories\n", "2305.07759", "simple English", "Eldan", "child's vocabulary", "CDLA")


def test_facts_of_tinystories_are_on_its_own_cards_alone(trained_run: Path, tmp_path: Path) -> None:
    own = trained_on(hub="roneneldan/TinyStories", split="train")
    text = changed(trained_run, tmp_path / "own", own)
    assert all(fact in text for fact in ITS_OWN)
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    assert ModelCard.load(tmp_path / "README.md").data.language == ["en"]

    others = [
        trained_on(hub="me/histoires", split="train"),
        trained_on(files=[{"name": "contes.txt", "bytes": 9, "sha256": "ab"}], column=None),
    ]
    for number, other in enumerate(others):
        text = changed(trained_run, tmp_path / f"other{number}", other)
        assert not [
            fact for fact in (*ITS_OWN, "license:", "language:", "stories of the") if fact in text
        ]
        (tmp_path / "README.md").write_text(text, encoding="utf-8")
        assert (
            ModelCard.load(tmp_path / "README.md")
            .data.to_dict()
            .keys()
            .isdisjoint({"license", "language"})
        )
        assert "trained only on the text below" in text
        assert not re.search(r"\{\{|\{%|\bNone\b|undefined", text)
    toy = (trained_run / "README.md").read_text(encoding="utf-8")
    assert "simple English" in toy
    assert "license:" not in toy
    assert "Eldan" not in toy


def test_licence_and_language_are_what_the_settings_say(trained_run: Path, tmp_path: Path) -> None:
    def in_french(record: dict[str, Any]) -> None:
        trained_on(hub="me/histoires", split="train")(record)
        record["configuration"]["hub"] |= {"license": "cc-by-4.0", "language": ["fr", "no"]}

    (tmp_path / "README.md").write_text(
        changed(trained_run, tmp_path / "a", in_french), encoding="utf-8"
    )
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.license, data.language) == ("cc-by-4.0", ["fr", "no"])

    def earlier(record: dict[str, Any]) -> None:
        del record["configuration"]["hub"]["license"], record["configuration"]["hub"]["language"]

    assert "license:" not in changed(trained_run, tmp_path / "b", earlier), "an earlier version's"


def test_the_prompts_of_the_user_are_offered_and_the_defaults_only_for_english_stories(
    trained_run: Path, tmp_path: Path
) -> None:
    def default(record: dict[str, Any]) -> None:
        trained_on(hub="me/histoires", split="train")(record)
        record["configuration"]["training"]["sample_prompts"] = default_prompts()

    own = changed(trained_run, tmp_path / "a", trained_on(hub="me/histoires", split="train"))
    assert "widget:\n- text: Once upon a time" in own
    assert "widget:" not in changed(trained_run, tmp_path / "b", default)


def test_the_paper_stands_beside_a_model_of_its_shape_alone(
    trained_run: Path, tmp_path: Path
) -> None:
    def xs(record: dict[str, Any]) -> None:
        record["configuration"]["model"] |= {"hidden_size": 64, "num_layers": 8}
        record["configuration"]["model"]["vocab_size"] = 50_257

    def xs_on_tinystories(record: dict[str, Any]) -> None:
        xs(record)
        trained_on(hub="roneneldan/TinyStories", split="train")(record)

    text = changed(trained_run, tmp_path / "xs", xs_on_tinystories)
    assert "The paper gives 2.08 nats per token" in text
    assert "The paper gives" not in changed(trained_run, tmp_path / "other text", xs)
    assert "The paper gives" not in (trained_run / "README.md").read_text()


def test_energy_is_stated_where_the_power_is_known(trained_run: Path, tmp_path: Path) -> None:
    def on_gpus(record: dict[str, Any]) -> None:
        record["sessions"][-1]["power_limit_watts"] = 700.0
        record["sessions"][-1]["batch"]["num_processes"] = 8

    seconds = json.loads((trained_run / "train_results.json").read_text())["training_seconds"]
    text = changed(trained_run, tmp_path / "gpus", on_gpus)
    assert f"at most {700 * 8 * seconds / 3.6e6:.3f} kWh" in text
    assert "kWh" not in (trained_run / "README.md").read_text(), "unknown is left out"


def test_a_card_of_a_hub_dataset_names_it_and_its_revision(
    trained_run: Path, tmp_path: Path
) -> None:
    def change(record: dict[str, Any]) -> None:
        for split in ("train", "validation"):
            source = {"hub": "roneneldan/TinyStories", "commit": "f54c", "split": split}
            record["dataset"][split]["source"] = source

    text = changed(trained_run, tmp_path / "hub", change)
    (tmp_path / "README.md").write_text(text)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.datasets == ["roneneldan/TinyStories"]
    assert {result.dataset_revision for result in card.data.eval_results} == {"f54c"}
    assert {result.dataset_split for result in card.data.eval_results} == {"validation"}
    assert "at revision `f54c`" in text


def test_the_defects_of_a_dataset_stand_on_its_own_cards_alone(
    trained_run: Path, tmp_path: Path
) -> None:
    first = trained_on(hub="roneneldan/TinyStories", split="train")
    second = trained_on(hub="roneneldan/TinyStories", file="TinyStoriesV2-GPT4-train.txt")
    assert "6,601 of the 21,990" in changed(trained_run, tmp_path / "v1", first)
    assert "6,601 of the 21,990" not in changed(trained_run, tmp_path / "v2", second)


def test_the_template_is_at_the_top_of_the_checkout() -> None:
    assert shipped("model_card.md").name == "model_card.md"
    assert shipped("model_card.md").exists()


def test_the_snippet_of_the_card_runs(trained_run: Path, tmp_path: Path) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", (trained_run / "README.md").read_text(), re.S)
    home = {"HF_HOME": str(tmp_path)}
    done = run_forked(trained_run.parent, code, snippet, [], variables=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Once upon a time")
