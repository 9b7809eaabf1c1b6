"""The tick in django-celery-beat: registered after migrate, and an admin's switch is kept."""

from __future__ import annotations

import json

import pytest
from celery import current_app
from django.apps import apps
from django.core.management import call_command
from django.db.models.signals import post_migrate
from django_celery_beat.models import IntervalSchedule, PeriodicTask
from django_celery_beat.schedulers import ModelEntry

from durable_flows import beat

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def nothing_registered():
    PeriodicTask.objects.all().delete()
    IntervalSchedule.objects.all().delete()


def the_task() -> PeriodicTask:
    return PeriodicTask.objects.get(name=beat.NAME)


def test_the_tick_is_registered():
    assert beat.register() is True
    task = the_task()
    assert task.task == "durable_flows.tick"
    assert task.task in current_app.tasks
    assert task.enabled
    assert (task.interval.every, task.interval.period) == (5, "seconds")
    assert (json.loads(task.args), json.loads(task.kwargs)) == ([], {})
    assert task.queue == current_app.conf.task_default_queue
    assert task.expire_seconds == 10


def test_registering_again_changes_nothing():
    for _ in range(3):
        beat.register()
    assert PeriodicTask.objects.count() == 1
    assert IntervalSchedule.objects.count() == 1


def test_a_task_that_an_admin_switched_off_stays_off():
    beat.register()
    PeriodicTask.objects.update(enabled=False)
    beat.register()
    assert the_task().enabled is False


def test_another_interval_moves_the_same_task(settings):
    beat.register()
    settings.DURABLE_FLOWS = {"RING": "off", "TICK_SECONDS": 20}
    beat.register()
    task = the_task()
    assert (task.interval.every, task.expire_seconds) == (20, 40)
    assert PeriodicTask.objects.count() == 1


def test_a_second_is_the_shortest_interval(settings):
    settings.DURABLE_FLOWS = {"RING": "off", "TICK_SECONDS": 0.2}
    beat.register()
    assert the_task().interval.every == 1


def test_intervals_that_others_doubled_do_not_disturb():
    for _ in range(2):
        IntervalSchedule.objects.create(every=5, period=IntervalSchedule.SECONDS)
    assert beat.register() is True
    assert IntervalSchedule.objects.count() == 2


def test_another_schedule_that_an_admin_gave_it_is_replaced():
    """Two schedules at once are invalid; an interval is what the tick needs."""
    from django_celery_beat.models import CrontabSchedule

    beat.register()
    PeriodicTask.objects.update(interval=None, crontab=CrontabSchedule.objects.create())
    beat.register()
    task = the_task()
    task.full_clean()
    assert task.crontab is None
    assert task.interval.every == 5


def test_other_tasks_stay_as_they_are():
    every = IntervalSchedule.objects.create(every=1, period=IntervalSchedule.DAYS)
    PeriodicTask.objects.create(name="theirs", task="shop.clean", interval=every, enabled=False)
    beat.register()
    theirs = PeriodicTask.objects.get(name="theirs")
    assert (theirs.task, theirs.enabled, theirs.interval) == ("shop.clean", False, every)


def test_beat_can_read_it():
    beat.register()
    entry = ModelEntry(the_task(), app=current_app)
    assert entry.task == "durable_flows.tick"
    assert entry.schedule.run_every.total_seconds() == 5


def test_migrate_registers_it():
    call_command("migrate", verbosity=0)
    assert the_task().enabled


def test_migrating_another_database_does_not_register_it():
    receivers = post_migrate._live_receivers(apps.get_app_config("durable_flows"))[0]
    (register,) = [each for each in receivers if each.__module__ == "durable_flows.apps"]
    register(using="another")
    assert not PeriodicTask.objects.exists()
    register(using="default")
    assert PeriodicTask.objects.exists()


def test_without_beat_there_is_nothing_to_register(settings):
    with_beat = list(settings.INSTALLED_APPS)
    settings.INSTALLED_APPS = [name for name in with_beat if name != "django_celery_beat"]
    assert beat.register() is False


def test_without_beats_tables_there_is_nothing_to_register_yet(monkeypatch):
    monkeypatch.setattr(PeriodicTask._meta, "db_table", "not_there_yet")
    assert beat.register() is False
