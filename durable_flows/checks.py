"""System checks: what would go wrong later is said at start-up."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from celery import current_app
from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import connections, transaction

from durable_flows import conf, installed
from durable_flows.errors import InvalidSetting
from durable_flows.flows import Flow
from durable_flows.middleware import Sealing
from durable_flows.registry import registry

SQLITE_AT_LEAST = (3, 35)
POSTGRES_AT_LEAST = 14_00_00


@register()
def check_settings(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """Unknown names and unusable values in DURABLE_FLOWS."""
    raw = getattr(settings, "DURABLE_FLOWS", {})
    if not isinstance(raw, dict):
        return [
            Error(
                f"DURABLE_FLOWS must be a dict, not {type(raw).__name__}.", id="durable_flows.E001"
            )
        ]
    found: list[CheckMessage] = [_unknown(name) for name in sorted(raw.keys() - conf.NAMES)]
    try:
        parsed = conf.parse(raw)
    except InvalidSetting as error:
        return [*found, Error(str(error), id="durable_flows.E002")]
    if parsed.DATABASE not in settings.DATABASES:
        found.append(
            Error(
                f'DURABLE_FLOWS["DATABASE"] is {parsed.DATABASE!r}, which is not in DATABASES.',
                hint=f"Known aliases: {', '.join(sorted(settings.DATABASES))}.",
                id="durable_flows.E003",
            )
        )
    if parsed.HEARTBEAT_SECONDS * 2 > parsed.LEASE_SECONDS:
        found.append(
            Error(
                f"HEARTBEAT_SECONDS ({parsed.HEARTBEAT_SECONDS:g}) must be at most half of "
                f"LEASE_SECONDS ({parsed.LEASE_SECONDS:g}): one missed heartbeat would lose a lease.",
                id="durable_flows.E004",
            )
        )
    return found


@register()
def check_middleware(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """What the settings list as middleware is there, and nothing is matched that it encrypts."""
    try:
        conf.settings()
    except InvalidSetting:  # `check_settings` says so
        return []
    try:
        chain = installed.chain()
    except InvalidSetting as error:
        return [Error(str(error), id="durable_flows.E005")]
    sealing = [one for one in chain.members if isinstance(one, Sealing)]
    return [
        Warning(
            f"Flow {flow.id!r} looks at event.{path}, which is encrypted: {option} never holds.",
            hint="Leave that path out of Encryption(fields=…), or name it in readable=.",
            id="durable_flows.W006",
        )
        for flow in registry
        for option, path in _looked_at(flow)
        if any(one.seals(path) for one in sealing)
    ]


def _looked_at(flow: Flow) -> Iterator[tuple[str, str]]:
    """The paths that the triggers and cancel rules of a flow compare, each with the option."""
    for trigger in flow.on:
        for path in trigger.condition("").paths:
            yield f"On({trigger.event!r}, if_=…)", path
    for rule in flow.cancel_on:
        for path in rule.condition().paths:
            yield f"CancelOn({rule.event!r})", path


@register(Tags.database)
def check_database(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None, **_: Any
) -> list[CheckMessage]:
    """The database is one whose guarantees the engine knows, and is set up so that they hold."""
    try:
        alias = conf.settings().DATABASE
    except InvalidSetting:
        return []
    if not databases or alias not in databases or alias not in settings.DATABASES:
        return []
    wrapper = connections[alias]
    if wrapper.vendor == "sqlite":
        return _check_sqlite(alias, wrapper.settings_dict.get("OPTIONS", {}))
    if wrapper.vendor == "postgresql":
        return _check_postgres(alias)
    return [
        Error(
            f"Database {alias!r} is {wrapper.vendor}; durable_flows runs on PostgreSQL or SQLite.",
            hint='Point DURABLE_FLOWS["DATABASE"] at an alias that is one of them.',
            id="durable_flows.E010",
        )
    ]


@register()
def check_celery(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """Celery is set up so that doorbells work and long steps are not killed."""
    found: list[CheckMessage] = []
    configuration = current_app.conf
    if configuration.task_always_eager:
        found.append(
            Error(
                "CELERY_TASK_ALWAYS_EAGER is on: sending an event would execute flows inside the "
                "sender's request.",
                hint="Switch it off; in tests use durable_flows.testing.drain().",
                id="durable_flows.E020",
            )
        )
    for name in ("task_time_limit", "task_soft_time_limit"):
        if getattr(configuration, name):
            found.append(
                Error(
                    f"CELERY_{name.upper()} is {getattr(configuration, name)}: it would kill a worker "
                    "in the middle of a step.",
                    hint="Set limits on your own tasks, with @shared_task(time_limit=…).",
                    id="durable_flows.E021",
                )
            )
    return found


@register(Tags.compatibility, deploy=True)
def check_deployment(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """What only costs speed, or only matters in production."""
    found: list[CheckMessage] = []
    if str(current_app.conf.broker_url or "").startswith("memory:"):
        found.append(
            Warning(
                "The broker is memory://: a doorbell reaches only its own process, all other work "
                "waits for the tick.",
                hint="Use Redis or RabbitMQ in production.",
                id="durable_flows.W030",
            )
        )
    if current_app.main in (None, "default"):
        found.append(
            Warning(
                "No Celery app of the project is imported when Django starts: doorbells go to "
                "Celery's default broker, and all work waits for the tick.",
                hint="Import the app in the project's __init__.py, as Celery's guide for Django says.",
                id="durable_flows.W032",
            )
        )
    if not getattr(settings, "CELERY_DB_REUSE_MAX", None):
        found.append(
            Warning(
                "CELERY_DB_REUSE_MAX is not set: Celery reconnects to the database around every "
                "task, which nearly doubles the time from an event to its flow's first step.",
                hint="Set it to 1000, for instance.",
                id="durable_flows.W031",
            )
        )
    return found


def _unknown(name: str) -> CheckMessage:
    close = difflib.get_close_matches(name, conf.NAMES, n=1)
    return Warning(
        f"DURABLE_FLOWS has an unknown key {name!r}.",
        hint=f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(sorted(conf.NAMES))}.",
        id="durable_flows.W001",
    )


def _check_sqlite(alias: str, options: dict[str, Any]) -> list[CheckMessage]:
    import sqlite3

    found: list[CheckMessage] = []
    if sqlite3.sqlite_version_info < SQLITE_AT_LEAST:
        found.append(
            Error(
                f"SQLite {sqlite3.sqlite_version} is too old; durable_flows needs 3.35 or newer.",
                id="durable_flows.E011",
            )
        )
    if str(options.get("transaction_mode", "")).upper() != "IMMEDIATE":
        found.append(
            Error(
                f"Database {alias!r} is SQLite without immediate transactions: two writers would "
                "fail with “database is locked”.",
                hint=f'Set DATABASES["{alias}"]["OPTIONS"]["transaction_mode"] = "IMMEDIATE".',
                id="durable_flows.E012",
            )
        )
    return found


def _check_postgres(alias: str) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    wrapper = connections[alias]
    try:
        # psycopg applies isolation_level to the transactions that it begins: look inside one.
        with transaction.atomic(using=alias), wrapper.cursor() as cursor:
            cursor.execute("SHOW transaction_isolation")
            isolation = cursor.fetchone()[0]
            version: int = wrapper.pg_version  # type: ignore[attr-defined]
    except Exception:  # unreachable: Django's own commands will say so
        return found
    if isolation != "read committed":
        found.append(
            Error(
                f"Database {alias!r} uses isolation level {isolation!r}; the engine's protocols hold "
                "under READ COMMITTED.",
                hint="Remove isolation_level from its OPTIONS, or use an alias of its own.",
                id="durable_flows.E013",
            )
        )
    if version < POSTGRES_AT_LEAST:
        found.append(
            Error(
                f"PostgreSQL {version // 10000} is too old; durable_flows needs 14 or newer.",
                id="durable_flows.E014",
            )
        )
    return found
