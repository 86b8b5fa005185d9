"""The measures that are metrics, as modules of `evaluate`; no network is needed for any.

    import evaluate
    from tinystories_hf.evaluation.metrics import Distinct, Repetition

    evaluate.combine([Distinct(), Repetition()]).compute(predictions=stories)

Each takes lists of texts, or what its `inputs_description` says, and returns a dictionary of
numbers; the functions behind them are those of the suites. Empty lists are a `ValueError`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from tinystories_hf.evaluation.intervals import require_some
from tinystories_hf.evaluation.suites import ngrams
from tinystories_hf.evaluation.suites.cloze import credit
from tinystories_hf.evaluation.suites.ngrams import words_of

_PAPER = """\
@article{eldan2023tinystories,
  title   = {TinyStories: How Small Can Language Models Be and Still Speak Coherent English?},
  author  = {Eldan, Ronen and Li, Yuanzhi},
  journal = {arXiv preprint arXiv:2305.07759},
  year    = {2023}
}"""
TEXT = datasets.Value("string")


def _info(
    description: str, inputs: str, features: dict[str, Any], citation: str = _PAPER
) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=description,
        citation=citation,
        inputs_description=inputs,
        features=datasets.Features(features),
    )


class BitsPerByte(evaluate.Metric):
    """Loss that compares across tokenizers."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "Bits that a model needs for a byte of UTF-8 text: summed negative log-likelihoods in"
            " nats, over ln 2 and over the bytes (Gao et al., 2020).",
            "predictions: the negative log-likelihood of each whole text in nats; references: the"
            " texts.",
            {"predictions": datasets.Value("float64"), "references": TEXT},
            citation="https://arxiv.org/abs/2101.00027",
        )

    def _compute(self, predictions: Sequence[float], references: Sequence[str]) -> dict[str, float]:
        text_bytes = sum(len(text.encode()) for text in references)
        if not text_bytes:
            raise ValueError("there is nothing to measure: the references hold no byte")
        return {"bits_per_byte": math.fsum(predictions) / math.log(2) / text_bytes}


class ClozeAccuracy(evaluate.Metric):
    """The share of right choices; a tie shares the credit."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "How often the right answer of several has the highest score, and what choosing"
            " blindly gives.",
            "predictions: the scores of the answers of each item; references: the number of the"
            " right one, from 0.",
            {
                "predictions": datasets.Sequence(datasets.Value("float64")),
                "references": datasets.Value("int64"),
            },
        )

    def _compute(
        self, predictions: Sequence[Sequence[float]], references: Sequence[int]
    ) -> dict[str, float]:
        require_some(references)
        for scores, right in zip(predictions, references, strict=True):
            if not 0 <= right < len(scores):
                raise ValueError(f"{right} is not the number of one of {len(scores)} answers")
        shares = [credit(*pair) for pair in zip(predictions, references, strict=True)]
        chances = [1 / len(scores) for scores in predictions]
        return {
            "accuracy": sum(shares) / len(shares),
            "chance": sum(chances) / len(chances),
        }


class Distinct(evaluate.Metric):
    """Diversity of a set of texts."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "Distinct k-grams over all k-grams of all texts, for k from 1 to 4 (distinct-n, Li et"
            " al., 2016). It falls with the amount of text: compare equal amounts.",
            "predictions: the texts.",
            {"predictions": TEXT},
            citation="https://aclanthology.org/N16-1014",
        )

    def _compute(self, predictions: Sequence[str]) -> dict[str, float]:
        require_some(predictions)
        texts = [words_of(text) for text in predictions]
        return {f"distinct_{k}": ngrams.distinct(texts, k) for k in (1, 2, 3, 4)}


class SelfBleu(evaluate.Metric):
    """Likeness of texts to one another."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "The mean BLEU-4 of each text against all others (Zhu et al., 2018); 1 is all the"
            " same.",
            "predictions: the texts.",
            {"predictions": TEXT},
            citation="https://arxiv.org/abs/1802.01886",
        )

    def _compute(self, predictions: Sequence[str]) -> dict[str, float]:
        require_some(predictions)
        found = ngrams.self_bleu([words_of(text) for text in predictions])
        return {"self_bleu": sum(found) / len(found)}


class Repetition(evaluate.Metric):
    """How much of a text it has said before."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "The mean share of a text's 4-grams that stood earlier in it (seq-rep-4, Welleck et"
            " al., 2020).",
            "predictions: the texts.",
            {"predictions": TEXT},
            citation="https://arxiv.org/abs/1908.04319",
        )

    def _compute(self, predictions: Sequence[str]) -> dict[str, float]:
        require_some(predictions)
        shares = [ngrams.repetition(words_of(text)) for text in predictions]
        return {"repetition": sum(shares) / len(shares)}


class RougeOverlap(evaluate.Metric):
    """Overlap of texts with their true endings, as section 4.4.1 of the paper measures it."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "Rouge-k over distinct k-grams, k 2 and 3: the mean share of a text's k-grams that"
            " stand in its reference, and the mean f-measure.",
            "predictions: the texts; references: a text for each.",
            {"predictions": TEXT, "references": TEXT},
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        require_some(references)
        pairs = [
            (words_of(text), words_of(reference))
            for text, reference in zip(predictions, references, strict=True)
        ]
        found = {}
        for k in (2, 3):
            for name, measure in (("precision", ngrams.rouge_precision), ("f", ngrams.rouge_f)):
                values = [measure(text, reference, k) for text, reference in pairs]
                found[f"rouge_{k}_{name}"] = sum(values) / len(values)
        return found
