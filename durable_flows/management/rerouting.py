"""``flows reroute``: events that were set aside, once more."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from django.core.management.base import CommandError

from durable_flows import conf
from durable_flows.engine import quarantine, sql
from durable_flows.models import Event

AT_ONCE = 500


def reroute(events: Sequence[UUID]) -> int:
    """Have these events routed again: all, or none.

    Raises:
        CommandError: one of them is not set aside.
    """
    with sql.atomic():
        done = quarantine.reroute(events)
        if others := sorted(set(events) - set(done)):
            raise CommandError(
                f"{', '.join(map(str, others))}: no event of this id is set aside. Nothing was done."
            )
    return len(done)


def reroute_all() -> int:
    """Have all events routed again that are set aside now, a few hundred at a time."""
    aside = Event.objects.using(conf.settings().DATABASE).filter(quarantined=True)
    count = 0
    ids = list(aside.order_by("-routed_at").values_list("pk", flat=True))
    for start in range(0, len(ids), AT_ONCE):
        count += len(quarantine.reroute(ids[start : start + AT_ONCE]))
    return count
