"""Two singers join: one is greeted and guided; of the other, who gave no address, the office is told."""

from __future__ import annotations

from durable_flows.testing import drain, send


def play() -> None:
    """Two singers."""
    for email in ("greta@choir.example", "hanno"):
        send("choir/singer.joined", {"email": email})
    drain()


ENDED = [
    *["begin-welcome completed (pass-on)"] * 2,
    "greet-singer completed (send-mail, pass-on)",
    "greet-singer failed (send-mail, alert)",
    "guide-singer completed (send-guide)",
]
