"""What a router has in hand, and what it has done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from durable_flows.engine import admit
from durable_flows.engine.shards import Shard
from durable_flows.engine.stored import Routed


@dataclass(slots=True)
class Routing:
    """What has been routed: how many events, and on which queues there is something to do now."""

    events: int = 0
    batches: int = 0
    queues: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Hand:
    """The events that this router has in hand.

    Attributes:
        shard: of which they are.
        most: how many it may take.
        events: what it took.
        in_part: whether it left some of what it may take to the next hand.
        cancellable: the runs of flows with cancel rules that they start.
        broadcasts: whether there may be events that are settled in pieces.
    """

    shard: Shard
    most: int
    events: Sequence[Routed] = ()
    in_part: bool = False
    cancellable: Sequence[admit.Start] = ()
    broadcasts: bool = False

    @property
    def was_not_all(self) -> bool:
        """Whether it left something behind, or may have."""
        return self.in_part or len(self.events) >= self.most
