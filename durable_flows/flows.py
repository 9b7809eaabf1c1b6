"""Flows, as they were declared, and those that handle the ends of others.

They know nothing of the registry and the engine, which `provide` the verbs that a flow offers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from durable_flows.errors import DurableFlowsError, InvalidHandler, InvalidOption
from durable_flows.handlers import Handler, parameters_of
from durable_flows.middleware import Middleware
from durable_flows.rules import endings
from durable_flows.rules.backoff import Retries
from durable_flows.rules.event_types import EventType
from durable_flows.rules.events import INVOKE, START
from durable_flows.rules.options import CancelOn, On, Timeouts
from durable_flows.rules.values import Object


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
        middleware: what surrounds its runs, inside that of the settings.
        references: whether model rows in results are stored as references.
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
    middleware: tuple[Middleware, ...] = ()
    references: bool = False
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
        data: Object | None = None,
        *,
        user: dict[str, Any] | None = None,
        key: str | None = None,
        subject: Any = ...,
    ) -> str:
        """Ask for a run, without an event of its own; joins the caller's transaction.

        It is a run of the newest version of the flow, whichever this one is.

        Args:
            data: what the handler finds in ``event.data``. If the flow has one trigger, and that is an
                `EventType`, they must fit it, and the handler gets its model.
            user: what it finds in ``event.user``.
            key: text of 1 to 255 characters: of all starts of this flow with the same key only the
                first starts a run. It is kept as the ids of events are.
            subject: the row that the run is about, a saved instance of a model. By default what the
                run is about that starts it; None: nothing.

        Returns:
            The run's id; with a key, that of the run which the first start has asked for. The run
            exists once that start's transaction has committed.

        Raises:
            InvalidEvent: ``data``, ``user``, ``key`` or ``subject`` cannot be stored.
        """
        run_id: str = _verb("start")(self, data, user=user, key=key, subject=subject)
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
        _verb("add")(declared)
        return declared

    def arguments(self, available: Mapping[str, Any]) -> dict[str, Any]:
        """The handler's arguments, picked from what a run can offer."""
        return {name: available[name] for name in self.parameters}

    def type_of(self, event_name: str) -> EventType[Any] | None:
        """As what the handler gets the data of such an event; None: as a dict.

        What asks for a run has no name of its own: it stands in for the event of a flow with one trigger.
        """
        is_start = event_name in (START, INVOKE) and len(self.on) == 1
        for trigger in self.on:
            if trigger.type is not None and (is_start or trigger.event == event_name):
                return trigger.type
        return None

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
            parameters=parameters_of(id, handler),
            middleware=owner.middleware,
            references=owner.references,
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

_verbs: dict[str, Callable[..., Any]] = {}


def provide(**verbs: Callable[..., Any]) -> None:
    """Called by the registry and by the engine: the verbs behind a flow's methods."""
    _verbs.update(verbs)


def _verb(name: str) -> Callable[..., Any]:
    try:
        return _verbs[name]
    except KeyError:
        raise DurableFlowsError(
            f"flow.{name}() was called before Django was ready; is 'durable_flows' in INSTALLED_APPS?"
        ) from None
