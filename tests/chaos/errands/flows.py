"""Every tool of a flow, and whatever may end a run, on data that says which errand it is."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from datetime import timedelta
from typing import Any

from durable_flows import (
    AsyncStep,
    CancelOn,
    Event,
    Fixed,
    InvokeTimeout,
    NonRetriableError,
    Retries,
    Run,
    Step,
    Timeouts,
    cancel_all,
    flow,
    rerun,
    retry,
    send,
    withdraw,
)
from durable_flows.models import Run as RunRow
from durable_flows.rules import clock
from tests.chaos.errands import witness

SOON = Retries(20, backoff=Fixed("0.2s"))


@flow(
    "journey",
    on="trip/began",
    retries=SOON,
    cancel_on=CancelOn("trip/forgotten", match="data.trip"),
    timeouts=Timeouts(finish="1h"),
)
def journey(event: Event, step: Step, run: Run) -> list[Any]:
    """Acts, falters, asks somebody and waits for the answer, sleeps, waits in vain, and writes.

    Then it does two things at once, and waits for a guest until it is evening.
    """

    def falter() -> str:
        witness.do(run.id, "falter")
        if witness.times(run.id, "falter") == 1:
            raise ConnectionError("not yet")
        return "done"

    def write() -> None:
        witness.tell(run.id, "write")
        witness.tell(run.id, "write", alias="default")
        for _ in range(3):
            witness.dawdle()

    step.run("pack", witness.do, run.id, "pack")
    faltered = step.run("falter", falter)
    step.send_event("ask", Event("trip/asked", {"trip": event.data["trip"]}))
    answer = step.wait_for_event("answer", event="trip/answered", match="data.trip", timeout="1h")
    step.sleep("rest", 0.3)
    silence = step.wait_for_event("silence", event="trip/never", match="data.trip", timeout=0.3)
    step.run("write", write, atomic=True)
    step.parallel(
        step.later.run("fold", witness.do, run.id, "fold"),
        lambda: step.run("wash", witness.do, run.id, "parallel[1]/wash"),
        step.later.sleep("dry", 0.1),
    )
    step.race(
        step.later.wait_for_event("guest", event="trip/never", timeout="1h"),
        lambda: step.sleep("evening", 0.2),
    )
    step.run("unpack", witness.do, run.id, "unpack")
    return [faltered, answer and answer.data["trip"], silence]


@flow("answerer", on="trip/asked", retries=SOON)
def answerer(event: Event, step: Step, run: Run) -> None:
    """Answers what a journey has asked."""
    step.run("think", witness.do, run.id, "think")
    step.send_event("answer", Event("trip/answered", event.data))


@flow("voyage", on=["trip/began", "trip/sailed"], retries=SOON)
async def voyage(step: AsyncStep, run: Run) -> None:
    """Books two things while another branch sleeps; then it fails, and both are given back."""

    def give_back(booked: None, run_id: str, key: str) -> None:
        witness.do(run_id, f"{key}#undo")

    def sink() -> None:
        witness.do(run.id, "sink")
        raise NonRetriableError("sunk")

    async def books() -> None:
        for what in ("flight", "hotel"):
            await step.saga().run(what, witness.do, run.id, f"task[1]/{what}", undo=give_back)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(step.sleep("rest", 0.3))
        tasks.create_task(books())
    await step.run("sink", sink)


@flow("doomed", on="trip/doomed", cancel_on=CancelOn("trip/called-off", match="data.doomed"))
def doomed(step: Step, run: Run) -> None:
    """Waits for what never comes, until it is called off."""
    step.run("pack", witness.do, run.id, "pack")
    step.wait_for_event("never", event="trip/never", match="data.trip", timeout="1h")


@flow("late", on="trip/doomed", timeouts=Timeouts(finish="1s"))
def late(step: Step, run: Run) -> None:
    """Has not come to its end when its time is over."""
    step.run("pack", witness.do, run.id, "pack")
    step.sleep("rest", "1h")


@flow("caller", on="trip/called", retries=SOON)
def caller(event: Event, step: Step) -> list[Any]:
    """Invokes one who answers, two one after the other, one whom it joins, and one who takes too long."""
    trip = event.data["trip"]
    first = step.invoke("call", "called", {"trip": trip, "rest": 0})
    mapped = step.map(
        "each", "called", [{"trip": trip, "rest": 0}, {"trip": trip, "rest": 0.1}], max_in_flight=1
    )
    assert mapped == [trip, trip]
    joined = step.invoke("join", "called", {"trip": -1, "rest": 0}, key="everybody")
    try:
        step.invoke("call in vain", "called", {"trip": trip, "rest": 1.5}, timeout=0.3)
    except InvokeTimeout as error:
        return [first, joined, error.state]
    return []


@flow("called", retries=SOON)
def called(event: Event, step: Step, run: Run) -> int:
    """Answers after a while."""
    step.run("pack", witness.do, run.id, "pack")
    step.sleep("rest", event.data["rest"])
    return int(event.data["trip"])


@flow("quitter", on="trip/quit", cancel_on=CancelOn("trip/enough", match="data.trip"))
def quitter(event: Event, step: Step) -> None:
    """Is called off by the one whom it invokes, which ends both."""
    step.invoke("call", "lost", event.data)


@flow("lost")
def lost(event: Event, step: Step) -> None:
    """Sees to it that whoever waits for it is called off."""
    step.send_event("enough", Event("trip/enough", event.data))
    step.sleep("forever", "1h")


@flow("broken", on="trip/broken", retries=SOON)
def broken(step: Step, run: Run) -> str:
    """Fails for good, and goes on when somebody mends it."""

    def work() -> None:
        witness.tell(run.id, "work")
        if witness.times(run.id, "mended") == 0:
            raise NonRetriableError("broken")

    step.run("work", work)
    return "mended"


@broken.on_failure
def note(step: Step, run: Run) -> None:
    """Takes note of each time."""
    step.run("note", witness.do, run.id, "note")


@flow("asker", on="trip/broken", retries=SOON)
def asker(step: Step) -> bool:
    """Waits until the mender of the same event has ended."""
    ended = step.wait_for_event(
        "mended",
        event="flows/function.finished",
        if_="async.data.function_id == 'mender' && async.data.event.data.trip == event.data.trip",
        timeout="1h",
    )
    return ended is not None


@flow("mender", on="trip/broken", retries=SOON)
def mender(event: Event, step: Step) -> None:
    """Mends the broken one of the same event."""

    def mend() -> None:
        found = RunRow.objects.get(flow="broken", event_id=event.public_id)
        if found.state == "completed":
            return
        if found.state != "failed":
            raise ConnectionError("not broken yet")
        witness.tell(str(found.pk), "mended")
        retry(found.pk)

    step.run("mend", mend)


@flow("redone", on="trip/redo", retries=SOON)
def redone(event: Event, step: Step, run: Run) -> int:
    """Is done again from its second step."""
    step.run("pack", witness.do, run.id, "pack")
    step.run("unpack", witness.do, run.id, "unpack")
    return int(event.data["trip"])


@flow("redoer", on="trip/redo", retries=SOON)
def redoer(event: Event, step: Step) -> None:
    """Has the one of the same event done again, and thinks better of an event."""

    def redo() -> None:
        found = RunRow.objects.filter(flow="redone", event_id=event.public_id, state="completed")
        for origin in found:
            rerun(origin.pk, from_step="unpack")
            (later,) = send("trip/redo", event.data, ts=clock.now() + timedelta(hours=1))
            withdraw(later)
            cancel_all("superfluous", if_=f"event.data.trip == {event.data['trip']}")
            return
        raise ConnectionError("not done yet")

    step.run("redo", redo, atomic=True)


@flow("superfluous", on="trip/redo")
def superfluous(step: Step) -> None:
    """Is cancelled with all its kind."""
    step.sleep("rest", "1h")


@flow("heavy", on="trip/heavy", retries=SOON)
def heavy(event: Event, step: Step, run: Run) -> None:
    """Takes so long that its neighbours are given back, or that it is told to stop meanwhile."""

    def lift() -> None:
        witness.tell(run.id, "lift")
        time.sleep(event.data["seconds"])

    step.run("lift", lift)
    step.run("put down", witness.do, run.id, "put down")


@flow("crowd", on="trip/began")
def crowd(step: Step) -> bool:
    """Waits for the bell, with all others of its kind."""
    return step.wait_for_event("bell", event="trip/rung", timeout="1h") is not None


@flow("ringer", on="trip/began")
def ringer(event: Event, step: Step) -> None:
    """Rings the bell when a crowd has come together."""
    step.sleep("rest", 0.5)
    step.send_event("ring", Event("trip/rung", event.data))


@flow("neighbour", on="trip/shared")
def neighbour(step: Step, run: Run) -> str:
    """Does no harm."""
    step.run("pack", witness.do, run.id, "pack")
    step.run("unpack", witness.do, run.id, "unpack")
    return "arrived"


@flow("abort", on="trip/aborted")
def abort(step: Step, run: Run) -> None:
    """Ends its interpreter, whoever executes it."""

    def crash() -> None:
        witness.tell(run.id, "crash")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.abort()

    step.run("pack", witness.do, run.id, "pack")
    step.run("crash", crash)


if os.environ.get("ERRANDS_VERSION") == "new":

    @flow("newcomer", on="trip/began", retries=SOON)
    def newcomer(step: Step, run: Run) -> None:
        """Is not there in the old version of this project."""
        step.run("greet", witness.do, run.id, "greet")
        step.sleep("rest", 0.1)
        step.run("part", witness.do, run.id, "part")
