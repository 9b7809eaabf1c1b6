"""Ivo is created, renamed and deleted; three orders find their desks, and one of them is wrapped."""

from __future__ import annotations

from uuid import uuid4

from durable_flows.testing import drain, send


def play() -> None:
    """A life in four events, and three orders."""
    ivo = uuid4().hex
    for verb, name in (("created", "Ivo"), ("renamed", "Ivo II"), ("praised", ""), ("deleted", "")):
        send(f"people/{verb}", {"id": ivo, "name": name})
        drain()
    for order, (total, first_order, gift) in enumerate(
        [(12_000, True, False), (50, True, True), (80, False, False)]
    ):
        facts = {"order": order, "total": total, "first_order": first_order, "gift": gift}
        send("desk/order.placed", facts)
    drain()


ENDED = [
    *[f"sync-contact completed ({step})" for step in ("add", "rename", "remove")],
    *["keep-journal completed (write)"] * 4,
    *["route-order completed (pass-on)"] * 3,
    *["handle-order completed (write)"] * 3,
    "wrap-gift completed (write)",
]
