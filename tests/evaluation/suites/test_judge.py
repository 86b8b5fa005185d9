from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.forked import ForkedProcess, script
from tests.support.judging_endpoint import GRADES, OPINION, JudgingEndpoint
from tinystories_hf.core import retry as retry_module
from tinystories_hf.core.errors import RunError, UserError
from tinystories_hf.evaluation.records import RecordFile
from tinystories_hf.evaluation.suites.judge import (
    JudgeArguments,
    ask_all,
    estimate_cost,
    grade_agreement,
    measure_judge,
    summarize_grades,
)
from tinystories_hf.evaluation.suites.judge_models import endpoint_judge, local_judge
from tinystories_hf.evaluation.suites.rubric import (
    Grades,
    conversation,
    grading_question,
    opinion_question,
    parse_grades,
)

HEROES = ("Ann", "Bob", "Cat", "Dan", "Eve", "Fox", "Gus", "Hal")


@pytest.fixture
def endpoint() -> Iterator[JudgingEndpoint]:
    server = JudgingEndpoint()
    server.grades = dict.fromkeys(HEROES, (5, 4, 6, 7))
    yield server
    server.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_module, "FIRST_WAIT_SECONDS", 0.01)


STORIES: list[dict[str, Any]] = [
    {
        "prompt": at // 2,
        "completion": at % 2,
        "beginning": f"There was a pupil named {hero} who",
        "text": " went home.",
        "ended": True,
    }
    for at, hero in enumerate(HEROES)
]


def judged(
    endpoint: JudgingEndpoint, folder: Path, **settings: Any
) -> tuple[dict[str, Any], RecordFile]:
    """Judge all stories once, with a timeout of half a second and three attempts."""
    records = RecordFile(folder / "judgements.jsonl", {})
    judge = endpoint_judge("grader", endpoint.url, attempts=3, timeout=0.5)
    unanswered = ask_all(STORIES, {"grader": judge}, records, 2, quiet=True, **settings)
    return summarize_grades(STORIES, records.records, ["grader"], unanswered), records


def test_good_replies_are_averaged(endpoint: JudgingEndpoint, tmp_path: Path) -> None:
    endpoint.grades = {hero: (at + 1, 5, 10, 1) for at, hero in enumerate(HEROES)}
    found, records = judged(endpoint, tmp_path)
    (judge,) = found["judges"]
    assert judge["graded"] == 8
    assert judge["grades"]["grammar"]["mean"] == 4.5
    assert judge["grades"]["plot"]["mean"] == 1
    low, high = judge["grades"]["grammar"]["interval"]
    assert 1 <= low < 4.5 < high <= 8
    assert judge["age_groups"]["B"] == 1.0
    assert judge["failures"] == {"malformed": 0, "refused": 0, "unanswered": 0}
    assert (judge["tokens_in"], judge["tokens_out"]) == (1600, 320)
    assert len(records.records) == 16
    assert endpoint.most_at_once <= 2


def test_errors_are_retried_or_counted(endpoint: JudgingEndpoint, tmp_path: Path) -> None:
    endpoint.script = {
        "Ann": ["429", "ok", "500", "503"],
        "Bob": ["ok", "chatter"],
        "Cat": ["ok", "chatter", "chatter"],
        "Dan": ["refuse", "refuse", "refuse"],
        "Eve": ["slow", "ok", "drop"],
        "Fox": ["400"],
        "Gus": ["500", "500", "500"],
    }
    found, records = judged(endpoint, tmp_path)
    (judge,) = found["judges"]
    assert judge["failures"] == {"malformed": 2, "refused": 1, "unanswered": 1}
    assert judge["graded"] == 4  # Ann, Bob, Eve, Hal
    assert sum(judge["failures"].values()) + judge["graded"] == len(STORIES)
    assert all(count == 1 for count in endpoint.answered.values()), "nothing is paid for twice"
    said = [record["text"] for record in records.records if "text" in record]
    assert said.count("Seven, I think.") == 3
    assert said.count("I'm sorry, I can't.") == 3

    # A second call requests only the missing replies.
    before = len(endpoint.requests)
    again, _ = judged(endpoint, tmp_path)
    assert again["judges"][0]["failures"] == {"malformed": 2, "refused": 1, "unanswered": 0}
    assert again["judges"][0]["graded"] == 5
    assert len(endpoint.requests) - before == 2
    assert all(count == 1 for count in endpoint.answered.values())


def test_a_permanent_error_stops_the_suite_and_keeps_the_replies(
    endpoint: JudgingEndpoint, tmp_path: Path
) -> None:
    endpoint.script = {"Hal": ["401"]}
    with pytest.raises(RunError, match="rejects the key"):
        judged(endpoint, tmp_path)
    kept = len(RecordFile(tmp_path / "judgements.jsonl", {}).records)
    assert kept == sum(endpoint.answered.values())
    found, _ = judged(endpoint, tmp_path)
    assert found["judges"][0]["graded"] == 8
    assert all(count == 1 for count in endpoint.answered.values())


def start_evaluation(
    endpoint: JudgingEndpoint, run: Path, folder: Path, prompts: Path
) -> ForkedProcess:
    flags = [
        # The cloze suite imports the library `evaluate`, which the script must not hide.
        *("--model", str(run), "--suite", "cloze,judge", "--judge_model", "grader"),
        *("--judge_base_url", endpoint.url, "--judge_confirm", "--prompts", str(prompts)),
        *("--output_dir", str(folder / "out")),
    ]
    said = (folder / "out.txt", folder / "err.txt")
    variables = {"JUDGE_API_KEY": "sk-secret"}
    return ForkedProcess(folder, said, script, "evaluate.py", flags, variables=variables)


def test_a_killed_evaluation_resumes_without_repeating_requests(
    endpoint: JudgingEndpoint, trained_run: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("".join(f"- A pupil named {hero} went\n" for hero in HEROES))
    endpoint.script = {"Eve": ["ok", "ok", "ok", "hang", "hang", "hang", "hang", "hang"]}
    work = tmp_path / "work"
    work.mkdir()
    process = start_evaluation(endpoint, trained_run, work, prompts)
    last, quiet_since = -1, time.monotonic()
    while time.monotonic() - quiet_since < 1.0 or last < 10:  # until no more replies arrive
        assert process.poll() is None, (work / "err.txt").read_text()
        if len(endpoint.requests) != last:
            last, quiet_since = len(endpoint.requests), time.monotonic()
        time.sleep(0.05)
    process.kill()
    process.wait()
    answered = sum(endpoint.answered.values())
    assert 0 < answered < 160

    endpoint.script = {}
    code = start_evaluation(endpoint, trained_run, work, prompts).wait(200)
    assert code == 0, (work / "err.txt").read_text()
    assert sum(endpoint.answered.values()) == 160  # 8 prompts x 10 completions x 2 turns
    results = json.loads((work / "out" / "eval_results.json").read_text())
    (judge,) = results["judge"]["judges"]
    assert judge["graded"] == 80
    lines = (work / "out" / "judgements.jsonl").read_text().splitlines()[1:]
    keys = [(r["prompt"], r["completion"], r["turn"]) for r in map(json.loads, lines)]
    assert len(keys) == len(set(keys)) == 160
    assert {headers["authorization"] for headers in endpoint.headers} == {"Bearer sk-secret"}
    for path in work.rglob("*"):
        assert path.is_dir() or b"sk-secret" not in path.read_bytes()


def test_the_hub_token_is_not_sent_to_another_endpoint(
    endpoint: JudgingEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    judge = endpoint_judge("grader", endpoint.url)
    story = STORIES[0]
    assert judge(conversation(story["beginning"], story["text"], [])).text == OPINION
    assert "hf_secret" not in json.dumps(endpoint.headers)
    assert endpoint.requests[0]["model"] == "grader"


def test_requests_that_cost_money_need_confirmation(
    endpoint: JudgingEndpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = JudgeArguments(("a", "b"), endpoint.url, price_in=1.0, price_out=10.0)
    with pytest.raises(UserError, match="add --judge_confirm"):
        measure_judge(STORIES, judge, tmp_path, made_with={}, quiet=True)
    assert not endpoint.requests
    said = capsys.readouterr().out
    assert "32 requests" in said
    cost = estimate_cost(STORIES, [], judge)
    opinion = len(opinion_question(STORIES[0]["beginning"], STORIES[0]["text"])) // 4
    assert cost.tokens_in > 16 * 2 * opinion  # both turns contain the story
    done = [
        {"judge": "a", "prompt": 0, "completion": 0, "turn": 1, "refused": "no"},
        {"judge": "a", "prompt": 0, "completion": 1, "turn": 1, "text": OPINION},
    ]
    assert estimate_cost(STORIES, done, judge).requests == 32 - 2 - 1
    assert cost.dollars == pytest.approx((cost.tokens_in + 10 * cost.tokens_out) / 1e6)


def test_two_judges_are_compared() -> None:
    def grades(*grammar: int) -> dict[tuple[int, int], Grades]:
        return {(0, at): Grades(g, 5, 5, g, "A") for at, g in enumerate(grammar)}

    found = grade_agreement("a", "b", {"a": grades(1, 2, 3), "b": grades(2, 4, 6)})
    assert found["stories"] == 3
    assert found["grammar"]["pearson"] == pytest.approx(1.0)
    assert found["grammar"]["mean_absolute_difference"] == 2.0
    assert found["creativity"] == {"pearson": None, "mean_absolute_difference": 0.0}
    assert grade_agreement("a", "b", {"a": grades(1), "b": {}})["stories"] == 0


@pytest.mark.parametrize(
    "reply",
    [
        GRADES.format(7, 8, 9, 10),
        "Here you are:\n\n**Grammar:** 7/10\n**Creativity:** 8/10\n**Consistency:** 9/10\n"
        "**Plot:** 10/10\n**Age group:** B (4 to 5)\n\nWell done!",
        "- Grammar: 7\n- Creativity: 8.0 / 10\n- Consistency: 9/10.\n- plot: 10/10\n- AGE GROUP: b",
    ],
)
def test_grades_are_parsed(reply: str) -> None:
    assert parse_grades(reply) == Grades(7, 8, 9, 10, "B")


@pytest.mark.parametrize(
    "reply",
    [
        "",
        OPINION,
        GRADES.format(7, 8, 9, 11),
        GRADES.format(0, 8, 9, 10),
        GRADES.format(7, 8, 9, 10).replace("Plot", "Pace"),
        GRADES.format(7, 8, 9, 10).replace("B", "G"),
        GRADES.format(7, 8, 9, 10) + "\nGrammar: 9/10",
        grading_question(),
    ],
)
def test_invalid_grades_are_rejected(reply: str) -> None:
    assert parse_grades(reply) is None


def test_a_local_model_can_judge(trained_run: Path, tmp_path: Path) -> None:
    name = str(trained_run)
    reply = local_judge(name)(conversation("Once", " a cat", []))
    assert reply.tokens_out
    judge = JudgeArguments((name,))
    found = measure_judge(STORIES[:2], judge, tmp_path, made_with={}, quiet=True)
    (only,) = found["judges"]
    assert only["failures"]["malformed"] == 2  # a model of toy stories does not grade
    assert only["grades"] is None
    assert only["judge"] == trained_run.name, "not the absolute path"
