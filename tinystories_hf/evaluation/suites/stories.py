"""Stories told on from given beginnings, and what can be counted in them.

The protocol of the paper (arXiv 2305.07759, section 3): ten completions of each beginning at
temperature 1, nothing cut from the distribution, each to its own end or that of the context.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import yaml
from tqdm.auto import tqdm

from tinystories_hf.config.arguments import DataArguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.data.sources import parse_dataset
from tinystories_hf.evaluation.intervals import clustered_mean
from tinystories_hf.evaluation.records import Record, RecordFile
from tinystories_hf.evaluation.subject import EvaluatedModel, identity
from tinystories_hf.evaluation.suites.ngrams import Words, distinct, repetition, self_bleu, words_of
from tinystories_hf.evaluation.validation import encode
from tinystories_hf.generation.arguments import GenerationArguments
from tinystories_hf.generation.generate import generate

AUTHORS_FILE = "Evaluation prompts.yaml"
OUR_FILE = Path(__file__).with_name("prompts.yaml")
COMPLETIONS = 10
# Stories that are told together and written down together: what a kill can cost.
CHUNK = 64


@dataclass(frozen=True)
class Prompts:
    """Story beginnings and where they are from."""

    texts: list[str]
    source: str
    sha256: str


def load_prompts(data: DataArguments, path: Path | None = None) -> Prompts:
    """Return the beginnings of a file, else the authors' beside the dataset, else our own.

    Raises:
        UserError: the file named is not there, or is not a YAML list of texts.
    """
    if path is not None:
        return read_prompts(path, path.name)
    dataset = parse_dataset(data.dataset)
    if dataset.path is not None and (dataset.path / AUTHORS_FILE).is_file():
        return read_prompts(dataset.path / AUTHORS_FILE, AUTHORS_FILE)
    if dataset.kind == "hub":
        from tinystories_hf.data.download import download_files

        revision = data.dataset_revision
        try:
            found = download_files(data.dataset, "dataset", revision, [AUTHORS_FILE])
            if (found / AUTHORS_FILE).is_file():
                source = f"{data.dataset}, {AUTHORS_FILE}, {found.name}"
                return read_prompts(found / AUTHORS_FILE, source)
        except UserError as error:
            print(f"stories     no beginnings from the Hub ({error})", flush=True)
    print("stories     the authors' beginnings are not there; taking our own", flush=True)
    return read_prompts(OUR_FILE, "tinystories_hf, evaluation/prompts.yaml")


def read_prompts(path: Path, source: str) -> Prompts:
    """Read a YAML list of beginnings.

    Raises:
        UserError: no such file, or not a list of texts.
    """
    try:
        content = path.read_bytes()
        texts = yaml.safe_load(content)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"prompts: cannot read {path}: {reason}") from None
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise UserError(f"prompts: {path} must be a YAML list of texts")
    return Prompts(texts, source, hashlib.sha256(content).hexdigest())


def generate_completions(
    subject: EvaluatedModel,
    prompts: Sequence[str],
    completions: int,
    seed: int,
    records: RecordFile,
    *,
    what: str = "stories",
    quiet: bool = False,
) -> None:
    """Tell the stories that `records` lacks.

    A beginning longer than half the context loses its start. What is told depends on the seed, the
    beginning's number and the completion's, not on where an earlier start was stopped.
    """
    kept = _fit(subject, prompts)
    order = sorted(range(len(prompts)), key=lambda at: len(kept[at]))
    wanted = [(prompt, number) for prompt in order for number in range(completions)]
    done = {(record["prompt"], record["completion"]) for record in records.records}
    hidden = True if quiet else None
    with tqdm(
        total=len(wanted), initial=len(done), desc=what, unit=" stories", disable=hidden
    ) as bar:
        for chunk, start in enumerate(range(0, len(wanted), CHUNK)):
            batch = wanted[start : start + CHUNK]
            if done.issuperset(batch):
                continue
            settings = GenerationArguments(seed=_chunk_seed(seed, chunk), batch_size=CHUNK)
            told = generate(
                subject.model, subject.tokenizer, [kept[prompt] for prompt, _ in batch], settings
            )
            new = [
                {
                    "prompt": prompt,
                    "completion": number,
                    "beginning": prompts[prompt],
                    "text": story.completion,
                    "ended": story.ended,
                }
                for (prompt, number), story in zip(batch, told, strict=True)
                if (prompt, number) not in done
            ]
            records.append(new)
            bar.update(len(new))


def _chunk_seed(seed: int, chunk: int) -> int:
    """Return a seed for each chunk that no other chunk of another seed has."""
    drawn = np.random.SeedSequence([seed, chunk]).generate_state(1, np.uint64)
    return int(drawn[0] >> np.uint64(1))


def _fit(subject: EvaluatedModel, prompts: Sequence[str]) -> list[str]:
    """Return the beginnings, those longer than half the context without their start."""
    room, kept = subject.context_length // 2, []
    for prompt in prompts:
        ids = encode(subject.tokenizer, prompt)
        kept.append(subject.tokenizer.decode(ids[-room:]) if len(ids) > room else prompt)
    return kept


def story_records(
    subject: EvaluatedModel, prompts: Prompts, folder: Path, *, seed: int, quiet: bool = False
) -> RecordFile:
    """Return ten stories for each beginning, told now or read from `stories.jsonl`."""
    made_with = {
        **identity(subject.facts),
        "prompts_sha256": prompts.sha256,
        "completions": COMPLETIONS,
        "seed": seed,
    }
    records = RecordFile(folder / "stories.jsonl", made_with)
    generate_completions(subject, prompts.texts, COMPLETIONS, seed, records, quiet=quiet)
    return records


def measure_stories(
    subject: EvaluatedModel,
    prompts: Prompts,
    vocabulary: Container[str],
    folder: Path,
    *,
    seed: int,
    quiet: bool = False,
) -> Record:
    """Tell ten stories for each beginning and count in them."""
    stories = story_records(subject, prompts, folder, seed=seed, quiet=quiet).records
    cut = sum(told != whole for told, whole in zip(_fit(subject, prompts.texts), prompts.texts,
                                                   strict=True))  # fmt: skip
    return {
        "prompts": {**asdict(prompts), "texts": len(prompts.texts), "cut": cut},
        "completions": COMPLETIONS,
        "temperature": 1.0,
        "seed": seed,
        **count_in(stories, vocabulary),
    }


def count_in(stories: Sequence[Record], vocabulary: Container[str]) -> Record:
    """Return the counts of completions; means with 95% intervals by bootstrap over beginnings."""
    ordered = sorted(stories, key=lambda story: (story["prompt"], story["completion"]))
    prompts = [story["prompt"] for story in ordered]
    texts = [words_of(story["text"]) for story in ordered]
    known = [[word in vocabulary for word in words] for words in texts]
    lengths = [len(words) for words in texts]
    return {
        "words": {**clustered_mean(lengths, prompts), "median": float(np.median(lengths))},
        "ended": clustered_mean([story["ended"] for story in ordered], prompts),
        "distinct": {str(k): distinct(texts, k) for k in (1, 2, 3, 4)},
        "self_bleu": clustered_mean(_self_bleu_by_prompt(texts, prompts), prompts),
        "repetition": clustered_mean([repetition(words) for words in texts], prompts),
        "unknown_words": clustered_mean(
            [1 - sum(words) / len(words) if words else 0.0 for words in known], prompts
        ),
    }


def _self_bleu_by_prompt(texts: Sequence[Words], prompts: Sequence[int]) -> list[float]:
    """Return the BLEU of each text against the others of its beginning; texts stand by prompt."""
    found: list[float] = []
    for prompt in dict.fromkeys(prompts):
        found += self_bleu(
            [words for words, own in zip(texts, prompts, strict=True) if own == prompt]
        )
    return found
