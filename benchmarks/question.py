"""What a benchmark is: a question, and figures that are taken in turn with those of a reference."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

Figures = Callable[[], Sequence[float]]  # one for each row of the question


@dataclass(frozen=True, slots=True)
class AtLeast:
    """The target of a rate: the ratio is to reach this."""

    ratio: float

    def is_met_by(self, ratio: float) -> bool:
        """Whether the target is reached."""
        return ratio >= self.ratio

    def __str__(self) -> str:
        return f"≥ {self.ratio:g}"


@dataclass(frozen=True, slots=True)
class AtMost:
    """The target of a time or a cost: the ratio is not to exceed this."""

    ratio: float

    def is_met_by(self, ratio: float) -> bool:
        """Whether the target is kept to."""
        return ratio <= self.ratio

    def __str__(self) -> str:
        return f"≤ {self.ratio:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the table.

    Attributes:
        name: in the first column.
        unit: of the two figures: ours and the reference's.
        target: of the ratio, ours / reference.
    """

    name: str
    unit: tuple[str, str]
    target: AtLeast | AtMost


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Figures of one session, ready to be taken: everything is started, filled and warm."""

    ours: Figures
    reference: Figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is measured together: one row of the table, or several.

    Attributes:
        name: by which it is asked for.
        asks: what is measured, in one line.
        rows: one for each figure.
        broker: whether Redis must be there.
        ready: called with the database's conninfo and whether it is to be quick; makes the pair.
    """

    name: str
    asks: str
    rows: tuple[Row, ...]
    broker: bool
    ready: Callable[[str, bool], AbstractContextManager[Pair]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A row's figures, those of one repetition side by side."""

    row: Row
    ours: tuple[float, ...]
    references: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """Ours / reference, of each repetition."""
        return [o / r for o, r in zip(self.ours, self.references, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> float:
        """(greatest - least) / median of the ratios."""
        return (max(self.ratios) - min(self.ratios)) / self.ratio

    @property
    def met(self) -> bool:
        """Whether the target is met by the median."""
        return self.row.target.is_met_by(self.ratio)


def ask(
    question: Question,
    conninfo: str,
    *,
    repetitions: int,
    quick: bool,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Answer]:
    """Take the figures in turn: reference, ours, reference, ours, …, reference.

    Each of ours stands beside the mean of the references before and after it: what else the machine
    does falls on both.

    Args:
        question: what to measure.
        conninfo: of the database.
        repetitions: how often.
        quick: whether to be content with a tiny sample.
        tell: called with the progress.

    Returns:
        One answer for each row.
    """
    ours: list[Sequence[float]] = []
    references: list[list[float]] = []
    tell("preparing")
    with question.ready(conninfo, quick) as pair:
        before = pair.reference()
        for number in range(repetitions):
            tell(f"{number + 1} of {repetitions}")
            ours.append(pair.ours())
            after = pair.reference()
            references.append([(b + a) / 2 for b, a in zip(before, after, strict=True)])
            before = after
    return [
        Answer(
            row=row,
            ours=tuple(figures[index] for figures in ours),
            references=tuple(figures[index] for figures in references),
        )
        for index, row in enumerate(question.rows)
    ]
