"""The flows that are measured. Their steps do nothing: what is left is what the engine costs."""

from __future__ import annotations

from durable_flows import Event, Step, flow

MANY_STEPS = "benchmarks/many.steps"
THREE_STEPS = "benchmarks/three.steps"


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
