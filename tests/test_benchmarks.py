"""``python -m benchmarks`` prints the rows that it promises. How fast they are is not a test's business."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.__main__ import QUESTIONS, parser
from benchmarks.question import Answer

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ["name", "ours", "reference", "ratio", "spread", "target", "met"]
TARGETS = {"sequential_steps": 0.75, "three_step_runs_1": 0.18, "three_step_runs_2": 0.30}


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


def answer(*, ours: tuple[float, ...], references: tuple[float, ...]) -> Answer:
    return Answer(question=QUESTIONS["sequential_steps"], ours=ours, references=references)


def test_each_question_has_its_name_and_its_target() -> None:
    assert {name: question.at_least for name, question in QUESTIONS.items()} == TARGETS


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
    assert (row["target"], row["met"]) == (0.75, False)


def test_a_target_that_is_reached_exactly_is_met() -> None:
    assert report.row(answer(ours=(75.0,), references=(100.0,)))["met"] is True


def test_the_table_has_a_line_for_each_row() -> None:
    head, rule, line = table_rows(report.as_table([answer(ours=(1234.5,), references=(5000.0,))]))
    assert head == COLUMNS
    assert {*"".join(rule)} == {"-"}
    assert line == ["sequential_steps", "1,234 steps/s", "5,000 inserts/s", "0.247", "0%"] + [
        "≥ 0.75",
        "no",
    ]


@pytest.mark.processes
def test_a_tiny_run_prints_json_rows_for_the_names_in_their_order() -> None:
    """Real servers, a real worker: the figures are checked for being some."""
    measured = benchmarks("three_step_runs_1", "sequential_steps", "--quick", "--json")
    assert measured.returncode == 0, measured.stderr
    rows = json.loads(measured.stdout)
    assert [row["name"] for row in rows] == ["three_step_runs_1", "sequential_steps"]
    for row in rows:
        assert list(row) == COLUMNS
        assert row["target"] == TARGETS[row["name"]]
        assert row["ours"] > 0
        assert row["ratio"] == pytest.approx(row["ours"] / row["reference"], rel=0.05, abs=0.002)
        assert isinstance(row["met"], bool)


def test_the_readme_has_a_row_for_each_question() -> None:
    readme = (ROOT / "benchmarks" / "README.md").read_text()
    head, _, *rows = table_rows(readme.split("\n\nThe last run")[0])
    assert head == COLUMNS
    assert [row[0] for row in rows] == list(QUESTIONS)
    for row in rows:
        assert row[5] == f"≥ {QUESTIONS[row[0]].at_least}"
