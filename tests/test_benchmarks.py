"""``python -m benchmarks`` prints the rows that it promises. How fast they are is not a test's business."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.__main__ import QUESTIONS, parser
from benchmarks.question import Answer, AtLeast, AtMost, Pair, Question, Row, ask

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ["name", "ours", "reference", "ratio", "spread", "target", "met"]
TARGETS = {
    "sequential_steps": "≥ 0.75",
    "three_step_runs_1": "≥ 0.18",
    "three_step_runs_2": "≥ 0.3",
    "start_latency_p50": "≤ 2.4",
    "start_latency_p99": "≤ 4",
    "resume_latency_p50": "≤ 2.7",
    "resume_latency_p99": "≤ 4.5",
    "routing": "≥ 4",
    "settle_many": "≤ 1.5",
    "lookback_many": "≤ 2",
    "replay_1000": "≤ 10",
    "parallel_steps": "≤ 2",
    "async_steps": "≤ 3",
    "claim_backlog": "≤ 2",
    "claim_backlog_snapshot": "≤ 2",
    "statements": "≤ 1",
    "commits": "≤ 1",
    "start_beside_purge": "≤ 1.5",
}
ROWS = {row.name: row for question in QUESTIONS.values() for row in question.rows}


def benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("DJANGO", "BENCHMARKS"))
    }
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def table_rows(text: str) -> list[list[str]]:
    lines = re.findall(r"^\| (.*) \|$", text, re.MULTILINE)
    return [[cell.strip() for cell in line.split(" | ")] for line in lines]


def answer(
    name: str = "sequential_steps", *, ours: tuple[float, ...], references: tuple[float, ...]
) -> Answer:
    return Answer(row=ROWS[name], ours=ours, references=references)


def test_each_row_has_its_name_and_its_target() -> None:
    assert {name: str(row.target) for name, row in ROWS.items()} == TARGETS


def test_names_are_taken_and_none_means_all() -> None:
    named = parser().parse_args(["three_step_runs_1", "sequential_steps"]).names
    assert [question.name for question in named] == ["three_step_runs_1", "sequential_steps"]
    assert parser().parse_args([]).names == []


def test_an_unknown_name_is_refused_with_the_names_that_there_are() -> None:
    refused = benchmarks("sequential_stepz")
    assert refused.returncode == 2
    assert "sequential_stepz" in refused.stderr
    for name in QUESTIONS:
        assert name in refused.stderr


def test_help_says_what_each_question_asks() -> None:
    helped = benchmarks("--help")
    assert helped.returncode == 0
    for question in QUESTIONS.values():
        assert re.search(rf"{question.name} +{re.escape(question.asks)}", helped.stdout)


def test_a_row_has_the_medians_and_the_spread_of_the_ratios_side_by_side() -> None:
    row = report.row(answer(ours=(50.0, 90.0, 80.0), references=(100.0, 100.0, 200.0)))
    assert list(row) == COLUMNS
    assert row["ours"] == 80.0
    assert row["reference"] == 100.0
    assert row["ratio"] == 0.5  # of 0.5, 0.9 and 0.4
    assert row["spread"] == 1.0  # (0.9 - 0.4) / 0.5
    assert (row["target"], row["met"]) == ("≥ 0.75", False)


@pytest.mark.parametrize(
    ("name", "just", "missed"),
    [("sequential_steps", 75.0, 74.9), ("settle_many", 150.0, 150.1)],
)
def test_a_rate_is_to_reach_its_target_and_a_time_not_to_exceed_it(
    name: str, just: float, missed: float
) -> None:
    assert report.row(answer(name, ours=(just,), references=(100.0,)))["met"] is True
    assert report.row(answer(name, ours=(missed,), references=(100.0,)))["met"] is False


def test_each_figure_of_ours_stands_beside_the_references_around_it() -> None:
    taken: list[str] = []
    figures = {
        "ours": iter([(10.0, 1.0), (30.0, 3.0)]),
        "reference": iter([(2.0, 1.0), (4.0, 1.0), (8.0, 1.0)]),
    }

    def take(which: str) -> tuple[float, float]:
        taken.append(which)
        return next(figures[which])

    @contextmanager
    def ready(conninfo: str, quick: bool) -> Iterator[Pair]:
        yield Pair(ours=lambda: take("ours"), reference=lambda: take("reference"))

    rows = (
        Row(name="rate", unit=("a", "b"), target=AtLeast(4)),
        Row(name="time", unit=("a", "b"), target=AtMost(4)),
    )
    question = Question(name="both", asks="?", rows=rows, broker=False, ready=ready)
    told: list[str] = []
    rate, time = ask(question, "", repetitions=2, quick=True, tell=told.append)
    assert taken == ["reference", "ours", "reference", "ours", "reference"]
    assert told == ["preparing", "1 of 2", "2 of 2"]
    assert (rate.ours, rate.references) == ((10.0, 30.0), (3.0, 6.0))
    assert (time.ours, time.references) == ((1.0, 3.0), (1.0, 1.0))


def test_the_table_has_a_line_for_each_row() -> None:
    head, rule, line = table_rows(report.as_table([answer(ours=(1234.5,), references=(5000.0,))]))
    assert head == COLUMNS
    assert {*"".join(rule)} == {"-"}
    assert line == ["sequential_steps", "1,234 steps/s", "5,000 inserts/s", "0.247", "0%"] + [
        "≥ 0.75",
        "no",
    ]


def test_a_short_time_is_shown_with_its_fraction() -> None:
    table = report.as_table([answer("settle_many", ours=(2.346,), references=(2.0,))])
    assert table_rows(table)[2] == ["settle_many", "2.35 ms", "2.00 ms", "1.173", "0%"] + [
        "≤ 1.5",
        "yes",
    ]


@pytest.fixture(scope="module")
def tiny() -> subprocess.CompletedProcess[str]:
    """Everything once, on real servers with real workers, and very little of it."""
    return benchmarks("--quick", "--json")


@pytest.mark.processes
def test_a_tiny_run_prints_json_rows_for_all_questions_in_their_order(
    tiny: subprocess.CompletedProcess[str],
) -> None:
    """The figures are checked for being some: a row that is not what was asked for is an error."""
    assert tiny.returncode == 0, tiny.stderr
    rows = json.loads(tiny.stdout)
    assert [row["name"] for row in rows] == list(TARGETS)
    for row in rows:
        assert list(row) == COLUMNS
        assert row["target"] == TARGETS[row["name"]]
        assert row["ours"] > 0
        assert row["ratio"] == pytest.approx(row["ours"] / row["reference"], rel=0.05, abs=0.002)
        assert isinstance(row["met"], bool)


@pytest.mark.processes
def test_a_recorded_step_is_one_statement_and_one_commit(
    tiny: subprocess.CompletedProcess[str],
) -> None:
    rows = {row["name"]: row for row in json.loads(tiny.stdout)}
    # A slow machine adds one look at a claim that had to wait; a step adds a hundred.
    assert rows["statements"]["ours"] == pytest.approx(1, abs=0.05)
    assert rows["commits"]["ours"] == pytest.approx(1, abs=0.05)


@pytest.mark.processes
def test_progress_is_told_beside_the_rows(tiny: subprocess.CompletedProcess[str]) -> None:
    for question in QUESTIONS.values():
        assert f"{question.name}: {question.asks}\n  preparing\n  1 of 1\n" in tiny.stderr


def test_the_readme_has_a_row_for_each_row() -> None:
    readme = (ROOT / "benchmarks" / "README.md").read_text()
    head, _, *rows = table_rows(readme.split("\n\nThe last run")[0])
    assert head == COLUMNS
    assert [(row[0], row[5]) for row in rows] == list(TARGETS.items())


def test_the_readme_explains_each_row() -> None:
    readme = (ROOT / "benchmarks" / "README.md").read_text()
    explained = re.findall(r"`([\w]+)`", readme.split("| what is measured |")[1])
    assert set(explained) >= {*QUESTIONS} | {*TARGETS}
