"""System checks: what would go wrong later is said at start-up."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from celery import Celery, current_app
from cryptography.fernet import Fernet
from django.core.checks import Error, Warning, run_checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connection, connections
from django.test import override_settings

from durable_flows import CancelOn, On, checks, flow
from durable_flows.encryption import Encryption

GOOD = {"RING": "off"}


def found(*ids: str, **raw: Any) -> list[Any]:
    """What `check` says under these settings, of these ids."""
    with override_settings(DURABLE_FLOWS={**GOOD, **raw}):
        return [message for message in run_checks() if message.id in ids]


def ids(messages: list[Any]) -> list[str]:
    return sorted(message.id for message in messages)


def own(**kwargs: Any) -> list[str]:
    """The ids of our own messages."""
    found = [str(message.id) for message in run_checks(**kwargs)]
    return [id for id in found if id.startswith("durable_flows.")]


@pytest.mark.django_db
def test_a_sound_project_has_nothing_to_hear():
    assert own(databases=["default"]) == []


# -- settings --------------------------------------------------------------------------------


def test_an_unknown_setting_is_a_warning_with_a_suggestion():
    (message,) = found("durable_flows.W001", LEASE_SECOND=30)
    assert isinstance(message, Warning)
    assert "'LEASE_SECOND'" in message.msg
    assert "'LEASE_SECONDS'" in str(message.hint)


def test_an_unknown_setting_that_resembles_none_gets_the_list():
    (message,) = found("durable_flows.W001", COLOUR="red")
    assert "'COLOUR'" in message.msg
    assert "TICK_SECONDS" in str(message.hint)


def test_each_unknown_setting_is_named():
    messages = found("durable_flows.W001", ONE=1, TWO=2)
    assert ["'ONE'" in messages[0].msg, "'TWO'" in messages[1].msg] == [True, True]


def test_a_setting_of_the_wrong_kind_is_an_error_that_names_it():
    (message,) = found("durable_flows.E002", CLAIM_BATCH="ten")
    assert isinstance(message, Error)
    assert 'DURABLE_FLOWS["CLAIM_BATCH"]' in message.msg
    assert "'ten'" in message.msg


@pytest.mark.parametrize("raw", [["RING"], "off", 7])
def test_settings_that_are_no_dict_are_an_error(raw):
    with override_settings(DURABLE_FLOWS=raw):
        messages = [m for m in run_checks() if str(m.id).startswith("durable_flows.")]
    assert ids(messages) == ["durable_flows.E001"]
    assert type(raw).__name__ in messages[0].msg


def test_a_database_that_is_not_there_is_an_error_that_names_those_that_are():
    (message,) = found("durable_flows.E003", DATABASE="flows")
    assert "'flows'" in message.msg
    assert "default" in str(message.hint)


def test_a_heartbeat_that_is_too_slow_for_its_lease_is_an_error():
    assert found("durable_flows.E004", HEARTBEAT_SECONDS=15, LEASE_SECONDS=30) == []
    (message,) = found("durable_flows.E004", HEARTBEAT_SECONDS=16, LEASE_SECONDS=30)
    assert "16" in message.msg
    assert "30" in message.msg


def test_middleware_that_is_not_there_is_an_error_that_names_it():
    (message,) = found("durable_flows.E005", MIDDLEWARE=["shop.nothing"])
    assert "'shop.nothing' cannot be imported" in message.msg


def test_a_flow_that_compares_what_is_encrypted_is_warned_of():
    sealed = Encryption([Fernet.generate_key()], fields=["data"], readable=["data.order"])

    @flow(
        "shuts", on=On("a", if_="event.data.code == 1"), cancel_on=CancelOn("b", match="data.x.y")
    )
    def shuts():
        pass

    @flow("reads", on="a", cancel_on=CancelOn("b", match="data.order"))
    def reads():
        pass

    messages = found("durable_flows.W006", MIDDLEWARE=[sealed])
    assert [(m.msg.split(",")[0], m.msg.split(": ")[1]) for m in messages] == [
        ("Flow 'shuts' looks at event.data.code", "On('a', if_=…) never holds."),
        ("Flow 'shuts' looks at event.data.x.y", "CancelOn('b') never holds."),
    ]


def test_errors_of_settings_stop_the_check_command():
    with (
        override_settings(DURABLE_FLOWS={"CLAIM_BATCH": 0}),
        pytest.raises(SystemCheckError, match="E002"),
    ):
        call_command("check")


# -- the database ----------------------------------------------------------------------------


@pytest.fixture
def another():
    """An alias whose settings a test chooses; nothing connects to it."""
    made: list[str] = []

    def make(**changes: Any) -> str:
        connections.databases["another"] = {**connections.databases["default"], **changes}
        made.append("another")
        return "another"

    yield make
    if made:
        with suppress(AttributeError):  # nobody asked for a connection
            del connections["another"]
        del connections.databases["another"]


def database_messages(alias: str) -> list[Any]:
    from django.conf import settings

    databases = {**settings.DATABASES, alias: connections.databases[alias]}
    with override_settings(DURABLE_FLOWS={"DATABASE": alias}):
        settings.DATABASES, before = databases, settings.DATABASES
        try:
            return checks.check_database(None, databases=[alias])
        finally:
            settings.DATABASES = before


@pytest.mark.parametrize(
    "options", [{}, {"transaction_mode": None}, {"transaction_mode": "DEFERRED"}]
)
def test_sqlite_without_immediate_transactions_is_an_error(another, options):
    alias = another(ENGINE="django.db.backends.sqlite3", NAME=":memory:", OPTIONS=options)
    (message,) = database_messages(alias)
    assert message.id == "durable_flows.E012"
    assert 'DATABASES["another"]["OPTIONS"]["transaction_mode"] = "IMMEDIATE"' in str(message.hint)


@pytest.mark.parametrize("mode", ["IMMEDIATE", "immediate"])
def test_sqlite_with_immediate_transactions_is_fine(another, mode):
    alias = another(
        ENGINE="django.db.backends.sqlite3", NAME=":memory:", OPTIONS={"transaction_mode": mode}
    )
    assert database_messages(alias) == []


def test_an_sqlite_that_is_too_old_is_an_error(another, monkeypatch):
    monkeypatch.setattr("sqlite3.sqlite_version_info", (3, 34, 1))
    monkeypatch.setattr("sqlite3.sqlite_version", "3.34.1")
    alias = another(
        ENGINE="django.db.backends.sqlite3",
        NAME=":memory:",
        OPTIONS={"transaction_mode": "IMMEDIATE"},
    )
    (message,) = database_messages(alias)
    assert message.id == "durable_flows.E011"
    assert "3.34.1" in message.msg


@pytest.fixture
def a_vendor_that_we_do_not_know(monkeypatch):
    monkeypatch.setattr(type(connections["default"]), "vendor", "oracle")


@pytest.mark.usefixtures("a_vendor_that_we_do_not_know")
def test_any_other_database_is_an_error():
    (message,) = checks.check_database(None, databases=["default"])
    assert message.id == "durable_flows.E010"
    assert "oracle" in message.msg
    assert 'DURABLE_FLOWS["DATABASE"]' in str(message.hint)


def test_a_database_that_was_not_asked_for_is_not_looked_at(another):
    another(ENGINE="django.db.backends.sqlite3", NAME=":memory:", OPTIONS={})
    with override_settings(DURABLE_FLOWS={"DATABASE": "another"}):
        assert checks.check_database(None, databases=["default"]) == []
        assert checks.check_database(None, databases=None) == []


@pytest.mark.two_writers  # it is about PostgreSQL
@pytest.mark.django_db(transaction=True)
def test_another_isolation_level_is_an_error():
    from psycopg import IsolationLevel

    connection.close()
    options = connection.settings_dict["OPTIONS"]
    repeatable = IsolationLevel.REPEATABLE_READ
    connection.settings_dict["OPTIONS"] = {**options, "isolation_level": repeatable}
    try:
        messages = checks.check_database(None, databases=["default"])
    finally:
        connection.close()
        connection.settings_dict["OPTIONS"] = options
    (message,) = messages
    assert message.id == "durable_flows.E013"
    assert "repeatable read" in message.msg
    assert "isolation_level" in str(message.hint)


@pytest.mark.two_writers  # it is about PostgreSQL
@pytest.mark.django_db
def test_a_postgresql_that_is_too_old_is_an_error(monkeypatch):
    monkeypatch.setitem(vars(connections["default"]), "pg_version", 13_00_09)
    (message,) = checks.check_database(None, databases=["default"])
    assert message.id == "durable_flows.E014"
    assert "13" in message.msg


# -- Celery ----------------------------------------------------------------------------------


@pytest.fixture
def celery():
    """Celery's configuration, to be changed for a test."""
    before: dict[str, Any] = {}

    def change(**values: Any) -> None:
        for name in values:
            before.setdefault(name, current_app.conf[name])
        current_app.conf.update(values)

    yield change
    current_app.conf.update(before)


def test_eager_tasks_are_an_error(celery):
    celery(task_always_eager=True)
    (message,) = checks.check_celery(None)
    assert message.id == "durable_flows.E020"
    assert "CELERY_TASK_ALWAYS_EAGER" in message.msg
    assert "drain()" in str(message.hint)


@pytest.mark.parametrize("name", ["task_time_limit", "task_soft_time_limit"])
def test_time_limits_for_every_task_are_an_error(celery, name):
    celery(**{name: 300})
    (message,) = checks.check_celery(None)
    assert message.id == "durable_flows.E021"
    assert f"CELERY_{name.upper()}" in message.msg
    assert "300" in message.msg
    assert "time_limit=" in str(message.hint)


def test_our_own_tasks_have_no_time_limits_and_store_nothing():
    for name in ("durable_flows.route", "durable_flows.drain", "durable_flows.tick"):
        task = current_app.tasks[name]
        assert (task.time_limit, task.soft_time_limit) == (None, None)
        assert (task.ignore_result, task.acks_late, task.serializer) == (True, False, "json")


# -- before going into production ------------------------------------------------------------


def test_a_broker_in_memory_is_a_warning_for_deployments_only(celery):
    celery(broker_url="memory://")
    assert "durable_flows.W030" in own(include_deployment_checks=True)
    assert "durable_flows.W030" not in own()
    celery(broker_url="redis://localhost")
    assert "durable_flows.W030" not in own(include_deployment_checks=True)


def test_reconnecting_around_every_task_is_a_warning_for_deployments_only():
    assert "durable_flows.W031" in own(include_deployment_checks=True)
    assert "durable_flows.W031" not in own()
    with override_settings(CELERY_DB_REUSE_MAX=1000):
        assert "durable_flows.W031" not in own(include_deployment_checks=True)


def test_every_check_id_is_tried_here():
    import re
    from pathlib import Path

    source = Path(checks.__file__).read_text()
    here = Path(__file__).read_text()
    for id in set(re.findall(r"durable_flows\.[EW]\d{3}", source)):
        assert f'"{id}"' in here, id


@pytest.mark.parametrize(("main", "warned"), [("default", True), (None, True), ("proj", False)])
def test_a_project_whose_celery_app_is_not_imported_is_told_when_it_deploys(main, warned):
    before = current_app._get_current_object()  # type: ignore[attr-defined]
    app = Celery(main, set_as_current=False)
    app.set_current()
    try:
        assert ("durable_flows.W032" in own(include_deployment_checks=True)) is warned
        assert "durable_flows.W032" not in own()
    finally:
        before.set_current()
        app.close()
