"""How long a chain of runs may be that bring each other about, without a pause."""

from __future__ import annotations

from datetime import datetime, timedelta

DEEPEST = 50  # runs that bring each other about, less than a minute apart
QUICK = timedelta(minutes=1)  # a flow that sends its own trigger once an hour lives

TOO_DEEP = (
    f"it would be more than {DEEPEST} runs deep, each less than a minute after the one that brought "
    "it about: does it bring itself about, or do flows start each other in a circle?"
)


def depth_of_sent(depth: int, *, since: datetime, now: datetime) -> int:
    """How deep stands what a run brings about: only quick hops count.

    Args:
        depth: how deep the run itself stands.
        since: when it was created, or went on with anew.
        now: the moment at which it sends, or ends.
    """
    return depth + 1 if now - since < QUICK else 1


def is_too_deep(depth: int) -> bool:
    """Whether no run may begin so deep."""
    return depth > DEEPEST
