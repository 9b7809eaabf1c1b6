"""What a benchmark is: a question, and two figures that are taken in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

Figure = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two figures of one session, ready to be taken: everything is started and warm."""

    ours: Figure
    reference: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One row of the table.

    Attributes:
        name: by which it is asked for.
        asks: what is measured, in one line.
        unit: of the two figures: ours and the reference's.
        at_least: the ratio, ours / reference, that is to be reached.
        broker: whether Redis must be there.
        ready: called with the database's conninfo and whether it is to be quick; makes the pair.
    """

    name: str
    asks: str
    unit: tuple[str, str]
    at_least: float
    broker: bool
    ready: Callable[[str, bool], AbstractContextManager[Pair]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A question's figures, those of one repetition side by side."""

    question: Question
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
        """Whether the target is reached."""
        return self.ratio >= self.question.at_least


def ask(question: Question, conninfo: str, *, repetitions: int, quick: bool) -> Answer:
    """Take the figures in turn: reference, ours, reference, ours, …, reference.

    Each of ours stands beside the mean of the references before and after it: what else the machine
    does falls on both.
    """
    ours, references = [], []
    with question.ready(conninfo, quick) as pair:
        before = pair.reference()
        for _ in range(repetitions):
            ours.append(pair.ours())
            after = pair.reference()
            references.append((before + after) / 2)
            before = after
    return Answer(question=question, ours=tuple(ours), references=tuple(references))
