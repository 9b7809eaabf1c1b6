"""Executes one slice of a run: on with its handler, or back through what it has done."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from durable_flows import conf
from durable_flows.engine import (
    announce,
    children,
    deadlines,
    failpoints,
    fanout,
    finish,
    ingest,
    leases,
    overdue,
    play,
    settle,
    versions,
)
from durable_flows.engine.finish import Ending
from durable_flows.engine.history import Claim, History
from durable_flows.engine.journal import Journal
from durable_flows.engine.keeping import Values
from durable_flows.engine.persist import until_answered
from durable_flows.engine.sagas import UNDOING, Remedies, not_undone
from durable_flows.engine.senders import Sender, sending_as
from durable_flows.engine.stop import stopping
from durable_flows.engine.suspend import (
    HandedBack,
    Lost,
    Outcome,
    Parked,
    Sleeping,
    Unknown,
    cancelled,
    failed,
)
from durable_flows.engine.tools.saga import Undoing
from durable_flows.engine.tools.step import Step
from durable_flows.errors import (
    CancelAsked,
    Diverged,
    HandBack,
    LeaseLost,
    PoisonRun,
    Suspend,
    Unreadable,
)
from durable_flows.flows import Flow
from durable_flows.rules import causality, clock, poison
from durable_flows.rules.states import RunState, StepKind

logger = logging.getLogger(__name__)

UNREADABLE = timedelta(minutes=1)  # after which what could not be read is looked at again

T = TypeVar("T")


def execute(claimed: Claim, history: History) -> Outcome:
    """One slice of a run: replay its handler until it suspends or ends; or undo what it has done."""
    if claimed.cancelling and not history.intents:
        return cancelled(claimed)
    flow = versions.flow_of(claimed)
    if flow is None:
        return Unknown()
    values = Values.of(claimed, flow)
    ending = _decided(flow, claimed, history, values)
    if ending is not None and not history.intents:
        return ending
    sender = _sender(claimed, flow)
    journal = _journal(flow, claimed, history, values, sender)
    try:
        with sending_as(sender):
            if ending is None and not journal.find(UNDOING):
                return _go_on(flow, claimed, journal)
            if _dies_of_undoing(claimed, history):
                return _give_up(claimed, journal, ending)
            return _go_back(flow, claimed, journal, ending or cancelled(claimed))
    except LeaseLost:
        return Lost()
    except HandBack:
        is_at_it = journal.recalls or journal.undoes
        return HandedBack(has_undo=bool(journal.intents), undoes=is_at_it)
    except Diverged as signal:
        return Parked(signal.error, has_undo=bool(journal.intents))


def _journal(
    flow: Flow, claimed: Claim, history: History, values: Values, sender: Sender
) -> Journal:
    return Journal(
        claimed,
        history,
        values,
        store=partial(ingest.store, sender=sender),
        invoke=partial(children.invoke, sender=sender),
        look_at=children.look,
        map=partial(fanout.begin, sender=sender),
        ends_of=fanout.ends,
        look_back=announce.look_back,
        last_look=settle.last_look,
        as_settled=settle.as_settled,
        end_overdue=overdue.end,
        told_to_stop=stopping.is_set,
        is_strict=flow.strict,
    )


def _sender(claimed: Claim, flow: Flow) -> Sender:
    """Who sends what this slice sends, and how deep in a chain of runs that stands."""
    since = claimed.started_at if claimed.generation else claimed.created_at
    depth = causality.depth_of_sent(claimed.depth, since=since, now=clock.now())
    return Sender(
        run_id=claimed.run_id,
        depth=depth,
        subject=claimed.subject,
        context=claimed.event.context,
        middleware=flow.middleware,
    )


def _decided(flow: Flow, claimed: Claim, history: History, values: Values) -> Ending | None:
    """How the run ends, if that is decided before it is executed."""
    if claimed.cancelling:
        return cancelled(claimed)
    if missed := _missed_deadline(claimed, flow):
        return cancelled(claimed, missed)
    if (deaths := _deaths(claimed, history)) >= _most_deaths():
        return _poisonous(claimed, history, deaths, values)
    return None


def _missed_deadline(claimed: Claim, flow: Flow) -> str:
    return _answered(claimed, lambda: deadlines.begin(claimed, flow))


def _answered(claimed: Claim, ask: Callable[[], T]) -> T:
    """What the database answers while the lease holds; ``ask`` may be called again."""
    return until_answered(
        lambda again: ask(), seconds=lambda: leases.left(claimed.run_id, claimed.lease)
    )


def _deaths(claimed: Claim, history: History) -> int:
    if not claimed.is_suspect:
        return 0
    return poison.deaths(
        unended=claimed.unended, lease=claimed.lease, recorded_under=history.recorded_under
    )


def _most_deaths() -> int:
    return conf.settings().POISON_CLAIMS


def _dies_of_undoing(claimed: Claim, history: History) -> bool:
    """Whether the workers die of that, too: of the first undo, or of the replay before it."""
    most = _most_deaths() if UNDOING in history.steps else _most_deaths() + 1
    return _deaths(claimed, history) >= most


def _poisonous(claimed: Claim, history: History, deaths: int, values: Values) -> Ending:
    """A run that takes every worker with it is executed no more; a person may retry it."""
    last = next(reversed(history.steps), "")
    place = f"after step {last!r}" if last else "before its first step was recorded"
    error = PoisonRun(
        f"its worker died {deaths} times in a row while it executed this run alone, {place}; look "
        f"for what ends the process in the worker's log, then retry the run "
        f"({conf.shown('POISON_CLAIMS')})"
    )
    return failed(claimed, error, values)


def _go_on(flow: Flow, claimed: Claim, journal: Journal) -> Outcome:
    """Replay the handler; if the run is to end without success, undo what is to be undone first."""
    driver, remedies = play.driver_of(flow, claimed, journal), Remedies(journal)
    step = Step(journal, flow.retries, driver, remedies)
    try:
        outcome = play.replay(flow, claimed, journal, driver, step)
    except CancelAsked:
        outcome = cancelled(claimed)
    if isinstance(outcome, Ending) and outcome.state != RunState.COMPLETED and journal.intents:
        if not remedies.is_complete:  # losers of a race, say, that were not played in this slice
            return _go_back(flow, claimed, journal, outcome)
        return _undo(flow, claimed, journal, remedies, outcome)
    if isinstance(outcome, Ending) and journal.intents:
        return replace(outcome, has_undo=True)
    return outcome


def _go_back(flow: Flow, claimed: Claim, journal: Journal, ending: Ending) -> Outcome:
    """Replay the handler to learn how its steps are undone, beginning nothing new; then undo them."""
    remedies = Remedies(journal)
    later = _recall(flow, claimed, journal, remedies)
    return later or _undo(flow, claimed, journal, remedies, ending)


def _recall(flow: Flow, claimed: Claim, journal: Journal, remedies: Remedies) -> Sleeping | None:
    """Replay the handler as far as it is recorded. Returns until when that is to be tried again, if so.

    Raises:
        LeaseLost, HandBack: the slice is over.
        Diverged: the code does not fit, and something would not be undone because of it.
    """
    driver = play.driver_of(flow, claimed, journal)
    main, step = driver.scope, Step(journal, flow.retries, driver, remedies)
    journal.recall()
    try:
        play.perform(flow, claimed, journal, driver, step)
    except (LeaseLost, HandBack, KeyboardInterrupt, failpoints.Killed):
        raise
    except BaseException as end:  # whatever it is: that the run ends was decided before
        logger.debug("run %s was replayed to %r", claimed.run_id, end)
        if isinstance(journal.stopped, Unreadable) and not remedies.is_complete:
            return _not_now(claimed, journal.stopped)
        if isinstance(end, Exception) and journal.stopped is None and not remedies.is_complete:
            later = play.failed_between(claimed, journal, main, end, flow.retries)
            if isinstance(later, Sleeping):  # it may come further the next time
                return replace(later, undoes=True)
    if isinstance(journal.stopped, LeaseLost | HandBack):
        raise journal.stopped
    if isinstance(journal.stopped, Diverged) and not remedies.is_complete:
        raise journal.stopped
    return None


def _undo(
    flow: Flow, claimed: Claim, journal: Journal, remedies: Remedies, ending: Ending
) -> Outcome:
    """Undo what has an intent, and end the run as was decided when that began."""
    journal.undo()
    decided = journal.find(UNDOING)
    if decided is None:
        decided = journal.record(UNDOING, StepKind.UNDO, output=json.dumps(_said(ending)))
        if ending.state == RunState.CANCELLED:
            _answered(claimed, lambda: finish.leave_children(claimed.run_id, claimed.lease))
    driver = play.driver_of(flow, claimed, journal)
    try:
        left = driver.play(Undoing(journal, flow.retries, driver, remedies).all, {})
    except Suspend as signal:
        return Sleeping(play.goes_on_at(journal, signal), has_undo=True, undoes=True)
    except Unreadable as signal:
        return _not_now(claimed, signal)
    return _ended(claimed, decided.value, left, journal.values)


def _not_now(claimed: Claim, signal: Unreadable) -> Sleeping:
    """What is recorded cannot be read: nothing is given up because of that, nor is it an attempt."""
    logger.warning("run %s cannot be undone now: %s", claimed.run_id, signal)
    return Sleeping(clock.now() + UNREADABLE, has_undo=True, undoes=True)


def _give_up(claimed: Claim, journal: Journal, ending: Ending | None) -> Ending:
    """End the run though not everything is undone: whoever tries to dies of it."""
    decided = journal.find(UNDOING)
    end = _said(ending or cancelled(claimed)) if decided is None else decided.value
    left = Remedies(journal).give_up("each worker that tried to undo it died")
    return _ended(claimed, end, left, journal.values)


def _said(ending: Ending) -> dict[str, Any]:
    """How a run ends, as the step says with which undoing begins."""
    return {"state": ending.state, "reason": ending.reason, "error": ending.error}


def _ended(
    claimed: Claim, end: Mapping[str, Any], left: Mapping[str, str], values: Values
) -> Ending:
    """The end that was decided; what could not be undone is an error of a run that has failed."""
    if left and end["error"] is not None:
        return replace(failed(claimed, not_undone(left, end["reason"]), values), is_undone=True)
    return Ending(
        run_id=claimed.run_id,
        lease=claimed.lease,
        state=RunState(end["state"]),
        error=end["error"],
        reason=end["reason"],
        is_undone=True,
    )
