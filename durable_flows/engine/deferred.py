"""``step.later``: tools that are called by ``step.parallel`` and ``step.race``, as branches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from durable_flows.engine.scopes import Place, Scope, Tool


class Driver(Protocol):
    """Does what tools want done; see `in_threads` and `in_tasks`."""

    @property
    def scope(self) -> Scope:
        """The line of the handler that the calling code is in."""
        ...

    def check(self) -> None:
        """Raise the signal that has ended this line, if one has."""
        ...

    def drive(self, place: Place, make: Callable[[], Tool]) -> Any:
        """The result of a tool; an awaitable of it for coroutines."""
        ...


@dataclass(frozen=True, slots=True)
class Deferred:
    """A step to be executed as a branch.

    Attributes:
        call: calls its tool on the `Step` that it is given.
    """

    call: Callable[[Any], Any]

    def __call__(self) -> Any:
        """Refuse. Raises TypeError."""
        raise TypeError("step.later.run(…) is handed to step.parallel() or step.race(), not called")


class Later:
    """The tools of a `Step`, to be called by `Step.parallel` and `Step.race`."""

    TOOLS = (
        *("run", "sleep", "sleep_until", "send_event", "invoke", "map"),
        *("wait_for_event", "wait_for_events", "collect", "wait_for_approval", "wait_for_signal"),
    )

    def __getattr__(self, name: str) -> Callable[..., Deferred]:
        if name not in self.TOOLS:
            raise AttributeError(
                f"step.later has no {name!r}; it has {', '.join(self.TOOLS)}. A branch with several "
                "steps is a function"
            )

        def defer(*args: Any, **kwargs: Any) -> Deferred:
            return Deferred(lambda step: getattr(step, name)(*args, **kwargs))

        return defer


class Held:
    """Holds a tool, to be driven by another driver when its time has come."""

    place: Place
    make: Callable[[], Tool]

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    @property
    def scope(self) -> Scope:
        """The line that the group stands in."""
        return self._driver.scope

    def check(self) -> None:
        """As that of the other driver."""
        self._driver.check()

    def drive(self, place: Place, make: Callable[[], Tool]) -> None:
        """Take the tool in hand."""
        self.place, self.make = place, make

    def drive_now(self) -> Any:
        """Its time has come."""
        return self._driver.drive(self.place, self.make)
