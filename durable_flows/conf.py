"""The settings, read live from the ``DURABLE_FLOWS`` dict of the project's settings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, cast

from django.conf import settings as django_settings

from durable_flows.errors import InvalidSetting
from durable_flows.rules.payload import Limits

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting with its default. Seconds are real ones, days those of the engine's clock."""

    #: Alias of the database that holds the app's tables.
    DATABASE: str = "default"
    #: Celery queue of flows that name none; empty: the project's ``task_default_queue``.
    QUEUE: str = ""
    #: How doorbells leave a process: from a small thread, in the caller ("inline"), or not at all.
    RING: Literal["thread", "inline", "off"] = "thread"
    #: Whether hot statements are prepared on the server (switch off behind an old PgBouncer).
    PREPARE: bool = True
    #: Seconds between two ticks.
    TICK_SECONDS: float = 5.0
    #: Seconds after which a silent worker's runs are taken over.
    LEASE_SECONDS: float = 30.0
    #: Seconds between two renewals of the leases that a process holds.
    HEARTBEAT_SECONDS: float = 10.0
    #: Seconds that one drain task goes on before it hands over to the next.
    DRAIN_SECONDS: float = 30.0
    #: Runs claimed at once.
    CLAIM_BATCH: int = 10
    #: Deaths of its worker in a row, while a run was executed alone, after which the run fails.
    POISON_CLAIMS: int = 3
    #: Events routed at once.
    ROUTE_BATCH: int = 500
    #: Routers at work at once on PostgreSQL: a power of two up to 256. Order is kept within each only.
    ROUTE_SHARDS: int = 1
    #: Bytes of one event's data and user together.
    MAX_EVENT_BYTES: int = 512 * KIB
    #: Events in one call of send.
    MAX_EVENTS: int = 5_000
    #: Bytes of all events in one call of send.
    MAX_SEND_BYTES: int = 4 * MIB
    #: Bytes of one step's or run's result.
    MAX_RESULT_BYTES: int = 4 * MIB
    #: Bytes of all results of one run.
    MAX_RUN_BYTES: int = 32 * MIB
    #: Steps of one run.
    MAX_STEPS: int = 1_000
    #: Bytes of a result above which it goes to ``STORAGES["durable_flows"]``, if there is one.
    STORE_OVER_BYTES: int = 64 * KIB
    #: What surrounds events, runs, steps and values: instances of `Middleware`, their classes, or paths.
    MIDDLEWARE: tuple[Any, ...] | list[Any] = ()
    #: Says, where an event is sent, for which tenant: a callable without arguments, or its path.
    TENANT: Any = ""
    #: Makes code work for a tenant: a callable of it that returns a context manager, or its path.
    TENANT_SCOPE: Any = ""
    #: Levels of nesting in a payload.
    MAX_DEPTH: int = 64
    #: Keys of all objects in a payload.
    MAX_KEYS: int = 10_000
    #: Characters of one key in a payload.
    MAX_KEY_LENGTH: int = 256
    #: Days for which events are kept after their routing; None: for ever.
    KEEP_EVENTS_DAYS: float | None = 7.0
    #: Days for which completed runs are kept after their end; None: for ever.
    KEEP_COMPLETED_DAYS: float | None = 30.0
    #: Days for which failed runs, and events that were set aside, are kept; None: for ever.
    KEEP_FAILED_DAYS: float | None = 30.0
    #: Days for which cancelled runs are kept after their end; None: for ever.
    KEEP_CANCELLED_DAYS: float | None = 30.0
    #: Rows of runs, or of events, that one transaction of a purge removes at most.
    PURGE_BATCH: int = 500
    #: Seconds that a purge goes on for, at most, each time a tick has rung for it.
    PURGE_SECONDS: float = 0.5

    #: What an event's payload must keep to, and what a result must.
    event_limits: Limits = field(init=False, repr=False)
    result_limits: Limits = field(init=False, repr=False)

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "event_limits", self._limits("MAX_EVENT_BYTES"))
        set_(self, "result_limits", self._limits("MAX_RESULT_BYTES"))

    def _limits(self, max_bytes: str) -> Limits:
        behind = {
            "max_bytes": max_bytes,
            "max_depth": "MAX_DEPTH",
            "max_keys": "MAX_KEYS",
            "max_key_length": "MAX_KEY_LENGTH",
        }
        return Limits(
            **{limit: getattr(self, name) for limit, name in behind.items()},
            settings={limit: shown(name) for limit, name in behind.items()},
        )


def shown(name: str) -> str:
    """A setting as messages name it."""
    return f'DURABLE_FLOWS["{name}"]'


NAMES = frozenset(field.name for field in fields(Settings) if field.name.isupper())
#: What tells for how many days rows are kept, and may be None.
KEEPING = frozenset(name for name in NAMES if name.startswith("KEEP_"))
DEFAULTS = Settings()
_read: tuple[Any, Settings] = (None, DEFAULTS)


def settings() -> Settings:
    """The settings as they are now.

    Raises:
        InvalidSetting: a value has the wrong type or is out of its range.
    """
    global _read
    raw = getattr(django_settings, "DURABLE_FLOWS", None)
    if raw is not _read[0]:
        _read = (raw, parse({} if raw is None else raw))
    return _read[1]


def parse(raw: dict[str, Any]) -> Settings:
    """The settings that a ``DURABLE_FLOWS`` dict means; unknown names are left to the system check.

    Raises:
        InvalidSetting: names the setting, its value and what it takes.
    """
    if not isinstance(raw, dict):
        raise InvalidSetting(f"DURABLE_FLOWS is a dict, not {raw!r}")
    for name in NAMES & raw.keys():
        _check(name, raw[name])
    return Settings(**{name: raw[name] for name in NAMES & raw.keys()})


def _check(name: str, value: Any) -> None:
    default = getattr(DEFAULTS, name)
    if name in ("TENANT", "TENANT_SCOPE") and callable(value):
        return
    if name == "RING" and value not in ("thread", "inline", "off"):
        raise InvalidSetting(f'DURABLE_FLOWS["RING"] is "thread", "inline" or "off", not {value!r}')
    if name in KEEPING:
        _check_days(name, value)
        return
    if name == "MIDDLEWARE":
        wanted: tuple[type, ...] = (list, tuple)
    elif isinstance(default, bool | str):
        wanted = (type(default),)
    else:
        wanted = (int, float) if isinstance(default, float) else (int,)
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        raise InvalidSetting(
            f'DURABLE_FLOWS["{name}"] takes {" or ".join(t.__name__ for t in wanted)}, not {value!r}'
        )
    if isinstance(value, bool | str | list | tuple):
        return
    if not 0 < cast(float, value) < math.inf:  # neither is NaN
        raise InvalidSetting(f'DURABLE_FLOWS["{name}"] must be positive and finite, not {value!r}')
    if name == "ROUTE_SHARDS" and value not in _SHARDS:
        raise InvalidSetting(
            f'DURABLE_FLOWS["ROUTE_SHARDS"] is a power of two from 1 to 256, not {value!r}'
        )


def _check_days(name: str, value: Any) -> None:
    if value is None:
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise InvalidSetting(
            f"{shown(name)} takes a number of days above 0, or None to keep them for ever, "
            f"not {value!r}"
        )


_SHARDS = [1 << bits for bits in range(9)]
