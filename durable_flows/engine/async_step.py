"""How the tools look to a type checker in a handler that is written with ``async def``.

Declarations only. What handlers get, and what each tool does, is `tools.step.Step`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any, Literal, Protocol, TypeVar, overload

from django.forms import Form

from durable_flows.engine.approvals import Decision
from durable_flows.engine.deferred import Later
from durable_flows.engine.tools.branches import MAX_IN_FLIGHT
from durable_flows.engine.tools.sends import MAPPED_AT_ONCE
from durable_flows.engine.wanted import Since
from durable_flows.flows import Flow
from durable_flows.rules.backoff import Retries
from durable_flows.rules.event_types import EventType
from durable_flows.rules.events import Event
from durable_flows.rules.options import Awaited as AwaitedEvent
from durable_flows.rules.signals import Signal
from durable_flows.rules.values import Object

D = TypeVar("D")
T = TypeVar("T")
Awaited = Coroutine[Any, Any, T]


class AsyncSaga(Protocol):
    """Steps that are undone if the run fails or is cancelled, each awaited; see `Saga`."""

    def run(
        self,
        id: str,
        do: Callable[..., Any],
        /,
        *args: Any,
        undo: Callable[..., Any],
        retries: int | Retries | None = None,
        atomic: bool | None = None,
        **kwargs: Any,
    ) -> Awaited[Any]: ...


class AsyncStep(Protocol):
    """The steps of a run, each awaited; see `Step`."""

    @overload
    def run(
        self,
        id: str,
        fn: Callable[..., Awaitable[T]],
        /,
        *args: Any,
        retries: int | Retries | None = None,
        **kwargs: Any,
    ) -> Awaited[T]: ...
    @overload
    def run(
        self,
        id: str,
        fn: Callable[..., T],
        /,
        *args: Any,
        retries: int | Retries | None = None,
        atomic: bool | None = None,
        **kwargs: Any,
    ) -> Awaited[T]: ...
    @overload
    def run(
        self, id: str, /, *, retries: int | Retries | None = None, atomic: bool | None = None
    ) -> Callable[[Callable[[], Any]], Awaited[Any]]: ...

    def sleep(self, id: str, duration: str | float | timedelta) -> Awaited[None]: ...

    def sleep_until(self, id: str, moment: datetime | date | str) -> Awaited[None]: ...

    @overload
    def wait_for_event(  # type: ignore[overload-overlap]
        self,
        id: str,
        *,
        event: EventType[D],
        timeout: str | float | timedelta,
        match: str | None = None,
        if_: str | None = None,
        since: Since = None,
    ) -> Awaited[Event[D] | None]: ...
    @overload
    def wait_for_event(
        self,
        id: str,
        *,
        event: str,
        timeout: str | float | timedelta,
        match: str | None = None,
        if_: str | None = None,
        since: Since = None,
    ) -> Awaited[Event | None]: ...

    @overload
    def wait_for_events(
        self,
        id: str,
        events: Sequence[EventType[D]],
        *,
        timeout: str | float | timedelta,
        mode: Literal["all", "any"] | int = "all",
        since: Since = None,
    ) -> Awaited[list[Event[D] | None]]: ...
    @overload
    def wait_for_events(
        self,
        id: str,
        events: Sequence[str | AwaitedEvent],
        *,
        timeout: str | float | timedelta,
        mode: Literal["all", "any"] | int = "all",
        since: Since = None,
    ) -> Awaited[list[Event[Any] | None]]: ...

    @overload
    def collect(  # type: ignore[overload-overlap]
        self,
        id: str,
        *,
        event: EventType[D],
        count: int,
        timeout: str | float | timedelta,
        match: str | None = None,
        if_: str | None = None,
        since: Since = None,
    ) -> Awaited[list[Event[D]]]: ...
    @overload
    def collect(
        self,
        id: str,
        *,
        event: str,
        count: int,
        timeout: str | float | timedelta,
        match: str | None = None,
        if_: str | None = None,
        since: Since = None,
    ) -> Awaited[list[Event]]: ...

    def wait_for_approval(
        self,
        id: str,
        *,
        timeout: str | float | timedelta,
        question: str = "",
        permission: str | None = None,
        assignees: Sequence[str] = (),
        form: type[Form] | str | None = None,
    ) -> Awaited[Decision | None]: ...

    def wait_for_signal(
        self, id: str, name: str, *, timeout: str | float | timedelta
    ) -> Awaited[Signal | None]: ...

    def send_event(
        self, id: str, events: Event[Any] | Sequence[Event[Any]]
    ) -> Awaited[list[str]]: ...

    def invoke(
        self,
        id: str,
        flow: Flow | str,
        data: Object | None = None,
        *,
        user: dict[str, Any] | None = None,
        v: str | None = None,
        timeout: str | float | timedelta | None = None,
        key: str | None = None,
        subject: Any = ...,
        on_parent_cancel: Literal["cancel", "abandon"] = "cancel",
    ) -> Awaited[Any]: ...

    def map(
        self,
        id: str,
        flow: Flow | str,
        items: Iterable[Mapping[str, Any] | Object],
        *,
        max_in_flight: int = MAPPED_AT_ONCE,
        on_parent_cancel: Literal["cancel", "abandon"] = "cancel",
    ) -> Awaited[list[Any]]: ...

    def saga(self) -> AsyncSaga: ...

    def parallel(
        self,
        *branches: Callable[[], Any],
        max_in_flight: int = MAX_IN_FLIGHT,
        on_error: Literal["wait", "stop"] = "wait",
    ) -> Awaited[list[Any]]: ...

    def race(self, *branches: Callable[[], Any]) -> Awaited[Any]: ...

    def patched(self, id: str) -> Awaited[bool]: ...

    @property
    def later(self) -> Later: ...

    @property
    def is_replaying(self) -> bool: ...

    @property
    def idempotency_key(self) -> str: ...
