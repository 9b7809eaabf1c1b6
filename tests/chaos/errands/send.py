"""``python -m tests.chaos.errands.send [TRIPS]``: so many errands; without a number until SIGTERM."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from typing import Any

import django

#: Unfinished runs with which everybody has something in hand.
ENOUGH = int(os.environ.get("ERRANDS_ENOUGH", "150"))
PAUSE = 0.1  # seconds

told = threading.Event()


def send_errands(trip: int) -> None:
    """What one number of errands is."""
    from durable_flows import send

    data: dict[str, Any] = {"trip": trip}
    send("trip/heavy", {**data, "seconds": 1.2 if trip == 0 else trip % 10 / 30})
    send("trip/began", data)
    send("trip/called", data)
    if trip % 2 == 0:
        send("trip/broken", data)
    else:
        send("trip/redo", data)
    if trip % 3 == 0:
        send("trip/quit", data)
        send("trip/doomed", {**data, "doomed": trip})
        send("trip/called-off", {"doomed": trip})


def send_until_told() -> None:
    from durable_flows.models import Due

    signal.signal(signal.SIGTERM, lambda *_: told.set())
    for trip in itertools.count():
        send_errands(trip)
        while not told.wait(PAUSE) and Due.objects.count() > ENOUGH:
            pass
        if told.is_set():
            return


if __name__ == "__main__":
    django.setup()
    if len(sys.argv) > 1:
        for number in range(int(sys.argv[1])):
            send_errands(number)
    else:
        send_until_told()
