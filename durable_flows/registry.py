"""Flows: what a team declares, and where the engine finds it.

The registry knows nothing of the engine; the engine registers the verbs that a flow offers
(``flow.start``) with `provide`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

from durable_flows.errors import (
    DuplicateFlow,
    DurableFlowsError,
    InvalidHandler,
    InvalidOption,
)
from durable_flows.rules import endings
from durable_flows.rules.backoff import Retries
from durable_flows.rules.options import (
    MOST_CANCELS,
    MOST_TRIGGERS,
    CancelOn,
    On,
    Timeouts,
    check_trigger_name,
)

Handler = Callable[..., Any]

#: What a handler may ask for, by parameter name.
PARAMETERS = ("event", "events", "step", "run")
ID_LENGTH = 200
MOST_VERSION = 2**31 - 1
NAMES_KEPT = 10_000  # event names of which the listening flows are remembered
_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]*[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A durable function.

    Attributes:
        id: the stable identity of its runs.
        handler: the function that is replayed.
        on: the events that start it.
        cancel_on: events that cancel its unfinished runs.
        retries: the policy of its steps and of the code between them.
        timeouts: how long its runs may take, if that is limited.
        strict: a run whose records do not fit the handler is parked.
        version: of several flows of this id the highest starts new runs; 0: it was given none.
        queue: the Celery queue its runs execute on; empty: the project's default.
        parameters: which of `PARAMETERS` the handler takes.
        of: id of the flow whose failures or cancellations it handles; empty: it is nobody's handler.
    """

    id: str
    handler: Handler
    on: tuple[On, ...] = ()
    cancel_on: tuple[CancelOn, ...] = ()
    retries: Retries = field(default_factory=Retries)
    timeouts: Timeouts | None = None
    strict: bool = False
    version: int = 0
    queue: str = ""
    parameters: frozenset[str] = frozenset()
    of: str = ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: a handler runs inside a run, never by itself. Raises TypeError."""
        raise TypeError(
            f"flow {self.id!r} is not called like a function: start it with "
            f"{self.handler.__name__}.start(data), or send one of its events "
            f"({', '.join(self.triggers) or 'it has none'}) with durable_flows.send()"
        )

    def start(
        self,
        data: dict[str, Any] | None = None,
        *,
        user: dict[str, Any] | None = None,
        key: str | None = None,
    ) -> str:
        """Ask for a run, without an event of its own; joins the caller's transaction.

        It is a run of the newest version of the flow, whichever this one is.

        Args:
            data: what the handler finds in ``event.data``.
            user: what it finds in ``event.user``.
            key: text of 1 to 255 characters: of all starts of this flow with the same key only the
                first starts a run. It is kept as the ids of events are.

        Returns:
            The run's id; with a key, that of the run which the first start has asked for. The run
            exists once that start's transaction has committed.

        Raises:
            InvalidEvent: ``data``, ``user`` or ``key`` cannot be stored.
        """
        run_id: str = _verb("start")(self, data, user=user, key=key)
        return run_id

    def on_failure(self, handler: Handler) -> Flow:
        """Decorate what handles failed runs of this flow: a flow of its own, ``<id>/on-failure``.

        Each failed run starts a run of it, with steps and retries of its own. ``event`` is the
        ``flows/function.failed`` event: ``event.data["event"]`` started the run that failed, of
        ``event.data["error"]``. No run of it starts when a run is cancelled.

        Raises:
            InvalidHandler: the function asks for a parameter that no run can offer.
            InvalidOption: this flow is itself a handler.
            DuplicateFlow: another function handles them already.
        """
        return self._handled(ON_FAILURE, handler)

    def on_cancel(self, handler: Handler) -> Flow:
        """Decorate what handles runs that are cancelled after they began: a flow, ``<id>/on-cancel``.

        As `on_failure`; ``event`` is the ``flows/function.cancelled`` event, and says why in
        ``event.data["reason"]``.

        Raises:
            InvalidHandler, InvalidOption, DuplicateFlow: as for `on_failure`.
        """
        return self._handled(ON_CANCEL, handler)

    def _handled(self, ending: Ending, handler: Handler) -> Flow:
        declared = ending.flow_of(self, handler)
        registry.add(declared)
        return declared

    def arguments(self, available: Mapping[str, Any]) -> dict[str, Any]:
        """The handler's arguments, picked from what a run can offer."""
        return {name: available[name] for name in self.parameters}

    @property
    def triggers(self) -> tuple[str, ...]:
        """Names of the events that start it, wildcards as they were written."""
        return tuple(dict.fromkeys(trigger.event for trigger in self.on))

    @property
    def is_async(self) -> bool:
        """Whether the handler is a coroutine function: then it awaits its steps."""
        return inspect.iscoroutinefunction(self.handler)

    @property
    def name(self) -> str:
        """Its id and, if it has one, its version, for lists."""
        return f"{self.id}, version {self.version}" if self.version else self.id

    @property
    def label(self) -> str:
        """Its id and, if it has one, its version, for messages."""
        return labelled(self.id, self.version)

    @property
    def role(self) -> str:
        """What it handles of which flow, for people; empty if it is nobody's handler."""
        kinds = (ending for ending in (ON_FAILURE, ON_CANCEL) if self.id == ending.id_for(self.of))
        return "".join(f"{ending.what} of {self.of}" for ending in kinds)

    @property
    def place(self) -> str:
        """Where the handler is defined, for messages."""
        return f"{self.handler.__module__}.{self.handler.__qualname__}"


def labelled(flow_id: str, version: int | None) -> str:
    """A flow's id and, if it has one, its version, for messages."""
    return f"{flow_id!r}, version {version}" if version else repr(flow_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """A way in which runs end that a flow may have a handler for.

    Attributes:
        option: how the handler is declared.
        suffix: what its flow's id has after that of the flow it belongs to.
        event: what tells of such ends.
        when: what must hold beside that it is a run of the flow.
        what: such ends, for people.
    """

    option: str
    suffix: str
    event: str
    when: str
    what: str

    def id_for(self, owner_id: str) -> str:
        """The id of the flow that handles such ends of runs of this flow."""
        return f"{owner_id}/{self.suffix}"

    def flow_of(self, owner: Flow, handler: Handler) -> Flow:
        """The flow that handles such ends of another's runs.

        Raises:
            InvalidHandler: the function cannot be a handler.
            InvalidOption: the other flow is itself one that handles ends.
        """
        if owner.of:
            raise InvalidOption(
                f"flow {owner.id!r} handles ends of flow {owner.of!r}, and nobody is told of its own: "
                f"{self.option} would never be called; catch StepError in its handler"
            )
        if isinstance(handler, Flow):
            raise InvalidHandler(
                f"flow {owner.id!r}: {self.option} takes a function, not flow {handler.id!r}; let that "
                f"listen to {self.event!r} instead, or start it in a function"
            )
        id = self.id_for(owner.id)
        of_owner = f"event.data.function_id == '{owner.id}'"
        return Flow(
            id=id,
            handler=handler,
            on=(On(self.event, if_=f"{of_owner}{self.when and ' && '}{self.when}"),),
            version=owner.version,
            queue=owner.queue,
            parameters=_parameters(id, handler),
            of=owner.id,
        )


ON_FAILURE = Ending(
    option="on_failure",
    suffix="on-failure",
    event=endings.FAILED,
    when="",
    what="failures",
)
ON_CANCEL = Ending(
    option="on_cancel",
    suffix="on-cancel",
    event=endings.CANCELLED,
    when="event.data.started == true",
    what="cancellations",
)


@dataclass(frozen=True, slots=True)
class Listener:
    """A flow that listens to an event's name, by one or more of its triggers.

    Attributes:
        conditional: the triggers, unless one of them is met by every event of the name.
    """

    flow: Flow
    conditional: tuple[On, ...]


class Registry:
    """The flows of this process, by id and by trigger.

    Of several versions of a flow the highest is the newest: it alone is started by events.
    """

    def __init__(self) -> None:
        self._flows: dict[tuple[str, int], Flow] = {}
        self._newest: dict[str, Flow] = {}
        self._named: dict[str, list[Flow]] = {}
        self._prefixed: list[Flow] = []
        self._found: dict[str, tuple[Listener, ...]] = {}
        self._places: dict[str, int] = {}
        self._cancelling: set[str] = set()
        self._digest = ""

    def add(self, flow: Flow) -> None:
        """Register a flow.

        Raises:
            DuplicateFlow: another function has this id and this version.
        """
        known = self._flows.get((flow.id, flow.version))
        if known is not None and not _is_same(known.handler, flow.handler):
            if flow.of and known.of:
                raise DuplicateFlow(
                    f"flow {flow.of!r} has two functions for one thing, {known.place} and {flow.place}: "
                    f"both are to be {flow.label}; keep one, and call the other from it"
                )
            raise DuplicateFlow(
                f"flow {flow.label} is declared twice, by {known.place} and by {flow.place}; "
                "an id is the identity of a flow's runs: give one of them another id, or, if it is "
                "the same flow written anew, another version"
            )
        self._flows[flow.id, flow.version] = flow
        self._index()

    def remove(self, flow: Flow) -> None:
        """Forget a flow; for tests."""
        del self._flows[flow.id, flow.version]
        self._index()

    def find(self, flow_id: str, version: int | None = None) -> Flow | None:
        """The flow of this id and version, or None if this process knows none.

        Args:
            flow_id: its id.
            version: 0 is the flow that was given none; None: the newest.
        """
        if version is None:
            return self._newest.get(flow_id)
        return self._flows.get((flow_id, version))

    def versions(self, flow_id: str) -> list[int]:
        """The versions of the flow that this process knows, the newest last."""
        return sorted(version for id_, version in self._flows if id_ == flow_id)

    def listening(self, event_name: str) -> Sequence[Flow]:
        """The flows that an event of this name may start, each once."""
        return [listener.flow for listener in self.listeners(event_name)]

    def listeners(self, event_name: str) -> Sequence[Listener]:
        """The same, each with the conditions under which it does."""
        found = self._found.get(event_name)
        if found is None:
            found = tuple(self._look_up(event_name))
            if len(self._found) >= NAMES_KEPT:  # names come from senders: do not keep them all
                self._found = {}
            self._found[event_name] = found
        return found

    def _look_up(self, event_name: str) -> Iterator[Listener]:
        """In the order of declaration, looking only at flows that may listen to the name."""
        candidates = [*self._named.get(event_name, ()), *self._prefixed]
        for flow in sorted({flow.id: flow for flow in candidates}.values(), key=self._place):
            met = [trigger for trigger in flow.on if trigger.listens_to(event_name)]
            always = any(trigger.if_ is None for trigger in met)
            if met:
                yield Listener(flow, () if always else tuple(met))

    def _place(self, flow: Flow) -> int:
        return self._places[flow.id]

    def hears(self, event_name: str) -> bool:
        """Whether an event of this name starts a flow, or may cancel runs of one."""
        return event_name in self._cancelling or bool(self.listeners(event_name))

    @property
    def described(self) -> dict[str, dict[str, list[str]]]:
        """What this process can do, ready for JSON: flow id → version → its triggers.

        After those of a strict flow comes what tells its handler's code from others.
        """
        found: dict[str, dict[str, list[str]]] = {}
        for flow in self:
            triggers = sorted(str(trigger) for trigger in flow.on)
            code = [f"code {fingerprint(flow.handler)}"] if flow.strict else []
            found.setdefault(flow.id, {})[str(flow.version)] = triggers + code
        return found

    @property
    def digest(self) -> str:
        """The same, in 64 characters: equal wherever the same flows have the same versions and triggers."""
        if not self._digest:
            text = json.dumps(self.described, sort_keys=True)
            self._digest = hashlib.sha256(text.encode()).hexdigest()
        return self._digest

    def __iter__(self) -> Iterator[Flow]:
        return iter(self._flows.values())

    def __len__(self) -> int:
        return len(self._flows)

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Forget, at the end of the block, what was registered inside it; for tests."""
        flows = dict(self._flows)
        try:
            yield
        finally:
            self._flows = flows
            self._index()

    def _index(self) -> None:
        self._named, self._prefixed, self._found = {}, [], {}
        self._digest = ""
        self._newest = {}
        self._cancelling = {rule.event for flow in self for rule in flow.cancel_on}
        for flow in self._flows.values():
            if flow.version >= self._newest.get(flow.id, flow).version:
                self._newest[flow.id] = flow
        self._places = {flow_id: place for place, flow_id in enumerate(self._newest)}
        for flow in self._newest.values():
            for trigger in flow.on:
                if trigger.prefix is None:
                    self._named.setdefault(trigger.event, []).append(flow)
                else:
                    self._prefixed.append(flow)


def _is_same(one: Handler, other: Handler) -> bool:
    """Whether two functions are one and the same, though its module may have been loaded again."""
    if (one.__module__, one.__qualname__) != (other.__module__, other.__qualname__):
        return False
    code = getattr(one, "__code__", one)
    return bool(code == getattr(other, "__code__", other))


def fingerprint(handler: Handler) -> str:
    """Text that tells a function's code from other code; that of functions it calls is not looked at."""
    code = getattr(inspect.unwrap(handler), "__code__", None)
    said = handler.__qualname__ if code is None else _said(code)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _said(value: Any) -> str:
    """A constant of some code, or the code itself, in words that are the same in every process."""
    if isinstance(value, CodeType):
        parts = [value.co_code.hex(), *value.co_names, *map(_said, value.co_consts)]
        return f"({' '.join(parts)})"
    if isinstance(value, frozenset):
        return f"{{{' '.join(sorted(map(_said, value)))}}}"
    return f"({' '.join(map(_said, value))})" if isinstance(value, tuple) else repr(value)


registry = Registry()

_verbs: dict[str, Callable[..., Any]] = {}


def provide(**verbs: Callable[..., Any]) -> None:
    """Called by the engine: the verbs behind a flow's methods."""
    _verbs.update(verbs)


def _verb(name: str) -> Callable[..., Any]:
    try:
        return _verbs[name]
    except KeyError:
        raise DurableFlowsError(
            f"flow.{name}() was called before Django was ready; is 'durable_flows' in INSTALLED_APPS?"
        ) from None


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
            strict=_strict(id, strict),
            version=_version(id, version),
            queue=_queue(id, queue),
            parameters=_parameters(id, handler),
        )
        given = ((ON_FAILURE, on_failure), (ON_CANCEL, on_cancel))
        handlers = [ending.flow_of(declared, fn) for ending, fn in given if fn is not None]
        for one in (declared, *handlers):
            registry.add(one)
        return declared

    return register


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


def _strict(id: str, strict: Any) -> bool:
    if not isinstance(strict, bool):
        raise InvalidOption(f"flow {id!r}: strict= is True or False, not {strict!r}")
    return strict


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


def _parameters(id: str, handler: Any) -> frozenset[str]:
    if not callable(handler):
        raise InvalidHandler(f"flow {id!r}: @flow decorates a function, not {handler!r}")
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise InvalidHandler(
            f"flow {id!r}: handler {handler.__qualname__} is a generator, whose body would never run; "
            "return its result instead of yielding"
        )
    taken = set()
    for parameter in inspect.signature(handler).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise InvalidHandler(f"flow {id!r}: {_choose(handler, str(parameter))}")
        if parameter.kind is parameter.POSITIONAL_ONLY or parameter.name not in PARAMETERS:
            raise InvalidHandler(f"flow {id!r}: {_choose(handler, parameter.name)}")
        taken.add(parameter.name)
    return frozenset(taken)


def _choose(handler: Handler, parameter: str) -> str:
    return (
        f"handler {handler.__qualname__} asks for {parameter!r}; a handler may take "
        f"{', '.join(PARAMETERS)}, by these names, and nothing else"
    )
