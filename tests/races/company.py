"""Actors: threads with a connection each, that stop before every step and wait to be told to take it.

What an actor sends is seen on its connection itself, whichever part of the engine sends it: a statement
by the engine's own cursor or by Django's, a commit or a rollback. A writing statement outside of a
transaction is given one of its own, so that what lies between its work and its commit is explored too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import psycopg
from django.db import DatabaseError, connection

from durable_flows.engine import failpoints
from tests.races.steps import Step, end_of, statement

Rewrite = Callable[[int, str], str]  # the number of an actor and its statement → what is sent

PATIENCE = (
    60.0  # seconds after which an actor that neither answers nor waits for a lock is given up
)
A_MOMENT = 0.002  # seconds in which most statements are done

_WAITING = (
    "SELECT pid FROM pg_locks WHERE NOT granted "
    "AND locktype IN ('transactionid', 'tuple', 'spectoken', 'advisory')"
)


_here = threading.local()


@contextmanager
def unseen() -> Iterator[None]:
    """Inside the block this actor takes its steps without being asked for.

    For a prologue, before its first step: what is unseen later is not reckoned with when all orders are
    tried.
    """
    _here.unseen = True
    try:
        yield
    finally:
        _here.unseen = False


class Abandoned(failpoints.Killed):
    """The rest of this performance is of no interest."""


class _Cursor(psycopg.Cursor[Any]):
    """The engine's cursor on an actor's connection."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        send = super().execute
        options["prepare"] = True  # the same is sent thousands of times
        return self.connection.actor.send(  # type: ignore[attr-defined]
            query, lambda text: send(text, params, **options)
        )


def _gated(factory: type[Any]) -> type[Any]:
    """Django's cursor class, gated."""

    class Cursor(factory):  # type: ignore[misc]
        def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
            send = super().execute
            return self.connection.actor.send(query, lambda text: send(text, params, **options))

    return Cursor


class Actor:
    """A thread with a connection, on which each step waits for a word from the company."""

    def __init__(self, number: int, reports: SimpleQueue[tuple[int, Step | None]]) -> None:
        self.number = number
        self.result: Any = None
        self.error: BaseException | None = None
        self.backend = 0
        self.rewrite: Rewrite | None = None
        self.deadlocked = False
        self._reports = reports
        self._parts: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._words: SimpleQueue[bool] = SimpleQueue()
        self._locked: frozenset[str] = frozenset()
        self._abandoned = False
        self._thread = threading.Thread(target=self._live, name=f"actor-{number}", daemon=True)
        self._thread.start()

    def begin(self, part: Callable[[], Any], rewrite: Rewrite | None) -> None:
        """Play this part: up to its first step, and then as told."""
        self.result, self.error, self.rewrite = None, None, rewrite
        self._abandoned = self.deadlocked = False
        self._parts.put(part)

    def go_on(self, *, abandon: bool = False) -> None:
        """Take the step, or give the part up."""
        self._words.put(not abandon)

    def leave(self) -> None:
        """Close the connection, and end."""
        self._parts.put(None)
        self._thread.join(PATIENCE)

    def _live(self) -> None:
        """Play one part after the other."""
        while (part := self._parts.get()) is not None:
            try:
                self._connect()
                self.result = part()
            except BaseException as error:
                self.error = error
            if (
                connection.in_atomic_block
                or connection.needs_rollback
                or connection.errors_occurred
            ):
                connection.close()
            self._locked = frozenset()
            self._reports.put((self.number, None))
        connection.close()

    def send(self, query: Any, execute: Callable[[Any], Any]) -> Any:
        """A statement of this actor's connection."""
        text = query if isinstance(query, str) else query.decode()
        if self.rewrite is not None:
            text = self.rewrite(self.number, text)
        step = statement(text)
        if not step.matters:
            return execute(text)
        self._ask(step)
        try:
            return self._take(step, text, execute)
        except psycopg.errors.DeadlockDetected:
            self.deadlocked = True  # whatever the engine makes of it
            raise

    def _take(self, step: Step, text: str, execute: Callable[[Any], Any]) -> Any:
        """Take a step; a statement that writes alone is given a transaction of its own."""
        raw: Any = connection.connection
        if not (raw.autocommit and step.locks):
            result = execute(text)
            self._locked |= step.locks
            return result
        raw.autocommit = False
        try:
            result = execute(text)
            self._locked |= step.locks
            raw.commit()
        except BaseException:
            with suppress(psycopg.Error):
                self._undo()
            raise
        finally:
            with suppress(psycopg.Error):
                raw.autocommit = True
        return result

    def _ask(self, step: Step) -> None:
        if getattr(_here, "unseen", False):
            return
        if not self._abandoned:
            self._reports.put((self.number, step))
            self._abandoned = not self._words.get()
        if self._abandoned:
            raise Abandoned(step.text)

    def _connect(self) -> None:
        connection.ensure_connection()
        raw: Any = connection.connection
        if hasattr(raw, "actor"):
            return
        with connection.cursor() as cursor:
            cursor.execute("SET synchronous_commit = off")
            with suppress(DatabaseError):  # superusers may
                cursor.execute("SET deadlock_timeout = '50ms'")
        raw.actor = self
        raw.prepare_threshold = 2
        raw.durable_flows_cursor = _Cursor(raw)
        raw.cursor_factory = _gated(raw.cursor_factory)
        self._undo, self._commit = raw.rollback, raw.commit
        raw.commit, raw.rollback = self._gated_commit, self._gated_rollback
        self.backend = raw.info.backend_pid

    def _gated_commit(self) -> None:
        if self._locked:
            try:
                self._ask(end_of("COMMIT", self._locked))
            except Abandoned:
                self._undo()
                self._locked = frozenset()
                raise
        self._commit()
        self._locked = frozenset()

    def _gated_rollback(self) -> None:
        if self._locked:
            with suppress(Abandoned):
                self._ask(end_of("ROLLBACK", self._locked))
        self._undo()
        self._locked = frozenset()


@dataclass(frozen=True, slots=True)
class Choice:
    """A point at which somebody was chosen to take a step.

    Attributes:
        open: who could have been, and the step that each would have taken.
        taken: who was.
        done: all that was done because of it: also by those who waited for it.
        freed: those.
    """

    open: Mapping[int, Step]
    taken: int
    done: Step
    freed: frozenset[int] = frozenset()


#: Given who could take which step, and what was done last: who takes the next, or None to break off.
Choose = Callable[[Mapping[int, Step], Choice | None], int | None]


@dataclass(slots=True)
class Performance:
    """A schedule as it was played."""

    choices: list[Choice] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    errors: dict[int, BaseException] = field(default_factory=dict)
    waited: int = 0
    deadlock: bool = False
    complete: bool = True

    @property
    def schedule(self) -> tuple[int, ...]:
        """Who took a step, one after the other."""
        return tuple(choice.taken for choice in self.choices)

    def told(self, names: Sequence[str]) -> str:
        """The schedule for people: a line a step."""
        return "\n".join(
            f"  {number:3} {names[choice.taken]:>12}  {choice.open[choice.taken].text[:150]}"
            for number, choice in enumerate(self.choices, 1)
        )


class Company:
    """Actors that play parts together, a step at a time."""

    def __init__(self, size: int) -> None:
        self._reports: SimpleQueue[tuple[int, Step | None]] = SimpleQueue()
        self.actors = [Actor(number, self._reports) for number in range(size)]

    def close(self) -> None:
        """Send everybody home."""
        for actor in self.actors:
            actor.leave()

    def perform(
        self,
        parts: Sequence[Callable[[], Any]],
        choose: Choose,
        rewrite: Rewrite | None = None,
    ) -> Performance:
        """Play the parts, each up to its first step, and then as chosen."""
        play = Performance()
        ready: dict[int, Step] = {}  # who stands before which step
        waiting: dict[int, Step] = {}  # who waits for a lock, in which step
        try:
            for number, part in enumerate(parts):
                self.actors[number].begin(part, rewrite)
                self._settle(number, ready, waiting)
            self._step_by_step(choose, play, ready, waiting)
            play.deadlock = bool(waiting) and not ready
            play.deadlock |= any(actor.deadlocked for actor in self.actors)
            play.complete = not ready and not waiting
        finally:
            self._finish(ready, waiting)
        for actor in self.actors[: len(parts)]:
            play.results.append(actor.result)
            if actor.error is not None and not isinstance(actor.error, Abandoned):
                play.errors[actor.number] = actor.error
        return play

    def _step_by_step(
        self,
        choose: Choose,
        play: Performance,
        ready: dict[int, Step],
        waiting: dict[int, Step],
    ) -> None:
        """Until nobody can go on, or it is broken off."""
        last: Choice | None = None
        while ready:
            before = dict(sorted(ready.items()))
            taken = choose(before, last)
            if taken is None:
                return
            held_up = dict(waiting)
            step = waiting[taken] = ready.pop(taken)
            self.actors[taken].go_on()
            self._settle(taken, ready, waiting)
            play.waited += taken in waiting
            freed = frozenset(held_up) - set(waiting)
            for number in sorted(freed):
                step = step.with_(held_up[number])
            last = Choice(before, taken, step, freed)
            play.choices.append(last)

    def _settle(self, asked: int, ready: dict[int, Step], waiting: dict[int, Step]) -> None:
        """Until everybody stands before a step again, or waits for a lock, and is known to.

        First who was asked to go on; only then is it certain whether those who waited still do.
        """
        self._await({asked}, A_MOMENT, ready, waiting)
        self._await(set(waiting) - {asked}, 0.0, ready, waiting)

    def _await(
        self, unknown: set[int], moment: float, ready: dict[int, Step], waiting: dict[int, Step]
    ) -> None:
        until = time.monotonic() + PATIENCE
        while unknown:
            if time.monotonic() > until:
                raise AssertionError(f"actors {sorted(unknown)} neither answer nor wait for a lock")
            try:
                number, step = self._reports.get(timeout=moment)
            except Empty:
                unknown -= self._waiting_for_locks(unknown)
                moment = A_MOMENT
                continue
            unknown.discard(number)
            waiting.pop(number, None)
            if step is not None:
                ready[number] = step

    def _waiting_for_locks(self, numbers: set[int]) -> set[int]:
        with connection.cursor() as cursor:
            cursor.execute(_WAITING)
            backends = {row[0] for row in cursor.fetchall()}
        return {number for number in numbers if self.actors[number].backend in backends}

    def _finish(self, ready: dict[int, Step], waiting: dict[int, Step]) -> None:
        """Let everybody who is still on the stage leave it without another step."""
        left = {**ready, **waiting}
        for number in ready:
            self.actors[number].go_on(abandon=True)
        while left:
            number, step = self._reports.get(timeout=PATIENCE)
            if step is None:
                left.pop(number)
            else:
                self.actors[number].go_on(abandon=True)
