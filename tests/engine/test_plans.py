"""No statement of the engine reads a table that grows from its one end to the other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.contenttypes.models import ContentType
from django.db import connection

from durable_flows import (
    CancelOn,
    NonRetriableError,
    Step,
    Timeouts,
    cancel,
    cancel_all,
    decide,
    flow,
    replay,
    rerun,
    retry,
    send_signal,
    signals,
    skip,
    withdraw,
)
from durable_flows.engine import bulk, census, purge, rehearse, ripe, sql, tick
from durable_flows.models import Approval, Event, Run
from durable_flows.rules import clock
from durable_flows.rules.selection import Selection
from durable_flows.testing import advance, drain, run_of, send
from example_project.orders.models import Order

pytestmark = [pytest.mark.django_db, pytest.mark.two_writers]

#: Tables with a row, or some, for each event, run or step that is kept.
GROWING = {
    f"durable_flows_{name}"
    for name in (
        *("event", "eventkey", "eventmatch", "run", "due", "step", "attempt", "wait"),
        *("approval", "fanout", "admission", "runwarning"),
    )
}
#: Indexes with entries for what is open only, or rare: their size is that of what is to be done.
OF_WHAT_IS_OPEN = {
    "event_unrouted",
    "event_in_pieces",
    "due_next",
    "due_parked",
    "due_deadline",
    "run_taken_over",
}
IN_PLACE = 160000  # the version of PostgreSQL from which on ends of runs have an index


#: Enough of all, that is none of anybody's, for plans to be those of large tables.
CROWD = (
    "INSERT INTO durable_flows_event (id, arrival, mark, name, data, key, ts, received_at, deliver_at, "
    "v, target, depth, routed, routed_at, error) SELECT md5('event' || n)::uuid, -n, 0, 'crowd/' || n % 9, "
    "'{{}}', '', {past}, {past}, {past}, '', '', 0, 0, {past}, '' FROM {many}",
    "INSERT INTO durable_flows_run (id, flow, event_id, state, queue, mark, generation, lease, reason, "
    "created_at, ended_at) SELECT md5('run' || n)::uuid, 'crowd-' || n % 9, md5('event' || n)::uuid, "
    "'completed', '', 0, 0, 1, '', {past}, {past} FROM {many}",
    "INSERT INTO durable_flows_due (run_id, queue, wake_at, due_since, state, lease, claims, nudged) "
    "SELECT md5('due' || n)::uuid, 'crowd', {future}, {past}, 'waiting', 0, 0, false FROM {many}",
    "INSERT INTO durable_flows_wait (id, run_id, key, kind, event_name, paths, criteria, match, "
    "eligible_from, expires_at, created_at, settled_at, outcome) SELECT md5('wait' || n)::uuid, "
    "md5('due' || n)::uuid, 'wait', 'step', 'crowd/' || n % 9, '[]', '', md5('match' || n)::uuid, 0, "
    "{future}, {past}, CASE WHEN n % 2 = 0 THEN {past} END, '' FROM {many}",
    "INSERT INTO durable_flows_step (run_id, key, seq, kind, state, mark, lease, attempt, started_at, "
    "ended_at) SELECT md5('due' || n)::uuid, 'one', 1, 'run', 'done', 0, 0, 1, {past}, {past} FROM {many}",
    "INSERT INTO durable_flows_admission (event_id, flow, verdict, reason, decided_at) "
    "SELECT md5('event' || n)::uuid, 'crowd', 'skip', '', {past} FROM {many}",
    "INSERT INTO durable_flows_attempt (run_id, key, n, generation, error, failed_at) "
    "SELECT md5('due' || n)::uuid, 'one', 1, 0, '', {past} FROM {many}",
    "INSERT INTO durable_flows_fanout (id, run_id, key, generation, total, started, ended, created_at) "
    "SELECT md5('fan' || n)::uuid, md5('due' || n)::uuid, 'map', 0, 1, 1, 1, {past} FROM {many}",
    "INSERT INTO durable_flows_eventmatch (match, routed, event_id) SELECT md5('match' || n)::uuid, 0, "
    "md5('event' || n)::uuid FROM {many}",
)


@pytest.fixture(autouse=True)
def crowd() -> None:
    """Large tables, of which all that is looked at is a small part."""
    with connection.cursor() as cursor:
        for statement in CROWD:
            cursor.execute(
                statement.format(
                    past="timestamptz '2001-01-01'",
                    future="timestamptz '2099-01-01'",
                    many="generate_series(1, 5000) n",
                )
            )
        cursor.execute("ANALYZE")


@contextmanager
def plans() -> Iterator[dict[str, Any]]:
    """The plans of the statements that the engine sends inside the block; scans are a last resort."""
    found: dict[str, Any] = {}
    execute = sql.execute

    def explain(text: str, params: Any = None, **more: Any) -> list[Any]:
        if "durable_flows_" in text and text not in found:
            rows = execute(f"EXPLAIN (FORMAT JSON) {text}", params, **more)
            found[text] = rows[0][0] if isinstance(rows[0][0], list) else json.loads(rows[0][0])
        return execute(text, params, **more)

    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sql, "execute", explain)
        yield found


def scans(plan: Mapping[str, Any], *, is_cut: bool = False) -> Iterator[str]:
    """The nodes that read a growing table without being told where to begin, or when to stop."""
    is_cut = is_cut or plan["Node Type"] in ("Limit", "Result")
    table, index = plan.get("Relation Name", ""), plan.get("Index Name", "")
    is_told = bool({"Index Cond", "Recheck Cond", "TID Cond"} & plan.keys())
    # One end of an index, as min() reads it, or so many of its entries in order.
    is_told = is_told or index in OF_WHAT_IS_OPEN or (is_cut and bool(index))
    if table in GROWING and plan["Node Type"] != "ModifyTable" and not is_told:
        yield f"{plan['Node Type']} of {table} {index}"
    for part in plan.get("Plans", []):
        goes_on = is_cut and plan["Node Type"] in ("Limit", "Result", "LockRows", "Subquery Scan")
        yield from scans(part, is_cut=goes_on)


def scanning(found: Mapping[str, Any]) -> dict[str, list[str]]:
    """Statement → what it scans, for those that do."""
    told = {text: list(scans(plan[0]["Plan"])) for text, plan in found.items()}
    return {text: nodes for text, nodes in told.items() if nodes}


def play() -> None:
    """Something of everything."""

    @flow("child")
    def child(step: Step) -> None:
        step.sleep("rest", "1h")

    @flow(
        "all",
        on="all",
        cancel_on=[CancelOn("stop", match="data.n")],
        timeouts=Timeouts(finish="9d"),
    )
    def all_(step: Step) -> None:
        step.run("one", int)
        step.sleep("nap", "1 day")
        step.wait_for_event("reply", event="replied", match="data.n", timeout="1 day")
        step.wait_for_approval("may", timeout="1 day")
        step.race(
            step.later.wait_for_event("a", event="a", timeout="1h"),
            step.later.invoke("b", child),
        )
        step.wait_for_events("some", ["x", "y"], mode="any", timeout="1h")
        step.map("each", child, [{"n": n} for n in range(3)], max_in_flight=1)
        saga = step.saga()
        saga.run("charge", int, undo=lambda _: None)
        raise NonRetriableError("no")

    event, other = send("all", {"n": 1}), send("all", {"n": 2})
    drain()
    run = run_of(event).id
    skip(run, "nap")
    drain()
    send("replied", {"n": 1})
    drain()
    decide(Approval.objects.get().pk, True, by="ada")
    advance("2h")
    send("x")
    advance("1 day")
    assert run_of(event).state == "failed"
    retry(run)
    rerun(run, from_step="reply", data={"n": 3})
    send("stop", {"n": 2})
    drain()
    assert run_of(other).state == "cancelled"
    later = send("all", ts=clock.now() + timedelta(days=3))
    withdraw(later)
    drain()
    cancel(rerun(run))
    replay("all", state="failed", if_="event.data.n == 1")
    cancel_all(created_before=clock.now())
    tick.tick()
    advance("20 days")
    list(rehearse.rehearse_all(None, None))


def test_statements_touch_what_they_are_about() -> None:
    with plans() as found:
        play()
    assert len(found) > 80
    assert scanning(found) == {}


def test_a_scan_is_noticed() -> None:
    with plans() as found:
        sql.execute("SELECT id FROM durable_flows_run WHERE reason = 'x'")
        sql.execute("SELECT id FROM durable_flows_run WHERE reason = 'x' ORDER BY id")
    assert len(scanning(found)) == 2


def test_parked_runs_that_can_go_on_are_found_by_what_has_kept_them() -> None:
    with plans() as found:
        tick._overcome()
        tick._unpark_some("flow:1")
    for plan in found.values():
        assert "due_parked" in str(plan)
    assert re.search(r"Index Cond.*parked_by", str(found))


def test_runs_that_have_ended_of_late_are_found_by_an_index_that_leaves_their_updates_in_place() -> (
    None
):
    flow("waits", on="wait")(
        lambda step: step.wait_for_event("end", event="flows/function.failed", timeout="1h")
    )
    with plans() as found:
        send("wait")
        drain()
    scanned = scanning(found)
    if connection.pg_version >= IN_PLACE:  # type: ignore[attr-defined]
        assert scanned == {}
        assert "durable_flows_run_ended" in str(found)
    else:
        assert list(scanned.values()) == [["Seq Scan of durable_flows_run "]]


def test_a_bulk_action_reads_so_many_runs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "SPAN", 2)
    flow("few", on="few")(lambda: None)
    for _ in range(4):
        send("few")
    drain()
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
    for selection in (Selection(flow="few"), Selection(reason_contains="no")):
        runs, last = bulk.span(selection, clock.now(), bulk.NOBODY)
        assert last is not None
        (condition,) = re.findall(r"Index Cond: (.*)", runs[: bulk.AT_ONCE].explain())
        assert "id >" in condition
        assert "id <=" in condition


def test_runs_are_found_by_the_row_that_they_are_about() -> None:
    order = Order.objects.create(email="ada@example.com", item="lamp", quantity=1, total=40)
    kind = ContentType.objects.get_for_model(order)
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE durable_flows_run SET subject_type_id = %s, subject_id = left(id::text, 3)",
            [kind.pk],
        )
        cursor.execute("ANALYZE durable_flows_run")
    about = Run.objects.filter(subject_type=kind, subject_id__in=["1", "2"]).unfinished()
    for runs in (order.flow_runs.order_by("-pk")[:20], order.flow_runs.unfinished(), about):
        assert "run_subject" in runs.explain()


def test_observers_are_told_of_ends_by_what_is_found_by_its_key() -> None:
    def note(**_: Any) -> None: ...

    flow("any", on="go")(lambda: None)
    signals.run_ended.connect(note)
    try:
        with plans() as found:
            send("go")
            drain()
    finally:
        signals.run_ended.disconnect(note)
    assert any("SELECT e.context" in text for text in found)
    assert scanning(found) == {}


def test_a_purge_reads_so_many_rows_at_once() -> None:
    def fails(step: Step) -> None:
        step.run("one", int)
        raise NonRetriableError("no")

    flow("fails", on="go")(fails)
    flow("once")(lambda: None).start(key="k")
    flow("waits", on="wait")(
        lambda step: step.wait_for_event("reply", event="reply", match="data.n", timeout="9d")
    )
    send("go", id="mine")
    send("wait", {"n": 1})
    send_signal("door", expires="1h")
    drain()
    send("reply", {"n": 2})
    advance("40 days")
    bounds = ripe.bounds(clock.now())
    with plans() as found:
        purge.purge_all(rests=False)
        census.take()
        purge.is_due()
    assert not Event.objects.filter(received_at__year__gt=2001).exists()
    needs = [text for text in found if "FROM durable_flows_due d" in text]
    assert len(needs) == 5  # once for a pass, they read what is unfinished
    for text in needs:
        del found[text]
    assert scanning(found) == {}
    for name, span in (("run", ripe.span_of_runs), ("event", ripe.span_of_events)):
        with plans() as found:
            span(bounds, bulk.NOBODY, 10)
        assert f"durable_flows_{name}_pkey" in str(found)


def test_signals_and_what_is_undone_are_found_by_indexes() -> None:
    def ask(step: Step) -> None:
        step.saga().run("charge", int, undo=lambda _: None)
        step.invoke("child", "rests")
        step.wait_for_signal("door", "door", timeout="1h")

    flow("rests")(lambda step: step.sleep("rest", "1 day"))
    flow("saga", on="go")(ask)
    flow("waits", on="go")(lambda step: step.wait_for_signal("door", "door", timeout="2 days"))
    flow("comes", on="come")(lambda step: step.wait_for_signal("door", "door", timeout="1h"))
    flow("ends", on="go")(
        lambda step, run: step.saga().run("book", lambda: cancel(run.id), undo=lambda _: None)
    )
    with plans() as found:
        event = send("go")
        drain()
        taken = send("come")
        drain()
        assert run_of(taken).error["name"] == "SignalTaken"
        send_signal("door", id="mine")
        drain()
        cancel(run_of(event, "saga").id)
        advance("3 days")
    assert any("taken.event_name" in text for text in found)
    assert any("wait_signal_taken" in str(plan) for plan in found.values())
    assert scanning(found) == {}
