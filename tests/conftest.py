"""What the whole suite shares: the database server, and which tests run on which database."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

TWO_WRITERS = "two_writers"

resources_key = pytest.StashKey[contextlib.ExitStack]()
left_out_key = pytest.StashKey[int]()


def on_postgres() -> bool:
    return os.environ.get("DURABLE_FLOWS_TEST_DATABASE") == "postgres"


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Make a place for the database before anybody connects; workers of pytest-xdist inherit it."""
    from django.conf import settings

    from tests.settings import database

    resources = config.stash[resources_key] = contextlib.ExitStack()
    if on_postgres():
        environment = resources.enter_context(postgres_environment())
    else:
        environment = resources.enter_context(sqlite_environment())
    os.environ.update(environment)
    resources.callback(lambda: [os.environ.pop(name) for name in environment])
    # The settings were read before, and Django has completed them since.
    place = database()
    settings.DATABASES["default"]["TEST"].update(place.pop("TEST", {}))
    settings.DATABASES["default"].update(place)


@contextlib.contextmanager
def postgres_environment() -> Iterator[dict[str, str]]:
    if "DURABLE_FLOWS_TEST_POSTGRES_HOST" in os.environ:
        yield {}
        return
    from tests.servers import PostgresServer, ServerError

    server = PostgresServer()
    try:
        server.start()
        yield server.environment
    except ServerError as error:
        raise pytest.UsageError(str(error)) from error
    finally:
        server.stop()


@contextlib.contextmanager
def sqlite_environment() -> Iterator[dict[str, str]]:
    if "DURABLE_FLOWS_TEST_DIR" in os.environ:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="durable-flows-tests-") as directory:
        yield {"DURABLE_FLOWS_TEST_DIR": directory}


def pytest_unconfigure(config: pytest.Config) -> None:
    if resources_key in config.stash:
        config.stash[resources_key].close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """SQLite has one writer: leave out what needs two, and count it."""
    if on_postgres():
        return
    left_out = [item for item in items if item.get_closest_marker(TWO_WRITERS)]
    config.stash[left_out_key] = len(left_out)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker(TWO_WRITERS)]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the controller of pytest-xdist, which collects nothing itself."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[TWO_WRITERS] = session.config.stash.get(left_out_key, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every worker collects the same tests: believe any of them."""
    counted = getattr(node, "workeroutput", {}).get(TWO_WRITERS, 0)
    if counted:
        node.config.stash[left_out_key] = counted


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    counted = config.stash.get(left_out_key, 0)
    if counted:
        terminalreporter.write_line(
            f"{counted} two-writer test{'s'[: counted > 1]} run on PostgreSQL only"
        )


# -- fixtures --------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """What a test declares, moves or traps is gone after it: flows, the clock, failpoints, leases."""
    from durable_flows import model_events
    from durable_flows.engine import deployments, failpoints, leases
    from durable_flows.registry import registry
    from durable_flows.rules import clock

    with registry.isolated(), model_events.isolated():
        yield
    clock.reset()
    failpoints.trap = None
    leases.watch(None)
    deployments.leave()
    for run_id, lease in leases.held().items():
        leases.release(run_id, lease)
