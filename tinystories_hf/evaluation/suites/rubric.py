"""The prompts for a judge and the parser of its grades.

Two turns, as in the paper (arXiv 2305.07759, section 3), in this package's own words: first an
opinion in free text, then grades in a fixed format.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypedDict

GRADES = ("grammar", "creativity", "consistency", "plot")
AGE_GROUPS = {
    "A": "3 or under",
    "B": "4 to 5",
    "C": "6 to 7",
    "D": "8 to 9",
    "E": "10 to 12",
    "F": "13 to 16",
}
MARK = "***"


class Message(TypedDict):
    """A message of a conversation."""

    role: Literal["user", "assistant"]
    content: str


@dataclass(frozen=True)
class Grades:
    """Grades from 1 to 10, and the letter of the age group."""

    grammar: float
    creativity: float
    consistency: float
    plot: float
    age_group: str


OPINION = """\
A pupil was given the beginning of a story and had to write the rest. The beginning ends, often in
the middle of a sentence, at the mark {mark}; everything after the mark is the pupil's. The exercise
shows how well the pupil commands the language and how inventive the pupil is.

{beginning}{mark}{completion}

Give your opinion of the pupil's part in a few sentences. Is the grammar right? Does it go together
with the beginning? Look with care at the sentence that the mark cuts: is it completed well?"""

GRADING = """\
Now grade the pupil's part. Give whole numbers from 1 (worst) to 10 (best) for the grammar, for the
creativity, for the consistency with the beginning, and for the plot, that is, whether what happens
makes sense. Then estimate the pupil's age. The age groups are
{ages}.

Answer in these five lines and nothing else:
Grammar: N/10
Creativity: N/10
Consistency: N/10
Plot: N/10
Age group: LETTER"""

AGAIN = "That is not in the five lines that were asked for. Give them again, and nothing else."


def opinion_question(beginning: str, completion: str) -> str:
    """Return the message that asks for an opinion."""
    return OPINION.format(mark=MARK, beginning=beginning, completion=completion)


def grading_question() -> str:
    """Return the message that asks for grades."""
    ages = "; ".join(f"{letter}: {years}" for letter, years in AGE_GROUPS.items())
    return GRADING.format(ages=ages)


def conversation(beginning: str, completion: str, replies: list[str]) -> list[Message]:
    """Return all messages up to the next question, given the replies so far."""
    questions = [opinion_question(beginning, completion), grading_question(), AGAIN]
    messages: list[Message] = []
    for turn, question in enumerate(questions[: len(replies) + 1]):
        messages.append({"role": "user", "content": question})
        if turn < len(replies):
            messages.append({"role": "assistant", "content": replies[turn]})
    return messages


def parse_grades(reply: str) -> Grades | None:
    """Parse the five lines; return None if one is missing, duplicate or out of range.

    Markdown emphasis and other text around the lines are ignored.
    """
    plain = reply.replace("*", "").replace("_", " ")
    found: dict[str, float] = {}
    for name in GRADES:
        matches = re.findall(rf"(?im)^\W*{name}\W*:\s*(\d+(?:\.\d+)?)\s*(?:/\s*10)?\W*$", plain)
        if len(matches) != 1 or not 1 <= float(matches[0]) <= 10:
            return None
        found[name] = float(matches[0])
    ages = re.findall(r"(?im)^\W*age group\W*:\s*([A-F])\b", plain)
    return Grades(**found, age_group=ages[0].upper()) if len(ages) == 1 else None
