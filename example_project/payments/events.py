"""What is said about payments: who sends these events, and who listens, imports them from here."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from durable_flows import EventType


@dataclass
class Initiated:
    payment_id: UUID
    amount: int


@dataclass
class Succeeded:
    payment_id: UUID


@dataclass
class Failed:
    payment_id: UUID
    error: str


INITIATED = EventType("payment/initiated", Initiated)
SUCCEEDED = EventType("payment/succeeded", Succeeded)
FAILED = EventType("payment/failed", Failed)
