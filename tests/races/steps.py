"""What a statement touches, read from its text: enough to tell which two may be swapped.

Under READ COMMITTED a statement sees what was committed before it began, and waits for rows that an open
transaction has locked or written. So two statements of different actors can only notice their order if
they lock rows of the same table, or if one of them makes visible what the other looks at. Tables stand
for their rows, which is coarser than need be and never too fine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_TABLE = re.compile(r"\bdurable_flows_\w+|\braces_\w+")
_WRITTEN = re.compile(
    r"\b(?:INSERT INTO|UPDATE|DELETE FROM) \"?(durable_flows_\w+|races_\w+)", re.IGNORECASE
)
_LOCKING = re.compile(r"\bFOR (?:UPDATE|NO KEY UPDATE|SHARE|KEY SHARE)\b( OF \"?\w+)?")
_DRAWN = re.compile(r"nextval\('(\w+)'")
ADVISORY = "advisory lock"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of an actor: a statement, or the end of its transaction.

    Attributes:
        text: the statement as it is sent.
        reads: what it looks at.
        locks: of what it locks or writes rows, and may have to wait for them.
        shows: what of it others see, or may lock, from then on.
    """

    text: str
    reads: frozenset[str] = frozenset()
    locks: frozenset[str] = frozenset()
    shows: frozenset[str] = frozenset()

    @property
    def matters(self) -> bool:
        """Whether anybody could notice when it is taken."""
        return bool(self.reads or self.locks or self.shows)

    def with_(self, other: Step) -> Step:
        """Both as one: a step, and what went on because of it."""
        return Step(
            f"{self.text}; {other.text}",
            self.reads | other.reads,
            self.locks | other.locks,
            self.shows | other.shows,
        )


def independent(one: Step, other: Step) -> bool:
    """Whether the order of two steps of different actors cannot be noticed by anybody."""
    return not (
        one.locks & other.locks
        or one.shows & (other.reads | other.locks)
        or other.shows & (one.reads | one.locks)
    )


@lru_cache(maxsize=2_000)
def statement(text: str) -> Step:
    """The step that is this statement."""
    locks = {match[1] for match in _WRITTEN.finditer(text)}
    for match in _LOCKING.finditer(text):
        locks |= _locked(text, match)
    if "advisory" in text:
        locks.add(ADVISORY)
    drawn = frozenset(_DRAWN.findall(text))  # seen by others at once, whatever the transaction does
    return Step(text, frozenset(_TABLE.findall(text)), frozenset(locks), drawn)


def end_of(text: str, locks: frozenset[str]) -> Step:
    """The step that ends a transaction which has locked these."""
    return Step(text, shows=locks)


def is_write(text: str) -> bool:
    """Whether a statement writes or locks rows of the app."""
    return bool(statement(text).locks - {ADVISORY})


def _locked(text: str, clause: re.Match[str]) -> set[str]:
    """The tables whose rows a locking clause locks: those of the query that it ends."""
    query = text[_start_of_query(text, clause.start()) : clause.start()]
    if clause[1]:
        alias = clause[1].removeprefix(" OF ").strip('"')
        named = re.search(rf"\b(durable_flows_\w+|races_\w+)\"? (?:AS )?{alias}\b", query)
        if named:
            return {named[1]}
    return set(_TABLE.findall(query)) or set(_TABLE.findall(text))


def _start_of_query(text: str, end: int) -> int:
    depth = 0
    for place in range(end - 1, -1, -1):
        if text[place] == ")":
            depth += 1
        elif text[place] == "(":
            if depth == 0:
                return place + 1
            depth -= 1
    return 0
