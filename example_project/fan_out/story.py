"""Dora joins the club; four flows start at once, and each does its own."""

from __future__ import annotations

from uuid import uuid4

from durable_flows.testing import drain, send


def play() -> None:
    """One sign-up."""
    facts = {"member_id": uuid4().hex, "email": "dora@club.example", "name": "Dora"}
    send("club/member.signed-up", {**facts, "referred_by": "a friend"})
    drain()


ENDED = [
    "greet-member completed (send-mail, tell)",
    "set-up-defaults completed (create-preferences)",
    "record-sign-up completed (record)",
    "notify-board completed (send-mail)",
]
