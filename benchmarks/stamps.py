"""How a worker says when something began: a datagram with the time, to a socket of the benchmark's.

No table and no file is touched, and nobody has to look: what is measured is disturbed by some 10 µs,
and only after the time was taken. ``time.monotonic`` is one clock for all processes of a machine.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

PLACE = "BENCHMARKS_STAMPS"  # the environment variable with the socket's path


def stamp() -> None:
    """Tell the benchmark that it is now."""
    now = time.monotonic()
    _out().sendto(repr(now).encode(), os.environ[PLACE])


class Stamps:
    """The times that have been told, one after the other."""

    def __init__(self, incoming: socket.socket) -> None:
        self._incoming = incoming

    def next(self, *, seconds: float = 30.0) -> float:
        """Wait for the next one. Raises TimeoutError."""
        self._incoming.settimeout(seconds)
        return float(self._incoming.recv(64))


@contextmanager
def listening() -> Iterator[Stamps]:
    """Listen to the workers that are started inside the block, and to this process."""
    with (
        tempfile.TemporaryDirectory(prefix="benchmarks-") as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as incoming,
    ):
        place = str(Path(directory) / "stamps")
        incoming.bind(place)
        os.environ[PLACE] = place
        try:
            yield Stamps(incoming)
        finally:
            del os.environ[PLACE]


@cache
def _out() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
