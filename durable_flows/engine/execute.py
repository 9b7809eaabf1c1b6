"""Executes due runs: claim, replay the handler, suspend or finish."""

from __future__ import annotations

import json
import logging
import mmap
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Any

from durable_flows import conf
from durable_flows.engine import (
    announce,
    children,
    clocksync,
    deadlines,
    failpoints,
    fanout,
    finish,
    ingest,
    leases,
    ring,
    settle,
    solitude,
    sql,
    versions,
)
from durable_flows.engine.batch import Batch
from durable_flows.engine.claim import claim
from durable_flows.engine.finish import Ending
from durable_flows.engine.history import Claim, History, histories
from durable_flows.engine.in_tasks import Tasks
from durable_flows.engine.in_threads import Threads
from durable_flows.engine.journal import Journal
from durable_flows.engine.persist import until_answered
from durable_flows.engine.run import Run
from durable_flows.engine.sagas import UNDOING, Remedies, not_undone
from durable_flows.engine.scopes import ENDS_OF_A_SLICE, Scope
from durable_flows.engine.suspend import (
    HandedBack,
    Lost,
    Outcome,
    Parked,
    Sleeping,
    Unknown,
    cancelled,
    put_away,
)
from durable_flows.engine.tools.saga import Undoing
from durable_flows.engine.tools.step import Step
from durable_flows.errors import (
    CancelAsked,
    Diverged,
    HandBack,
    InvalidPayload,
    LeaseLost,
    PoisonRun,
    Suspend,
    SuspendSwallowed,
    UnserialisableResult,
)
from durable_flows.registry import Flow
from durable_flows.rules import causality, clock, outcomes, payload, poison
from durable_flows.rules.lookback import LookBack
from durable_flows.rules.states import DueState, RunState, StepKind

logger = logging.getLogger(__name__)

SPREAD = 1.0  # real seconds between two calls for one more worker by one that is at work
STALE = 0.1  # real seconds after which a claim that has not begun is looked at again
LOOK = 0.05  # real seconds between two looks at whether to stop


class Stopping:
    """Set when the worker is told to stop: no further run is claimed, and no further step begun.

    The byte is shared with the processes that this one forks.
    """

    def __init__(self) -> None:
        self._byte = mmap.mmap(-1, 1)

    def set(self) -> None:
        """Stop."""
        self._byte[0] = 1

    def clear(self) -> None:
        """Go on: this process, and those that it forks from now on."""
        self._byte = mmap.mmap(-1, 1)

    def is_set(self) -> bool:
        """Whether to stop."""
        return self._byte[0] == 1

    def wait(self, seconds: float) -> bool:
        """Rest for so many seconds, or until told to stop. Returns whether to stop."""
        end = time.monotonic() + seconds
        while not self.is_set() and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, LOOK))
        return self.is_set()


stopping = Stopping()


def drain(queue: str, *, seconds: float | None = None) -> int:
    """Execute due runs of a queue until none is left or the time is spent.

    Args:
        queue: of which queue.
        seconds: real seconds after which no further batch is claimed; default ``DRAIN_SECONDS``.

    Returns:
        The number of slices.
    """
    budget = conf.settings().DRAIN_SECONDS if seconds is None else seconds
    until = time.monotonic() + budget
    clocksync.synchronise()
    count, spread_at = 0, 0.0
    while not stopping.is_set():
        if time.monotonic() >= until:
            ring.drain(queue)  # another task goes on where this one stops
            break
        with _claimed(queue) as batch:
            if not batch:
                break
            more = len(batch) == conf.settings().CLAIM_BATCH or batch[0].is_suspect
            if more and time.monotonic() >= spread_at:
                ring.drain(queue)  # a burst spreads over the workers: each calls one more
                spread_at = time.monotonic() + SPREAD
            _execute_batch(batch)
            count += len(batch)
    return count


@contextmanager
def _claimed(queue: str) -> Iterator[list[Claim]]:
    """A batch of runs to execute, or a suspect alone, beside which this process executes no other."""
    room = solitude.take()
    try:
        batch = claim(queue, conf.settings().CLAIM_BATCH, suspects=room is not None)
        if not (batch and batch[0].is_suspect):
            solitude.leave(room)
        yield batch
    finally:
        solitude.leave(room)


def _execute_batch(claims: list[Claim]) -> None:
    batch = Batch(claims)
    try:
        past = histories([claimed for claimed in claims if claimed.has_history])
        failpoints.reach("histories_read")
        while not stopping.is_set() and (claimed := batch.next()) is not None:
            _execute_one(batch, claimed, past.get(claimed.run_id, History()))
            sql.tend()
    finally:
        batch.close()


def _execute_one(batch: Batch, claimed: Claim, history: History) -> None:
    try:
        if batch.age > STALE and not _still_wanted(claimed, history):
            return
        outcome = execute(claimed, history)
        put_away(claimed, outcome)
    except BaseException:  # what could not be put away is taken over when its lease ends
        leases.release(claimed.run_id, claimed.lease)
        raise
    if isinstance(outcome, Ending):
        batch.end(outcome)
    else:
        leases.release(claimed.run_id, claimed.lease)


def execute(claimed: Claim, history: History) -> Outcome:
    """One slice of a run: replay its handler until it suspends or ends; or undo what it has done."""
    if claimed.cancelling and not history.intents:
        return cancelled(claimed)
    flow = versions.flow_of(claimed)
    if flow is None:
        return Unknown()
    ending = _decided(flow, claimed, history)
    if ending is not None and not history.intents:
        return ending
    sender = _sender(claimed)
    journal = _journal(flow, claimed, history, sender)
    try:
        with ingest.sending_as(sender):
            if ending is None and not journal.find(UNDOING):
                return _go_on(flow, claimed, journal)
            if _dies_of_undoing(claimed, history):
                return _give_up(claimed, journal, ending)
            return _go_back(flow, claimed, journal, ending or cancelled(claimed))
    except LeaseLost:
        return Lost()
    except HandBack:
        return HandedBack(has_undo=bool(journal.intents), undoes=journal.undoes)
    except Diverged as signal:
        return Parked(signal.error, has_undo=bool(journal.intents))


def _journal(flow: Flow, claimed: Claim, history: History, sender: ingest.Sender) -> Journal:
    return Journal(
        claimed,
        history,
        store=partial(ingest.store, sender=sender),
        invoke=partial(children.invoke, sender=sender),
        look_at=children.look,
        map=partial(fanout.begin, sender=sender),
        ends_of=fanout.ends,
        look_back=announce.look_back,
        last_look=settle.last_look,
        as_settled=settle.as_settled,
        told_to_stop=stopping.is_set,
        is_strict=flow.strict,
    )


def _sender(claimed: Claim) -> ingest.Sender:
    """Who sends what this slice sends, and how deep in a chain of runs that stands."""
    since = claimed.started_at if claimed.generation else claimed.created_at
    depth = causality.depth_of_sent(claimed.depth, since=since, now=clock.now())
    return ingest.Sender(run_id=claimed.run_id, depth=depth)


def _decided(flow: Flow, claimed: Claim, history: History) -> Ending | None:
    """How the run ends, if that is decided before it is executed."""
    if claimed.cancelling:
        return cancelled(claimed)
    if missed := _missed_deadline(claimed, flow):
        return cancelled(claimed, missed)
    if (deaths := _deaths(claimed, history)) >= _most_deaths():
        return _poisonous(claimed, history, deaths)
    return None


def _missed_deadline(claimed: Claim, flow: Flow) -> str:
    return until_answered(
        lambda again: deadlines.begin(claimed, flow),
        seconds=lambda: leases.left(claimed.run_id, claimed.lease),
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


def _poisonous(claimed: Claim, history: History, deaths: int) -> Ending:
    """A run that takes every worker with it is executed no more; a person may retry it."""
    last = next(reversed(history.steps), "")
    place = f"after step {last!r}" if last else "before its first step was recorded"
    error = PoisonRun(
        f"its worker died {deaths} times in a row while it executed this run alone, {place}; look "
        f"for what ends the process in the worker's log, then retry the run "
        f"({conf.shown('POISON_CLAIMS')})"
    )
    return _failed_for_good(claimed, error)


def _go_on(flow: Flow, claimed: Claim, journal: Journal) -> Outcome:
    """Replay the handler; if the run is to end without success, undo what is to be undone first."""
    driver, remedies = _driver(flow, claimed, journal), Remedies(journal)
    step = Step(journal, flow.retries, driver, remedies)
    try:
        outcome = _replay(flow, claimed, journal, driver, step)
    except CancelAsked:
        outcome = cancelled(claimed)
    if isinstance(outcome, Ending) and outcome.state != RunState.COMPLETED and journal.intents:
        if not remedies.is_complete:  # losers of a race, say, that were not played in this slice
            return _go_back(flow, claimed, journal, outcome)
        return _undo(flow, claimed, journal, remedies, outcome)
    return outcome


def _go_back(flow: Flow, claimed: Claim, journal: Journal, ending: Ending) -> Outcome:
    """Replay the handler to learn how its steps are undone, beginning nothing new; then undo them."""
    driver, remedies = _driver(flow, claimed, journal), Remedies(journal)
    step = Step(journal, flow.retries, driver, remedies)
    journal.recall()
    try:
        driver.play(flow.handler, _arguments(flow, claimed, step))
    except (LeaseLost, HandBack, KeyboardInterrupt, failpoints.Killed):
        raise
    except BaseException as end:  # whatever it is: that the run ends was decided before
        logger.debug("run %s was replayed to %r", claimed.run_id, end)
    if isinstance(journal.stopped, LeaseLost | HandBack):
        raise journal.stopped
    return _undo(flow, claimed, journal, remedies, ending)


def _undo(
    flow: Flow, claimed: Claim, journal: Journal, remedies: Remedies, ending: Ending
) -> Outcome:
    """Undo what has an intent, and end the run as was decided when that began."""
    journal.undo()
    decided = journal.find(UNDOING) or journal.record(
        UNDOING,
        StepKind.UNDO,
        output=json.dumps(_said(ending)),
    )
    driver = _driver(flow, claimed, journal)
    try:
        failed = driver.play(Undoing(journal, flow.retries, driver, remedies).all, {})
    except Suspend as signal:
        return Sleeping(_until(journal, signal), has_undo=True, undoes=True)
    return _ended(claimed, decided.value, failed)


def _give_up(claimed: Claim, journal: Journal, ending: Ending | None) -> Ending:
    """End the run though not everything is undone: whoever tries to dies of it."""
    decided = journal.find(UNDOING)
    end = _said(ending or cancelled(claimed)) if decided is None else decided.value
    return _ended(claimed, end, Remedies(journal).give_up("each worker that tried to undo it died"))


def _said(ending: Ending) -> dict[str, Any]:
    """How a run ends, as the step says with which undoing begins."""
    return {"state": ending.state, "reason": ending.reason, "error": ending.error}


def _ended(claimed: Claim, end: Mapping[str, Any], failed: Mapping[str, str]) -> Ending:
    """The end that was decided; what could not be undone is an error of a run that has failed."""
    if failed and end["error"] is not None:
        return _failed_for_good(claimed, not_undone(failed, end["reason"]))
    return Ending(
        run_id=claimed.run_id,
        lease=claimed.lease,
        state=RunState(end["state"]),
        error=end["error"],
        reason=end["reason"],
    )


def _until(journal: Journal, signal: Suspend) -> datetime:
    """When the run goes on: at once, if it was woken while it executed.

    What has woken it need not have been noticed by the branch concerned: the next slice reads it.
    """
    return clock.now() if journal.nudges else signal.until


def _driver(flow: Flow, claimed: Claim, journal: Journal) -> Threads | Tasks:
    kind = Tasks if flow.is_async else Threads
    return kind(journal, Scope("", LookBack(claimed.mark, claimed.since)), alone=_is_alone())


def _arguments(flow: Flow, claimed: Claim, step: Step) -> dict[str, Any]:
    return flow.arguments(
        {
            "event": claimed.event,
            "events": [claimed.event],
            "step": step,
            "run": Run.of(claimed, flow, is_replayed=lambda: step.is_replaying),
        }
    )


def _replay(
    flow: Flow, claimed: Claim, journal: Journal, driver: Threads | Tasks, step: Step
) -> Outcome:
    """Call the handler, and decide what its end means."""
    main = driver.scope
    try:
        _hold_off(journal)
        result = driver.play(flow.handler, _arguments(flow, claimed, step))
        if main.stopped is not None:
            raise SuspendSwallowed(_swallowed(flow))
        journal.check()  # of the other signals none is lost: the slice ends as it says
        journal.end_replay(main.last_key)
        return _completed(claimed, result)
    except Suspend as signal:
        return Sleeping(_until(journal, signal), has_undo=bool(journal.intents))
    except ENDS_OF_A_SLICE:
        raise
    except BaseException as error:  # sys.exit() is the handler's failure, not the worker's end
        if journal.stopped is not None:
            raise journal.stopped from error
        if main.stopped is not None and not isinstance(error, SuspendSwallowed):
            error = SuspendSwallowed(_swallowed(flow))
        return _failed(flow, claimed, journal, main, error)


def rehearse(flow: Flow, claimed: Claim, journal: Journal) -> None:
    """Replay a handler with a journal that begins nothing.

    Raises:
        Suspend: it has come as far as it can.
        BaseException: what would end the slice, or fail the run.
    """
    driver = _driver(flow, claimed, journal)
    step = Step(journal, flow.retries, driver, Remedies(journal))
    result = driver.play(flow.handler, _arguments(flow, claimed, step))
    if driver.scope.stopped is not None:
        raise SuspendSwallowed(_swallowed(flow))
    journal.check()
    journal.end_replay(driver.scope.last_key)
    _completed(claimed, result)


def _is_alone() -> bool:
    """Whether a transaction is open, as in a test: no other thread would see what is in it."""
    return sql.connection().in_atomic_block


def _completed(claimed: Claim, result: Any) -> Ending:
    try:
        text = payload.dumps(result, limits=conf.settings().result_limits)
    except InvalidPayload as error:
        raise UnserialisableResult(f"what the handler returned, {error}") from error
    return Ending(run_id=claimed.run_id, lease=claimed.lease, state=RunState.COMPLETED, result=text)


def _failed(
    flow: Flow, claimed: Claim, journal: Journal, main: Scope, error: BaseException
) -> Outcome:
    """The handler raised: another attempt at the code after the last step, or the end."""
    key = f"after:{main.last_key}"
    failures = len(journal.failures(key)) + 1
    verdict = outcomes.after_failure(error, flow.retries, failures=failures, spread=random.random())
    if isinstance(verdict, outcomes.GiveUp):
        return _failed_for_good(claimed, verdict.error)
    next_at = clock.now() + verdict.delay
    journal.record_failure(key, outcomes.describe(error), next_at)
    return Sleeping(next_at, has_undo=bool(journal.intents))


def _failed_for_good(claimed: Claim, error: BaseException) -> Ending:
    described = outcomes.describe(error)
    return Ending(
        run_id=claimed.run_id,
        lease=claimed.lease,
        state=RunState.FAILED,
        error=described,
        reason=f"{described['name']}: {described['message']}"[:1000],
    )


def _hold_off(journal: Journal) -> None:
    """Code between steps that is to be tried again later is not tried now, whatever woke the run."""
    next_at = journal.latest_retry_between()
    if next_at is not None and next_at > clock.now():
        journal.suspend(next_at)


def _swallowed(flow: Flow) -> str:
    return (
        f"the handler of flow {flow.id!r} ({flow.place}) caught the signal that suspends it and went "
        "on; it is a BaseException: write `except Exception:`, not `except:` or "
        "`except BaseException:`, around steps"
    )


def _still_wanted(claimed: Claim, history: History) -> bool:
    """Whether a claim that had to wait for the runs before it still stands, and is not cancelled.

    One that has something to undo is wanted for that.
    """
    rows = sql.execute(
        "SELECT state FROM durable_flows_due WHERE run_id = %(run)s AND lease = %(lease)s",
        {"run": claimed.run_id, "lease": claimed.lease},
    )
    if rows and (rows[0][0] == DueState.RUNNING or history.intents):
        return True
    if rows:
        finish.end([cancelled(claimed)])
    leases.release(claimed.run_id, claimed.lease)
    return False
