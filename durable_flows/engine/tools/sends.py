"""Tools that send: events, and what asks for runs of flows, one or one for each item."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal

from durable_flows.engine.arguments import Invocation, Mapped
from durable_flows.engine.history import Recorded
from durable_flows.engine.scopes import Tool, Write
from durable_flows.engine.tools.entry import Tools
from durable_flows.errors import InvalidPayload, UnserialisableResult
from durable_flows.flows import Flow
from durable_flows.rules.events import Event, as_list
from durable_flows.rules.states import StepKind
from durable_flows.rules.values import Object

MAPPED_AT_ONCE = 100  # runs of one step.map, unless it says otherwise


class Sends(Tools):
    """The tools that set other runs going."""

    def send_event(self, id: str, events: Event[Any] | Sequence[Event[Any]]) -> list[str]:
        """Send events exactly once: they and the step's record are one transaction.

        Args:
            id: the step's name.
            events: an `Event` or a list of them.

        Returns:
            The public ids, in order.

        Raises:
            StepError: an event is not valid; nothing was sent. Recorded, and catchable.
        """
        batch = as_list(events, f"step.send_event({id!r})")
        place = self._enter(id)
        ids: list[str] = self._step(place, lambda: self._send(place.key, batch), StepKind.SEND)
        return ids

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
    ) -> Any:
        """Start a run of a flow and wait for its end, holding no worker.

        Args:
            id: the step's name.
            flow: the flow, or its id. A run of a flow that nobody knows waits until somebody does, and a
                warning is left on this run.
            data: what its handler finds in ``event.data``.
            user: what it finds in ``event.user``.
            v: what it finds in ``event.v``.
            timeout: how long to wait; at most 366 days, the default.
            key: joins the run that ``flow.start`` or another invoke has started with this key.
            subject: the row that the run is about; by default what this run is about, None: nothing.
            on_parent_cancel: whether the invoked run is cancelled too if this one is while it waits.

        Returns:
            What the invoked run's handler returned.

        Raises:
            InvokeError: it failed, was cancelled, or was not started. Recorded, and catchable.
            InvokeTimeout: it did not end in time; it goes on. Recorded, and catchable.
            StepError: ``data``, ``user``, ``v``, ``key`` or ``subject`` cannot be stored. Recorded, and
                catchable.
            InvalidOption, InvalidDuration: another argument cannot be read.
        """
        invocation = Invocation.of(
            id,
            flow,
            data,
            user=user,
            v=v,
            timeout=timeout,
            key=key,
            subject=subject,
            on_parent_cancel=on_parent_cancel,
        )
        place = self._enter(id)
        return self._step(place, lambda: self._invoke(place.key, invocation), StepKind.INVOKE)

    def map(
        self,
        id: str,
        flow: Flow | str,
        items: Iterable[Mapping[str, Any] | Object],
        *,
        max_in_flight: int = MAPPED_AT_ONCE,
        on_parent_cancel: Literal["cancel", "abandon"] = "cancel",
    ) -> list[Any]:
        """Start a run of a flow for each item, and wait for the end of all, holding no worker.

        Args:
            id: the step's name.
            flow: the flow, or its id.
            items: what each run finds in ``event.data``; 10,000 at most.
            max_in_flight: how many runs there are at once: the end of one lets the next begin.
            on_parent_cancel: whether they are cancelled too if this run is.

        Returns:
            What their handlers returned, in the order of the items.

        Raises:
            InvokeError: one of them failed, was cancelled, or was not started; raised for the first of
                these, by place, when all have ended. Recorded, and catchable.
            StepError: an item cannot be stored, or the results are too large. Recorded, and catchable.
            InvalidOption: an argument is wrong.
        """
        asked = Mapped.of(id, flow, items, max_in_flight, on_parent_cancel)
        place = self._enter(id)
        results: list[Any] = self._step(place, lambda: self._map(place.key, asked))
        return results

    def _send(self, key: str, batch: Sequence[Event[Any]]) -> Tool:
        return (
            yield Write(
                lambda: self._or_failed(key, StepKind.SEND, lambda: self._journal.send(key, batch))
            )
        )

    def _invoke(self, key: str, invocation: Invocation) -> Tool:
        return (
            yield Write(
                lambda: self._or_failed(
                    key, StepKind.INVOKE, lambda: self._journal.invoke(key, invocation)
                )
            )
        )

    def _map(self, key: str, asked: Mapped) -> Tool:
        return (
            yield Write(
                lambda: self._or_failed(key, StepKind.MAP, lambda: self._journal.map(key, asked))
            )
        )

    def _or_failed(self, key: str, kind: StepKind, ask: Callable[[], Recorded]) -> Recorded:
        """What is asked for; a step that has failed if it cannot be stored."""
        try:
            return ask()
        except (InvalidPayload, UnserialisableResult) as error:
            return self._journal.record(key, kind, error=self._journal.values.described(error, key))
