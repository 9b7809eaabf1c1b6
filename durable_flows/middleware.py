"""Middleware: what surrounds events, runs, steps and values, of a whole project or of one flow.

A hook that no middleware overrides costs nothing: a `Chain` keeps those only that do something.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    nullcontext,
)
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Final, Literal, TypeVar

from durable_flows.errors import InvalidOption
from durable_flows.rules.events import Event

T = TypeVar("T")
Around = AbstractContextManager[Any] | AbstractAsyncContextManager[Any]
Opener = Callable[[], Around]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """A run, as middleware sees it.

    Attributes:
        run_id: its id.
        flow: its flow's id.
        version: of its flow; 0 if that has none.
        generation: how often it was retried.
        context: what was captured where its event was sent.
    """

    run_id: str
    flow: str
    version: int
    generation: int
    context: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepContext:
    """A step's function that is about to be called.

    Attributes:
        run: whose.
        key: the step's key.
        attempt: 1 for the first.
    """

    run: RunContext
    key: str
    attempt: int


@dataclass(frozen=True, slots=True)
class About:
    """What a value is.

    Attributes:
        kind: the ``data`` or the ``user`` of an event; the result of a step; the ``result`` of a run; the
            ``error`` of either, a dict of name, message, stack, code and step; the ``input`` that a step
            is given when a run is done again.
        name: the event's name, or the flow's id.
        key: the step's key, if it is a step's.
    """

    kind: Literal["data", "user", "step", "result", "error", "input"]
    name: str
    key: str = ""


class Middleware:
    """Surrounds what happens. Override what you need, and list it in ``DURABLE_FLOWS["MIDDLEWARE"]``.

    Hooks are called in the order of the list, those of the settings before those of a flow; on the way
    out, `value_out` and the ends of context managers, in the reverse order.
    """

    def event_sent(self, event: Event) -> Event:
        """An event that is about to be stored, in the sender's thread and transaction.

        Called for what is sent, and for what starts or invokes a flow, whose names begin with ``flows/``.

        Args:
            event: as the sender said it.

        Returns:
            What is stored: the event itself, or a copy (`dataclasses.replace`), with more in its
            ``context``, for instance. What is raised here the sender gets, and nothing is stored.
        """
        return event

    def around_run(self, run: RunContext) -> Around:
        """Around the handler, each time that it is called: a run is replayed after each wait.

        Returns:
            A context manager. One that is ``async`` is entered in the handler's event loop; for a handler
            that is not, in one of its own. It is left by a `BaseException` where the handler suspends.
        """
        return nullcontext()

    def around_step(self, step: StepContext) -> Around:
        """Around the function of a step, each time that it is called, in the thread that calls it.

        Returns:
            As `around_run` does. What it raises is a failed attempt of the step.
        """
        return nullcontext()

    def value_in(self, value: Any, about: About) -> Any:
        """A value on its way into the tables. Returns what is stored: JSON types."""
        return value

    def value_out(self, value: Any, about: About) -> Any:
        """A value on its way out, to a handler or to a step's function. Returns what they get.

        What is raised here is a failed attempt of the code that asks for it.
        """
        return value


class Sealing(Middleware):
    """Middleware that makes values unreadable in the tables, with keys that can be changed."""

    def seals(self, path: str) -> bool:
        """Whether what an event has at this dotted path cannot be read, and so not be compared."""
        raise NotImplementedError

    def renewed(self, text: str, within: Callable[[str], str] | None = None) -> str:
        """Stored JSON text, sealed with the newest key.

        Args:
            text: in which whole strings are sealed; what only mentions something sealed stays as it is.
            within: does the same with what is inside, which middlewares before this one have sealed.

        Raises:
            DecryptionFailed: it was sealed with none of the keys.
        """
        raise NotImplementedError


class Chain:
    """Middlewares, one inside the other; true if there is one.

    Args:
        members: the outermost first.
    """

    def __init__(self, members: Iterable[Middleware]) -> None:
        self.members: Final = tuple(members)
        self._sends = self._hooks("event_sent")
        self._runs = self._hooks("around_run")
        self._steps = self._hooks("around_step")
        self._ins = self._hooks("value_in")
        self._outs = self._hooks("value_out")[::-1]

    def __bool__(self) -> bool:
        return bool(self.members)

    def _hooks(self, name: str) -> list[Callable[..., Any]]:
        """The bound methods of this name that do something."""
        idle = getattr(Middleware, name)
        return [getattr(one, name) for one in self.members if getattr(type(one), name) is not idle]

    @property
    def changes_values(self) -> bool:
        """Whether values are not stored as they are."""
        return bool(self._ins or self._outs)

    @property
    def surrounds_steps(self) -> bool:
        """Whether something is around the functions of steps."""
        return bool(self._steps)

    def sent(self, event: Event) -> Event:
        """The event as it is to be stored."""
        for hook in self._sends:
            event = hook(event)
            if not isinstance(event, Event):
                raise InvalidOption(
                    f"{hook.__qualname__} returns the event that is to be stored, not {event!r}"
                )
        return event

    def into(self, value: Any, about: About) -> Any:
        """The value as it is to be stored."""
        for hook in self._ins:
            value = hook(value, about)
        return value

    def out_of(self, value: Any, about: About) -> Any:
        """The value as it is handed over."""
        for hook in self._outs:
            value = hook(value, about)
        return value

    def around_run(self, run: RunContext) -> list[Opener]:
        """What is to be entered around a handler."""
        return [partial(hook, run) for hook in self._runs]

    def around_step(self, step: StepContext) -> list[Opener]:
        """What is to be entered around a step's function."""
        return [partial(hook, step) for hook in self._steps]


# -- entering and leaving ------------------------------------------------------------------------


def surround(work: Callable[..., Any], openers: Sequence[Opener]) -> Callable[..., Any]:
    """The function with these context managers around it; of a coroutine function, around its coroutine."""
    if not openers:
        return work
    if inspect.iscoroutinefunction(work):

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            return await _await_inside(partial(work, *args, **kwargs), openers)

        return awaited

    def called(*args: Any, **kwargs: Any) -> Any:
        result = SWALLOWED
        with ExitStack() as stack:
            for opener in openers:
                stack.enter_context(as_sync(opener()))
            result = work(*args, **kwargs)
        check_passed(result)
        if hasattr(result, "__await__"):  # as of a lambda that calls a coroutine function
            return _await_inside(lambda: result, openers)
        return result

    return called


SWALLOWED: Final = object()  # in place of what a function would have returned


def check_passed(result: Any) -> None:
    """Raise `InvalidOption` if a context manager has kept an exception to itself."""
    if result is SWALLOWED:
        raise InvalidOption(
            "a context manager of middleware has swallowed an exception: let it pass, there is nothing "
            "that could be returned instead"
        )


async def _await_inside(work: Callable[[], Any], openers: Sequence[Opener]) -> Any:
    result = SWALLOWED
    async with AsyncExitStack() as stack:
        for opener in openers:
            around = opener()
            if isinstance(around, AbstractAsyncContextManager):
                await stack.enter_async_context(around)
            else:
                stack.enter_context(around)
        result = await work()
    check_passed(result)
    return result


def as_sync(around: Around) -> AbstractContextManager[Any]:
    """The context manager, for where there is no event loop."""
    return around if isinstance(around, AbstractContextManager) else _Waited(around)


class _Waited(AbstractContextManager[Any]):
    """An asynchronous context manager where there is no event loop: in a loop of its own, till its end."""

    def __init__(self, around: AbstractAsyncContextManager[Any]) -> None:
        self._around = around
        self._runner = asyncio.Runner()

    def __enter__(self) -> Any:
        try:
            return self._run(self._around.__aenter__())
        except BaseException:
            self._runner.close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        with self._runner:
            return self._run(self._around.__aexit__(kind, error, traceback))

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Await it; what it sets context variables to holds here."""

        async def wait() -> T:
            try:
                return await coroutine
            finally:
                context.append(copy_context())

        context: list[Context] = []
        try:
            return self._runner.run(wait())
        finally:
            for variable, value in (context[0] if context else {}).items():
                if variable.get(SWALLOWED) is not value:
                    variable.set(value)
