"""The flows that are measured. Their steps do nothing: what is left is what the engine costs."""

from __future__ import annotations

import asyncio
import time

from benchmarks.stamps import stamp
from durable_flows import AsyncStep, Event, Step, flow

MANY_STEPS = "benchmarks/many.steps"
THREE_STEPS = "benchmarks/three.steps"
STAMPED = "benchmarks/stamped"
RESUMED = "benchmarks/resumed"
WAITING = "benchmarks/waiting"
REPLAYED = "benchmarks/replayed"
AWAITED = "benchmarks/awaited"
PARALLEL = "benchmarks/parallel"
GATHERED = "benchmarks/gathered"


def noop() -> None:
    """Do nothing."""


@flow("many-steps", on=MANY_STEPS)
def many_steps(event: Event, step: Step) -> None:
    for number in range(event.data["steps"]):
        step.run(f"s{number}", noop)


@flow("three-steps", on=THREE_STEPS)
def three_steps(step: Step) -> None:
    step.run("first", noop)
    step.run("second", noop)
    step.run("third", noop)


@flow("stamped", on=STAMPED)
def stamped(step: Step) -> None:
    step.run("first", stamp)


@flow("resumed", on=RESUMED)
def resumed(step: Step) -> None:
    step.wait_for_event("awaited", event=AWAITED, match="data.key", timeout="1h")
    step.run("next", stamp)


@flow("waiting", on=WAITING)
def waiting(step: Step) -> bool:
    found = step.wait_for_event("awaited", event=AWAITED, match="data.key", timeout="1h")
    return found is not None


@flow("replayed", on=REPLAYED)
def replayed(event: Event, step: Step) -> None:
    for number in range(event.data["recorded"]):
        step.run(f"s{number}", noop)
    step.run("new", stamp)


@flow("parallel", on=PARALLEL)
def parallel(event: Event, step: Step) -> None:
    step.parallel(*[step.later.run(f"s{n}", time.sleep, 0.2) for n in range(event.data["count"])])


@flow("gathered", on=GATHERED)
async def gathered(event: Event, step: AsyncStep) -> None:
    steps = [step.run(f"s{n}", asyncio.sleep, 0.1) for n in range(event.data["count"])]
    await asyncio.gather(*steps)
