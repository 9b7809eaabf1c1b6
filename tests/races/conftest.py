"""Actors for the tests of races, and what came of each in the summary."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.races.company import Company
from tests.races.stage import patience


@pytest.fixture
def company(transactional_db: None) -> Iterator[Company]:
    """Three actors, on a stage where nothing depends on how long a step takes."""
    three = Company(3)
    try:
        with patience():
            yield three
    finally:
        three.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    told = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for name, value in report.user_properties
        if name == "race"
    ]
    if told:
        terminalreporter.section("races")
        for line in sorted(str(line) for line in told):
            terminalreporter.write_line(line)
