"""``@flow``: declares a durable function, and says what is wrong with its options."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from durable_flows.conf import shown
from durable_flows.errors import InvalidOption, InvalidSetting
from durable_flows.flows import ON_CANCEL, ON_FAILURE, Ending, Flow
from durable_flows.handlers import Handler, parameters_of
from durable_flows.installed import made
from durable_flows.middleware import Middleware, Sealing
from durable_flows.registry import registry
from durable_flows.rules.backoff import Retries
from durable_flows.rules.options import (
    MOST_CANCELS,
    MOST_TRIGGERS,
    CancelOn,
    On,
    Timeouts,
    check_trigger_name,
)

ID_LENGTH = 200
MOST_VERSION = 2**31 - 1
_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]*[A-Za-z0-9])?")


def flow(
    id: str,
    *,
    on: str | On | Sequence[str | On] = (),
    cancel_on: CancelOn | Sequence[CancelOn] = (),
    retries: int | Retries | None = None,
    timeouts: Timeouts | None = None,
    strict: bool = False,
    version: int | None = None,
    queue: str = "",
    middleware: Sequence[Middleware | type[Middleware] | str] = (),
    references: bool = False,
    on_failure: Handler | None = None,
    on_cancel: Handler | None = None,
) -> Callable[[Handler], Flow]:
    """Declare a durable function.

    Args:
        id: stable identity of its runs: letters, digits and ``. _ / -``, at most 200.
        on: name of the event that starts it, or ``On(event, if_=…)`` for some of them, or up to 10
            of either; ``"app/user.*"`` is any name that begins so. An event starts the flow once,
            however many of these it meets. None: only ``.start()`` does.
        cancel_on: up to 5 rules for events that cancel its unfinished runs.
        retries: attempts after the first, of each step and of each stretch of code between steps:
            a number from 0 to 20, or a `Retries` policy. Default 4.
        timeouts: how long a run may take to begin, and to end: it is cancelled then.
        strict: park a run, with a `DeterminismError`, where the code comes to a new step before
            recorded ones, or to its end without them. Otherwise that is noted on the run.
        version: a number from 1. Flows of one id and different versions stand side by side: the
            highest starts new runs, and a run stays with the one that has started it. A flow
            without a version is older than all that have one.
        queue: Celery queue on which its runs execute; default the project's.
        middleware: what surrounds its runs, their steps and what these return, inside what the settings
            list: instances of `Middleware`, their classes, or dotted paths of these.
        references: model instances in results are stored as references to their rows, and fetched again
            when the result is read. Otherwise they are refused.
        on_failure: a function that handles its failed runs, as `Flow.on_failure`.
        on_cancel: a function that handles its runs that are cancelled, as `Flow.on_cancel`.

    Raises:
        InvalidOption: an option is wrong; the message names the flow, the option and the remedy.
        InvalidHandler: the function asks for a parameter that no run can offer.
        DuplicateFlow: another function has this id and version.
    """
    check_id(id)

    def register(handler: Handler) -> Flow:
        declared = Flow(
            id=id,
            handler=handler,
            on=_triggers(id, on),
            cancel_on=_cancels(id, cancel_on),
            retries=_retries(id, retries),
            timeouts=_timeouts(id, timeouts),
            strict=_flag(id, "strict", strict),
            version=_version(id, version),
            queue=_queue(id, queue),
            parameters=parameters_of(id, handler),
            middleware=_middleware(id, middleware),
            references=_flag(id, "references", references),
        )
        _register(declared, {ON_FAILURE: on_failure, ON_CANCEL: on_cancel})
        return declared

    return register


def _register(declared: Flow, given: Mapping[Ending, Handler | None]) -> None:
    """Add a flow and those that handle its ends; none of them if one cannot be."""
    handlers = [ending.flow_of(declared, fn) for ending, fn in given.items() if fn is not None]
    for one in (declared, *handlers):
        registry.add(one)


def check_id(id: Any) -> None:
    """Raise `InvalidOption` unless ``id`` can be a flow's id."""
    if not isinstance(id, str):
        raise InvalidOption(
            f"@flow needs an id as its first argument, as in @flow('send-welcome', on=…), not {id!r}"
        )
    if len(id) > ID_LENGTH or not _ID.fullmatch(id):
        raise InvalidOption(
            f"flow id {id!r}: an id has letters, digits and . _ / - in between, "
            f"at most {ID_LENGTH} characters"
        )


def _triggers(id: str, on: str | On | Sequence[str | On]) -> tuple[On, ...]:
    given = (on,) if isinstance(on, str | On) else _listed(id, "on=", on, "an event's name")
    if len(given) > MOST_TRIGGERS:
        raise InvalidOption(
            f"flow {id!r}: on= takes at most {MOST_TRIGGERS} triggers, not {len(given)}"
        )
    triggers = tuple(_trigger(id, one) for one in given)
    if len(set(triggers)) < len(triggers):
        names = ", ".join(trigger.event for trigger in triggers)
        raise InvalidOption(f"flow {id!r}: on= names an event twice: {names}")
    return triggers


def _trigger(id: str, given: str | On) -> On:
    if isinstance(given, On):
        given.condition(f"flow {id!r}, On({given.event!r})")
        return given
    return On(check_trigger_name(given, f"flow {id!r}, on="))


def _cancels(id: str, cancel_on: CancelOn | Sequence[CancelOn]) -> tuple[CancelOn, ...]:
    given = (cancel_on,) if isinstance(cancel_on, CancelOn) else cancel_on
    rules = _listed(id, "cancel_on=", given, "CancelOn('event/name', match=…)")
    if len(rules) > MOST_CANCELS:
        raise InvalidOption(
            f"flow {id!r}: cancel_on= takes at most {MOST_CANCELS} rules, not {len(rules)}"
        )
    for rule in rules:
        if not isinstance(rule, CancelOn):
            raise InvalidOption(
                f"flow {id!r}: cancel_on= takes CancelOn('event/name', match=…), not {rule!r}"
            )
        rule.condition(f"flow {id!r}, CancelOn({rule.event!r})")
    return rules


def _listed(id: str, option: str, value: Any, what: str) -> tuple[Any, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise InvalidOption(f"flow {id!r}: {option} takes {what} or a list of them, not {value!r}")
    return tuple(value)


def _retries(id: str, retries: int | Retries | None) -> Retries:
    try:
        return Retries.of(retries, Retries())
    except InvalidOption as error:
        raise InvalidOption(f"flow {id!r}: {error}") from error


def _timeouts(id: str, timeouts: Any) -> Timeouts | None:
    if timeouts is not None and not isinstance(timeouts, Timeouts):
        raise InvalidOption(
            f"flow {id!r}: timeouts= takes Timeouts(start=…, finish=…), not {timeouts!r}"
        )
    return timeouts


def _flag(id: str, option: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidOption(f"flow {id!r}: {option}= is True or False, not {value!r}")
    return value


def _middleware(id: str, given: Any) -> tuple[Middleware, ...]:
    listed = _listed(id, "middleware=", given, "a Middleware")
    try:
        members = tuple(made(one) for one in listed)
    except InvalidSetting as error:
        raise InvalidOption(f"flow {id!r}: middleware= {error}") from error
    if sealing := next((one for one in members if isinstance(one, Sealing)), None):
        raise InvalidOption(
            f"flow {id!r}: middleware= lists {type(sealing).__name__}, and others that get its events and "
            f"results could not read them: list it in {shown('MIDDLEWARE')}"
        )
    return members


def _version(id: str, version: Any) -> int:
    if version is None:
        return 0
    if (
        isinstance(version, bool)
        or not isinstance(version, int)
        or not 1 <= version <= MOST_VERSION
    ):
        raise InvalidOption(
            f"flow {id!r}: version= is a whole number from 1 to {MOST_VERSION:,}, the highest being "
            f"the newest, not {version!r}"
        )
    return version


def _queue(id: str, queue: Any) -> str:
    if not isinstance(queue, str) or len(queue) > 255:
        raise InvalidOption(
            f"flow {id!r}: queue= is the name of a Celery queue of at most 255 characters, not {queue!r}"
        )
    return queue
