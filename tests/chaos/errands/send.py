"""``python -m tests.chaos.errands.send FIRST LAST SECONDS``: errands of these numbers, in this time."""

from __future__ import annotations

import sys
import time

import django


def main(first: int, last: int, seconds: float) -> None:
    django.setup()
    from durable_flows import send

    for trip in range(first, last + 1):
        data = {"trip": trip}
        send("trip/heavy", {**data, "seconds": 1.2 if trip == 0 else 0.01})
        send("trip/began", data)
        if trip % 2 == 0:
            send("trip/broken", data)
        if trip % 3 == 0:
            send("trip/doomed", {**data, "doomed": trip})
            send("trip/called-off", {"doomed": trip})
        time.sleep(seconds / (last + 1 - first))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
