"""Tools that let the run rest: until a time, an event, several of them, or somebody's decision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any, Literal, TypeVar, overload

from django.forms import Form
from django.utils import timezone

from durable_flows.engine import approvals
from durable_flows.engine.approvals import Asked, Decision
from durable_flows.engine.arguments import awaited_events, check_mode, check_most
from durable_flows.engine.history import Recorded
from durable_flows.engine.scopes import Place, Tool, Write
from durable_flows.engine.signals import request as request_signal
from durable_flows.engine.tools.entry import Tools
from durable_flows.engine.wanted import Since, Wanted, request
from durable_flows.errors import SignalTaken
from durable_flows.rules import clock, durations, signals
from durable_flows.rules.event_types import EventType
from durable_flows.rules.events import Event
from durable_flows.rules.options import Awaited, longest_wait
from durable_flows.rules.signals import Signal
from durable_flows.rules.states import StepKind, StepState

D = TypeVar("D")

MOST_COLLECTED = 500  # events by one step


class Waits(Tools):
    """The tools that hold no worker while they wait."""

    def sleep(self, id: str, duration: str | float | timedelta) -> None:
        """Let the run rest, holding no worker.

        Args:
            id: the step's name.
            duration: ``"7 days"``, a timedelta or seconds; at most 366 days. The end is fixed the
                first time; never early by the clock.

        Raises:
            InvalidDuration: the duration cannot be read.
        """
        delta = longest_wait(duration, what=f"step.sleep({id!r})")
        place = self._enter(id)
        slept: None = self._driver.drive(
            place, lambda: self._sleep(place, lambda: clock.now() + delta)
        )
        return slept

    def sleep_until(self, id: str, moment: datetime | date | str) -> None:
        """Let the run rest until ``moment``; at once if that has passed.

        Args:
            id: the step's name.
            moment: a datetime, a date or ISO text; naive ones are in the current time zone. At most
                366 days ahead. Fixed the first time.

        Raises:
            InvalidDuration: the moment cannot be read, or lies too far ahead.
        """
        what = f"step.sleep_until({id!r})"
        until = durations.instant(moment, what=what, tz=timezone.get_current_timezone())

        def end() -> datetime:
            longest_wait(max(0.0, (until - clock.now()).total_seconds()), what=what)
            return until

        place = self._enter(id)
        slept: None = self._driver.drive(place, lambda: self._sleep(place, end))
        return slept

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
    ) -> Event[D] | None: ...
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
    ) -> Event | None: ...
    def wait_for_event(
        self,
        id: str,
        *,
        event: str,
        timeout: str | float | timedelta,
        match: str | None = None,
        if_: str | None = None,
        since: Since = None,
    ) -> Event[Any] | None:
        """Wait for an event, holding no worker.

        Args:
            id: the step's name.
            event: the event's name, or its `EventType`.
            timeout: how long to wait; at most 366 days.
            match: a path, e.g. ``"data.cart_id"``, at which the run's own event and the awaited one
                must hold the same value.
            if_: an expression over ``event``, the run's own event, and ``async``, the awaited one,
                e.g. ``"async.data.order == event.data.order && async.data.total > 100"``. With
                ``match`` both must hold. An event on which it comes to nothing, because a field is
                missing or types do not fit, does not match, and a warning is left on the run.
            since: from when on events count. By default every event since before the last action
                (`run`, `send_event`) is seen, so that no reply is too fast. ``"run"``: since the
                trigger; ``"now"``; or an aware datetime, compared with when events were received.

        Returns:
            The event, or None after the timeout. Its data are an instance of the type's model, or of a
            name a dict.

        Raises:
            UnreadableEvent: the event's data do not fit the type any more.
            InvalidDuration, InvalidKey, InvalidOption: an argument cannot be read.
            InvalidExpression: ``if_`` cannot be read, or needs an extra that is not installed.
            MissingMatch: the run's own event has no value at ``match``.
        """
        wanted = Wanted.of(f"step.wait_for_event({id!r})", event, timeout, match, if_, since)
        place = self._enter(id)
        found: Event[Any] | None = self._driver.drive(place, lambda: self._wait(place, wanted))
        return found

    @overload
    def wait_for_events(
        self,
        id: str,
        events: Sequence[EventType[D]],
        *,
        timeout: str | float | timedelta,
        mode: Literal["all", "any"] | int = "all",
        since: Since = None,
    ) -> list[Event[D] | None]: ...
    @overload
    def wait_for_events(
        self,
        id: str,
        events: Sequence[str | Awaited],
        *,
        timeout: str | float | timedelta,
        mode: Literal["all", "any"] | int = "all",
        since: Since = None,
    ) -> list[Event[Any] | None]: ...
    def wait_for_events(
        self,
        id: str,
        events: Sequence[str | Awaited],
        *,
        timeout: str | float | timedelta,
        mode: Literal["all", "any"] | int = "all",
        since: Since = None,
    ) -> Sequence[Event[Any] | None]:
        """Wait for several events at once, holding no worker.

        Args:
            id: the step's name; those of its waits are ``id[0]``, ``id[1]``, and so on.
            events: names or types of events, or `Awaited` with what they must be like.
            timeout: how long to wait for each; at most 366 days.
            mode: how many are needed: ``"all"``, ``"any"``, or a number. The waits for the others are
                closed in the commit that records it.
            since: as of `wait_for_event`.

        Returns:
            The events, in the order of what was waited for; None for what has not come.

        Raises:
            InvalidDuration, InvalidKey, InvalidOption, InvalidExpression, MissingMatch, UnreadableEvent:
                as `wait_for_event` does.
        """
        what = f"step.wait_for_events({id!r})"
        listed = awaited_events(what, events)
        needed = check_mode(what, mode, len(listed))
        wanted = [Wanted.of(what, one.event, timeout, one.match, one.if_, since) for one in listed]
        place = self._enter(id)
        found: list[Event[Any] | None] = self._driver.drive(
            place, lambda: self._wait_for_several(place, wanted, needed)
        )
        return found

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
    ) -> list[Event[D]]: ...
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
    ) -> list[Event]: ...
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
    ) -> Sequence[Event[Any]]:
        """Wait for ``count`` events of one kind, or until the time is over.

        Args:
            id: the step's name.
            event, match, if_, since: which events, as of `wait_for_event`.
            count: how many; from 1 to 500.
            timeout: how long to wait for them; at most 366 days.

        Returns:
            Those that came in time, in the order in which they were sent; ``count`` at most.

        Raises:
            InvalidDuration, InvalidKey, InvalidOption, InvalidExpression, MissingMatch, UnreadableEvent:
                as `wait_for_event` does.
        """
        what = f"step.collect({id!r})"
        check_most(what, "count", count, MOST_COLLECTED)
        wanted = [Wanted.of(what, event, timeout, match, if_, since)] * count
        place = self._enter(id)
        found: list[Event[Any]] = self._driver.drive(place, lambda: self._collect(place, wanted))
        return found

    def wait_for_approval(
        self,
        id: str,
        *,
        timeout: str | float | timedelta,
        question: str = "",
        permission: str | None = None,
        assignees: Sequence[str] = (),
        form: type[Form] | str | None = None,
    ) -> Decision | None:
        """Wait for a person to approve or to reject, holding no worker.

        Who may decide has the permission, and is one of the assignees, as far as these are given.

        Args:
            id: the step's name.
            timeout: how long to wait; at most 366 days.
            question: what is to be decided, for people; default the step's name.
            permission: ``"app_label.codename"``.
            assignees: names of users.
            form: a form of Django's, or its dotted path, to be filled in with the approval.

        Returns:
            The `Decision`, or None after the timeout.

        Raises:
            InvalidDuration, InvalidOption: an argument cannot be read.
        """
        what = f"step.wait_for_approval({id!r})"
        asked = Asked.of(what, question or id, permission, assignees, form)
        patience = longest_wait(timeout, what=f"{what}, timeout=")
        place = self._enter(id)
        found: Decision | None = self._driver.drive(
            place, lambda: self._wait_for_approval(place, asked, patience)
        )
        return found

    def wait_for_signal(
        self, id: str, name: str, *, timeout: str | float | timedelta
    ) -> Signal | None:
        """Wait for a signal of this name, holding no worker; also for one that was sent before.

        One step at a time waits for a name, and one gets each signal.

        Args:
            id: the step's name.
            name: the signal's: 1 to 200 printable characters.
            timeout: how long to wait; at most 366 days.

        Returns:
            The oldest `Signal` that nobody has got and that has not expired, or None after the timeout.

        Raises:
            StepError: another step waits for this name. Recorded, and catchable.
            InvalidOption, InvalidDuration: an argument cannot be read.
        """
        what = f"step.wait_for_signal({id!r})"
        signals.check_name(name, what)
        patience = longest_wait(timeout, what=f"{what}, timeout=")
        place = self._enter(id)
        found: Signal | None = self._driver.drive(
            place, lambda: self._wait_for_signal(place, name, patience)
        )
        return found

    def _sleep(self, place: Place, end: Callable[[], datetime]) -> Tool:
        key = place.key

        def rest() -> Recorded:
            found = self._journal.begin(place.key, StepKind.SLEEP)
            found = found or self._journal.record(key, StepKind.SLEEP, until=end())
            assert found.until is not None, f"sleep {key!r} was recorded without its end"
            if found.until > clock.now():
                self._journal.suspend(found.until)
            return found

        recorded = yield Write(rest)
        place.scope.last_key = key
        place.scope.looking.slept(recorded.mark, recorded.until)

    def _wait(self, place: Place, wanted: Wanted) -> Tool:
        recorded = yield from self._waited(
            place,
            lambda: self._journal.await_event(
                place.key,
                request(self._journal, place.scope.looking, place.key, wanted, clock.now()),
            ),
        )
        if recorded.output is None:
            return None
        return (yield from self._handed(recorded.value)).decoded(wanted.type)

    def _wait_for_several(self, place: Place, wanted: Sequence[Wanted], needed: int) -> Tool:
        def wait() -> Recorded:
            now = clock.now()
            requests = {
                key: partial(request, self._journal, place.scope.looking, key, one, now)
                for key, one in ((f"{place.key}[{n}]", one) for n, one in enumerate(wanted))
            }
            return self._journal.await_events(place.key, requests, needed)

        recorded = yield from self._waited(place, wait)
        # By name: since it was recorded the list of what is waited for may have changed.
        types = {one.event: one.type for one in wanted if one.type is not None}
        ends = []
        for found in recorded.value:
            event = found and (yield from self._handed(found))
            ends.append(event and event.decoded(types.get(event.name)))
        return ends

    def _collect(self, place: Place, wanted: Sequence[Wanted]) -> Tool:
        found = yield from self._wait_for_several(place, wanted, len(wanted))
        return sorted(filter(None, found), key=lambda event: event.public_id)

    def _wait_for_approval(self, place: Place, asked: Asked, patience: timedelta) -> Tool:
        key, claim = place.key, self._journal.claim
        recorded = yield from self._waited(
            place,
            lambda: self._journal.await_event(
                key,
                approvals.request(claim, key, asked, patience),
                prepare=lambda: approvals.ask(claim, key, asked),
            ),
        )
        if recorded.output is None:
            return None
        return Decision.of((yield from self._handed(recorded.value)))

    def _wait_for_signal(self, place: Place, name: str, patience: timedelta) -> Tool:
        key, claim = place.key, self._journal.claim

        def wait() -> Recorded:
            try:
                return self._journal.await_event(key, request_signal(claim, key, name, patience))
            except SignalTaken as error:
                described = self._journal.values.described(error, key)
                return self._journal.record(key, StepKind.WAIT, error=described)

        recorded = yield from self._waited(place, wait)
        if recorded.state == StepState.FAILED:
            raise (yield from self._failure(recorded))
        if recorded.output is None:
            return None
        found = yield from self._handed(recorded.value)
        return signals.read(found.data, found.public_id)

    def _handed(self, document: Mapping[str, Any]) -> Tool:
        """A recorded event, as the handler gets it."""
        event = Event.from_dict(document)
        if self._journal.values.are_bare:
            return event
        return (yield Write(lambda: self._journal.opened(event)))

    def _waited(self, place: Place, wait: Callable[[], Recorded]) -> Tool:
        recorded = yield Write(lambda: self._journal.begin(place.key, StepKind.WAIT) or wait())
        place.scope.last_key = place.key
        place.scope.looking.waited(recorded.mark)
        yield Write(self._journal.check)
        return recorded
