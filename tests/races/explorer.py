"""Tries the orders in which the steps of actors can be taken, each on a freshly staged state.

All of them, as a tree: at each point each actor that could take the next step is let take it. Of orders
that differ only in steps which cannot notice each other's order (`steps.independent`) one is tried: after
each schedule, whoever could have come before a step that notices him is let come before it (dynamic
partial-order reduction), unless that has been tried already (sleep sets). Or so many orders are drawn at
random, from a seed.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.races.company import Choice, Choose, Company, Performance
from tests.races.scenario import Scenario, Twin
from tests.races.stage import clear, play_on
from tests.races.steps import Step, independent


@dataclass(frozen=True, slots=True)
class Bad:
    """A schedule after which something was wrong."""

    performance: Performance
    why: str

    def told(self, scenario: Scenario) -> str:
        """The schedule, and what was wrong, for people."""
        return f"{self.why}\n{self.performance.told(scenario.names)}"


@dataclass(slots=True)
class Exploration:
    """What came out of it.

    Attributes:
        schedules: how many were played to their end.
        cut: how many were broken off, since they differ from another in nothing that matters.
        waits: how often an actor waited for another's lock.
        steps: how many were taken in all.
        seconds: how long it took.
        outcomes: how often the race came out how.
        bad: the schedules after which something was wrong.
    """

    schedules: int = 0
    cut: int = 0
    waits: int = 0
    steps: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    bad: list[Bad] = field(default_factory=list)

    def __str__(self) -> str:
        how = ", ".join(f"{name} {count:,}" for name, count in sorted(self.outcomes.items()))
        return (
            f"{self.schedules:,} schedules, {len(self.bad):,} bad, {self.seconds:.0f} s"
            f"{how and ': '}{how}"
        )


@dataclass(slots=True)
class _Node:
    """A point on the way through the tree.

    Attributes:
        asleep: who need not take the next step here: that order was tried where it makes no difference.
        open: who could take it.
        wanted: who should: somebody notices whether he does.
        tried: who has.
        taken: who does now, or -1.
    """

    asleep: dict[int, Step]
    open: Mapping[int, Step]
    wanted: set[int]
    tried: dict[int, Step] = field(default_factory=dict)
    taken: int = -1

    def left(self) -> list[int]:
        """Who is still to be tried here."""
        return [one for one in self.open if self.wants(one)]

    def wants(self, one: int) -> bool:
        """Whether it is worth while to try this one here."""
        return one in self.wanted and one not in self.asleep and one not in self.tried

    def turn(self) -> bool:
        """Let the next one be next here. False: all have been."""
        if self.taken >= 0:
            self.tried[self.taken] = self.open[self.taken]
        self.taken = next(iter(self.left()), -1)
        return self.taken >= 0


class Explorer:
    """Plays a scenario in many orders.

    Args:
        company: at least as many actors as the scenario has.
        scenario: what is played.
        twin: without this protection.
        seen: is given each statement that an actor sends.
    """

    def __init__(
        self,
        company: Company,
        scenario: Scenario,
        twin: Twin | None = None,
        *,
        seen: Callable[[str], None] | None = None,
    ) -> None:
        self._company = company
        self._scenario = scenario
        self._twin = twin
        self._seen = seen
        self._broken = False

    def all(
        self, *, reduced: bool = True, until: Callable[[Exploration], bool] | None = None
    ) -> Exploration:
        """Try every order, or go on until this is true.

        Args:
            reduced: one of those that differ in nothing that matters; otherwise each.
            until: asked after each schedule.
        """
        found = Exploration()
        path: list[_Node] = []
        with self._scenario.meanwhile(), self._without_protection():
            while True:
                self._down(path, found, reduced=reduced)
                while path and not path[-1].turn():
                    path.pop()
                if not path or (until is not None and until(found)):
                    return found

    def some(
        self, count: int, *, seed: int, until: Callable[[Exploration], bool] | None = None
    ) -> Exploration:
        """Try ``count`` different orders: one after the other, each coming first, then by chance."""
        found = Exploration()
        fair = _Fair(random.Random(seed), len(self._scenario.actors))
        tried: set[tuple[int, ...]] = set()
        with self._scenario.meanwhile(), self._without_protection():
            for first in range(len(self._scenario.actors)):
                fair.learn(self._play(partial(_one_after_the_other, first), found, tried))
            for _ in range(3 * count):
                fair.learn(self._play(fair.choose, found, tried))
                if found.schedules >= count or (until is not None and until(found)):
                    break
        return found

    def _down(self, path: list[_Node], found: Exploration, *, reduced: bool) -> None:
        """Play along the path, and on from its end."""
        depth = 0

        def choose(open_: Mapping[int, Step], last: Choice | None) -> int | None:
            nonlocal depth
            if depth == len(path):
                asleep = _asleep(path, last) if reduced else {}
                first = next((one for one in open_ if one not in asleep), -1)
                path.append(_Node(asleep, open_, {first} if reduced else set(open_), taken=first))
            node = path[depth]
            depth += 1
            if node.taken >= 0 and node.taken not in open_:
                raise AssertionError(
                    f"played again, it went otherwise at step {depth}: "
                    f"expected {node.open}, found {open_}"
                )
            return node.taken if node.taken >= 0 else None

        performance = self._play(choose, found)
        for place, actor in _reversible(performance.choices, len(self._scenario.actors)):
            node = path[place]
            node.wanted |= {actor} if actor in node.open else set(node.open)

    def _play(
        self, choose: Choose, found: Exploration, tried: set[tuple[int, ...]] | None = None
    ) -> Performance:
        """Play one order, and judge it, unless it has been tried."""
        began = time.monotonic()
        try:
            return self._play_one(choose, found, tried)
        finally:
            found.seconds += time.monotonic() - began

    def _play_one(
        self, choose: Choose, found: Exploration, tried: set[tuple[int, ...]] | None
    ) -> Performance:
        clear()
        state = self._scenario.stage()
        parts = [partial(part, state) for _, part in self._scenario.actors]
        performance = self._company.perform(parts, choose, self._rewrite)
        if not performance.complete and not performance.deadlock:
            found.cut += 1
            return performance
        if tried is not None:
            if performance.schedule in tried:
                return performance
            tried.add(performance.schedule)
        found.schedules += 1
        found.waits += performance.waited
        found.steps += len(performance.choices)
        try:
            found.outcomes[self._judge(state, performance)] += 1
        except AssertionError as wrong:
            found.bad.append(Bad(performance, str(wrong).partition("\n")[0]))
        return performance

    def _judge(self, state: Any, performance: Performance) -> str:
        """How it came out, after everything has been played to its end."""
        assert not performance.deadlock, "a deadlock"
        for number, error in performance.errors.items():
            told = f"{self._scenario.names[number]}: {type(error).__name__}: {error}"
            assert isinstance(error, self._scenario.refuses), told
        play_on()
        return self._scenario.holds(state, performance.results)

    def _rewrite(self, number: int, text: str) -> str:
        if self._seen is not None:
            self._seen(text)
        if self._twin is None or self._twin.rewrite is None:
            return text
        rewritten = self._twin.rewrite(number, text)
        self._broken |= rewritten != text
        return rewritten

    @contextmanager
    def _without_protection(self) -> Iterator[None]:
        if self._twin is None:
            yield
            return
        with self._twin.patch():
            yield
        assert self._broken or self._twin.rewrite is None, f"nothing to break: {self._twin.without}"


class _Fair:
    """Chooses by chance, so that all merges are about as likely: who has more steps left, more often."""

    def __init__(self, chance: random.Random, actors: int) -> None:
        self._chance = chance
        self._most = [1] * actors
        self._left = list(self._most)

    def learn(self, performance: Performance) -> None:
        """How many steps an actor may take."""
        for one, most in enumerate(self._most):
            self._most[one] = max(most, performance.schedule.count(one))
        self._left = list(self._most)

    def choose(self, open_: Mapping[int, Step], _: Choice | None) -> int:
        """Who takes the next step."""
        weights = [max(1, self._left[one]) for one in open_]
        (taken,) = self._chance.choices(list(open_), weights)
        self._left[taken] -= 1
        return taken


def _one_after_the_other(first: int, open_: Mapping[int, Step], _: Choice | None) -> int:
    return min(open_, key=lambda one: (one != first, one))


def _asleep(path: list[_Node], last: Choice | None) -> dict[int, Step]:
    """Who need not be next after the end of the path: it was tried before it, and that is the same."""
    if not path or last is None:
        return {}
    before = {**path[-1].asleep, **path[-1].tried}
    return {
        one: step
        for one, step in before.items()
        if one != last.taken and independent(step, last.done)
    }


def _reversible(choices: list[Choice], actors: int) -> Iterator[tuple[int, int]]:
    """Before which choice whose later step could have come, and would have been noticed.

    Each actor has a clock: of each other one, the last choice that it cannot but come after.
    """
    after = [[0] * actors for _ in range(actors)]
    clocks: list[list[int]] = []
    for place, choice in enumerate(choices):
        own = after[choice.taken]
        clock = list(own)
        last: dict[int, int] = {}
        for earlier in range(place):
            other = choices[earlier].taken
            if other == choice.taken or independent(choices[earlier].done, choice.done):
                continue
            if own[other] <= earlier:
                last[other] = earlier
            clock = [max(pair) for pair in zip(clock, clocks[earlier], strict=True)]
        yield from ((earlier, choice.taken) for earlier in last.values())
        clock[choice.taken] = place + 1
        clocks.append(clock)
        for one in {choice.taken, *choice.freed}:
            after[one] = [max(pair) for pair in zip(after[one], clock, strict=True)]
