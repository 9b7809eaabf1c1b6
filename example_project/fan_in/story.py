"""A parcel becomes ready bit by bit, another all at once: each leaves once. A third has no address."""

from __future__ import annotations

from durable_flows.testing import advance, drain
from example_project.fan_in.models import Parcel


def play() -> None:
    """Three parcels."""
    slow, sudden, stuck = Parcel.objects.create(), Parcel.objects.create(), Parcel.objects.create()
    for what in ("paid", "packed", "addressed"):
        slow.note(what)
        advance("1h")
    for what in ("paid", "packed", "addressed"):
        sudden.note(what)
    stuck.note("packed")
    drain()


ENDED = [
    *["ship-parcel completed (claim, create-shipment, tell)"] * 2,
    *["ship-parcel completed (claim)"] * 5,
]
