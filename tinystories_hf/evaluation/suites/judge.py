"""Judge suite: language models grade the generated stories, as GPT-4 in the paper (section 3).

Every reply is saved as it arrives, so that an interrupted evaluation resumes without repeating a
request.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from tinystories_hf.core.environment import portable
from tinystories_hf.core.errors import UserError, after_work_began
from tinystories_hf.evaluation.intervals import clustered_mean
from tinystories_hf.evaluation.records import Record, RecordFile
from tinystories_hf.evaluation.suites.judge_models import (
    Judge,
    NoAnswerError,
    RefusedError,
    Reply,
    is_local,
    open_judge,
)
from tinystories_hf.evaluation.suites.rubric import (
    AGE_GROUPS,
    GRADES,
    Grades,
    conversation,
    parse_grades,
)

# The opinion, the grades, and a second try if the grades cannot be parsed.
MAX_REPLIES = 3
CHARACTERS_PER_TOKEN = 4
EXPECTED_REPLY_TOKENS = (150, 30)

# The judge's name, the number of the prompt and the number of the completion.
Key = tuple[str, int, int]


@dataclass(frozen=True)
class JudgeArguments:
    """The settings of the judges; prices are in dollars per million tokens, for the estimate."""

    models: tuple[str, ...]
    base_url: str | None = None
    concurrency: int = 4
    confirmed: bool = False
    price_in: float | None = None
    price_out: float | None = None


@dataclass(frozen=True)
class CostEstimate:
    """The estimated cost of judging, without second tries for grades that cannot be parsed."""

    requests: int
    tokens_in: int
    tokens_out: int
    dollars: float | None

    def __str__(self) -> str:
        dollars = "" if self.dollars is None else f", about ${self.dollars:,.2f}"
        return (
            f"{self.requests:,} requests, about {self.tokens_in:,} input and"
            f" {self.tokens_out:,} output tokens{dollars}"
        )


def estimate_cost(
    stories: Sequence[Record], records: Sequence[Record], judge: JudgeArguments
) -> CostEstimate:
    """Return the estimated cost of the missing replies, with four characters per token."""
    asked, refused = _replies(records), _refused(records)
    requests = tokens_in = tokens_out = 0
    for name, story in itertools.product(judge.models, stories):
        if is_local(name, judge.base_url):
            continue
        replies = list(asked.get(_key(name, story), []))
        if _finished(replies) or _key(name, story) in refused:
            continue
        for expected in EXPECTED_REPLY_TOKENS[len(replies) :]:
            messages = conversation(story["beginning"], story["text"], replies)
            text = "".join(message["content"] for message in messages)
            requests += 1
            tokens_in += len(text) // CHARACTERS_PER_TOKEN
            tokens_out += expected
            replies.append("x" * expected * CHARACTERS_PER_TOKEN)
    dollars = None
    if judge.price_in is not None and judge.price_out is not None:
        dollars = (tokens_in * judge.price_in + tokens_out * judge.price_out) / 1e6
    return CostEstimate(requests, tokens_in, tokens_out, dollars)


def _finished(replies: Sequence[str]) -> bool:
    """Return whether no more replies are needed: grades were parsed, or all tries are used."""
    graded = any(parse_grades(reply) for reply in replies[1:])
    return graded or len(replies) >= MAX_REPLIES


def measure_judge(
    stories: Sequence[Record],
    judge: JudgeArguments,
    folder: Path,
    *,
    made_with: Record,
    quiet: bool = False,
) -> Record:
    """Return the judge section of the results; replies are saved in `judgements.jsonl`.

    Raises:
        UserError: requests that may cost money were not confirmed, or a judge cannot be used.
    """
    records = RecordFile(folder / "judgements.jsonl", made_with)
    cost = estimate_cost(stories, records.records, judge)
    if cost.requests:
        print(f"judge       {cost}", flush=True)
        if not judge.confirmed:
            raise UserError(f"judge: this takes {cost}; add --judge_confirm to start the requests")
    judges = {name: open_judge(name, judge.base_url) for name in judge.models}
    unanswered = ask_all(stories, judges, records, judge.concurrency, quiet=quiet)
    return summarize_grades(stories, records.records, judge.models, unanswered)


def ask_all(
    stories: Sequence[Record],
    judges: Mapping[str, Judge],
    records: RecordFile,
    concurrency: int,
    *,
    quiet: bool = False,
) -> Counter[str]:
    """Request the missing replies, several stories in parallel.

    Returns:
        The number of stories without an answer for each judge.

    Raises:
        UserError: a judge cannot be used.
        RunError: the same, after replies were saved; those are kept.
    """
    kept = len(records.records)
    asked, refused = _replies(records.records), _refused(records.records)
    todo = [
        (name, story)
        for name, story in itertools.product(judges, stories)
        if _key(name, story) not in refused and not _finished(asked.get(_key(name, story), []))
    ]
    unanswered: Counter[str] = Counter()
    total = len(judges) * len(stories)
    hidden = True if quiet else None
    with (
        tqdm(total=total, initial=total - len(todo), desc="judge", disable=hidden) as bar,
        ThreadPoolExecutor(concurrency) as pool,
    ):
        futures: dict[Future[bool], str] = {}
        for name, story in todo:
            replies = asked.get(_key(name, story), [])
            future = pool.submit(_judge_story, judges[name], name, story, replies, records)
            future.add_done_callback(lambda _: bar.update())
            futures[future] = name
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            with after_work_began(lambda: len(records.records) > kept):
                for future in done:
                    unanswered[futures[future]] += not future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return unanswered


def _judge_story(
    judge: Judge, name: str, story: Record, replies: Sequence[str], records: RecordFile
) -> bool:
    """Request all replies of one judge about one story; return False if an answer is missing."""
    replies = list(replies)
    where = dict(zip(("judge", "prompt", "completion"), _key(name, story), strict=True))
    while not _finished(replies):
        messages = conversation(story["beginning"], story["text"], replies)
        try:
            reply: Reply = judge(messages)
        except RefusedError as error:
            records.append([{**where, "turn": len(replies) + 1, "refused": str(error)}])
            return True
        except NoAnswerError:
            return False
        replies.append(reply.text)
        records.append([{**where, "turn": len(replies), **asdict(reply)}])
    return True


def summarize_grades(
    stories: Sequence[Record],
    records: Sequence[Record],
    names: Sequence[str],
    unanswered: Mapping[str, int],
) -> Record:
    """Return the mean grades and failures of each judge, and the agreement between judges."""
    asked, refused = _replies(records), _refused(records)
    grades = {
        name: {
            _key(name, story)[1:]: found
            for story in stories
            if (found := _grades(asked.get(_key(name, story), [])))
        }
        for name in names
    }
    judges = []
    for name in names:
        own = [record for record in records if record["judge"] == name]
        lost = sum(_key(name, story) in refused for story in stories)
        missing = unanswered.get(name, 0)
        judges.append(
            {
                "judge": str(portable(name)),
                "stories": len(stories),
                "graded": len(grades[name]),
                "failures": {
                    "malformed": len(stories) - len(grades[name]) - lost - missing,
                    "refused": lost,
                    "unanswered": missing,
                },
                "tokens_in": sum(record.get("tokens_in") or 0 for record in own),
                "tokens_out": sum(record.get("tokens_out") or 0 for record in own),
                **_means(grades[name]),
            }
        )
    pairs = [grade_agreement(one, other, grades) for one, other in itertools.combinations(names, 2)]
    return {"judges": judges, "agreement": pairs}


def _means(grades: Mapping[tuple[int, int], Grades]) -> Record:
    """Return mean grades with intervals over prompts, and the share of each age group."""
    if not grades:
        return {"grades": None, "age_groups": None}
    prompts = [prompt for prompt, _ in grades]
    ages = Counter(found.age_group for found in grades.values())
    return {
        "grades": {
            grade: clustered_mean([getattr(found, grade) for found in grades.values()], prompts)
            for grade in GRADES
        },
        "age_groups": {letter: ages[letter] / len(grades) for letter in AGE_GROUPS},
    }


def grade_agreement(
    one: str, other: str, grades: Mapping[str, Mapping[tuple[int, int], Grades]]
) -> Record:
    """Return the correlation and mean absolute difference of two judges' grades.

    `pearson` is None if one judge gave all stories the same grade.
    """
    both = sorted(set(grades[one]) & set(grades[other]))
    found: Record = {"judges": [portable(one), portable(other)], "stories": len(both)}
    for grade in GRADES if both else ():
        a, b = (
            np.array([getattr(grades[name][story], grade) for story in both])
            for name in (one, other)
        )
        varies = len(both) > 1 and a.std() > 0 and b.std() > 0
        found[grade] = {
            "pearson": float(np.corrcoef(a, b)[0, 1]) if varies else None,
            "mean_absolute_difference": float(np.abs(a - b).mean()),
        }
    return found


def _key(name: str, story: Mapping[str, Any]) -> Key:
    return name, story["prompt"], story["completion"]


def _replies(records: Sequence[Record]) -> dict[Key, list[str]]:
    """Return the replies about each story in the order of the turns."""
    found: dict[Key, list[tuple[int, str]]] = {}
    for record in records:
        if "text" in record:
            found.setdefault(_key(record["judge"], record), []).append(
                (record["turn"], record["text"])
            )
    return {key: [text for _, text in sorted(turns)] for key, turns in found.items()}


def _refused(records: Sequence[Record]) -> set[Key]:
    return {_key(record["judge"], record) for record in records if "refused" in record}


def _grades(replies: Sequence[str]) -> Grades | None:
    return next((found for reply in replies[1:] if (found := parse_grades(reply))), None)
