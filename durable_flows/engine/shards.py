"""Shares the events out among several routers: each takes what falls into its shard.

An event's shard is a number below `NUMBERS`, written with it; a router i of n takes the numbers that
leave the remainder i. n is a power of two, so that the shards of every n are halves of those of the n
before. A router holds its own shard's lock exclusively and those of all the larger shards around it
shared: so two routers never have the same event in hand, even while processes with an old and a new
number of shards live side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

from durable_flows import conf
from durable_flows.engine import sql, stored

NUMBERS = 256
LOCK = 0x646C6F77  # "dlow": the first key of the routers' advisory locks


def number_of(text: str) -> int:
    """The shard's number of what must be routed in order: the name of an event, the id of a run."""
    return crc32(text.encode()) % NUMBERS


@dataclass(frozen=True, slots=True)
class Shard:
    """Shard ``index`` of ``count``."""

    index: int = 0
    count: int = 1

    def try_lock(self) -> bool:
        """As `sql.try_lock`."""
        return sql.try_lock(LOCK, self._own, around=self._around)

    def wait_for_lock(self) -> None:
        """As `sql.wait_for_lock`."""
        sql.wait_for_lock(LOCK, self._own, around=self._around)

    @property
    def events(self) -> stored.Condition:
        """That an event ``e`` is of this shard."""
        if self.count == 1:
            return stored.EVERY
        return "e.shard & %(shard_mask)s = %(shard)s", {
            "shard_mask": self.count - 1,
            "shard": self.index,
        }

    @property
    def _own(self) -> int:
        return self.count + self.index

    @property
    def _around(self) -> Sequence[int]:
        """The larger shards that this one is a part of, the largest first: numbered as in a heap."""
        sizes = [1 << bits for bits in range(self.count.bit_length() - 1)]
        return [size + self.index % size for size in sizes]


def all_shards() -> list[Shard]:
    """The shards as the setting says. SQLite has one writer, and so one router."""
    count = conf.settings().ROUTE_SHARDS if sql.postgres() else 1
    return [Shard(index, count) for index in range(count)]
