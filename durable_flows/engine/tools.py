"""The tools that handlers call. They speak to a journal and know nothing of tables or brokers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Literal, TypeVar, overload

from django.utils import timezone

from durable_flows.engine import failpoints, notes, signatures
from durable_flows.engine.arguments import (
    Invocation,
    check_flag,
    check_step_id,
    encode,
    policy,
    refuse_ambiguous_option,
)
from durable_flows.engine.history import Claim, Recorded, Waiting
from durable_flows.engine.journal import Journal
from durable_flows.errors import (
    CancelAsked,
    HandBack,
    InvalidOption,
    InvalidPayload,
    LeaseLost,
    LimitExceeded,
    MissingMatch,
    NestedStep,
    StepInTransaction,
    Suspend,
)
from durable_flows.registry import Flow
from durable_flows.rules import clock, durations, keys, outcomes
from durable_flows.rules.backoff import Retries
from durable_flows.rules.equalities import Condition
from durable_flows.rules.events import Event, as_list
from durable_flows.rules.lookback import LookBack
from durable_flows.rules.options import awaited, check_awaited_name, longest_wait
from durable_flows.rules.states import ACTIONS, StepKind, StepState

T = TypeVar("T")
Since = datetime | Literal["run", "now"] | None

#: What ends a slice and is nobody's failure.
ENDS_OF_A_SLICE = (
    Suspend,
    LeaseLost,
    CancelAsked,
    HandBack,
    KeyboardInterrupt,
    failpoints.Killed,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a handler may know of its run.

    Attributes:
        id: the run's id.
        flow: its flow's id.
        created_at: when it was created.
        generation: how often it was retried.
    """

    id: str
    flow: str
    created_at: datetime
    generation: int

    @classmethod
    def of(cls, claim: Claim) -> Run:
        """The run behind a claim."""
        return cls(
            id=str(claim.run_id),
            flow=claim.flow_id,
            created_at=claim.created_at,
            generation=claim.generation,
        )


class Step:
    """The steps of a run. Each is executed once, recorded, and answered from its record after that."""

    def __init__(self, journal: Journal, retries: Retries) -> None:
        self._journal = journal
        self._retries = retries
        self._looking = LookBack(journal.claim.mark)
        self._seen: dict[str, int] = {}
        self._inside = ""

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
            fn: what to do. It may run again if its worker dies before the result is recorded:
                `idempotency_key` is the same then.
            retries: policy of this step, default the flow's.
            atomic: call it in a transaction on the database of the app's tables, and record the
                result in the same: what it writes there happens exactly once, whatever dies.

        Returns:
            The result as it was recorded, decoded from JSON, the first time too.

        Raises:
            StepError: its attempts are exhausted, or it cannot succeed. Recorded, and catchable.
            NestedStep: called inside another step's function.
            StepInTransaction: called inside the handler's own open atomic() block.
        """
        if fn is None:
            options: dict[str, Any] = {"retries": retries, "atomic": atomic, **kwargs}
            return lambda decorated: self.run(id, decorated, *args, **options)
        for option, value in (("retries", retries), ("atomic", atomic)):
            if value is not None:
                refuse_ambiguous_option(id, fn, option)
        check_flag(id, "atomic", atomic)
        key = self._enter(id)
        recorded = self._journal.recorded(key)
        if recorded is None:
            execute = self._execute_atomically if atomic else self._execute
            recorded = execute(key, lambda: fn(*args, **kwargs), policy(id, retries, self._retries))
        return self._answer(recorded)

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
        self._sleep(id, lambda: clock.now() + delta)

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

        self._sleep(id, end)

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
        key = self._enter(id)
        recorded = self._journal.recorded(key)
        if recorded is None:
            asked = awaited(match, if_, f"step.wait_for_event({key!r})")
            request = self._request(key, event, timeout, asked, since, match)
            recorded = self._journal.await_event(key, request)
        self._looking.waited(recorded.mark)
        self._journal.check()
        return None if recorded.output is None else Event.from_dict(recorded.value)

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
        key = self._enter(id)
        recorded = self._journal.recorded(key)
        if recorded is None:
            recorded = self._send(key, batch)
        ids: list[str] = self._answer(recorded)
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
        step_key = self._enter(id)
        recorded = self._journal.recorded(step_key)
        if recorded is None:
            recorded = self._invoke(step_key, invocation)
        return self._answer(recorded)

    @property
    def idempotency_key(self) -> str:
        """Inside a step's function: a key that is the same each time this step of this run is tried.

        Raises:
            InvalidOption: read outside a step's function.
        """
        if not self._inside:
            raise InvalidOption("step.idempotency_key is read inside the function of a step.run")
        return f"{self._journal.claim.run_id}:{self._inside}"

    # -- what they have in common ------------------------------------------------------------

    def _enter(self, id: str) -> str:
        """Check that a step may begin here, and give it its key."""
        self._journal.check()
        if self._inside:
            raise NestedStep(
                f"step {id!r} is called inside the function of step {self._inside!r}; call it from "
                "the handler, after that step, and pass results along"
            )
        if self._journal.in_transaction():
            raise StepInTransaction(
                f"step {id!r} is called inside an atomic() block that the handler opened: its result "
                "could be rolled back after it was reported; move the block into a step's function"
            )
        self._journal.check_worker()
        check_step_id(id)
        number = self._seen[id] = self._seen.get(id, 0) + 1
        return id if number == 1 else f"{id}#{number}"

    def _execute(self, key: str, call: Callable[[], Any], policy: Retries) -> Recorded:
        self._hold_off(key)
        self._journal.check_room(key)
        started_at = clock.now()
        try:
            with self._within(key):
                result = call()
            failpoints.reach("step_ran", key)
            output = encode(result, key)
        except ENDS_OF_A_SLICE:
            raise
        except BaseException as error:  # sys.exit() in a step is its failure, not the worker's end
            return self._failed(key, error, policy, started_at)
        return self._journal.record(key, StepKind.RUN, output=output, started_at=started_at)

    def _execute_atomically(self, key: str, call: Callable[[], Any], policy: Retries) -> Recorded:
        self._hold_off(key)
        self._journal.check_room(key)
        started_at = clock.now()

        def work() -> str:
            with self._within(key):
                result = call()
            failpoints.reach("step_ran", key)
            return encode(result, key)

        try:
            return self._journal.record_atomically(key, work, started_at=started_at)
        except (*ENDS_OF_A_SLICE, LimitExceeded):
            raise
        except BaseException as error:
            return self._failed(key, error, policy, started_at)

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

    def _hold_off(self, key: str) -> None:
        """An attempt that is to be made later is not made now, whatever woke the run."""
        failures = self._journal.failures(key)
        next_at = failures[-1].next_at if failures else None
        if next_at is not None and next_at > clock.now():
            self._journal.suspend(next_at)

    def _send(self, key: str, batch: Sequence[Event]) -> Recorded:
        try:
            return self._journal.send(key, batch)
        except InvalidPayload as error:
            return self._journal.record(
                key, StepKind.SEND, error=outcomes.describe(error, step=key)
            )

    def _invoke(self, key: str, invocation: Invocation) -> Recorded:
        try:
            return self._journal.invoke(key, invocation)
        except InvalidPayload as error:
            return self._journal.record(
                key, StepKind.INVOKE, error=outcomes.describe(error, step=key)
            )

    def _sleep(self, id: str, end: Callable[[], datetime]) -> None:
        key = self._enter(id)
        recorded = self._journal.recorded(key)
        if recorded is None:
            recorded = self._journal.record(key, StepKind.SLEEP, until=end())
        until = recorded.until
        assert until is not None, f"sleep {key!r} was recorded without its end"
        if until > clock.now():
            self._journal.suspend(until)
        self._looking.slept(recorded.mark, until)

    def _request(
        self,
        key: str,
        event: str,
        timeout: str | float | timedelta,
        asked: Condition,
        since: Since,
        match: str | None,
    ) -> Waiting:
        what = f"step.wait_for_event({key!r})"
        name = check_awaited_name(event, what)
        expires_at = clock.now() + longest_wait(timeout, what=f"{what}, timeout=")
        claim = self._journal.claim
        id_ = keys.wait_id(claim.run_id, key, claim.generation)
        own = claim.event.as_dict()
        # an id is the hash of no event: what lacks a value of its own matches nothing
        hash_ = signatures.hash_for(name, asked, own) or id_
        if missing := asked.missing(own):
            self._say_missing(key, missing, match)
        looking = self._looking
        position = looking.trigger if since == "run" else looking.eligible
        return Waiting(
            id=id_,
            key=key,
            event_name=name,
            paths=asked.paths,
            criteria=_criteria(asked, own),
            expression=asked.residual,
            match=hash_,
            eligible_from=0 if isinstance(since, datetime) else position.mark,
            routed_since=None if isinstance(since, datetime) else position.since,
            received_since=_received_since(since, what),
            expires_at=expires_at,
        )

    def _say_missing(self, key: str, missing: Sequence[str], match: str | None) -> None:
        """Nothing can ever match: an error if the path was given as ``match``, else a warning."""
        trigger = self._journal.claim.event
        if match is not None and match.removeprefix("event.") in missing:
            raise MissingMatch(
                f"step.wait_for_event({key!r}): the run's own event {trigger.name!r} has no value at "
                f"{match!r}, so nothing could ever match; send it with that value, or match on "
                "another path"
            )
        self._journal.warn(key, notes.nothing_matches(trigger.name, missing))

    def _answer(self, recorded: Recorded) -> Any:
        """A recorded step's result, or its failure."""
        if recorded.kind in ACTIONS:
            self._looking.acted(recorded.mark)
        if recorded.state == StepState.FAILED:
            raise outcomes.recall(recorded.failure)
        return recorded.value

    @contextmanager
    def _within(self, key: str) -> Iterator[None]:
        self._inside = key
        try:
            yield
        finally:
            self._inside = ""


def _received_since(since: Since, what: str) -> datetime | None:
    if since in (None, "run"):
        return None
    if since == "now":
        return clock.now()
    if not isinstance(since, datetime) or since.tzinfo is None:
        raise InvalidOption(f"{what}: since= is an aware datetime, 'run' or 'now', not {since!r}")
    return since


def _criteria(asked: Condition, own: Mapping[str, Any]) -> str:
    """What a wait matches, for people."""
    equalities = zip(asked.paths, asked.values(own), strict=True)
    parts = [f"{path} = {_shown(value)}" for path, value in equalities]
    return ", ".join([*parts, asked.residual] if asked.residual else parts)


def _shown(value: Any) -> str:
    """A matched value for people, cut to a length that a list can show."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
