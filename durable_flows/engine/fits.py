"""What is said of code that does not fit what is recorded of a run."""

from __future__ import annotations

from durable_flows.engine.history import Recorded
from durable_flows.errors import DeterminismError
from durable_flows.rules.states import StepKind

_REMEDY = (
    "deploy code that fits, which may keep the old way beside the new one by step.patched() or a "
    "version= of the flow; or cancel the run and rerun it"
)


def out_of_order(new: str, recorded: str) -> DeterminismError:
    """The code begins a step before one that the run has been at."""
    return DeterminismError(
        f"the code comes to step {new!r}, which is new to this run, before step {recorded!r}, which the "
        f"run has been at; {_REMEDY}"
    )


def left_out(recorded: str, last: str) -> DeterminismError:
    """The code comes to its end without a step that the run has been at."""
    after = f"after step {last!r}" if last else "without any step"
    return DeterminismError(
        f"the handler has come to its end {after}, and not to step {recorded!r}, which the run has been "
        f"at; {_REMEDY}"
    )


def not_met(recorded: str) -> DeterminismError:
    """The code comes as far as it can, and not by a step that the run has been at."""
    return DeterminismError(
        f"the code does not come to step {recorded!r}, which the run has been at; {_REMEDY}"
    )


def changed_kind(recorded: Recorded, kind: StepKind) -> DeterminismError:
    """The code asks for another kind of step than the one that is recorded."""
    return DeterminismError(
        f"step {recorded.key!r} is recorded as one of kind {recorded.kind!r}, and is {kind.value!r} in "
        f"the code now: give the new one another id; {_REMEDY}"
    )
