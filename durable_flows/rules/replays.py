"""How far a replay has come along what is recorded of a run, and where it has left it.

A handler goes along lines: its main line, and those of its branches. Within a line the order of steps is
the code's own; between branches it is that of time, and says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

PATCH = "patched:"  # what the key of a patch begins with
#: One branch within a key: of a group that has a place in its line, or a task that has none.
_BRANCH = re.compile(r"(?:(parallel|race)(?:#\d+)?|task)\[\d+\]/")
#: What ends the key of a step's intent, of what undoes it, and of its input that was edited.
INTENT, UNDO, INPUT = "#intent", "#undo", "#input"
_NOT_THE_HANDLERS = (UNDO, INPUT)
_ONE_OF_SEVERAL = re.compile(r"\[\d+\]$")  # of the waits of one step


def line_of(key: str) -> str:
    """The path of the line that a key belongs to; empty for the main line."""
    end = 0
    while found := _BRANCH.match(key, end):
        end = found.end()
    return key[:end]


def parts_of(key: str, names: Iterable[str]) -> list[str]:
    """Those of these keys that are of the several waits of one step, in order."""
    numbered = re.compile(re.escape(key) + r"\[(\d+)\]")
    found = filter(None, map(numbered.fullmatch, set(names)))
    return [part[0] for part in sorted(found, key=lambda part: int(part[1]))]


def place_in(line: str, key: str) -> str:
    """The key of the place in this line at which a recorded key was met, or below which it was.

    Empty if it is of another line that goes on beside this one, or was no doing of the handler.
    """
    if not key.startswith(line) or key.endswith(_NOT_THE_HANDLERS):
        return ""
    rest = key[len(line) :]
    if rest.startswith(PATCH):
        return ""
    if branch := _BRANCH.match(rest):
        return f"{line}{branch[0].rpartition('[')[0]}" if branch[1] else ""
    return line + rest.removesuffix(INTENT)


def is_past(recorded: Iterable[str], line: str, met: Collection[str], tasks: int) -> bool:
    """Whether a run has been further along a line than its replay has come.

    Args:
        recorded: the keys of what is recorded or begun.
        line: the path of the line.
        met: the keys of the places in it that the replay has met.
        tasks: how many tasks it has begun there.
    """
    if any(key.startswith(f"{line}task[") and _task(line, key) >= tasks for key in recorded):
        return True
    places = filter(None, (place_in(line, key) for key in recorded))
    return any(not _is_in(place, met) for place in places)


class Replay:
    """What a replay has met of what earlier slices have recorded or begun.

    Args:
        recorded: its keys, the oldest first.
    """

    def __init__(self, recorded: Iterable[str]) -> None:
        self._recorded = list(dict.fromkeys(recorded))
        self._met: set[str] = set()
        self._decided: set[str] = set()

    def meet(self, key: str) -> None:
        """The handler has come to the place of this key."""
        self._met.add(key)

    def decide(self, key: str) -> None:
        """One branch decides this group: the others need not be met."""
        self._decided.add(f"{key}[")

    def after(self, key: str) -> str:
        """The first that is recorded in the line of this key, and that is yet to be met; or empty.

        If nothing is recorded of the group that the line is a branch of, also of the line before it.
        """
        line = line_of(key)
        for one in self._left():
            place = place_in(line, one)
            if place and not _is_in(place, self._met):
                return one
        group = _group_of(line)
        is_new = group and not any(one.startswith(f"{group}[") for one in self._recorded)
        return self.after(group) if is_new else ""

    def left(self) -> str:
        """The first that is recorded and was not met; or empty.

        What tasks did is not asked for: which of them come how far may depend on time.
        """
        for key in self._left():
            line = line_of(key)
            place = place_in(line, key)
            if place and "task[" not in line and not _is_in(place, self._met):
                return key
        return ""

    def _left(self) -> Iterator[str]:
        for key in self._recorded:
            if key not in self._met and not any(key.startswith(group) for group in self._decided):
                yield key


def _is_in(place: str, met: Collection[str]) -> bool:
    return place in met or _ONE_OF_SEVERAL.sub("", place) in met


def _group_of(line: str) -> str:
    """The key of the group that a line is a branch of; empty for the main line and for tasks."""
    above = line_of(line[:-1])
    branch = _BRANCH.match(line, len(above))
    return line[: branch.end()].rpartition("[")[0] if branch and branch[1] else ""


def _task(line: str, key: str) -> int:
    """The number of the task in this line that a key is of; -1 if it is of none."""
    found = re.match(r"task\[(\d+)\]/", key[len(line) :])
    return int(found[1]) if found else -1
