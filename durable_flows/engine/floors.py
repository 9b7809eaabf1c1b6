"""Moments below which there is nothing to look for.

An index that is read from its beginning is read through the entries of all that is done, as long as
some old snapshot keeps them. The tick knows how far everything is done, and notes it; readers begin
there. What is written with an older moment nevertheless, by a late commit or a clock that was put
back, is found by the next tick, which looks without a floor and lowers it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from durable_flows.engine import failpoints, sql
from durable_flows.rules import clock

SLACK = timedelta(minutes=1)  # for transactions that commit late and for clocks that differ
EVENTS = ""  # the floor of unrouted events: no queue has an empty name
EVER = datetime(1970, 1, 1, tzinfo=UTC)


def above(column: str, name: str) -> str:
    """A condition: the column's moment is above the floor of this name, if there is one.

    Args:
        column: of the table that is read.
        name: the statement's parameter that holds the floor's name; it needs ``ever`` too, `EVER`.
    """
    floor = f"SELECT moment FROM durable_flows_floor WHERE name = %({name})s"
    return f"{column} > coalesce(({floor}), %(ever)s::timestamptz)"


def keep(name: str, oldest: datetime | None) -> None:
    """Note how far all is done.

    Args:
        name: of the floor: that of a queue for its due rows, or `EVENTS`.
        oldest: the oldest moment that is not, looked for without the floor; None: all is done by now.
    """
    now = clock.now()
    sql.execute(
        "INSERT INTO durable_flows_floor (name, moment) VALUES (%(name)s, %(moment)s) "
        "ON CONFLICT (name) DO UPDATE SET moment = %(moment)s",
        {"name": name, "moment": min(now, oldest or now) - SLACK},
    )
    failpoints.reach("floor_kept", name)
