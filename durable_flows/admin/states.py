"""The states of a run as people see them: from its own state, its due row, its waits and its retries."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.core.exceptions import ObjectDoesNotExist
from django.db.models import CharField, F, OuterRef, QuerySet, Subquery, Value
from django.db.models.functions import Cast, Concat
from django.utils.html import format_html
from django.utils.safestring import SafeString

from durable_flows.admin import showing
from durable_flows.models import Attempt, Due, Fanout, Run, Wait
from durable_flows.rules import clock, events
from durable_flows.rules.states import TERMINAL, DueState, RunState, WaitKind

#: What one can filter by: the value in the address, and what it is called.
CHOICES = (
    *((state.value, state.value) for state in (DueState.QUEUED, DueState.RUNNING)),
    (DueState.WAITING.value, "waiting, sleeping or retrying"),
    *((state.value, state.value) for state in (DueState.PARKED, DueState.CANCELLING)),
    *((state.value, state.value) for state in RunState if state in TERMINAL),
)


@dataclass(frozen=True, slots=True)
class Activity:
    """What a run does.

    Attributes:
        name: queued, running, waiting, sleeping, retrying, parked, cancelling, or how it ended.
        about: for what and until when.
    """

    name: str
    about: str | SafeString = ""

    @property
    def html(self) -> SafeString:
        """The name in its colour, and the rest beside it."""
        state = showing.badge(self.name)
        if not self.about:
            return state
        return format_html('{} <span class="df-about">{}</span>', state, self.about)


def with_activity(runs: QuerySet[Run]) -> QuerySet[Any]:
    """The runs with everything that `activity` reads, in the same statement."""
    waits = Wait.objects.pending().filter(
        run=OuterRef("pk"), kind__in=[WaitKind.STEP, WaitKind.CHILD]
    )
    retries = Attempt.objects.filter(run=OuterRef("pk"), next_at=OuterRef("due__wake_at"))
    return runs.select_related("due").annotate(
        waits_for=Subquery(waits.order_by("expires_at").values("event_name")[:1]),
        retry_at=Subquery(retries.values("next_at")[:1]),
        maps=Subquery(_mapped().values("progress")[:1]),
    )


def _mapped() -> QuerySet[Any]:
    """How far the runs have come that a run has mapped, as text."""
    numbers = [Cast(name, CharField()) for name in ("ended", "total")]
    return Fanout.objects.filter(
        run=OuterRef("pk"), generation=OuterRef("generation"), ended__lt=F("total")
    ).annotate(progress=Concat("key", Value(": "), numbers[0], Value(" of "), numbers[1]))


#: What a run waits for is no event of the project's own: what people call it.
_OF_THE_ENGINE = {events.DECIDED: "a decision", events.SIGNALLED: "a signal"}


def activity(run: Any) -> Activity:
    """What a run from `with_activity` does."""
    due = due_of(run)
    if run.state in TERMINAL or due is None:
        return Activity(run.state)
    if due.state != DueState.WAITING or due.wake_at is None:
        return Activity(due.state)
    return _resting(run, due.wake_at)


def _resting(run: Any, wake_at: datetime) -> Activity:
    when = showing.moment(wake_at)
    if wake_at <= clock.now():
        return Activity("queued", format_html("due since {}", when))
    if run.retry_at is not None:
        return Activity("retrying", format_html("at {}", when))
    if run.waits_for is not None:
        what = _OF_THE_ENGINE.get(run.waits_for, run.waits_for)
        return Activity("waiting", format_html("for {} until {}", what, when))
    if run.maps is not None:
        return Activity("waiting", format_html("for runs, {} have ended", run.maps))
    return Activity("sleeping", format_html("until {}", when))


def due_of(run: Run) -> Due | None:
    """A run's due row, unless it has ended."""
    try:
        return run.due
    except ObjectDoesNotExist:
        return None


def in_state(runs: QuerySet[Run], name: str) -> QuerySet[Run]:
    """The runs in one of the states of `CHOICES`; none for any other name."""
    if name in TERMINAL:
        return runs.filter(state=name)
    if name in {state.value for state in DueState}:
        return runs.filter(due__state=name)
    return runs.none()
