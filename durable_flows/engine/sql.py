"""How the engine speaks to its database: one function for hot statements, and what differs by vendor.

On PostgreSQL a statement goes through psycopg's own cursor on Django's connection, so that it can be
prepared (Django's cursor cannot): to plan it takes as long as to run it. On SQLite it goes through
Django's. Statements are written for PostgreSQL, with named parameters, ``%(name)s``; casts and row
locks are dropped for SQLite. Lists become arrays, or JSON for ``json_each``; see `among`, `table` and
`insert`.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import Any

from django.db import InterfaceError, OperationalError, connections, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from durable_flows import conf

Row = tuple[Any, ...]

#: Called with every statement before it is sent; for tests that count or order statements.
observers: list[Callable[[str], None]] = []

PLAN_SECONDS = 10.0  # real seconds for which the plan of a statement on many rows is kept
PREPARE_AFTER = 2  # executions before psycopg prepares a statement
_ONLY_POSTGRES = re.compile(
    r"::[a-z]+(\[\])?|FOR (KEY SHARE|SHARE|UPDATE)( OF \w+)?( SKIP LOCKED)?"
)
LOCK_TIMEOUT = "3s"
IDLE_TIMEOUT = "30s"
SQLITE_VARIABLES = 30_000  # below the 32,766 of a stock SQLite
SQLITE_AT_ONCE = 1_000  # variables of one INSERT
SEQUENCES = {"arrival": "durable_flows_arrival", "routed": "durable_flows_routed"}


def connection() -> BaseDatabaseWrapper:
    """Django's connection to the database that holds the app's tables."""
    return connections[conf.settings().DATABASE]


def postgres() -> bool:
    """Whether that is PostgreSQL; otherwise it is SQLite."""
    return connection().vendor == "postgresql"


@contextmanager
def atomic() -> Iterator[None]:
    """A transaction on the app's database."""
    with transaction.atomic(using=conf.settings().DATABASE):
        yield


NO_DEPTH = (False, 0)


def depth(wrapper: BaseDatabaseWrapper) -> tuple[bool, int]:
    """How deep in atomic() blocks a connection is; two equal depths are the same block."""
    return wrapper.in_atomic_block, len(wrapper.savepoint_ids)


def tend() -> None:
    """Close connections that have broken or had their time; long drains call it between runs.

    A maximum age of 0 means the end of a request: for a drain that is its own end, not a run's.
    """
    for wrapper in connections.all(initialized_only=True):
        if wrapper.in_atomic_block:  # a test's own transaction: closing would break it
            continue
        if wrapper.errors_occurred or wrapper.settings_dict["CONN_MAX_AGE"] != 0:
            wrapper.close_if_unusable_or_obsolete()


def on_commit(call: Callable[[], None]) -> None:
    """Call when the caller's transaction has committed, or at once if there is none.

    Of a transaction that the caller manages by hand, without autocommit, nobody tells when it is
    committed: then nothing is called, as if it had been lost.
    """
    wrapper = connection()
    if wrapper.in_atomic_block or wrapper.get_autocommit():
        transaction.on_commit(call, using=wrapper.alias)


def execute(
    sql: str,
    params: Mapping[str, Any] | None = None,
    *,
    prepare: bool = False,
    wrapper: BaseDatabaseWrapper | None = None,
) -> list[Row]:
    """Run one statement and return its rows, if it returns any.

    Outside a transaction it is one of its own. Errors are Django's (`django.db.utils`).

    Args:
        sql: the statement.
        params: its named parameters.
        prepare: keep its plan for good. For statements that touch single rows by primary key; those
            of others are made anew every `PLAN_SECONDS`: a plan that was made for small tables is a
            bad one for large tables.
        wrapper: what `connection` returned to this thread, where it is at hand.
    """
    if wrapper is None:
        wrapper = connection()
    if wrapper.needs_rollback:
        wrapper.validate_no_broken_transaction()
    for observe in observers:
        observe(sql)
    if wrapper.vendor == "postgresql":
        return _execute_postgres(wrapper, sql, params, prepare)
    with wrapper.cursor() as cursor:
        values = {name: _for_sqlite(value) for name, value in (params or {}).items()}
        cursor.execute(_without_postgres(sql), values)
        return list(cursor.fetchall()) if cursor.description else []


def _execute_postgres(
    wrapper: BaseDatabaseWrapper, sql: str, params: Mapping[str, Any] | None, prepare: bool
) -> list[Row]:
    if wrapper.connection is None:
        wrapper.ensure_connection()
    raw: Any = wrapper.connection
    cursor = getattr(raw, "durable_flows_cursor", None)
    if cursor is None:
        cursor = raw.durable_flows_cursor = _cursor(raw)
    try:
        cursor.execute(sql if prepare else _for_a_while(sql), params)
        return cursor.fetchall() if cursor.pgresult.nfields else []
    except Exception:
        with wrapper.wrap_database_errors:  # makes it Django's, and marks the connection
            raise


def _for_a_while(sql: str) -> str:
    """The statement under another name every `PLAN_SECONDS`: whoever prepares it plans it anew then."""
    return f"{sql} /* {time.monotonic() // PLAN_SECONDS:.0f} */"


def _cursor(raw: Any) -> Any:
    """A cursor of psycopg's own on Django's connection, kept as long as the connection."""
    import psycopg

    raw.prepare_threshold = PREPARE_AFTER if conf.settings().PREPARE else None
    return psycopg.Cursor(raw)


# -- what differs by vendor --------------------------------------------------------------------


@lru_cache(maxsize=1_000)
def _without_postgres(sql: str) -> str:
    """The statement for SQLite: no casts, and no row locks, since its writers lock the database."""
    return _ONLY_POSTGRES.sub("", sql)


def counter(name: str) -> str:
    """An expression for the last value drawn from a counter, whatever transaction drew it."""
    if postgres():
        return f"(SELECT last_value FROM {SEQUENCES[name]})"
    return f"coalesce((SELECT value FROM durable_flows_counter WHERE name = '{name}'), 1)"


def draw(name: str, count: int) -> list[int]:
    """The next ``count`` values of a counter, rising."""
    if postgres():
        sql = f"SELECT nextval('{SEQUENCES[name]}') FROM generate_series(1, %(count)s)"
        return [row[0] for row in execute(sql, {"count": count})]
    rows = execute(
        "INSERT INTO durable_flows_counter (name, value) VALUES (%(name)s, 1 + %(count)s) "
        "ON CONFLICT (name) DO UPDATE SET value = value + %(count)s RETURNING value",
        {"count": count, "name": name},
    )
    last: int = rows[0][0]
    return list(range(last - count + 1, last + 1))


def try_lock(kind: int, number: int, *, around: Sequence[int] = ()) -> bool:
    """Take an advisory lock until the end of the transaction, unless another session holds it.

    The transaction then waits for row locks, and for its own next statement, for a bounded time only:
    whoever is stopped or cut off with this lock in hand must not hold up everybody.

    Args:
        kind: what is locked.
        number: which of these.
        around: locks of the same kind that are taken first, and shared with others that do so.
    """
    if not postgres():
        return True  # the transaction is immediate: it already has the only writer's place
    shared = "".join(f"pg_try_advisory_xact_lock_shared(%(kind)s, {n}) AND " for n in around)
    rows = execute(
        f"SELECT {shared} pg_try_advisory_xact_lock(%(kind)s, %(number)s), {_BOUNDED}",
        {"kind": kind, "number": number},
    )
    return bool(rows[0][0])


def wait_briefly() -> None:
    """Let this transaction wait for locks, and for its own next statement, for a bounded time only.

    Nor does its commit wait for the disk: for what is done again if the server dies before it is written.
    """
    if postgres():
        execute(f"SELECT {_BOUNDED}")


def wait_for_lock(kind: int, number: int, *, around: Sequence[int] = ()) -> None:
    """As `try_lock`, but wait for the other session.

    Raises:
        OperationalError: it did not give up the lock in time.
    """
    if not postgres():
        return
    shared = "".join(f"pg_advisory_xact_lock_shared(%(kind)s, {n}), " for n in around)
    execute(
        f"SELECT {_BOUNDED}, {shared} pg_advisory_xact_lock(%(kind)s, %(number)s)",
        {"kind": kind, "number": number},
    )


#: Nor need its commit wait for the disk: if the server itself dies before it is written, the events are
#: unrouted again, and routed again; a commit that rests on it, of a claim say, takes it along to the disk.
_BOUNDED = (
    "set_config('synchronous_commit', 'off', true), "
    f"set_config('lock_timeout', '{LOCK_TIMEOUT}', true), "
    f"set_config('idle_in_transaction_session_timeout', '{IDLE_TIMEOUT}', true)"
)


def is_transient(error: BaseException) -> bool:
    """Whether the database, or its load, is at fault, and not what it was asked.

    Lost connections, deadlocks, timeouts, a full disk, a server that only reads, and tables that are not
    those of this code, while migrations run; but not a limit of the server's that a value exceeds.
    """
    state = str(getattr(error.__cause__, "sqlstate", None) or "")
    if isinstance(error, OperationalError | InterfaceError):
        return not state.startswith(_TOO_MUCH)
    return state in _NOBODYS_FAULT


_TOO_MUCH = "54"  # the class of program limits
_NOBODYS_FAULT = frozenset(
    {
        "25006",  # a server that only reads
        "25P03",  # idle in a transaction for too long
        "42501",  # no right to a table
        "42703",  # no such column
        "42P01",  # no such table
    }
)


def among(column: str, parameter: str) -> str:
    """A condition: the column is one of the values of the list parameter."""
    if postgres():
        return f"{column} = ANY(%({parameter})s)"
    return f"{column} IN (SELECT value FROM json_each(%({parameter})s))"


def table(
    model: type[models.Model], alias: str, columns: Mapping[str, Sequence[Any]]
) -> tuple[str, dict[str, Any]]:
    """A list of rows as a table in a FROM clause, typed like the model's columns of these names.

    Returns:
        The clause and its parameters.
    """
    if postgres():
        arrays = ", ".join(f"%({name})s::{_column_type(model, name)}[]" for name in columns)
        names = ", ".join(f'"{name}"' for name in columns)
        return f"unnest({arrays}) AS {alias}({names})", dict(columns)
    picks = ", ".join(
        f"json_extract(value, '$[{index}]') AS \"{name}\"" for index, name in enumerate(columns)
    )
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return f"(SELECT {picks} FROM json_each(%({alias})s)) AS {alias}", {alias: rows}


def insert(
    model: type[models.Model],
    columns: Mapping[str, Sequence[Any]],
    *,
    suffix: str = "ON CONFLICT DO NOTHING",
    computed: Mapping[str, str] | None = None,
) -> list[Row]:
    """Insert many rows by one statement.

    Args:
        model: whose table.
        columns: column name → one value a row.
        suffix: what follows, e.g. a conflict clause and ``RETURNING``.
        computed: column name → SQL expression, the same for each row.
    """
    if not next(iter(columns.values())):
        return []
    computed = computed or {}
    names = ", ".join(f'"{name}"' for name in [*columns, *computed])
    head = f"INSERT INTO {model._meta.db_table} ({names})"
    if postgres():
        source, params = table(model, "t", columns)
        values = ", ".join([*(f't."{name}"' for name in columns), *computed.values()])
        return execute(f"{head} SELECT {values} FROM {source} {suffix}", params)
    return _insert_sqlite(head, columns, list(computed.values()), suffix)


def _insert_sqlite(
    head: str, columns: Mapping[str, Sequence[Any]], computed: list[str], suffix: str
) -> list[Row]:
    result: list[Row] = []
    rows = list(zip(*columns.values(), strict=True))
    # SQLite looks each name up in the list of those before it: many short statements are faster.
    at_once = max(1, SQLITE_AT_ONCE // len(columns))
    with atomic() if len(rows) > at_once else nullcontext():  # all or none
        for start in range(0, len(rows), at_once):
            params: dict[str, Any] = {}
            tuples = []
            for index, row in enumerate(rows[start : start + at_once]):
                names = [f"p{index}_{column}" for column in range(len(row))]
                params.update(zip(names, row, strict=True))
                tuples.append(f"({', '.join([*(f'%({name})s' for name in names), *computed])})")
            result += execute(f"{head} VALUES {', '.join(tuples)} {suffix}", params)
    return result


@cache
def _column_type(model: type[models.Model], column: str) -> str:
    for field in model._meta.concrete_fields:
        if field.column == column:
            kind = (
                field.rel_db_type(connection())
                if field.is_relation
                else field.db_type(connection())
            )
            return str(kind).split("(")[0]
    raise LookupError(f"{model.__name__} has no column {column!r}")


def _for_sqlite(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return json.dumps(_nested_for_sqlite(value))
    return _scalar_for_sqlite(value)


def _nested_for_sqlite(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_nested_for_sqlite(item) for item in value]
    return _scalar_for_sqlite(value)


def _scalar_for_sqlite(value: Any) -> Any:
    if isinstance(value, uuid.UUID):
        return value.hex
    if isinstance(value, datetime):
        return str(value.astimezone(UTC).replace(tzinfo=None))
    return value


def uid(value: Any) -> uuid.UUID:
    """A UUID as either vendor returns it."""
    return value if isinstance(value, uuid.UUID) else uuid.UUID(value)


def moment(value: Any) -> datetime:
    """A moment as either vendor returns it: aware, in UTC."""
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    return datetime.fromisoformat(value).replace(tzinfo=UTC)
