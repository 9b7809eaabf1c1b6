"""Answers as rows: a table for people, which is also Markdown, or JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.question import Answer

COLUMNS = ("name", "ours", "reference", "ratio", "spread", "target", "met")


def row(answer: Answer) -> dict[str, Any]:
    """The row of an answer; medians, where there are several figures."""
    figures = (
        answer.row.name,
        _rounded(statistics.median(answer.ours)),
        _rounded(statistics.median(answer.references)),
        round(answer.ratio, 3),
        round(answer.spread, 3),
        str(answer.row.target),
        answer.met,
    )
    return dict(zip(COLUMNS, figures, strict=True))


def as_json(answers: Sequence[Answer]) -> str:
    """A JSON list with an object for each row."""
    return json.dumps([row(answer) for answer in answers], indent=2, ensure_ascii=False)


def as_table(answers: Sequence[Answer]) -> str:
    """A table with aligned columns."""
    lines = [COLUMNS, *(_cells(answer) for answer in answers)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    head, *body = (_line(line, widths) for line in lines)
    return "\n".join([head, _line(["-" * width for width in widths], widths), *body])


def _rounded(figure: float) -> float:
    """Rates without a fraction that means nothing, times with one that does."""
    return round(figure, 1 if figure >= 100 else 3)


def _cells(answer: Answer) -> tuple[str, ...]:
    figures = row(answer)
    ours, reference = answer.row.unit
    return (
        figures["name"],
        f"{_shown(figures['ours'])} {ours}",
        f"{_shown(figures['reference'])} {reference}",
        f"{figures['ratio']:.3f}",
        f"{figures['spread']:.0%}",
        figures["target"],
        "yes" if figures["met"] else "no",
    )


def _shown(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.2f}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return f"| {' | '.join(c.ljust(w) for c, w in zip(cells, widths, strict=True))} |"
