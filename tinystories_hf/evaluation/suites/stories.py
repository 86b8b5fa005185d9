"""Stories suite: completions of prompts, and statistics of their length, diversity and vocabulary.

The protocol of the paper (arXiv 2305.07759, section 3): ten completions of each prompt at
temperature 1, without top-k or top-p, up to the end-of-text token or the end of the context.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import yaml
from tqdm.auto import tqdm

from tinystories_hf.config.data_arguments import DataArguments
from tinystories_hf.core.errors import UserError
from tinystories_hf.data.sources import parse_dataset
from tinystories_hf.evaluation.intervals import clustered_mean
from tinystories_hf.evaluation.records import Record, RecordFile
from tinystories_hf.evaluation.subject import EvaluatedModel, identity
from tinystories_hf.evaluation.suites.ngrams import words_of
from tinystories_hf.evaluation.validation import encode
from tinystories_hf.generation.arguments import GenerationArguments
from tinystories_hf.generation.generate import generate

AUTHORS_FILE = "Evaluation prompts.yaml"
PACKAGE_PROMPTS = Path(__file__).with_name("prompts.yaml")
COMPLETIONS = 10
# Stories that are generated and saved together; a killed process loses at most these.
CHUNK = 64


@dataclass(frozen=True)
class Prompts:
    """Story prompts and their source."""

    texts: list[str]
    source: str
    sha256: str


def load_prompts(data: DataArguments, path: Path | None = None) -> Prompts:
    """Return the prompts in `path`, otherwise those published with the dataset or of this package.

    Raises:
        UserError: the file does not exist or is not a YAML list of texts.
    """
    if path is not None:
        return read_prompts(path, path.name)
    dataset = parse_dataset(data.dataset)
    if dataset.path is not None and (dataset.path / AUTHORS_FILE).is_file():
        return read_prompts(dataset.path / AUTHORS_FILE, AUTHORS_FILE)
    if dataset.kind == "hub":
        from tinystories_hf.core.download import download_files

        revision = data.dataset_revision
        try:
            found = download_files(data.dataset, "dataset", revision, [AUTHORS_FILE])
            if (found / AUTHORS_FILE).is_file():
                source = f"{data.dataset}, {AUTHORS_FILE}, {found.name}"
                return read_prompts(found / AUTHORS_FILE, source)
        except UserError as error:
            print(f"stories     cannot download the authors' prompts ({error})", flush=True)
    print("stories     using the prompts of this package, not the authors'", flush=True)
    return read_prompts(PACKAGE_PROMPTS, "tinystories_hf, evaluation/prompts.yaml")


def read_prompts(path: Path, source: str) -> Prompts:
    """Read a YAML list of prompts.

    Raises:
        UserError: the file does not exist or is not a list of texts.
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
    """Generate the completions that are missing in `records` and append them.

    The start of a prompt longer than half the context is cut off. The completions depend only on
    the seed and the prompts, not on where an earlier evaluation was interrupted.
    """
    kept = _truncate(subject, prompts)
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
            stories = generate(
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
                for (prompt, number), story in zip(batch, stories, strict=True)
                if (prompt, number) not in done
            ]
            records.append(new)
            bar.update(len(new))


def _chunk_seed(seed: int, chunk: int) -> int:
    """Return a seed that is different for each seed of the suite and each chunk."""
    drawn = np.random.SeedSequence([seed, chunk]).generate_state(1, np.uint64)
    return int(drawn[0] >> np.uint64(1))


def _truncate(subject: EvaluatedModel, prompts: Sequence[str]) -> list[str]:
    """Return the prompts, with the start cut off if they are longer than half the context."""
    room, kept = subject.context_length // 2, []
    for prompt in prompts:
        ids = encode(subject.tokenizer, prompt)
        kept.append(subject.tokenizer.decode(ids[-room:]) if len(ids) > room else prompt)
    return kept


def story_records(
    subject: EvaluatedModel, prompts: Prompts, folder: Path, *, seed: int, quiet: bool = False
) -> RecordFile:
    """Return ten completions of each prompt, from `stories.jsonl` or newly generated."""
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
    """Return the stories section of the results; stories go to `stories.jsonl`."""
    stories = story_records(subject, prompts, folder, seed=seed, quiet=quiet).records
    used = _truncate(subject, prompts.texts)
    cut = sum(kept != prompt for kept, prompt in zip(used, prompts.texts, strict=True))
    return {
        "prompts": {**asdict(prompts), "texts": len(prompts.texts), "cut": cut},
        "completions": COMPLETIONS,
        "temperature": 1.0,
        "seed": seed,
        **story_statistics(stories, vocabulary),
    }


def story_statistics(stories: Sequence[Record], vocabulary: Container[str]) -> Record:
    """Return statistics of the completions; means have 95% bootstrap intervals over prompts."""
    from tinystories_hf.evaluation.suites.metrics import Distinct, Repetition, compute_metric

    ordered = sorted(stories, key=lambda story: (story["prompt"], story["completion"]))
    prompts = [story["prompt"] for story in ordered]
    texts = [story["text"] for story in ordered]
    known = [[word in vocabulary for word in words_of(text)] for text in texts]
    lengths = [len(words) for words in known]
    distinct = compute_metric(Distinct, predictions=texts)
    repetition = compute_metric(Repetition, predictions=texts, use_aggregator=False)["repetition"]
    return {
        "words": {**clustered_mean(lengths, prompts), "median": float(np.median(lengths))},
        "ended": clustered_mean([story["ended"] for story in ordered], prompts),
        "distinct": {str(k): distinct[f"distinct_{k}"] for k in (1, 2, 3, 4)},
        "self_bleu": clustered_mean(_self_bleu_by_prompt(texts, prompts), prompts),
        "repetition": clustered_mean(repetition, prompts),
        "unknown_words": clustered_mean(
            [1 - sum(words) / len(words) if words else 0.0 for words in known], prompts
        ),
    }


def _self_bleu_by_prompt(texts: Sequence[str], prompts: Sequence[int]) -> list[float]:
    """Return BLEU-4 of each text against the others of its prompt; `texts` are sorted by prompt."""
    from tinystories_hf.evaluation.suites.metrics import SelfBleu, compute_metric

    found: list[float] = []
    for prompt in dict.fromkeys(prompts):
        group = [text for text, own in zip(texts, prompts, strict=True) if own == prompt]
        found += compute_metric(SelfBleu, predictions=group, use_aggregator=False)["self_bleu"]
    return found
