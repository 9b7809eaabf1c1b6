"""``manage.py flows``: by hand, or everything in one process."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.core.management.base import OutputWrapper

from durable_flows import Event, Step, flow
from durable_flows.engine import ring
from durable_flows.engine.stop import stopping
from durable_flows.management import bulk, dev, embedded, purging, rerouting, turns
from durable_flows.models import BulkAction, Run
from durable_flows.models import Event as Stored
from durable_flows.registry import registry
from durable_flows.rules import clock
from durable_flows.rules.states import BulkKind
from durable_flows.testing import drain, run_of, runs_of, send
from tests.servers import PostgresServer, free_port, postgres_server
from tests.stories.project import DEAD_BROKER, Browser, Project, scratch_project

FAST = f"{time.time()!r}:360000.0"  # a day in 0.24 s
SLOWER = f"{time.time()!r}:36000.0"  # a day in 2.4 s


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with scratch_project(tmp_path) as project:
        yield project


@pytest.fixture
def own_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(clock.VARIABLE, "")
    yield
    clock.reset()


@pytest.fixture
def own_registry() -> Iterator[None]:
    with registry.isolated():
        yield


def flows(*arguments: str) -> str:
    out = StringIO()
    call_command("flows", *arguments, stdout=out)
    return out.getvalue()


# -- arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required"),
        (["sing"], "invalid choice: 'sing'"),
        (["tick", "--interval", "0"], "'0' is not a positive number"),
        (["tick", "--interval", "soon"], "'soon' is not a positive number"),
        (["dev", "--speed", "-1"], "'-1' is not a positive number"),
        (["dev", "--speed", "inf"], "'inf' is not a positive number"),
        (["dev", "--speed", "nan"], "'nan' is not a positive number"),
        (["dev", "--threads", "0"], "'0' is not a whole number from 1"),
        (["dev", "--threads", "2.5"], "'2.5' is not a whole number from 1"),
        (["reroute", "a/b"], "'a/b' is not an id"),
    ],
)
def test_an_argument_that_means_nothing_is_refused(arguments: list[str], said: str) -> None:
    with pytest.raises(CommandError, match=said):
        flows(*arguments)


# -- reroute ---------------------------------------------------------------------------------


@pytest.fixture
def set_aside() -> list[str]:
    """Two events that were set aside, and could be routed now."""
    events = [send("a/b") for _ in range(2)]
    Stored.objects.update(quarantined=True, routed_at=clock.now(), error="ValueError: no")
    return events


@pytest.mark.django_db
def test_reroute_has_one_event_routed_again(set_aside: list[str]) -> None:
    flow("any", on="a/b")(lambda: "done")
    assert flows("reroute", set_aside[1]) == "1 event to be routed again\n"
    drain()
    assert run_of(set_aside[1]).result == "done"
    assert runs_of(set_aside[0]) == []


@pytest.mark.django_db
def test_reroute_all_has_all_routed_again(
    set_aside: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rerouting, "AT_ONCE", 1)
    flow("any", on="a/b")(lambda: "done")
    assert flows("reroute", "--all") == "2 events to be routed again\n"
    drain()
    assert [run_of(event).result for event in set_aside] == ["done", "done"]
    assert flows("reroute", "--all") == "0 events to be routed again\n"


@pytest.mark.django_db
def test_reroute_does_nothing_if_one_of_the_events_is_not_set_aside(set_aside: list[str]) -> None:
    other = send("a/b")
    with pytest.raises(CommandError, match=f"{other}: no event of this id is set aside. Nothing"):
        flows("reroute", set_aside[0], other)
    assert Stored.objects.filter(quarantined=True).count() == 2


@pytest.mark.django_db
@pytest.mark.parametrize("arguments", [[], ["--all", "0198c1f2-0000-8000-8000-000000000000"]])
def test_reroute_takes_ids_or_all(arguments: list[str]) -> None:
    with pytest.raises(CommandError, match="ids, or say --all, and not both"):
        flows("reroute", *arguments)


# -- cancel and replay -----------------------------------------------------------------------


@pytest.fixture
def resting() -> list[str]:
    """Three runs that sleep, and one that has failed."""

    @flow("rests", on="a/b")
    def rests(step: Step) -> None:
        step.sleep("rest", "1 day")

    @flow("fails", on="a/c", retries=0)
    def fails() -> None:
        raise ValueError("no money")

    events = [send("a/b", {"n": n}) for n in range(3)]
    send("a/c")
    drain()
    return events


@pytest.mark.django_db
def test_cancel_cancels_what_fits(resting: list[str]) -> None:
    said = flows("cancel", "--flow", "rests", "--if", "event.data.n == 1", "--reason", "x", "--yes")
    assert said.startswith("1 run fits\n")
    assert said.endswith("done: asked for 1 run\n")
    drain()
    assert [run_of(event).state for event in resting] == ["started", "cancelled", "started"]
    assert run_of(resting[1]).reason == "x"


@pytest.mark.django_db
def test_replay_does_what_fits_again(resting: list[str]) -> None:
    assert "2 runs fit" not in flows("replay", "--dry-run")
    said = flows("replay", "--reason-contains", "no money", "--rate", "100/s", "--yes")
    assert said.endswith("done: asked for 1 run\n")
    drain()
    assert Run.objects.filter(flow="fails").count() == 2


@pytest.mark.django_db
@pytest.mark.parametrize("subcommand", ["cancel", "replay"])
def test_a_dry_run_only_counts(resting: list[str], subcommand: str) -> None:
    count = "3 runs fit" if subcommand == "cancel" else "0 runs fit"
    assert flows(subcommand, "--flow", "rests", "--dry-run") == f"{count}\n"
    assert not BulkAction.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize(("answer", "count"), [("y", 3), ("", 0), ("n", 0)])
def test_it_asks_first(
    resting: list[str], monkeypatch: pytest.MonkeyPatch, answer: str, count: int
) -> None:
    asked: list[str] = []

    def say(text: str) -> str:
        asked.append(text)
        return answer

    monkeypatch.setattr(bulk.run, "__kwdefaults__", {"ask": say})
    flows("cancel", "--flow", "rests")
    assert asked == ["Cancel 3 runs? [y/N] "]
    drain()
    assert Run.objects.filter(state="cancelled").count() == count


@pytest.mark.django_db
def test_where_nobody_can_be_asked_it_says_so(resting: list[str]) -> None:
    def nobody(_: str) -> str:
        raise EOFError

    options = {"flow": "rests", "state": None, "dry_run": False, "yes": False}
    more = dict.fromkeys(["created_after", "created_before", "reason_contains", "if_"])
    with pytest.raises(CommandError, match="say --yes"):
        bulk.run(BulkKind.CANCEL, {**options, **more}, OutputWrapper(StringIO()), ask=nobody)


@pytest.mark.django_db
def test_who_interrupts_it_breaks_it_off(
    resting: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    said = flows("cancel", "--flow", "rests", "--rate", "1/d", "--yes")
    assert "is broken off; what it has asked for stays: 1 run" in said
    drain()
    assert BulkAction.objects.get().state == "cancelled"
    assert Run.objects.filter(state="cancelled").count() == 1


@pytest.mark.django_db
def test_a_terminal_is_shown_a_bar(resting: list[str]) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    call_command("flows", "cancel", "--flow", "rests", "--yes", stdout=out)
    assert f"[{'#' * 30}] 3 of 3, asked for 3" in out.getvalue()


@pytest.fixture
def old() -> list[str]:
    """Two runs and an event of long ago, and one run that is not at its end, in the order of coming."""
    flow("done", on="go")(lambda: None)
    flow("rests", on="rest")(lambda step: step.sleep("rest", "300 days"))
    events = [send("go"), send("go"), send("lonely"), send("rest"), send("since")]
    drain()
    clock.advance(timedelta(days=31))
    return events


@pytest.mark.django_db
def test_purge_removes_what_has_been_kept_for_long_enough(old: list[str]) -> None:
    assert flows("purge") == "Removed 2 runs (2 completed) and 3 events.\n"
    assert [str(one.pk) for one in Stored.objects.order_by("arrival")] == old[3:]
    assert flows("purge") == "Removed 0 runs and 0 events.\n"


@pytest.mark.django_db
def test_purge_tells_beforehand_what_would_go_and_what_is_held_back(old: list[str]) -> None:
    said = flows("purge", "--dry-run")
    assert said.splitlines()[:3] == [
        "Would remove 2 runs (2 completed) and 3 events.",
        "1 event as old, or older, kept: the triggers of runs that are kept.",
        "1 event as old, or older, kept: unfinished runs may look back to them.",
    ]
    assert f"run, {run_of(old[3]).id} of flow 'rests', was started 31 days ago" in said
    assert Stored.objects.count() == 5


@pytest.mark.django_db
def test_a_terminal_is_shown_how_far_a_purge_is(old: list[str]) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    for arguments in ([], ["--dry-run"]):
        out = Terminal()
        call_command("flows", "purge", *arguments, stdout=out)
        assert "\r" in out.getvalue()
        assert re.search(r"runs, [\d,]+ events.*\(0 s\)", out.getvalue())


@pytest.mark.django_db
def test_a_purge_that_is_interrupted_says_so_and_another_can_go_on(
    old: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(purging._Progress, "show", interrupt)
    assert flows("purge") == "Interrupted; what is gone is gone, and the ticks go on.\n"
    monkeypatch.undo()
    assert flows("purge") == "Removed 0 runs and 1 event.\n"


@pytest.mark.django_db
def test_tick_purges_too(old: list[str]) -> None:
    assert flows("tick") == "0 events routed and slices executed\n"
    assert Stored.objects.count() == 2


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cancel"], "would cancel every run"),
        (["cancel", "--state", "failed"], "invalid choice"),
        (["cancel", "--flow", "x", "--created-after", "soon"], "created_after="),
        (["replay", "--if", "event.data."], "if_="),
        (["replay", "--rate", "fast", "--yes", "--flow", "fails"], "rate= is a number for a time"),
    ],
)
def test_what_means_nothing_is_refused(resting: list[str], arguments: list[str], said: str) -> None:
    with pytest.raises(CommandError, match=said):
        flows(*arguments)
    assert not BulkAction.objects.exists()


def test_dev_refuses_to_run_without_debug_and_says_what_to_do(settings: Any) -> None:
    settings.DEBUG = False
    with pytest.raises(CommandError, match=r"DEBUG is off.*celery -A <project> worker"):
        flows("dev")


def test_dev_refuses_an_address_it_cannot_read(settings: Any) -> None:
    settings.DEBUG = True
    with pytest.raises(CommandError, match="'here' is neither PORT nor ADDRESS:PORT"):
        flows("dev", "here")


@pytest.mark.parametrize(
    ("addrport", "url"),
    [
        ("", "http://127.0.0.1:8000"),
        ("8080", "http://127.0.0.1:8080"),
        ("0.0.0.0:80", "http://0.0.0.0:80"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("localhost:8000", "http://localhost:8000"),
    ],
)
def test_an_address_is_read_as_runserver_reads_it(addrport: str, url: str) -> None:
    assert dev.base_url(addrport) == url


@pytest.mark.usefixtures("own_registry")
def test_dev_says_what_runs_where() -> None:
    @flow("welcome", on="app/user.created", queue="mails")
    def welcome(event: Event) -> None: ...

    said = dev.describe("8080", threads=3)
    assert "http://127.0.0.1:8080/\n" in said
    assert "http://127.0.0.1:8080/admin/\n" in said
    assert "3 threads here, broker memory://, queues: celery, mails\n" in said
    assert "welcome (app/user.created)\n" in said
    assert "clock" not in said


@pytest.mark.usefixtures("own_clock")
def test_dev_says_how_fast_the_clock_runs() -> None:
    clock.run_at(3600)
    assert "3600 times as fast: an hour passes in 1 s\n" in dev.describe("", threads=1)


@pytest.mark.django_db
@pytest.mark.usefixtures("own_clock")
def test_dev_warns_of_a_database_whose_events_are_ahead_of_the_clock() -> None:
    clock.advance(timedelta(days=3))
    send("app/user.created")
    assert dev.warning() == ""
    clock.reset()
    assert "the clock ran faster then" in dev.warning()


# -- tick ------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.usefixtures("own_registry")
def test_a_tick_routes_and_executes_what_is_due_and_rings_no_bell(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    @flow("greet", on="app/user.created")
    def greet(event: Event, step: Step) -> bool:
        return step.run("rings", lambda: ring.is_silent())

    event_id = send("app/user.created")
    settings.DURABLE_FLOWS = {"RING": "inline"}
    assert flows("tick") == "2 events routed and slices executed\n"
    assert run_of(event_id).result is True
    assert not ring.is_silent()


@pytest.mark.django_db
def test_a_tick_with_nothing_to_do_says_so() -> None:
    assert flows("tick") == "0 events routed and slices executed\n"


@pytest.mark.django_db
@pytest.mark.usefixtures("own_registry")
def test_the_loop_ends_at_the_next_boundary_once_it_is_told() -> None:
    @flow("last", on="app/told")
    def last(event: Event, step: Step) -> str:
        step.run("tell", stopping.set)
        return "the step in hand was finished"

    event_id = send("app/told")
    turns.turn_until_told(0.5)
    assert run_of(event_id).result == "the step in hand was finished"
    assert not stopping.is_set()


@pytest.mark.processes
def test_a_tick_without_tables_names_the_remedy(project: Project) -> None:
    done = project.run("flows", "tick")
    assert done.returncode == 1
    assert done.stderr == (
        "CommandError: The tables of durable_flows are missing: run manage.py migrate.\n"
    )


@pytest.mark.processes
@pytest.mark.parametrize("how", ["press_ctrl_c", "terminate"])
def test_the_loop_carries_a_run_to_its_end_without_a_broker_and_ends_cleanly(
    project: Project, how: str
) -> None:
    project.migrate()
    with project.running("flows", "tick", "--loop", DURABLE_FLOWS_CLOCK=FAST) as loop:
        project.send("app/user.created", {"user": {"id": 7}}, {"email": "dan@example.com"})
        loop.wait_until(
            lambda: project.run_states() == [("activation-email", "completed")], "completed run"
        )
        assert getattr(loop, how)() == 0
        assert loop.said == ""
    assert project.rows("SELECT key FROM durable_flows_step ORDER BY seq") == [
        ("send-welcome-email",),
        ("wait-for-post-creation",),
        ("send-reminder-email",),
    ]


@pytest.fixture
def project_on_own_server(tmp_path: Path) -> Iterator[tuple[Project, PostgresServer]]:
    with postgres_server() as server:
        place = {
            "EXAMPLE_PGHOST": server.host,
            "EXAMPLE_PGPORT": str(server.port),
            "EXAMPLE_PGUSER": server.user,
            "EXAMPLE_PGPASSWORD": "",
            "EXAMPLE_PGDATABASE": server.dbname,
        }
        yield Project(tmp_path, place), server


@pytest.mark.processes
def test_the_loop_waits_for_a_database_that_goes_away(
    project_on_own_server: tuple[Project, PostgresServer],
) -> None:
    project, server = project_on_own_server
    project.migrate()
    with project.running("flows", "tick", "--loop", DURABLE_FLOWS_CLOCK=SLOWER) as loop:
        project.send("app/user.created", {"user": {"id": 7}}, {"email": "dan@example.com"})
        loop.wait_until(lambda: list(project.mails.glob("*")), "welcome mail")
        server.restart(crash=True)
        # In a slice it asks again for the answer; between two of them it tries the turn again.
        loop.wait_until(lambda: " again" in loop.said, "word about the database")
        loop.wait_until(
            lambda: project.run_states() == [("activation-email", "completed")], "completed run"
        )
        assert loop.terminate() == 0
        assert "Traceback" not in loop.said


# -- dev -------------------------------------------------------------------------------------


@contextmanager
def dev_server(project: Project, *arguments: str, **environment: str) -> Iterator[Any]:
    port = free_port()
    browser = Browser(f"http://127.0.0.1:{port}")
    with project.running("flows", "dev", str(port), *arguments, **environment) as server:
        server.wait_until(browser.answers, "answer over HTTP")
        yield server, browser


def forget_a_cart(browser: Browser) -> None:
    browser.post("/cart/add/stoneware-mug/", email="bob@example.com")


@pytest.mark.processes
@pytest.mark.parametrize("reload", ["--noreload", None])
def test_dev_serves_pages_and_executes_what_they_start_at_its_own_speed(
    project: Project, reload: str | None
) -> None:
    project.migrate()
    options = ["--speed", "360000", *([reload] if reload else [])]
    assert project.environment["CELERY_BROKER_URL"] == DEAD_BROKER
    with dev_server(project, *options) as (server, browser):
        forget_a_cart(browser)
        server.wait_until(
            lambda: project.run_states() == [("cart-abandonment", "completed")], "completed run"
        )
        began = time.monotonic()
        assert server.press_ctrl_c() == 0
        assert time.monotonic() - began < 5
        assert not server.has_children()
        assert "Traceback" not in server.said
        assert "cart-abandonment (cart/product.added)" in server.said
    (mail,) = project.mails.glob("*")
    assert "To: bob@example.com" in mail.read_text()


@pytest.mark.processes
@pytest.mark.parametrize("reload", ["--noreload", None])
def test_dev_ends_cleanly_when_a_service_manager_tells_it_to(
    project: Project, reload: str | None
) -> None:
    project.migrate()
    with dev_server(project, *([reload] if reload else [])) as (server, _):
        assert server.terminate() == 0
        assert not server.has_children()
        assert "Traceback" not in server.said


@pytest.mark.processes
def test_dev_finds_what_another_process_has_sent(project: Project) -> None:
    project.migrate()
    with dev_server(project, "--noreload") as (server, _):
        project.send("app/user.created", {"user": {"id": 7}}, {"email": "dan@example.com"})
        server.wait_until(lambda: list(project.mails.glob("*")), "welcome mail")


@pytest.mark.processes
def test_dev_waits_for_migrate_and_says_so(project: Project) -> None:
    with project.running("flows", "dev", str(free_port()), "--noreload") as server:
        server.wait_until(
            lambda: "flows begin after manage.py migrate" in server.said, "word about migrate"
        )
        project.migrate()
        project.send("app/user.created", {"user": {"id": 7}}, {"email": "dan@example.com"})
        server.wait_until(lambda: list(project.mails.glob("*")), "welcome mail")
        assert "unapplied migration" in server.said
        assert "Traceback" not in server.said


STUCK = """
import sys, threading
from durable_flows import flow, send
from durable_flows.management import dev

@flow("stuck", on="app/stuck")
def stuck(event, step):
    step.run("hang", hang)

def hang():
    print("hanging", flush=True)
    threading.Event().wait()

def begin(worker):
    worker.ready.wait()
    send("app/stuck")

dev.serve("{port}", threads=1, reload=False, out=sys.stdout, meanwhile=begin)
"""


@pytest.mark.processes
def test_dev_ends_while_a_step_hangs_and_says_what_becomes_of_its_run(project: Project) -> None:
    project.migrate()
    code = STUCK.format(port=free_port())
    with project.running("shell", "-c", code) as server:
        server.wait_until(lambda: "hanging" in server.said, "step at work")
        assert server.press_ctrl_c() == 0
        assert "A step did not end within 3 s; its run goes on another time." in server.said
        assert "Traceback" not in server.said


def test_the_embedded_worker_serves_the_queues_of_project_and_flows() -> None:
    with registry.isolated():

        @flow("on-its-own-queue", on="app/heavy", queue="heavy")
        def heavy(event: Event) -> None: ...

        assert embedded.queues() == ["celery", "heavy"]
