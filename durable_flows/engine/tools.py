"""The tools that handlers call. They speak to a journal and know nothing of tables or brokers.

Each is written once, as a generator that yields what it wants done: something at the journal, a call of
user code, branches. A driver does it, in threads for handlers written with ``def``, in tasks for those
written with ``async def``. A step has its place, and so its key, when it is called, not when it is awaited.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from functools import partial
from typing import Any, Literal, TypeVar, overload

from django.forms import Form
from django.utils import timezone

from durable_flows.engine import approvals, failpoints, groups, scopes
from durable_flows.engine.approvals import Asked, Decision
from durable_flows.engine.arguments import (
    Invocation,
    Mapped,
    awaited_events,
    check_flag,
    check_mode,
    check_most,
    check_not_async,
    check_step_id,
    encode,
    policy,
    refuse_ambiguous_option,
)
from durable_flows.engine.deferred import Deferred, Driver, Held, Later
from durable_flows.engine.history import Recorded
from durable_flows.engine.journal import Journal
from durable_flows.engine.sagas import UNDOING, Remedies, Remedy
from durable_flows.engine.scopes import (
    ENDS_OF_A_SLICE,
    Branch,
    Call,
    Place,
    Scope,
    Tool,
    Write,
)
from durable_flows.engine.wanted import Since, Wanted, request
from durable_flows.errors import (
    InvalidOption,
    InvalidPayload,
    LimitExceeded,
    NestedStep,
    StepInTransaction,
    UnserialisableResult,
)
from durable_flows.registry import Flow
from durable_flows.rules import clock, durations, outcomes, replays
from durable_flows.rules.backoff import Retries
from durable_flows.rules.events import Event, as_list
from durable_flows.rules.options import Awaited, longest_wait
from durable_flows.rules.states import ACTIONS, StepKind, StepState

T = TypeVar("T")
MAPPED_AT_ONCE = 100  # runs of one step.map, unless it says otherwise
MOST_COLLECTED = 500  # events by one step
MAX_IN_FLIGHT = 32  # branches of a group that execute at once


class Step:
    """The steps of a run. Each is executed once, recorded, and answered from its record after that.

    In a handler written with ``async def`` each tool is awaited: ``await step.run(…)``.
    """

    def __init__(
        self,
        journal: Journal,
        retries: Retries,
        driver: Driver,
        remedies: Remedies | None = None,
    ) -> None:
        self._journal = journal
        self._retries = retries
        self._driver = driver
        self._remedies = Remedies(journal) if remedies is None else remedies

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
    ) -> T: ...
    @overload
    def run(
        self, id: str, /, *, retries: int | Retries | None = None, atomic: bool | None = None
    ) -> Callable[[Callable[[], T]], T]: ...
    def run(
        self,
        id: str,
        fn: Callable[..., Any] | None = None,
        /,
        *args: Any,
        retries: int | Retries | None = None,
        atomic: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call ``fn(*args, **kwargs)`` once and record its result.

        Also a decorator: ``@step.run("charge")`` above a function without arguments calls it, and
        binds its result to its name.

        Args:
            id: the step's name; its n-th repetition in a run is a step of its own.
            fn: what to do; may be a coroutine function. It may run again if its worker dies before the
                result is recorded: `idempotency_key` is the same then.
            retries: policy of this step, default the flow's.
            atomic: call it in a transaction on the database of the app's tables, and record the
                result in the same: what it writes there happens exactly once, whatever dies.

        Returns:
            The result as it was recorded, decoded from JSON, the first time too.

        Raises:
            StepError: its attempts are exhausted, or it cannot succeed. Recorded, and catchable.
            NestedStep: called inside another step's function.
            StepInTransaction: called inside the handler's own open atomic() block.
            InvalidOption: an option is wrong, or ``atomic`` given for a coroutine function.
        """
        if fn is None:
            options: dict[str, Any] = {"retries": retries, "atomic": atomic, **kwargs}
            return lambda decorated: self.run(id, decorated, *args, **options)
        for option, value in (("retries", retries), ("atomic", atomic)):
            if value is not None:
                refuse_ambiguous_option(id, fn, option)
        check_flag(id, "atomic", atomic)
        check_not_async(id, fn, atomic)
        tried = policy(id, retries, self._retries)
        place = self._enter(id)
        work = partial(fn, *args, **kwargs)
        execute = self._execute_atomically if atomic else self._execute
        return self._step(place, lambda: execute(place.key, work, tried), StepKind.RUN)

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

    def wait_for_event(
        self,
        id: str,
        *,
        event: str,
        timeout: str | float | timedelta,
        match: str | None = None,
        if_: str | None = None,
        since: Since = None,
    ) -> Event | None:
        """Wait for an event, holding no worker.

        Args:
            id: the step's name.
            event: the event's name.
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
            The event, or None after the timeout.

        Raises:
            InvalidDuration, InvalidKey, InvalidOption: an argument cannot be read.
            InvalidExpression: ``if_`` cannot be read, or needs an extra that is not installed.
            MissingMatch: the run's own event has no value at ``match``.
        """
        wanted = Wanted.of(f"step.wait_for_event({id!r})", event, timeout, match, if_, since)
        place = self._enter(id)
        found: Event | None = self._driver.drive(place, lambda: self._wait(place, wanted))
        return found

    def wait_for_events(
        self,
        id: str,
        events: Sequence[str | Awaited],
        *,
        timeout: str | float | timedelta,
        mode: Literal["all", "any"] | int = "all",
        since: Since = None,
    ) -> list[Event | None]:
        """Wait for several events at once, holding no worker.

        Args:
            id: the step's name; those of its waits are ``id[0]``, ``id[1]``, and so on.
            events: names of events, or `Awaited` with what they must be like.
            timeout: how long to wait for each; at most 366 days.
            mode: how many are needed: ``"all"``, ``"any"``, or a number. The waits for the others are
                closed in the commit that records it.
            since: as of `wait_for_event`.

        Returns:
            The events, in the order of what was waited for; None for what has not come.

        Raises:
            InvalidDuration, InvalidKey, InvalidOption, InvalidExpression, MissingMatch: as
                `wait_for_event` does.
        """
        what = f"step.wait_for_events({id!r})"
        listed = awaited_events(what, events)
        needed = check_mode(what, mode, len(listed))
        wanted = [Wanted.of(what, one.event, timeout, one.match, one.if_, since) for one in listed]
        place = self._enter(id)
        found: list[Event | None] = self._driver.drive(
            place, lambda: self._wait_for_several(place, wanted, needed)
        )
        return found

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
    ) -> list[Event]:
        """Wait for ``count`` events of one kind, or until the time is over.

        Args:
            id: the step's name.
            event, match, if_, since: which events, as of `wait_for_event`.
            count: how many; from 1 to 500.
            timeout: how long to wait for them; at most 366 days.

        Returns:
            Those that came in time, in the order in which they were sent; ``count`` at most.

        Raises:
            InvalidDuration, InvalidKey, InvalidOption, InvalidExpression, MissingMatch: as
                `wait_for_event` does.
        """
        what = f"step.collect({id!r})"
        check_most(what, "count", count, MOST_COLLECTED)
        wanted = [Wanted.of(what, event, timeout, match, if_, since)] * count
        place = self._enter(id)
        found: list[Event] = self._driver.drive(place, lambda: self._collect(place, wanted))
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

    def send_event(self, id: str, events: Event | Sequence[Event]) -> list[str]:
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
        data: dict[str, Any] | None = None,
        *,
        user: dict[str, Any] | None = None,
        v: str | None = None,
        timeout: str | float | timedelta | None = None,
        key: str | None = None,
        on_parent_cancel: Literal["cancel", "abandon"] = "cancel",
    ) -> Any:
        """Start a run of a flow and wait for its end, holding no worker.

        Args:
            id: the step's name.
            flow: the flow, or its id; a run of a flow that nobody knows waits until somebody does.
            data: what its handler finds in ``event.data``.
            user: what it finds in ``event.user``.
            v: what it finds in ``event.v``.
            timeout: how long to wait; at most 366 days, the default.
            key: joins the run that ``flow.start`` or another invoke has started with this key.
            on_parent_cancel: whether the invoked run is cancelled too if this one is while it waits.

        Returns:
            What the invoked run's handler returned.

        Raises:
            InvokeError: it failed, was cancelled, or was not started. Recorded, and catchable.
            InvokeTimeout: it did not end in time; it goes on. Recorded, and catchable.
            StepError: ``data``, ``user``, ``v`` or ``key`` cannot be stored. Recorded, and catchable.
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
            on_parent_cancel=on_parent_cancel,
        )
        place = self._enter(id)
        return self._step(place, lambda: self._invoke(place.key, invocation), StepKind.INVOKE)

    def map(
        self,
        id: str,
        flow: Flow | str,
        items: Iterable[Mapping[str, Any]],
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

    def saga(self) -> Saga:
        """Steps that are undone, in reverse order, if the run fails or is cancelled."""
        return Saga(self)

    def parallel(
        self,
        *branches: Callable[[], Any],
        max_in_flight: int = MAX_IN_FLIGHT,
        on_error: Literal["wait", "stop"] = "wait",
    ) -> list[Any]:
        """Execute branches beside each other, and wait for all of them.

        Each may have several steps, sleep and wait. The keys of its steps begin with its place,
        ``parallel[0]/``; a branch made by `later` is one step of this line, and keeps its own.

        Args:
            branches: callables without arguments, or ``step.later.run("mail", mail, to)`` and the like.
            max_in_flight: how many may execute at once; those that sleep or wait do not count.
            on_error: ``"wait"`` for the others before an error is raised, or ``"stop"``: raise it at
                once, close the waits of the others, and begin nothing more in them.

        Returns:
            Their results, in the order of the branches.

        Raises:
            Exception: what a branch raised; with ``"wait"`` that of the first of them, by place.
            InvalidOption: an argument is wrong.
        """
        check_most("step.parallel()", "max_in_flight", max_in_flight)
        if on_error not in ("wait", "stop"):
            raise InvalidOption(f"step.parallel(): on_error= is 'wait' or 'stop', not {on_error!r}")
        place = self._enter("parallel")
        group = groups.Group(self._journal, place, self._branches(place, branches))
        together = group.all if on_error == "wait" else group.all_or_stop
        results: list[Any] = self._driver.drive(place, lambda: together(max_in_flight))
        return results

    def race(self, *branches: Callable[[], Any]) -> Any:
        """Execute branches beside each other until the first of them has ended.

        The waits of the others are closed in the commit that records who has won, and they begin no
        further step. What one of them does just then may go on to its end; nobody waits for it.

        Args:
            branches: as for `parallel`; at least one.

        Returns:
            The winner's result.

        Raises:
            Exception: what the winner raised.
            InvalidOption: there is no branch, or one is not callable.
        """
        if not branches:
            raise InvalidOption("step.race() needs at least one branch: nobody could win")
        place = self._enter("race")
        group = groups.Group(self._journal, place, self._branches(place, branches))
        return self._driver.drive(place, group.first)

    def patched(self, id: str) -> bool:
        """Whether this run takes the new way at a place where the code was changed.

        True for runs that come to this place with the code that has it: that is recorded, and stays so.
        False for runs that had gone past it before: a later step of the same line is recorded, or has
        begun.

        Args:
            id: the change's name; its n-th repetition in a run is a place of its own.

        Raises:
            NestedStep, StepInTransaction, InvalidOption: as `run` does.
        """
        place = self._enter(id, prefix=replays.PATCH)
        is_past = self._journal.is_past(place.scope)

        def tool() -> Tool:
            return (yield Write(lambda: self._journal.patch(place.key, is_past)))

        is_new: bool = self._driver.drive(place, tool)
        return is_new

    @property
    def later(self) -> Later:
        """The same tools, to be called by `parallel` and `race`: ``step.later.run("mail", mail, to)``."""
        return Later()

    @property
    def is_replaying(self) -> bool:
        """Whether the calling code was executed by an earlier slice, and is replayed now.

        A step's function never is. For code that is to tell of itself once: `Run.logger` asks this.
        """
        return not scopes.inside() and self._journal.is_past(self._driver.scope)

    @property
    def idempotency_key(self) -> str:
        """Inside a step's function: a key that is the same each time this step of this run is tried.

        Raises:
            InvalidOption: read outside a step's function.
        """
        if not scopes.inside():
            raise InvalidOption("step.idempotency_key is read inside the function of a step.run")
        return f"{self._journal.claim.run_id}:{scopes.inside()}"

    def _run_in_saga(
        self,
        id: str,
        do: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        undo: Callable[..., Any],
        retries: int | Retries | None,
        atomic: bool | None,
    ) -> Any:
        check_flag(id, "atomic", atomic)
        check_not_async(id, do, atomic)
        check_not_async(id, undo, atomic)
        tried = policy(id, retries, self._retries)
        place = self._enter(id)
        self._remedies.note(place.key, Remedy(undo, args, kwargs, tried, bool(atomic)))
        work = partial(do, *args, **kwargs)

        def execute() -> Tool:
            yield Write(lambda: self._remedies.intend(place.key))
            return (yield from call(place.key, work, tried))

        call = self._execute_atomically if atomic else self._execute
        return self._step(place, execute, StepKind.RUN)

    # -- what they have in common ------------------------------------------------------------

    def _enter(self, id: str, *, prefix: str = "") -> Place:
        """Check that a step may be called here, and give it its place."""
        self._driver.check()
        if scopes.inside():
            raise NestedStep(
                f"step {id!r} is called inside the function of step {scopes.inside()!r}; call it from "
                "the handler, after that step, and pass results along"
            )
        if self._journal.in_transaction():
            raise StepInTransaction(
                f"step {id!r} is called inside an atomic() block that the handler opened: its result "
                "could be rolled back after it was reported; move the block into a step's function"
            )
        check_step_id(id)
        return self._take(prefix + id)

    def _take(self, id: str) -> Place:
        place = self._driver.scope.take(id)
        if self._journal.replay is not None:
            self._journal.replay.meet(place.key)
        return place

    def _step(self, place: Place, execute: Callable[[], Tool], kind: StepKind | None = None) -> Any:
        """A step that has a result or a failure: recorded, or executed now."""

        return self._driver.drive(place, lambda: self._tool(place, execute, kind))

    def _tool(
        self, place: Place, execute: Callable[[], Tool], kind: StepKind | None = None
    ) -> Tool:
        recorded = yield Write(lambda: self._journal.begin(place.key, kind))
        if recorded is None:
            recorded = yield from execute()
        return self._answer(place, recorded)

    def _execute(self, key: str, work: Callable[[], Any], policy: Retries) -> Tool:
        started_at = clock.now()
        try:
            result = yield Call(work, key)
            failpoints.reach("step_ran", key)
            output = encode(result, key)
        except ENDS_OF_A_SLICE:
            raise
        except BaseException as error:  # sys.exit() in a step is its failure, not the worker's end
            failure = error
        else:
            return (
                yield Write(
                    lambda: self._journal.record(
                        key, StepKind.RUN, output=output, started_at=started_at
                    )
                )
            )
        return (yield Write(lambda: self._failed(key, failure, policy, started_at)))

    def _execute_atomically(self, key: str, work: Callable[[], Any], policy: Retries) -> Tool:
        started_at = clock.now()

        def call() -> str:
            with scopes.within(key):
                result = work()
            failpoints.reach("step_ran", key)
            return encode(result, key)

        try:
            written = yield Call(
                lambda: self._journal.write_atomically(key, call, started_at=started_at), ""
            )
        except (*ENDS_OF_A_SLICE, LimitExceeded):
            raise
        except BaseException as error:
            failure = error
        else:
            return (yield Write(lambda: self._journal.keep(*written)))
        return (yield Write(lambda: self._failed(key, failure, policy, started_at)))

    def _failed(
        self, key: str, error: BaseException, policy: Retries, started_at: datetime
    ) -> Recorded:
        failures = len(self._journal.failures(key)) + 1
        verdict = outcomes.after_failure(error, policy, failures=failures, spread=random.random())
        if isinstance(verdict, outcomes.GiveUp):
            described = outcomes.describe(verdict.error, step=key)
            return self._journal.record(key, StepKind.RUN, error=described, started_at=started_at)
        next_at = clock.now() + verdict.delay
        self._journal.record_failure(key, outcomes.describe(error, step=key), next_at)
        return self._journal.suspend(next_at)

    def _send(self, key: str, batch: Sequence[Event]) -> Tool:
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
            return self._journal.record(key, kind, error=outcomes.describe(error, step=key))

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
                place.key, request(self._journal, place.scope.looking, place.key, wanted)
            ),
        )
        return None if recorded.output is None else Event.from_dict(recorded.value)

    def _wait_for_several(self, place: Place, wanted: Sequence[Wanted], needed: int) -> Tool:
        def wait() -> Recorded:
            requests = {
                key: partial(request, self._journal, place.scope.looking, key, one)
                for key, one in ((f"{place.key}[{n}]", one) for n, one in enumerate(wanted))
            }
            return self._journal.await_events(place.key, requests, needed)

        recorded = yield from self._waited(place, wait)
        return [found and Event.from_dict(found) for found in recorded.value]

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
        return None if recorded.output is None else Decision.of(Event.from_dict(recorded.value))

    def _waited(self, place: Place, wait: Callable[[], Recorded]) -> Tool:
        recorded = yield Write(lambda: self._journal.begin(place.key, StepKind.WAIT) or wait())
        place.scope.last_key = place.key
        place.scope.looking.waited(recorded.mark)
        yield Write(self._journal.check)
        return recorded

    def _answer(self, place: Place, recorded: Recorded) -> Any:
        """A recorded step's result, or its failure."""
        place.scope.last_key = place.key
        if recorded.kind in ACTIONS:
            place.scope.looking.acted(place.began, recorded.mark)
        if recorded.state == StepState.FAILED:
            raise outcomes.recall(recorded.failure)
        return recorded.value

    # -- branches ------------------------------------------------------------------------------

    def _branches(self, place: Place, given: Sequence[Callable[[], Any]]) -> list[Branch]:
        return [self._branch(place, number, one) for number, one in enumerate(given)]

    def _branch(self, place: Place, number: int, given: Callable[[], Any]) -> Branch:
        if isinstance(given, Deferred):
            return self._deferred(place, given)
        if not callable(given):
            raise InvalidOption(
                f"a branch is a callable without arguments, or step.later.run(…), not {given!r}; "
                "a plain step.run(…) has been executed before its result gets here"
            )
        path, looking = f"{place.key}[{number}]/", place.scope.looking.branch()
        return Branch(path, given, lambda: Scope(path, looking.branch(), parent=place.scope))

    def _deferred(self, place: Place, given: Deferred) -> Branch:
        """A branch that is one step: it has its place in this line, by the order of the branches."""
        held = Held(self._driver)
        given.call(Step(self._journal, self._retries, held))
        return Branch(held.place.key, held.drive_now, place.scope.step)


class Saga:
    """Steps that are undone if the run fails or is cancelled; made by `Step.saga`."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def run(
        self,
        id: str,
        do: Callable[..., T],
        /,
        *args: Any,
        undo: Callable[..., Any],
        retries: int | Retries | None = None,
        atomic: bool | None = None,
        **kwargs: Any,
    ) -> T:
        """As `Step.run`; if the run fails or is cancelled, ``undo`` is a step as well.

        That ``do`` is going to be called is recorded before. Whatever has been recorded so is undone, the
        last first, before the run ends, also if it failed, or died: then nobody knows what came of it.

        Args:
            id: the step's name; that of its undo ends with ``#undo``.
            do: what to do.
            undo: called with the result of ``do``, None where there is none, and with the arguments of
                ``do``. It may be called more than once, like every step's function.
            retries: policy of both, default the flow's.
            atomic: call ``do``, and ``undo`` too, in one transaction with its record.

        Raises:
            StepError, NestedStep, StepInTransaction, InvalidOption: as `Step.run` does.
        """
        result: T = self._step._run_in_saga(id, do, args, kwargs, undo, retries, atomic)
        return result


class Undoing(Step):
    """The steps that undo what the handler has done."""

    def all(self) -> Any:
        """Undo what has an intent. Returns what could not be undone: step → why."""
        scope = self._driver.scope
        place = Place(UNDOING, scope, scope.looking.latest)
        return self._driver.drive(place, lambda: self._remedies.undo_all(scope, self._one))

    def _one(self, place: Place, work: Callable[[], Any], policy: Retries, atomic: bool) -> Tool:
        call = self._execute_atomically if atomic else self._execute
        return self._tool(place, lambda: call(place.key, work, policy), StepKind.RUN)
