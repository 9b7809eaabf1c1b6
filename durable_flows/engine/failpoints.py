"""Named places at which a test may end a worker as if it had been killed."""

from __future__ import annotations

from collections.abc import Callable


class Killed(BaseException):
    """Raised by a trap to end the worker here."""


#: Called with the name of the place and what it is about, e.g. ``("step_ran", "charge")``.
trap: Callable[[str, str], None] | None = None


def reach(place: str, detail: str = "") -> None:
    """The engine has come to ``place``."""
    if trap is not None:
        trap(place, detail)
