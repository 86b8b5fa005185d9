"""Metrics of the suites as `evaluate.Metric` classes, which need no network.

    import evaluate
    from tinystories_hf.evaluation.suites.metrics import Distinct, Repetition

    evaluate.combine([Distinct(), Repetition()]).compute(predictions=stories)

The suites compute their numbers with `compute_metric`. Import this module only where a metric is
computed: `evaluate` takes about half a second to import. Empty lists raise a `ValueError`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from tinystories_hf.evaluation.intervals import require_some
from tinystories_hf.evaluation.suites import ngrams
from tinystories_hf.evaluation.suites.loss import bits_per_byte
from tinystories_hf.evaluation.suites.ngrams import words_of

_PAPER = """\
@article{eldan2023tinystories,
  title   = {TinyStories: How Small Can Language Models Be and Still Speak Coherent English?},
  author  = {Eldan, Ronen and Li, Yuanzhi},
  journal = {arXiv preprint arXiv:2305.07759},
  year    = {2023}
}"""
TEXT = datasets.Value("string")
_PER_TEXT = " With use_aggregator=False, a list with one value for each text."

# A mean, or the values that it is taken of.
Score = float | list[float]


def compute_metric(metric: type[evaluate.Metric], **inputs: Any) -> dict[str, Any]:
    """Return `metric.compute(**inputs)`, without files in the cache of `evaluate`.

    In that cache, evaluations that run at the same time would wait for each other's locks.
    """
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = metric(keep_in_memory=True, cache_dir=folder).compute(**inputs)
    return found


def _info(
    description: str, inputs: str, features: dict[str, Any], citation: str = _PAPER
) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=description,
        citation=citation,
        inputs_description=inputs,
        features=datasets.Features(features),
    )


def _aggregate(values: list[float], use_aggregator: bool) -> Score:
    return sum(values) / len(values) if use_aggregator else values


class BitsPerByte(evaluate.Metric):
    """A loss that is comparable across tokenizers."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "Bits per byte of UTF-8 text: the sum of the negative log-likelihoods in nats, divided"
            " by ln 2 and by the number of bytes (Gao et al., 2020).",
            "predictions: the negative log-likelihood of each text in nats; references: the texts.",
            {"predictions": datasets.Value("float64"), "references": TEXT},
            citation="https://arxiv.org/abs/2101.00027",
        )

    def _compute(self, predictions: Sequence[float], references: Sequence[str]) -> dict[str, float]:
        text_bytes = np.array([len(text.encode()) for text in references], dtype=np.int64)
        if not text_bytes.any():
            raise ValueError("there is nothing to evaluate: the references contain no text")
        return {"bits_per_byte": bits_per_byte(np.array(predictions), text_bytes)}


class ClozeAccuracy(evaluate.Metric):
    """The share of items whose right answer has the highest score."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "The share of items whose right answer has the highest score, and the expected share of"
            " a random choice. A tie of n answers counts as 1/n.",
            "predictions: the scores of the answers of each item; references: the index of the"
            " right answer. With use_aggregator=False, lists with one value for each item.",
            {
                "predictions": datasets.Sequence(datasets.Value("float64")),
                "references": datasets.Value("int64"),
            },
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[float]],
        references: Sequence[int],
        use_aggregator: bool = True,
    ) -> dict[str, Score]:
        require_some(references)
        for scores, right in zip(predictions, references, strict=True):
            if not 0 <= right < len(scores):
                raise ValueError(f"{right} is not the index of one of {len(scores)} answers")
        shares = [_credit(*pair) for pair in zip(predictions, references, strict=True)]
        chances = [1 / len(scores) for scores in predictions]
        return {
            "accuracy": _aggregate(shares, use_aggregator),
            "chance": _aggregate(chances, use_aggregator),
        }


def _credit(scores: Sequence[float], right: int) -> float:
    """Return 1 if the right answer has the highest score, 1/n for a tie of n, otherwise 0.

    Scores that differ by less than 1e-4, the rounding error of fp32 sums, are a tie.
    """
    best = [answer for answer, score in enumerate(scores) if score > max(scores) - 1e-4]
    return 1 / len(best) if right in best else 0.0


class Distinct(evaluate.Metric):
    """The diversity of a set of texts."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "The number of distinct k-grams divided by the number of all k-grams of all texts, for"
            " k from 1 to 4 (distinct-n, Li et al., 2016). It falls with the amount of text, so"
            " compare equal amounts.",
            "predictions: the texts.",
            {"predictions": TEXT},
            citation="https://aclanthology.org/N16-1014",
        )

    def _compute(self, predictions: Sequence[str]) -> dict[str, float]:
        require_some(predictions)
        texts = [words_of(text) for text in predictions]
        return {f"distinct_{k}": ngrams.distinct(texts, k) for k in (1, 2, 3, 4)}


class SelfBleu(evaluate.Metric):
    """The similarity of texts to each other."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "The mean BLEU-4 of each text against all others (Zhu et al., 2018); 1 if all are"
            " equal.",
            "predictions: the texts." + _PER_TEXT,
            {"predictions": TEXT},
            citation="https://arxiv.org/abs/1802.01886",
        )

    def _compute(self, predictions: Sequence[str], use_aggregator: bool = True) -> dict[str, Score]:
        require_some(predictions)
        scores = ngrams.self_bleu([words_of(text) for text in predictions])
        return {"self_bleu": _aggregate(scores, use_aggregator)}


class Repetition(evaluate.Metric):
    """How much a text repeats itself."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "The mean share of a text's 4-grams that occurred earlier in it (seq-rep-4, Welleck et"
            " al., 2020).",
            "predictions: the texts." + _PER_TEXT,
            {"predictions": TEXT},
            citation="https://arxiv.org/abs/1908.04319",
        )

    def _compute(self, predictions: Sequence[str], use_aggregator: bool = True) -> dict[str, Score]:
        require_some(predictions)
        shares = [ngrams.repetition(words_of(text)) for text in predictions]
        return {"repetition": _aggregate(shares, use_aggregator)}


class RougeOverlap(evaluate.Metric):
    """The overlap of texts with their references (section 4.4.1 of the paper)."""

    def _info(self) -> evaluate.MetricInfo:
        return _info(
            "Rouge-2 and Rouge-3 over distinct k-grams: the mean share of a text's k-grams that"
            " occur in its reference (precision), and the mean f-measure.",
            "predictions: the texts; references: a text for each." + _PER_TEXT,
            {"predictions": TEXT, "references": TEXT},
        )

    def _compute(
        self, predictions: Sequence[str], references: Sequence[str], use_aggregator: bool = True
    ) -> dict[str, Score]:
        require_some(references)
        pairs = [
            (words_of(text), words_of(reference))
            for text, reference in zip(predictions, references, strict=True)
        ]
        found = {}
        for k in (2, 3):
            for name, measure in (("precision", ngrams.rouge_precision), ("f", ngrams.rouge_f)):
                values = [measure(text, reference, k) for text, reference in pairs]
                found[f"rouge_{k}_{name}"] = _aggregate(values, use_aggregator)
        return found
