"""Tells a worker, and the processes that it has forked, to stop."""

from __future__ import annotations

import mmap
import time

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
