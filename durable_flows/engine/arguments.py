"""What handlers say to the tools, checked: ids, options, and what an invocation asks for."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from durable_flows.declare import check_id
from durable_flows.errors import InvalidOption, InvalidPayload
from durable_flows.flows import Flow
from durable_flows.rules import clock, durations, values
from durable_flows.rules.backoff import Retries
from durable_flows.rules.options import Awaited, check_awaited_name, longest_wait
from durable_flows.rules.values import Object

ID_LENGTH = 200
MOST_ITEMS = 10_000  # of one step.map
_RESERVED_ID = re.compile(
    r"(after|patched):.*|.*#(\d+|intent|input|undo)|(parallel|race|task)(#\d+)?\[\d+\]/.*",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """A run that a step asks for.

    Attributes:
        flow_id: of which flow.
        data: what its handler finds in ``event.data``.
        user: what it finds in ``event.user``.
        v: what it finds in ``event.v``.
        key: joins the run that this key has started, if it has.
        subject: the row that it is about.
        expires_at: when the caller stops to wait.
        cascade: whether the run is cancelled if the caller is.
    """

    flow_id: str
    data: Object
    user: dict[str, Any] | None
    v: str | None
    key: str | None
    subject: Any
    expires_at: datetime
    cascade: bool

    @classmethod
    def of(
        cls,
        id: str,
        flow: object,
        data: Object | None,
        *,
        user: dict[str, Any] | None,
        v: str | None,
        timeout: str | float | timedelta | None,
        key: str | None,
        subject: Any,
        on_parent_cancel: str,
    ) -> Invocation:
        """What `Step.invoke` of this id was told.

        Raises:
            InvalidOption, InvalidDuration: it cannot be understood.
        """
        what = f"step.invoke({id!r})"
        _check_parent_cancel(what, on_parent_cancel)
        longest = durations.LONGEST if timeout is None else timeout
        return cls(
            flow_id=_flow_id(flow, what),
            data={} if data is None else data,
            user=user,
            v=v,
            key=key,
            subject=subject,
            expires_at=clock.now() + longest_wait(longest, what=f"{what}, timeout="),
            cascade=on_parent_cancel == "cancel",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """What ``step.map`` asks for.

    Attributes:
        flow_id: of which flow.
        items: what its handler finds in ``event.data``, for each run.
        most: how many runs at once.
        cascade: whether they are cancelled with the caller.
    """

    flow_id: str
    items: Sequence[Mapping[str, Any] | Object]
    most: int
    cascade: bool

    @classmethod
    def of(
        cls, id: str, flow: object, items: object, max_in_flight: object, on_parent_cancel: object
    ) -> Mapped:
        """What `Step.map` of this id was told. Raises `InvalidOption`."""
        what = f"step.map({id!r})"
        check_most(what, "max_in_flight", max_in_flight, MOST_ITEMS)
        _check_parent_cancel(what, on_parent_cancel)
        if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
            raise InvalidOption(f"{what}: the items are a list of dicts, not {items!r}")
        listed = list(items)
        if len(listed) > MOST_ITEMS:
            raise InvalidOption(
                f"{what}: {len(listed):,} items, the limit is {MOST_ITEMS:,}; map over them in parts"
            )
        for number, item in enumerate(listed):
            if not isinstance(_opened(what, item), Mapping):
                raise InvalidOption(
                    f"{what}: each item is what a run finds in event.data, a dict; item {number} is "
                    f"{item!r}"
                )
        return cls(
            flow_id=_flow_id(flow, what),
            items=listed,
            most=max_in_flight,  # type: ignore[arg-type]
            cascade=on_parent_cancel == "cancel",
        )


def _opened(what: str, item: object) -> Any:
    """What is written as an object as the dict that it becomes."""
    try:
        return values.opened(item)
    except InvalidPayload as error:
        raise InvalidOption(f"{what}: an item {error.problem}") from error


def _check_parent_cancel(what: str, given: object) -> None:
    if given not in ("cancel", "abandon"):
        raise InvalidOption(f"{what}: on_parent_cancel= is 'cancel' or 'abandon', not {given!r}")


def _flow_id(flow: object, what: str) -> str:
    if isinstance(flow, Flow):
        return flow.id
    if not isinstance(flow, str):
        raise InvalidOption(f"{what} takes a flow or the id of one, not {flow!r}")
    try:
        check_id(flow)
    except InvalidOption as error:
        raise InvalidOption(f"{what}: {error}") from error
    return flow


def check_step_id(id: object) -> None:
    """Raise `InvalidOption` unless this can be a step's id."""
    if not isinstance(id, str) or not id.strip() or len(id) > ID_LENGTH or not id.isprintable():
        raise InvalidOption(
            f"a step's id is text of 1 to {ID_LENGTH} printable characters, not {id!r}"
        )
    if _RESERVED_ID.fullmatch(id):
        raise InvalidOption(
            f"step id {id!r}: the engine itself marks repetitions with '#2', code after a step with "
            "'after:', changes with 'patched:', and branches with 'parallel[0]/' and the like; choose "
            "another id"
        )


def policy(id: str, retries: int | Retries | None, default: Retries) -> Retries:
    """The retries of a step. Raises `InvalidOption`."""
    if retries is None:
        return default
    try:
        return Retries.of(retries, default)
    except InvalidOption as error:
        raise InvalidOption(f"step {id!r}: {error}") from error


def check_not_async(id: str, fn: Callable[..., Any], atomic: bool | None) -> None:
    """Raise `InvalidOption` if a coroutine function is to be atomic."""
    if atomic and inspect.iscoroutinefunction(fn):
        raise InvalidOption(
            f"step {id!r}: atomic=True with coroutine function {getattr(fn, '__qualname__', fn)!r}: "
            "Django's transactions are no asynchronous ones; write it with def"
        )


def check_most(what: str, option: str, value: object, most: int | None = None) -> None:
    """Raise `InvalidOption` unless this can be how many there may be."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if not is_number or value < 1 or (most is not None and value > most):  # type: ignore[operator]
        up_to = "" if most is None else f" to {most:,}"
        raise InvalidOption(f"{what}: {option}= is a number from 1{up_to}, not {value!r}")


def awaited_events(what: str, events: object) -> list[Awaited]:
    """Names and `Awaited` as the latter. Raises `InvalidOption`."""
    if isinstance(events, str | bytes | Awaited) or not isinstance(events, Iterable):
        raise InvalidOption(f"{what} takes a list of event names, or of Awaited(…), not {events!r}")
    listed = [_awaited_event(what, one) for one in events]
    if not listed:
        raise InvalidOption(f"{what}: there is no event to wait for")
    return listed


def _awaited_event(what: str, given: object) -> Awaited:
    return given if isinstance(given, Awaited) else Awaited(check_awaited_name(given, what))


def check_mode(what: str, mode: object, count: int) -> int:
    """How many events are needed. Raises `InvalidOption`."""
    if mode in ("all", "any"):
        return count if mode == "all" else 1
    if isinstance(mode, int) and not isinstance(mode, bool) and 1 <= mode <= count:
        return mode
    raise InvalidOption(
        f"{what}: mode= is 'all', 'any', or a number from 1 to the {count} events, not {mode!r}"
    )


def check_flag(id: str, option: str, value: object) -> None:
    """Raise `InvalidOption` unless an option that is on or off is that, or not given."""
    if value is not None and not isinstance(value, bool):
        raise InvalidOption(f"step {id!r}: {option}= is True or False, not {value!r}")


def refuse_ambiguous_option(id: str, fn: Callable[..., Any], option: str) -> None:
    """Raise TypeError if an option of `Step.run` is a parameter of its function as well."""
    if isinstance(fn, functools.partial) and option in fn.keywords:
        return
    try:
        parameters = inspect.signature(fn).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return
    if option in parameters:
        raise TypeError(
            f"step {id!r}: {option}= is an option of step.run and also a parameter of "
            f"{getattr(fn, '__qualname__', fn)}; pass the function's own with functools.partial"
        )


def with_named(
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    named: Mapping[str, Any],
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """These arguments with others of some names, also of those that are passed by position.

    A function whose parameters cannot be read gets them by name.
    """
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return args, {**kwargs, **named}
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [parameter.name for parameter in parameters if parameter.kind in by_position]
    edited, left = list(args), dict(named)
    for place, name in enumerate(names[: len(edited)]):
        if name in left:
            edited[place] = left.pop(name)
    return edited, {**kwargs, **left}
