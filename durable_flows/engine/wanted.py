"""What a step waits for: an event, as a tool was told, and as the wait of this run asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from durable_flows.engine import notes, signatures
from durable_flows.engine.history import Waiting
from durable_flows.engine.journal import Journal
from durable_flows.errors import InvalidOption, MissingMatch
from durable_flows.rules import clock, keys
from durable_flows.rules.equalities import Condition
from durable_flows.rules.event_types import EventType, type_of
from durable_flows.rules.events import Event
from durable_flows.rules.lookback import LookBack
from durable_flows.rules.options import awaited, check_awaited_name, longest_wait

Since = datetime | Literal["run", "now"] | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """An event that is to be waited for.

    Attributes:
        what: the call, for messages.
        asked: what the event must be like.
        patience: how long it is waited for.
        received_since: earlier receptions do not count.
        match: the path as it was given.
        type: as what its data are read; None: they stay a dict.
    """

    what: str
    event: str
    asked: Condition
    patience: timedelta
    since: Since
    received_since: datetime | None
    match: str | None
    type: EventType[Any] | None

    @classmethod
    def of(
        cls,
        what: str,
        event: str,
        timeout: str | float | timedelta,
        match: str | None,
        if_: str | None,
        since: Since,
    ) -> Wanted:
        """What a tool was told.

        Raises:
            InvalidDuration, InvalidKey, InvalidOption, InvalidExpression: it cannot be read.
        """
        return cls(
            what=what,
            event=check_awaited_name(event, what),
            asked=awaited(match, if_, what),
            patience=longest_wait(timeout, what=f"{what}, timeout="),
            since=since,
            received_since=_received_since(since, what),
            match=match,
            type=type_of(event),
        )

    def answer(self, recorded: Mapping[str, Any]) -> Event[Any]:
        """The event, as it is recorded, for the handler. Raises `UnreadableEvent`."""
        return Event.from_dict(recorded).decoded(self.type)


def request(
    journal: Journal, looking: LookBack, key: str, wanted: Wanted, asked_at: datetime
) -> Waiting:
    """The wait of a step for an event, not yet registered.

    Args:
        journal: of the slice.
        looking: how far back the wait looks.
        key: the step's.
        wanted: what is waited for.
        asked_at: from when on; those of one step have one, so that their time is over at once.

    Raises:
        MissingMatch: the run's own event lacks the value that is to match.
    """
    claim, asked = journal.claim, wanted.asked
    id_ = keys.wait_id(claim.run_id, key, claim.generation)
    own = claim.event.as_dict()
    # an id is the hash of no event: what lacks a value of its own matches nothing
    hash_ = signatures.hash_for(wanted.event, asked, own) or id_
    if missing := asked.missing(own):
        _say_missing(journal, key, missing, wanted)
    position = looking.trigger if wanted.since == "run" else looking.eligible
    by_reception = isinstance(wanted.since, datetime)
    return Waiting(
        id=id_,
        key=key,
        event_name=wanted.event,
        paths=asked.paths,
        criteria=_criteria(asked, own),
        expression=asked.residual,
        match=hash_,
        eligible_from=0 if by_reception else position.mark,
        routed_since=None if by_reception else position.since,
        received_since=wanted.received_since,
        created_at=asked_at,
        expires_at=asked_at + wanted.patience,
    )


def _say_missing(journal: Journal, key: str, missing: Sequence[str], wanted: Wanted) -> None:
    """Nothing can ever match: an error if the path was given as ``match``, else a warning."""
    trigger, match = journal.claim.event, wanted.match
    if match is not None and match.removeprefix("event.") in missing:
        raise MissingMatch(
            f"{wanted.what}: the run's own event {trigger.name!r} has no value at "
            f"{match!r} that can be read, so nothing could ever match; send it with that value, "
            "unencrypted, or match on another path"
        )
    journal.warn(key, notes.nothing_matches(trigger.name, missing))


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
