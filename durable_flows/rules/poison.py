"""Which runs kill their workers."""

from __future__ import annotations


def deaths(*, unended: int, lease: int, recorded_under: int) -> int:
    """How often in a row a run's worker has died while it executed this run alone.

    The first claim that did not end is no proof: others were claimed with it. Whoever got as far as
    recording a step has not died of what the run did before.

    Args:
        unended: claims in a row, before this one, that did not end.
        lease: the lease of this claim; that of the claim before was lower.
        recorded_under: the lease under which the newest step was recorded; 0 if there is none.
    """
    return max(0, min(unended - 1, lease - 1 - recorded_under))
