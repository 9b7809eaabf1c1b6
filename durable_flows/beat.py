"""Registers the tick with django-celery-beat."""

from __future__ import annotations

from django.apps import apps

from durable_flows import conf
from durable_flows.engine import ring

NAME = "durable_flows: tick"


def register() -> bool:
    """Create or update the periodic task; an admin's switch to disable it is kept.

    Returns:
        False if django-celery-beat is not installed or its tables are not there yet.
    """
    if not apps.is_installed("django_celery_beat"):
        return False
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    if not _has_table(PeriodicTask):
        return False
    every = max(1, round(conf.settings().TICK_SECONDS))
    interval = IntervalSchedule.objects.filter(every=every, period=IntervalSchedule.SECONDS).first()
    if interval is None:  # no unique constraint stands behind get_or_create
        interval = IntervalSchedule.objects.create(every=every, period=IntervalSchedule.SECONDS)
    given = {
        "task": ring.TICK,
        "interval": interval,
        "crontab": None,
        "solar": None,
        "clocked": None,
        "expire_seconds": 2 * every,
        "queue": ring.default_queue(),
        "description": "Finds work whose doorbell was lost. Safe to run in any number of beats.",
    }
    PeriodicTask.objects.update_or_create(
        name=NAME, defaults=given, create_defaults={**given, "enabled": True}
    )
    return True


def _has_table(model: type) -> bool:
    from django.db import connections, router

    alias = router.db_for_write(model)
    table: str = model._meta.db_table  # type: ignore[attr-defined]
    return table in connections[alias].introspection.table_names()
