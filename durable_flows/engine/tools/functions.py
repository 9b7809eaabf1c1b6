"""``step.run``: calls a function once, and records its result, or its failed attempts."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypeVar, overload

from durable_flows.engine import failpoints, scopes
from durable_flows.engine.arguments import (
    check_flag,
    check_not_async,
    policy,
    refuse_ambiguous_option,
)
from durable_flows.engine.history import Recorded
from durable_flows.engine.scopes import ENDS_OF_A_SLICE, Call, Tool, Write
from durable_flows.engine.tools.entry import Tools
from durable_flows.errors import LimitExceeded
from durable_flows.middleware import surround
from durable_flows.rules import clock, outcomes
from durable_flows.rules.backoff import Retries
from durable_flows.rules.states import StepKind

T = TypeVar("T")


class Functions(Tools):
    """The tools that call a function."""

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

        def execute() -> Tool:
            given, named = yield from self._given(place.key, fn, args, kwargs)
            return (yield from call(place.key, partial(fn, *given, **named), tried))

        call = self._execute_atomically if atomic else self._execute
        return self._step(place, execute, StepKind.RUN)

    def _given(
        self, key: str, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Tool:
        """The arguments of a step's function: by position, and by name."""
        if not self._journal.is_edited(key):
            return args, kwargs
        return (yield Write(lambda: self._journal.given(key, fn, args, kwargs)))

    def _execute(self, key: str, work: Callable[[], Any], policy: Retries) -> Tool:
        started_at, values = clock.now(), self._journal.values
        try:
            result = yield Call(self._surrounded(key, work), key)
            failpoints.reach("step_ran", key)
            # What takes longer than JSON is done beside the handler's event loop.
            output = (
                values.encode(result, key)
                if values.are_bare
                else (yield Write(lambda: values.encode(result, key)))
            )
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
        values, work = self._journal.values, self._surrounded(key, work)

        def call() -> str:
            with scopes.within(key):
                result = work()
            failpoints.reach("step_ran", key)
            return values.encode(result, key)

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

    def _surrounded(self, key: str, work: Callable[[], Any]) -> Callable[[], Any]:
        """A step's function, inside what middleware puts around it."""
        values = self._journal.values
        if not values.surround_steps:
            return work
        return surround(work, values.around_step(key, len(self._journal.failures(key)) + 1))

    def _failed(
        self, key: str, error: BaseException, policy: Retries, started_at: datetime
    ) -> Recorded:
        failures = len(self._journal.failures(key)) + 1
        verdict = outcomes.after_failure(error, policy, failures=failures, spread=random.random())
        if isinstance(verdict, outcomes.GiveUp):
            described = self._journal.values.described(verdict.error, key)
            return self._journal.record(key, StepKind.RUN, error=described, started_at=started_at)
        next_at = clock.now() + verdict.delay
        self._journal.record_failure(key, self._journal.values.described(error, key), next_at)
        return self._journal.suspend(next_at)
