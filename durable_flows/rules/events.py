"""Events as values: what a sender says, what a handler gets, and which of them are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from durable_flows.errors import InvalidEvent, InvalidPayload
from durable_flows.rules import names, payload, values
from durable_flows.rules.event_types import EventType, catalogue, type_of

if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

    D_co = TypeVarWithDefault("D_co", covariant=True, default=dict[str, Any])
else:
    D_co = TypeVar("D_co", covariant=True)
T = TypeVar("T")

#: Commands are events that ask the engine for something; their target is what they are about: mostly the
#: id of a flow or a run.
START = "flows/function.invoked"
CANCEL = "flows/run.cancel"
RETRY = "flows/run.retry"
RERUN = "flows/run.rerun"
INVOKE = "flows/run.invoke"
ENDED = "flows/run.ended"
DECIDED = "flows/approval.decided"
SIGNALLED = "flows/signal.sent"
SKIP = "flows/run.skip"
WITHDRAW = "flows/event.withdraw"
BEGIN_BULK = "flows/bulk.begin"
STOP_BULK = "flows/bulk.cancel"

EARLIEST = datetime(1980, 1, 1, tzinfo=UTC)
LATEST = datetime(2100, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Event(Generic[D_co]):
    """Something that happened.

    Attributes:
        name: 1–256 characters; by convention ``domain/noun.verb``. ``flows/`` is reserved. It may be
            given as an `EventType`, whose version is the event's then, unless it has one.
        data: a JSON object; for an event with a type also an instance of its model. In a handler it is
            that if the flow listens to the type, and a dict if it listens to the name.
        user: a JSON object about the person concerned, or None.
        id: the sender's own id, unique for the name; a second event of the same id is dropped.
            In a handler: the sender's id, or else the public one.
        ts: when it happened: an aware datetime or milliseconds since 1970, 1980–2100. In the
            future it delays the event until then.
        v: the version of the data's shape.
        public_id: the UUIDv7 under which it is stored; given by the engine.
        subject: the row that it is about, a saved instance of a model; None: none. By default what the
            run is about that sends it. In a handler it is not said: see `Run.subject`.
        context: what was captured where it was sent, by middleware: a JSON object.
    """

    name: str
    data: D_co = field(default_factory=dict)  # type: ignore[assignment]
    user: Any = None  # a dict or None; Any, so that handlers may read event.user["email"]
    id: str | None = None
    ts: datetime | int | None = None
    v: str | None = None
    public_id: str = ""
    subject: Any = field(default=..., repr=False, metadata={values.UNSAID: True})
    context: Mapping[str, Any] = field(default_factory=dict)

    if TYPE_CHECKING:  # what it is made of tells what its data are

        @overload
        def __init__(
            self: Event[T],
            name: EventType[T],
            data: T,
            user: Any = ...,
            id: str | None = ...,
            ts: datetime | int | None = ...,
            v: str | None = ...,
            public_id: str = ...,
            subject: Any = ...,
            context: Mapping[str, Any] = ...,
        ) -> None: ...
        @overload
        def __init__(
            self: Event[dict[str, Any]],
            name: str,
            data: dict[str, Any] = ...,
            user: Any = ...,
            id: str | None = ...,
            ts: datetime | int | None = ...,
            v: str | None = ...,
            public_id: str = ...,
            subject: Any = ...,
            context: Mapping[str, Any] = ...,
        ) -> None: ...
        def __init__(self, name: str, data: Any = ..., *args: Any, **kwargs: Any) -> None:
            """As the attributes say."""

    def __post_init__(self) -> None:
        if type(self.name) is EventType and self.v is None:
            object.__setattr__(self, "v", self.name.v)

    def as_dict(self) -> dict[str, Any]:
        """The event as the engine records it and as match paths read it: JSON-ready."""
        return {
            "name": str(self.name),
            "data": self.data,
            "user": self.user,
            "id": self.id,
            "ts": _milliseconds(self.ts),
            "v": self.v,
            "public_id": self.public_id,
            **({"context": self.context} if self.context else {}),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Event[Any]:
        """The inverse of `as_dict`."""
        fields = dict(document)
        if fields.get("ts") is not None:
            fields["ts"] = EPOCH + timedelta(milliseconds=fields["ts"])
        return cls(**fields)

    def decoded(self, type_: EventType[T] | None) -> Event[T] | Event[D_co]:
        """The event with its data as the model of this type, if it is one.

        Raises:
            UnreadableEvent: they do not fit.
        """
        if type_ is None:
            return self
        # Whoever asks for a run means the type as it is now.
        is_start = self.name in (START, INVOKE)
        v = type_.v if is_start and self.v is None else self.v
        raw: Any = self.data
        data: Any = type_.decoded(raw, v, self.public_id)
        return replace(self, data=data)


#: Makes what is stored of a value: of the event of this name its ``data``, or its ``user``.
Seal = Callable[[str, Literal["data", "user"], Any], Any]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """An event that passed every check, ready to be stored."""

    name: str
    data: str
    user: str | None
    key: str
    ts: datetime | None
    v: str
    target: str = ""
    subject: Any = ...
    context: str = ""

    @property
    def size(self) -> int:
        """Bytes of its payload."""
        return len(self.data.encode()) + len((self.user or "").encode())


def encode(
    event: Event[Any],
    *,
    limits: payload.Limits,
    pointer: str = "",
    type_: EventType[Any] | None = None,
    seal: Callable[[Any, Any], Any] | None = None,
) -> Encoded:
    """Check every field of ``event`` and encode it.

    Args:
        event: what the sender said.
        limits: sizes that the payload may have.
        pointer: where the event stands in a list of events, e.g. ``/3``.
        type_: that its data are of, in the version that it has now unless the event has one; default the
            one that is known for its name.
        seal: makes of its ``data``, and of its ``user``, what is stored; called with which of them it is.

    Raises:
        InvalidEvent: with a JSON pointer to the value that is wrong.
    """
    try:
        name = names.check_sent(event.name, f"{pointer}/name")
        known = type_ or type_of(event.name) or catalogue.find(name)
        data = _opened(event.data, f"{pointer}/data", known)
        user = None if event.user is None else _opened(event.user, f"{pointer}/user")
        encoded = Encoded(
            name=name,
            data=payload.dumps(data, limits=limits, pointer=f"{pointer}/data"),
            user=None
            if user is None
            else payload.dumps(user, limits=limits, pointer=f"{pointer}/user"),
            key=names.check_text(event.id, f"{pointer}/id", names.ID_LENGTH),
            ts=_checked_ts(event.ts, f"{pointer}/ts"),
            v=names.check_text(event.v, f"{pointer}/v", names.V_LENGTH),
            subject=event.subject,
            context=_encoded_context(event.context, limits, f"{pointer}/context"),
        )
    except InvalidEvent:
        raise
    except InvalidPayload as error:
        raise InvalidEvent(error.problem, pointer=error.pointer) from error
    if encoded.size > limits.max_bytes:
        raise InvalidEvent(
            f"the event has {encoded.size:,} bytes, the limit is {limits.shown('max_bytes')}; "
            "store the large part elsewhere and send a reference to it",
            pointer=pointer,
        )
    if known is not None:
        v = encoded.v or (type_ and type_.v)
        known.check(encoded.data, v, pointer=f"{pointer}/data")
    return encoded if seal is None else _sealed(encoded, seal, limits, pointer)


def _encoded_context(context: Mapping[str, Any], limits: payload.Limits, pointer: str) -> str:
    if not context:
        return ""
    return payload.dumps(_opened(context, pointer), limits=limits, pointer=pointer)


def _sealed(
    encoded: Encoded, seal: Callable[[Any, Any], Any], limits: payload.Limits, pointer: str
) -> Encoded:
    """The same, its payload as it is stored: encrypted text is longer than what the sender has to keep to.

    Raises:
        InvalidEvent: it cannot be stored so, or is longer by far.
    """
    room = replace(limits, max_bytes=2 * limits.max_bytes)

    def sealed(kind: str, text: str) -> str:
        at = f"{pointer}/{kind}"
        try:
            return payload.dumps(seal(kind, payload.loads(text)), limits=room, pointer=at)
        except InvalidPayload as error:
            raise InvalidEvent(
                f"as it is stored, {error.problem}", pointer=error.pointer or at
            ) from error

    user = None if encoded.user is None else sealed("user", encoded.user)
    return replace(encoded, data=sealed("data", encoded.data), user=user)


def as_list(events: Any, what: str) -> list[Event[Any]]:
    """One event or a list of them as a list.

    Raises:
        InvalidEvent: it is neither.
    """
    if isinstance(events, Event):
        return [events]
    if isinstance(events, str | bytes | Mapping) or not isinstance(events, Sequence):
        raise InvalidEvent(f"{what} takes an Event or a list of Event, not {type(events).__name__}")
    for index, event in enumerate(events):
        if not isinstance(event, Event):
            raise InvalidEvent(
                f"this must be an Event, not {type(event).__name__}", pointer=f"/{index}"
            )
    return list(events)


def encode_all(
    events: Sequence[Event[Any]], *, limits: payload.Limits, seal: Seal | None = None
) -> list[Encoded]:
    """Check and encode a list; pointers start with the event's index unless it is alone."""
    alone = len(events) == 1
    return [
        encode(
            event,
            limits=limits,
            pointer="" if alone else f"/{index}",
            seal=seal and partial(seal, event.name),
        )
        for index, event in enumerate(events)
    ]


def encode_command(
    name: str,
    target: str,
    data: values.Object,
    *,
    user: dict[str, Any] | None = None,
    key: str | None = None,
    v: str | None = None,
    subject: Any = ...,
    context: Mapping[str, Any] | None = None,
    limits: payload.Limits,
    pointer: str = "",
    type_: EventType[Any] | None = None,
    seal: Seal | None = None,
) -> Encoded:
    """Check and encode what a command carries; its name is the engine's own.

    Args:
        name: what is asked.
        target: the flow's or the run's id.
        data: what it carries.
        user: the person concerned.
        key: the sender's own id.
        v: version of the shape of ``data``.
        subject: the row that it is about.
        context: what was captured where it is sent.
        limits: sizes that the payload may have.
        pointer: where it stands in a list of commands, e.g. ``/3``.
        type_: that its data are of.
        seal: as for `encode`, called with the command's name first.

    Raises:
        InvalidEvent: with a JSON pointer to the value that is wrong; ``/key`` for the key.
    """
    carried: Any = data
    try:
        encoded = encode(
            Event(
                "command", carried, user=user, id=key, v=v, subject=subject, context=context or {}
            ),
            limits=limits,
            pointer=pointer,
            type_=type_,
            seal=seal and partial(seal, name),
        )
    except InvalidEvent as error:
        if error.pointer != "/id":
            raise
        raise InvalidEvent(error.problem, pointer="/key") from error
    return replace(encoded, name=name, target=target)


def _opened(value: Any, pointer: str, known: EventType[Any] | None = None) -> dict[str, Any]:
    """The dict that this is, or is written as."""
    try:
        found = values.opened(value if known is None else known.written(value))
    except InvalidPayload as error:
        raise InvalidEvent(error.problem, pointer=pointer) from error
    if not isinstance(found, dict):
        raise InvalidEvent(
            f"this must be a JSON object (a dict), not {type(value).__name__}", pointer=pointer
        )
    return found


def _checked_ts(ts: Any, pointer: str) -> datetime | None:
    if ts is None:
        return None
    if isinstance(ts, int) and not isinstance(ts, bool):
        moment = EPOCH + timedelta(milliseconds=min(max(ts, 0), 10**13))
    elif isinstance(ts, datetime):
        if ts.tzinfo is None:
            raise InvalidEvent(
                "a naive datetime leaves its zone open; pass an aware one", pointer=pointer
            )
        moment = ts
    else:
        raise InvalidEvent(
            "this must be an aware datetime or milliseconds since 1970 as an int, "
            f"not {type(ts).__name__}",
            pointer=pointer,
        )
    if not EARLIEST <= moment < LATEST:
        raise InvalidEvent(
            f"{ts!r} is outside the years 1980 to 2100; an int counts milliseconds, not seconds",
            pointer=pointer,
        )
    return moment


def _milliseconds(ts: datetime | int | None) -> int | None:
    if isinstance(ts, datetime):
        return (ts - EPOCH) // timedelta(milliseconds=1)
    return ts
