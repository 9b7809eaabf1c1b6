"""Plays the handler of a run, with its tools, in threads or in tasks, and says what came of it."""

from __future__ import annotations

import random
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from durable_flows.engine import sql
from durable_flows.engine.finish import Ending
from durable_flows.engine.history import Claim
from durable_flows.engine.in_tasks import Tasks
from durable_flows.engine.in_threads import Threads
from durable_flows.engine.journal import Journal
from durable_flows.engine.run import Run
from durable_flows.engine.sagas import Remedies
from durable_flows.engine.scopes import ENDS_OF_A_SLICE, Scope
from durable_flows.engine.suspend import Outcome, Sleeping, failed
from durable_flows.engine.tools.step import Step
from durable_flows.errors import Suspend, SuspendSwallowed, Unreadable
from durable_flows.flows import Flow
from durable_flows.middleware import SWALLOWED, Around, as_sync, check_passed, surround
from durable_flows.rules import clock, outcomes
from durable_flows.rules.backoff import Retries
from durable_flows.rules.lookback import LookBack
from durable_flows.rules.states import RunState


def driver_of(flow: Flow, claimed: Claim, journal: Journal) -> Threads | Tasks:
    """What does the work of the handler's tools."""
    kind = Tasks if flow.is_async else Threads
    return kind(journal, Scope("", LookBack(claimed.mark, claimed.since)), alone=_is_alone())


def arguments(flow: Flow, claimed: Claim, journal: Journal, step: Step) -> dict[str, Any]:
    """What the handler is called with. Raises `UnreadableEvent`."""
    event = journal.opened(claimed.event).decoded(flow.type_of(claimed.event.name))
    return flow.arguments(
        {
            "event": event,
            "events": [event],
            "step": step,
            "run": Run.of(claimed, flow, is_replayed=lambda: step.is_replaying),
        }
    )


def replay(
    flow: Flow, claimed: Claim, journal: Journal, driver: Threads | Tasks, step: Step
) -> Outcome:
    """Call the handler, and decide what its end means."""
    main = driver.scope
    try:
        _hold_off(journal)
        return _to_its_end(flow, claimed, journal, driver, step)
    except Suspend as signal:
        return Sleeping(goes_on_at(journal, signal), has_undo=bool(journal.intents))
    except Unreadable as signal:
        return unreadable(flow, claimed, journal, main, signal.error)
    except ENDS_OF_A_SLICE:
        raise
    except BaseException as error:  # sys.exit() is the handler's failure, not the worker's end
        if isinstance(journal.stopped, Unreadable):
            return unreadable(flow, claimed, journal, main, journal.stopped.error)
        if journal.stopped is not None:
            raise journal.stopped from error
        if main.stopped is not None and not isinstance(error, SuspendSwallowed):
            error = SuspendSwallowed(_swallowed(flow))
        return failed_between(claimed, journal, main, error, flow.retries)


def rehearse(flow: Flow, claimed: Claim, journal: Journal) -> None:
    """Replay a handler with a journal that begins nothing.

    Raises:
        Suspend: it has come as far as it can.
        BaseException: what would end the slice, or fail the run.
    """
    driver = driver_of(flow, claimed, journal)
    step = Step(journal, flow.retries, driver, Remedies(journal))
    _to_its_end(flow, claimed, journal, driver, step)


def _to_its_end(
    flow: Flow, claimed: Claim, journal: Journal, driver: Threads | Tasks, step: Step
) -> Ending:
    main = driver.scope
    result = perform(flow, claimed, journal, driver, step)
    if main.stopped is not None:
        raise SuspendSwallowed(_swallowed(flow))
    journal.check()  # of the other signals none is lost: the slice ends as it says
    journal.end_replay(main.last_key)
    return _completed(claimed, journal, result)


def perform(
    flow: Flow, claimed: Claim, journal: Journal, driver: Threads | Tasks, step: Step
) -> Any:
    """Call the handler, inside what middleware puts around it."""
    given = arguments(flow, claimed, journal, step)
    openers = journal.values.around_run()
    if not openers:
        return driver.play(flow.handler, given)
    result = SWALLOWED
    with ExitStack() as stack:
        inside = []
        for around in (opener() for opener in openers):
            if flow.is_async and isinstance(around, AbstractAsyncContextManager):
                inside.append(partial(_same, around))
            else:
                stack.enter_context(as_sync(around))
        result = driver.play(surround(flow.handler, inside), given)
    check_passed(result)
    return result


def _same(around: Around) -> Around:
    return around


def unreadable(
    flow: Flow, claimed: Claim, journal: Journal, main: Scope, error: BaseException
) -> Outcome:
    """What is recorded cannot be read now: another attempt, whatever the flow's retries are on."""
    policy = replace(flow.retries, on=(Exception,))
    return failed_between(claimed, journal, main, error, policy)


def failed_between(
    claimed: Claim, journal: Journal, main: Scope, error: BaseException, policy: Retries
) -> Outcome:
    """The handler raised: another attempt at the code after the last step, or the end."""
    key = f"after:{main.last_key}"
    failures = len(journal.failures(key)) + 1
    verdict = outcomes.after_failure(error, policy, failures=failures, spread=random.random())
    if isinstance(verdict, outcomes.GiveUp):
        return failed(claimed, verdict.error, journal.values)
    next_at = clock.now() + verdict.delay
    journal.record_failure(key, journal.values.described(error), next_at)
    return Sleeping(next_at, has_undo=bool(journal.intents))


def goes_on_at(journal: Journal, signal: Suspend) -> datetime:
    """When the run goes on: at once, if it was woken while it executed.

    What has woken it need not have been noticed by the branch concerned: the next slice reads it.
    """
    return clock.now() if journal.nudges else signal.until


def _is_alone() -> bool:
    """Whether a transaction is open, as in a test: no other thread would see what is in it."""
    return sql.connection().in_atomic_block


def _completed(claimed: Claim, journal: Journal, result: Any) -> Ending:
    text = journal.values.encode(result)
    return Ending(run_id=claimed.run_id, lease=claimed.lease, state=RunState.COMPLETED, result=text)


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
