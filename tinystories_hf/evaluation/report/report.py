"""`evaluation.md`: the results of one or several models as tables and plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tinystories_hf.core.files import write_text
from tinystories_hf.evaluation.report import plots
from tinystories_hf.evaluation.report.paper import (
    FIGURES_9_TO_11,
    GPT_NEO_VOCABULARY,
    MEMORIZATION,
    SOURCE,
    PaperRow,
    paper_bits_per_byte,
    paper_row,
)
from tinystories_hf.evaluation.results import Results
from tinystories_hf.evaluation.suites.rubric import AGE_GROUPS, GRADES

REPORT_FILE = "evaluation.md"
_PAPER = "the paper"


def write_report(results: Sequence[Results], folder: Path) -> Path:
    """Write the report and its plots into a folder and return the path of the report."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = plots.plot_results(results, folder)
    path = folder / REPORT_FILE
    write_text(path, render_report(results, drawn))
    return path


def render_report(results: Sequence[Results], pictures: Sequence[str] = ()) -> str:
    """Return the report in Markdown; `pictures` are the file names of the plots to include."""
    names = ", ".join(model["model"]["name"] for model in results)
    parts = [f"# Evaluation: {names}", _models(results)]
    for suite, make in SECTIONS.items():
        measured = [model for model in results if suite in model]
        if measured:
            parts.append(make(measured))
            parts += [f"![{name}]({name})" for name in pictures if name.startswith(f"{suite}")]
            parts.append(_origins(measured, suite))
    return "\n\n".join(parts) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _models(results: Sequence[Results]) -> str:
    return _table(
        ["model", "parameters", "hidden size x layers", "vocabulary", "context", "weights"],
        [
            [
                _name(model),
                f"{facts['parameters']:,}",
                f"{facts['hidden_size']} x {facts['num_layers']}",
                f"{facts['vocab_size']:,}",
                f"{facts['context_length']:,}",
                f"`{facts['weights_sha256'][:12]}`",
            ]
            for model in results
            for facts in [model["model"]]
        ],
    )


def _name(model: Results) -> str:
    facts = model["model"]
    return (
        f"{facts['name']} ({facts['revision'][:10]})" if facts["revision"] else str(facts["name"])
    )


def with_interval(value: float, interval: Sequence[float] | None, form: str = ".3f") -> str:
    """Return a number and its 95% interval in brackets."""
    if interval is None:
        return f"{value:{form}}"
    return f"{value:{form}} [{interval[0]:{form}}, {interval[1]:{form}}]"


def _mean(found: dict[str, Any], form: str = ".3f") -> str:
    return with_interval(found["mean"], found["interval"], form)


def _paper_row_of(model: Results) -> PaperRow | None:
    return paper_row(model["model"]["hidden_size"], model["model"]["num_layers"])


def _loss(results: Sequence[Results]) -> str:
    """Return the losses of both protocols, and the paper's for the same hidden size and depth."""
    rows = []
    for model in results:
        loss = model["loss"]
        for label, part in readings(loss):
            rows.append(
                [
                    _name(model),
                    label,
                    with_interval(part["loss"], part["loss_interval"], ".4f"),
                    f"{part['perplexity']:.2f}",
                    with_interval(part["bits_per_byte"], part["bits_per_byte_interval"], ".4f"),
                    f"{part['tokens']:,}",
                ]
            )
        paper = _paper_row_of(model)
        if paper is not None:
            same = model["model"]["vocab_size"] == GPT_NEO_VOCABULARY
            per_token = f"{paper.loss:.2f}" if same else "other tokenizer"
            bits = f"about {paper_bits_per_byte(paper):.3f}"
            rows.append([_PAPER, "as published", per_token, "", bits, ""])
    overlap = [
        f"{_name(model)}: {loss['in_training']:,} of {loss['stories']:,} validation stories"
        f" ({loss['in_training'] / loss['stories']:.1%}) also occur in the training split."
        for model in results
        for loss in [model["loss"]]
        if loss["in_training"] is not None  # None: training was streamed
    ]
    header = ["model", "protocol", "nats per token", "perplexity", "bits per byte", "tokens"]
    about = (
        "`packed` concatenates the stories as in training, `by_story` scores each story alone."
        " Losses in nats per token are comparable only with the same tokenizer, bits per byte also"
        f" across tokenizers. The paper: {SOURCE}, same hidden size and number of layers; its bits"
        " per byte are computed from the number of tokens and bytes of its validation text."
    )
    parts = ["## Loss", _table(header, rows), " ".join(overlap), about]
    return "\n\n".join(part for part in parts if part)


def readings(loss: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return the losses by name: both protocols, with and without stories seen in training."""
    found = [("packed", loss["packed"]), ("by_story", loss["by_story"])]
    fresh = loss["not_in_training"]
    if fresh is not None:
        found += [(f"{name}, not in training", fresh[name]) for name in ("packed", "by_story")]
    return found


def _cloze(results: Sequence[Results]) -> str:
    families = list(results[0]["cloze"]["families"])
    rows = []
    for model in results:
        scores = [model["cloze"]["families"][family] for family in families]
        for scoring, key in (("likelihood", ""), ("relative likelihood", "relative_")):
            cells = [
                with_interval(score[f"{key}accuracy"], score[f"{key}interval"], ".1%")
                for score in scores
            ]
            rows.append([_name(model), scoring, *cells])
        shape = (model["model"]["hidden_size"], model["model"]["num_layers"])
        if shape in FIGURES_9_TO_11:
            judged = [f"{right} of {sum((right, half, wrong))}, {half} half right"
                      for right, half, wrong in FIGURES_9_TO_11[shape]]  # fmt: skip
            rows.append([_PAPER, "its own items, judged by eye", *judged])
    first = results[0]["cloze"]["families"]
    rows.append(["chance", "", *(f"{first[family]['chance']:.1%}" for family in families)])
    header = [
        "model",
        "scoring",
        *(f"{family} ({first[family]['items']} items)" for family in families),
    ]
    return "\n\n".join(["## Cloze", _table(header, rows), f"{results[0]['cloze']['protocol']}."])


def _stories(results: Sequence[Results]) -> str:
    measures: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("words", lambda found: _mean(found["words"], ".1f")),
        ("words, median", lambda found: f"{found['words']['median']:.0f}"),
        ("reached the end-of-text token", lambda found: _mean(found["ended"], ".1%")),
        *(
            (f"distinct-{k}", lambda found, k=k: f"{found['distinct'][str(k)]:.3f}")
            for k in (1, 2, 3, 4)
        ),
        ("self-BLEU", lambda found: _mean(found["self_bleu"])),
        ("repeated 4-grams", lambda found: _mean(found["repetition"], ".2%")),
        ("words not in training", lambda found: _mean(found["unknown_words"], ".2%")),
    ]
    rows = [[name, *(show(model["stories"]) for model in results)] for name, show in measures]
    first = results[0]["stories"]
    about = (
        f"{first['completions']} completions of each of {first['prompts']['texts']} prompts"
        f" ({first['prompts']['source']}), temperature {first['temperature']:g}, seed"
        f" {first['seed']}."
    )
    return "\n\n".join(["## Stories", _table(["", *map(_name, results)], rows), about])


def _memorization(results: Sequence[Results]) -> str:
    def spread(found: dict[str, Any], form: str = ".3f") -> str:
        return f"{_mean(found, form)}, highest {found['highest']:{form}}"

    measures: list[tuple[str, Callable[[dict[str, Any]], str], str]] = [
        ("Rouge-2 precision with the true ending",
         lambda found: spread(found["true_ending_rouge_2"]), MEMORIZATION["true_ending_rouge_2"]),
        ("highest Rouge-2 f-measure with another completion",
         lambda found: spread(found["between_rouge_2"]), MEMORIZATION["between_rouge_2"]),
        ("the same between the true endings",
         lambda found: spread(found["endings_between_rouge_2"]), ""),
        *(
            (f"{k}-grams that occur in training",
             lambda found, k=k: spread(found["in_training"][str(k)], ".1%"),
             MEMORIZATION["in_training"] if k > 3 else "")
            for k in (2, 3, 4, 5)
        ),
        ("longest run in training, words", lambda found: spread(found["longest_run"], ".1f"), ""),
        *(
            (f"nearest training story, Rouge-{k} precision",
             lambda found, k=k: spread(found["nearest"][str(k)]),
             MEMORIZATION["nearest"])
            for k in (2, 3)
        ),
        ("copies: stories, passages, pairs of completions", lambda found: ", ".join(
            str(found["copies"][kind]) for kind in ("stories", "passages", "pairs")), ""),
    ]  # fmt: skip
    rows = [
        [name, *(show(model["memorization"]) for model in results), paper]
        for name, show, paper in measures
    ]
    first = results[0]["memorization"]
    training = first["training"]
    about = (
        f"Completions of the first {first['share_given']:.0%} of {len(first['drawn'])} training"
        f" stories at temperature {first['temperature']:g}, seed {first['seed']}, searched in all"
        f" {training['stories']:,} training stories ({training['words']:,} words)."
        " A copied story shares nine tenths of its word pairs with one training story; a passage is"
        " a run of twenty words. The paper (section 4.4.1) shows histograms without means."
    )
    header = ["", *map(_name, results), _PAPER]
    return "\n\n".join(["## Memorization", _table(header, rows), about])


def _judge(results: Sequence[Results]) -> str:
    rows, agreements = [], []
    for model in results:
        for judge in model["judge"]["judges"]:
            grades, failures = judge["grades"], judge["failures"]
            ages = judge["age_groups"]
            rows.append(
                [
                    _name(model),
                    judge["judge"],
                    *(_mean(grades[grade], ".2f") if grades else "" for grade in GRADES),
                    _oldest(ages) if ages else "",
                    f"{judge['graded']} of {judge['stories']}",
                    ", ".join(f"{count} {kind}" for kind, count in failures.items() if count),
                ]
            )
        paper = _paper_row_of(model)
        if paper is not None:
            known = [paper.grammar, paper.creativity, paper.consistency, paper.plot]
            row = [_PAPER, "GPT-4", *(f"{grade:.2f}" for grade in known), "", "", ""]
            rows.append(row)
        for pair in model["judge"]["agreement"]:
            agreements.append(f"{_name(model)}: {_agreement(pair)}")
    header = ["model", "judge", *GRADES, "age group", "graded", "failures"]
    about = (
        "Mean grades from 1 to 10, with bootstrap intervals over prompts. The paper's plot grades"
        " are for models trained on TinyStories-Instruct."
    )
    return "\n\n".join(["## Judge", _table(header, rows), *agreements, about])


def _oldest(ages: dict[str, float]) -> str:
    letter = max(ages, key=lambda letter: ages[letter])
    return f"{letter} ({AGE_GROUPS[letter]}): {ages[letter]:.0%}"


def _agreement(pair: dict[str, Any]) -> str:
    def show(grade: str) -> str:
        found = pair[grade]
        pearson = "undefined" if found["pearson"] is None else f"{found['pearson']:.2f}"
        return f"{grade} r {pearson}, mean difference {found['mean_absolute_difference']:.2f}"

    shown = "; ".join(show(grade) for grade in GRADES if grade in pair)
    return (
        f"{' and '.join(pair['judges'])} on {pair['stories']} stories: {shown or 'none in common'}."
    )


def _origins(results: Sequence[Results], suite: str) -> str:
    """Return when, where and with which versions a suite was run, one line per model."""
    lines = []
    for model in results:
        made = model[suite]["made"]
        commit = f"commit `{made['git_commit'][:10]}`" if made["git_commit"] else "no git"
        dirty = " with local changes" if made["git_dirty"] else ""
        lines.append(
            f"<sub>{_name(model)}: {made['started']}, {made['device']}, {made['seconds']:.0f} s,"
            f" {commit}{dirty}, torch {made['versions']['torch']}, transformers"
            f" {made['versions']['transformers']}.</sub>"
        )
    return "\n".join(lines)


SECTIONS: dict[str, Callable[[Sequence[Results]], str]] = {
    "loss": _loss,
    "cloze": _cloze,
    "stories": _stories,
    "memorization": _memorization,
    "judge": _judge,
}


def other_suites(model: Results) -> list[str]:
    """Return the sections of all suites except the loss, for the model card."""
    found = [suite for suite in SECTIONS if suite in model and suite != "loss"]
    return [f"#{SECTIONS[suite]([model])}" for suite in found]
