"""The admin: what people see of events, runs and waits, and what they can ask for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from durable_flows import (
    CancelOn,
    Fixed,
    On,
    Retries,
    cancel,
    cancel_all,
    conf,
    flow,
    rerun,
    retry,
    skip,
    withdraw,
)
from durable_flows.admin import commands, reading, showing
from durable_flows.admin import reroute as reroute_action
from durable_flows.engine import claim, route
from durable_flows.models import Attempt, Due, Event, Run, Step, Wait
from durable_flows.registry import registry
from durable_flows.rules import clock
from durable_flows.rules.events import LATEST
from durable_flows.testing import advance, drain, run_of, send

pytestmark = pytest.mark.django_db

RUNS = "/admin/durable_flows/run/"
EVENTS = "/admin/durable_flows/event/"
WAITS = "/admin/durable_flows/wait/"
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def flows() -> Iterator[None]:
    with registry.isolated():

        @flow(
            "wait-for-order", on="cart/filled", cancel_on=CancelOn("cart/emptied", match="data.c")
        )
        def wait_for_order(event, step):
            return step.wait_for_event("order", event="cart/ordered", match="data.c", timeout="24h")

        @flow("sleep", on="nap/taken")
        def sleep(event, step):
            step.run("yawn", lambda: {"yawned": 1})
            step.sleep("doze", "24h")

        @flow("fail", on="bomb/found", retries=Retries(1, backoff=Fixed("30s"), jitter="0s"))
        def fail(event, step):
            step.run("defuse", explode)

        @flow("echo", on="canyon/called")
        def echo(event, step):
            return step.run("shout", lambda: event.data)

        clock.reset()
        yield
        clock.reset()


def explode() -> None:
    raise ValueError(f"boom {HOSTILE}")


@pytest.fixture
def staff(client: Client, admin_user: User) -> Client:
    client.force_login(admin_user)
    return client


def text_of(client: Client, url: str, **query: str) -> str:
    response = client.get(url, query)
    assert response.status_code == 200, response
    return response.content.decode()


def page_of(run_id: str) -> str:
    return reverse("admin:durable_flows_run_change", args=[run_id])


def started(name: str, data: dict[str, Any] | None = None) -> str:
    """The id of the run that an event starts, played as far as it goes now."""
    event_id = send(name, data)
    drain()
    return run_of(event_id).id


def claimed(name: str) -> str:
    """The id of a run that a worker has claimed and not yet executed."""
    event_id = send(name)
    route.route()
    run_id = run_of(event_id).id
    assert claim.claim(Due.objects.get(run_id=run_id).queue, 1)
    return run_id


def only_with(client: Client, *codenames: str) -> Client:
    user = User.objects.create_user("grace", password="x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client.force_login(user)
    return client


VIEW = ("view_run", "view_event", "view_wait")


def ask(client: Client, action: str, *run_ids: str, **more: str) -> Any:
    return client.post(RUNS, {"action": action, "_selected_action": run_ids, **more}, follow=True)


def messages_of(response: Any) -> list[str]:
    return [str(message) for message in response.context["messages"]]


# -- the list of runs --------------------------------------------------------------------------


def in_every_state() -> dict[str, str]:
    runs = {
        "completed": started("canyon/called"),
        "sleeping": started("nap/taken"),
        "waiting": started("cart/filled", {"c": 1}),
        "retrying": started("bomb/found"),
        "cancelled": started("nap/taken"),
    }
    cancel(runs["cancelled"])
    drain()
    failed = send("bomb/found")
    drain()
    run_id = run_of(failed).id
    Due.objects.filter(run_id=run_id).update(wake_at=clock.now())
    Attempt.objects.filter(run_id=run_id).update(next_at=clock.now())
    drain()
    runs["failed"] = run_id
    runs["running"] = claimed("nap/taken")
    runs["cancelling"] = claimed("nap/taken")
    cancel(runs["cancelling"])
    route.route()
    parked = send("nap/taken")
    route.route()
    Due.objects.filter(run__event_id=parked).update(state="parked", wake_at=None)
    runs["parked"] = run_of(parked).id
    queued = send("nap/taken")
    route.route()
    runs["queued"] = run_of(queued).id
    return runs


def test_the_list_tells_every_state_apart(staff):
    runs = in_every_state()
    shown = text_of(staff, RUNS)
    rows = {
        match["id"]: match["state"]
        for match in re.finditer(
            r'run/(?P<id>[0-9a-f-]{36})/change/.*?class="df-state[^>]*>(?P<state>\w+)<', shown
        )
    }
    assert rows == {run_id: state for state, run_id in runs.items()}


def test_a_resting_run_says_for_what_and_until_when(staff):
    started("cart/filled", {"c": 1})
    started("nap/taken")
    shown = re.sub(r"<[^>]+>", "", text_of(staff, RUNS))
    tomorrow = f"{clock.now() + timedelta(hours=24):%Y-%m-%d}"
    assert re.search(rf"waiting\s+for cart/ordered until {tomorrow} ", shown)
    assert re.search(rf"sleeping\s+until {tomorrow} ", shown)


def test_a_run_whose_timer_is_overdue_is_queued(staff):
    started("nap/taken")
    advance("25h", play=False)
    shown = re.sub(r"<[^>]+>", "", text_of(staff, RUNS))
    assert re.search(r"queued\s+due since ", shown)


@pytest.mark.parametrize(
    ("state", "found"),
    [
        ("waiting", {"waiting", "sleeping", "retrying"}),
        *((state, {state}) for state in ("queued", "running", "parked", "cancelling")),
        *((state, {state}) for state in ("completed", "failed", "cancelled")),
        ("no-such-state", set()),
    ],
)
def test_runs_are_filtered_by_state(staff, state, found):
    runs = in_every_state()
    shown = text_of(staff, RUNS, state=state)
    assert {name for name, run_id in runs.items() if run_id in shown} == found


def test_runs_are_filtered_by_flow_even_by_one_that_was_removed(staff):
    kept = started("nap/taken")
    gone = started("canyon/called")
    Run.objects.filter(pk=gone).update(flow="removed")
    shown = text_of(staff, RUNS, flow="removed")
    assert gone in shown
    assert kept not in shown


def test_a_run_is_found_by_its_id_its_events_id_and_its_flow(staff):
    event_id = send("nap/taken")
    other = started("canyon/called")
    run_id = run_of(event_id).id
    for term in (run_id, run_id.replace("-", ""), event_id, " sleep "):
        shown = text_of(staff, RUNS, q=term)
        assert run_id in shown
        assert other not in shown


@pytest.mark.parametrize("url", [RUNS, EVENTS, WAITS])
@pytest.mark.parametrize(
    "query",
    ["q=%00", "q=%F0%9F%90%99'--", "flow=%00", "event=%00", "state=%00", "p=99999", "o=1.2"],
)
def test_a_nonsense_address_is_no_server_error(staff, url, query):
    started("cart/filled", {"c": 1})
    response = staff.get(f"{url}?{query}", follow=True)
    assert response.status_code == 200


def test_the_newest_run_comes_first(staff):
    old = started("nap/taken")
    advance("1h")
    new = started("nap/taken")
    shown = text_of(staff, RUNS)
    assert shown.index(new) < shown.index(old)


@pytest.mark.parametrize("url", [RUNS, EVENTS, WAITS])
def test_a_longer_list_takes_no_more_statements(staff, url):
    def statements() -> int:
        with CaptureQueriesContext(
            connection,
        ) as captured:
            text_of(staff, url)
        return len(captured)

    for name in ("nap/taken", "bomb/found"):
        started(name)
    started("cart/filled", {"c": 0})
    statements()  # what is cached is cached now
    few = statements()
    for number in range(1, 8):
        started("nap/taken")
        started("bomb/found")
        started("cart/filled", {"c": number})
    assert statements() == few


def test_counting_stops_at_a_cap_and_says_so(staff, monkeypatch):
    monkeypatch.setattr(reading, "MOST_COUNTED", 2)
    for _ in range(3):
        started("canyon/called")
    with CaptureQueriesContext(connection) as captured:
        shown = text_of(staff, RUNS)
    assert "The newest 2 are listed; there may be more." in shown
    counts = [query["sql"] for query in captured if "COUNT(" in query["sql"].upper()]
    runs = [sql for sql in counts if "durable_flows_run" in sql]
    assert runs
    assert all("LIMIT 2" in sql for sql in runs)


def test_the_list_leaves_results_in_the_database(staff):
    started("canyon/called")
    with CaptureQueriesContext(connection) as captured:
        text_of(staff, RUNS)
        text_of(staff, EVENTS)
    assert not [q for q in captured if '_run"."result"' in q["sql"] or '"data"' in q["sql"]]


# -- the page of a run -------------------------------------------------------------------------


def test_the_page_tells_what_a_run_has_done(staff):
    event_id = send("canyon/called", {"word": "hello"})
    drain()
    shown = text_of(staff, page_of(run_of(event_id).id))
    assert reverse("admin:durable_flows_event_change", args=[event_id]) in shown
    assert "shout" in shown
    assert "&quot;word&quot;: &quot;hello&quot;" in shown


def test_the_page_shows_steps_in_order_with_the_end_of_a_sleep(staff):
    shown = text_of(staff, page_of(started("nap/taken")))
    assert shown.index(">yawn<") < shown.index(">doze<")
    steps = re.sub(r"<[^>]+>", "", shown[shown.index('id="df-steps"') :])
    assert f"until {clock.now() + timedelta(hours=24):%Y-%m-%d}" in steps
    assert "sleeping" in steps


def test_the_page_shows_failed_attempts_and_when_the_next_one_begins(staff):
    run_id = started("bomb/found")
    shown = re.sub(r"<[^>]+>", "", text_of(staff, page_of(run_id)))
    next_at = Attempt.objects.get(run_id=run_id).next_at
    assert next_at is not None
    attempts = shown[shown.index("Failed attempts, newest first") :]
    assert f"{next_at:%Y-%m-%d %H:%M:%S}" in attempts
    assert "ValueError: boom" in attempts


def test_the_page_shows_error_and_stack_of_a_failed_run(staff):
    run_id = started("bomb/found")
    advance("1m")
    shown = text_of(staff, page_of(run_id))
    assert "ValueError: boom" in shown
    assert "in step defuse" in shown
    assert re.search(r"<pre[^>]*>Traceback \(most recent call last\)", shown)


def test_the_page_shows_waits_and_what_ended_them(staff):
    run_id = started("cart/filled", {"c": 7})
    waiting = text_of(staff, page_of(run_id))
    assert "data.c = 7" in waiting
    assert "would cancel the run" in waiting
    assert waiting.count(">pending<") == 2
    order = send("cart/ordered", {"c": 7})
    drain()
    ended = text_of(staff, page_of(run_id))
    assert reverse("admin:durable_flows_event_change", args=[order]) in ended
    assert "the run ended first" in ended


def test_a_wait_that_a_race_has_closed_is_said_to_be_waited_for_no_longer(staff):
    @flow("race", on="race/begun")
    def race(step):
        step.race(
            step.later.wait_for_event("answer", event="race/answered", timeout="2h"),
            step.later.sleep("patience", "1h"),
        )
        step.sleep("rest", "1h")

    run_id = started("race/begun")
    advance("1h")
    for _ in range(2):
        shown = text_of(staff, page_of(run_id))
        assert "no longer waited for" in shown
        assert "the run ended first" not in shown
        advance("2h")  # it ends


def test_a_run_that_maps_says_how_far_its_items_have_come(staff):
    @flow("item")
    def item(step, event):
        step.sleep("rest", event.data["h"] * 3600)

    @flow("map", on="map/begun")
    def map_(step):
        step.map("each", item, [{"h": 1}, {"h": 9}, {"h": 9}], max_in_flight=2)

    run_id = started("map/begun")
    (waiting,) = (event for event in Event.objects.all() if event.deliver_at == LATEST)
    listed = text_of(staff, EVENTS)
    assert "for its turn" in listed
    assert "2100" not in listed + text_of(staff, f"{EVENTS}{waiting.pk}/change/").split("ID")[0]
    advance("2h")
    for page in (RUNS, page_of(run_id)):
        assert "for runs, each: 1 of 3 have ended" in text_of(staff, page)
    page = text_of(staff, page_of(run_id))
    assert "an item of each" in page
    assert page.count("the run</a>") == 1  # the one that has ended
    assert "an item of each" in text_of(staff, WAITS)


def test_a_run_that_waits_for_people_says_so(staff):
    @flow("ask", on="ask/begun")
    def ask(step):
        step.wait_for_approval("sign", question="Sign it?", timeout="1h")

    run_id = started("ask/begun")
    assert "for a decision until" in text_of(staff, page_of(run_id))
    assert "Sign it?" in text_of(staff, page_of(run_id))


def test_a_run_that_waits_for_a_signal_says_so_and_for_which(staff):
    @flow("ask", on="ask/begun")
    def ask(step):
        step.wait_for_signal("paid", "paid:7", timeout="1h")

    page = text_of(staff, page_of(started("ask/begun")))
    assert "for a signal until" in page
    assert "paid:7" in page


def test_what_was_set_aside_or_taken_back_is_not_said_to_have_been_routed(staff):
    later = send("canyon/called", ts=clock.now() + timedelta(days=1))
    withdraw(later)
    aside = send("canyon/called")
    drain()
    url = f"{EVENTS}{aside}/change/"
    assert "Routed:" in text_of(staff, url)
    Event.objects.filter(pk=aside).update(quarantined=True)
    assert "Routed:" not in text_of(staff, url)
    assert "Routed:" not in text_of(staff, f"{EVENTS}{later}/change/")


def test_a_bulk_action_is_said_to_be_about_many_runs(staff):
    asked = cancel_all("sleep")
    drain()
    assert "many runs, to cancel them" in text_of(staff, f"{EVENTS}{asked}/change/")


def test_a_wait_that_timed_out_says_so(staff):
    run_id = started("cart/filled", {"c": 7})
    advance("25h")
    shown = text_of(staff, page_of(run_id))
    assert "timed out" in shown
    assert "no event came in time" in shown


def test_the_number_of_steps_does_not_change_the_number_of_statements(staff):
    run_id = started("nap/taken")

    def statements() -> int:
        with CaptureQueriesContext(connection) as captured:
            text_of(staff, page_of(run_id))
        return len(captured)

    statements()
    few = statements()
    step = Step.objects.get(run_id=run_id, key="yawn")
    for number in range(10, 30):
        step.key, step.seq = f"yawn#{number}", number
        step.save(force_insert=True)
    assert statements() == few


def test_what_a_payload_holds_is_escaped_wherever_it_is_shown(staff):
    event_id = send("canyon/called", {HOSTILE: HOSTILE}, user={"name": HOSTILE}, id=HOSTILE)
    drain()
    failed = started("bomb/found")
    advance("1m")
    waiting = started("cart/filled", {"c": HOSTILE})
    pages = [RUNS, WAITS, page_of(run_of(event_id).id), page_of(failed), page_of(waiting)]
    for url in [*pages, reverse("admin:durable_flows_event_change", args=[event_id])]:
        assert HOSTILE not in text_of(staff, url), url


@pytest.mark.parametrize(
    "text", ["{", "not json", '{"a": 1e999999', '"\\ud800"', "[" * 5000, "9" * 5000, "[1]\0"]
)
def test_text_that_is_no_good_json_is_shown_as_it_stands(staff, text):
    if connection.vendor == "postgresql" and "\0" in text:
        pytest.skip("PostgreSQL cannot store it")
    run_id = started("bomb/found")
    Step.objects.filter(run_id=run_id).delete()
    other = started("canyon/called")
    Step.objects.filter(run_id=other).update(output=text)
    Run.objects.filter(pk=other).update(result=text, error=text)
    Attempt.objects.filter(run_id=run_id).update(error=text)
    Event.objects.filter(runs__id=other).update(data=text, user=text)
    event_id = Run.objects.get(pk=other).event_id
    for url in (page_of(run_id), page_of(other)):
        text_of(staff, url)
    shown = text_of(staff, reverse("admin:durable_flows_event_change", args=[event_id]))
    assert showing.pretty(text)[:10].replace('"', "&quot;") in shown


def test_a_large_output_is_cut_before_it_leaves_the_database(staff):
    run_id = started("canyon/called")
    Step.objects.filter(run_id=run_id).update(output='"' + "x" * 1_000_000 + '"')
    shown = text_of(staff, page_of(run_id))
    assert len(shown) < 100_000
    assert f"{1_000_002 - showing.ROW_CHARACTERS:,} more characters" in shown


def test_an_event_says_why_it_did_not_start_a_flow(staff):
    @flow("picky", on=On("canyon/called", if_="event.data[event.data.key] > 1"))
    def picky(event):
        return None

    event_id = send("canyon/called", {"key": HOSTILE})
    drain()
    page = text_of(staff, reverse("admin:durable_flows_event_change", args=[event_id]))
    assert "Flows that it did not start" in page
    assert "picky" in page
    assert "event.data[event.data.key] &gt; 1" in page
    assert "&lt;script&gt;" in page
    assert HOSTILE not in page
    other = send("nap/taken")
    drain()
    page = text_of(staff, reverse("admin:durable_flows_event_change", args=[other]))
    assert "did not start" not in page


def test_a_run_shows_its_warnings(staff):
    @flow("picky", on="go")
    def picky(step):
        step.wait_for_event(
            "<b>reply</b>", event="replied", if_="async.data[async.data.key] > 1", timeout="1h"
        )

    event_id = send("go")
    drain()
    page = page_of(run_of(event_id).id)
    assert "Warnings" not in text_of(staff, page)
    send("replied", {"key": HOSTILE})
    drain()
    text = text_of(staff, page)
    assert "Warnings" in text
    assert "&lt;b&gt;reply&lt;/b&gt;" in text
    assert "<b>reply" not in text
    assert HOSTILE not in text


def test_a_run_whose_event_was_purged_still_has_its_page(staff):
    run_id = started("nap/taken")
    Event.objects.all().delete()
    assert "no longer kept" in text_of(staff, page_of(run_id))
    assert run_id in text_of(staff, RUNS)


@pytest.mark.parametrize("page", ["run", "event", "wait"])
@pytest.mark.parametrize("id_", ["nonsense", "00000000-0000-0000-0000-000000000000"])
def test_a_page_that_is_not_there_leads_back(staff, page, id_):
    response = staff.get(f"/admin/durable_flows/{page}/{id_}/change/", follow=True)
    assert response.status_code == 200
    assert "doesn’t exist" in response.content.decode()


# -- cancel and retry --------------------------------------------------------------------------


def test_cancelling_is_confirmed_first(staff):
    run_id = started("nap/taken")
    response = ask(staff, "cancel_runs", run_id)
    assert "Cancel 1 run?" in response.content.decode()
    drain()
    assert run_of(run_id).state == "started"


def test_a_run_is_cancelled_with_the_users_name_in_the_reason(staff, admin_user):
    run_id = started("nap/taken")
    response = ask(staff, "cancel_runs", run_id, confirmed="yes")
    assert messages_of(response) == [
        f"Asked for sleep {run_id} to be cancelled; the next worker that is free sees to it."
    ]
    drain()
    assert run_of(run_id).state == "cancelled"
    assert run_of(run_id).reason == "cancelled by admin in the admin"
    entry = LogEntry.objects.get()
    assert (entry.object_id, entry.user) == (run_id, admin_user)
    assert entry.change_message == "Asked for it to be cancelled."


def test_a_run_that_has_ended_is_not_cancelled_and_the_others_are(staff):
    ended, resting = started("canyon/called"), started("nap/taken")
    response = ask(staff, "cancel_runs", ended, resting, confirmed="yes")
    asked, refused = messages_of(response)
    assert resting in asked
    assert refused == f"echo {ended} cannot be cancelled: it has ended (completed)."
    assert [entry.object_id for entry in LogEntry.objects.all()] == [resting]


def test_a_run_that_is_being_cancelled_is_not_asked_again(staff):
    run_id = claimed("nap/taken")
    cancel(run_id)
    route.route()
    response = ask(staff, "cancel_runs", run_id)
    assert messages_of(response) == [
        f"sleep {run_id} cannot be cancelled: it is being cancelled already."
    ]


def test_a_failed_run_is_retried(staff):
    run_id = started("bomb/found")
    advance("1m")
    response = ask(staff, "retry_runs", run_id, confirmed="yes")
    assert "to be retried" in messages_of(response)[0]
    drain()
    run = Run.objects.get(pk=run_id)
    assert (run.generation, run.state) == (1, "started")
    assert LogEntry.objects.get().change_message == "Asked for it to be retried."


def test_a_run_is_done_again(staff):
    run_id = started("canyon/called")
    assert "Rerun this run" in text_of(staff, page_of(run_id))
    assert "Rerun 1 run?" in ask(staff, "rerun_runs", run_id).content.decode()
    response = ask(staff, "rerun_runs", run_id, confirmed="yes")
    assert "to be rerun" in messages_of(response)[0]
    drain()
    assert Run.objects.get(origin=run_id).state == "completed"
    assert LogEntry.objects.get().change_message == "Asked for it to be rerun."


def test_the_pages_of_parent_child_and_rerun_lead_to_each_other(staff):
    @flow("child", retries=0)
    def child():
        raise ValueError("<b>no</b>")

    @flow("parent", on="parent/called", retries=0)
    def parent(step):
        step.invoke("call", child)

    parent_id = started("parent/called")
    child_id = str(Run.objects.get(flow="child").pk)
    again_id = rerun(child_id)
    drain()
    shown = text_of(staff, page_of(parent_id))
    assert "Invoked runs" in shown
    assert shown.count(f'href="{page_of(child_id)}"') == 2  # among the children and the waits
    assert "&lt;b&gt;no&lt;/b&gt;" in shown
    assert "<b>no" not in shown
    shown = text_of(staff, page_of(child_id))
    assert f'href="{page_of(parent_id)}"' in shown
    assert "Invoked runs" not in shown
    shown = text_of(staff, page_of(again_id))
    assert f'href="{page_of(child_id)}"' in shown
    assert f'href="{page_of(parent_id)}"' not in shown
    Run.objects.filter(pk=child_id).delete()
    assert "no longer kept" in text_of(staff, page_of(again_id))


def test_a_handlers_run_leads_to_the_run_that_failed_and_says_what_it_handles(staff):
    @flow("order", on="order/placed", retries=0)
    def order():
        raise ValueError("no")

    @order.on_failure
    def handle():
        return "handled"

    failed_id = started("order/placed")
    run = Run.objects.get(flow="order/on-failure")
    shown = text_of(staff, page_of(str(run.pk)))
    assert f'href="{page_of(failed_id)}"' in shown
    assert "this flow handles failures of order" in shown
    assert "this flow handles" not in text_of(staff, page_of(failed_id))
    assert "order/on-failure (failures of order)" in text_of(staff, RUNS)


def test_a_run_that_waits_for_a_child_says_for_what(staff):
    @flow("parent", on="parent/called")
    def parent(step):
        step.invoke("call", "nap-of-another", timeout="1h")

    started("parent/called")
    assert "for nap-of-another until" in text_of(staff, RUNS)
    assert "resumes call" in text_of(staff, WAITS)


def test_only_failed_runs_are_retried(staff):
    run_id = started("nap/taken")
    response = ask(staff, "retry_runs", run_id)
    assert messages_of(response) == [
        f"sleep {run_id} cannot be retried: it is started, and only failed runs can be."
    ]
    assert not LogEntry.objects.exists()


def test_what_was_confirmed_is_done_though_it_has_left_the_filtered_list(staff):
    run_id = started("nap/taken")
    Due.objects.filter(run_id=run_id).update(
        state="queued", wake_at=clock.now() + timedelta(hours=1)
    )
    data = {"action": "cancel_runs", "_selected_action": run_id, "confirmed": "yes"}
    response = staff.post(f"{RUNS}?state=waiting", data, follow=True)
    assert "Asked for" in messages_of(response)[0]
    assert response.request["QUERY_STRING"] == "state=waiting"


def test_too_many_runs_at_once_are_refused(staff, monkeypatch):
    monkeypatch.setattr(commands, "MOST_AT_ONCE", 1)
    runs = [started("nap/taken") for _ in range(2)]
    data = {"action": "cancel_runs", "_selected_action": runs, "index": "0", "select_across": "1"}
    response = staff.post(RUNS, data, follow=True)
    assert messages_of(response) == [
        "More than 1 runs are selected. Select fewer: filter or search first."
    ]


def test_what_is_no_run_id_is_refused(staff):
    assert messages_of(ask(staff, "cancel_runs", "nonsense", confirmed="yes")) == [
        "What was selected are no ids of runs."
    ]


def test_the_buttons_of_a_page_lead_through_the_confirmation_back_to_it(staff):
    run_id = started("nap/taken")
    shown = text_of(staff, page_of(run_id))
    button, _ = re.findall(r"<button[^>]*formaction[^>]*>", shown)
    assert f'value="{run_id}"' in shown
    assert 'value="cancel_runs"' in button
    assert f'formaction="{RUNS}"' in button
    confirmation = ask(staff, "cancel_runs", run_id, from_run="yes").content.decode()
    assert f'href="{page_of(run_id)}"' in confirmation
    assert 'name="from_run"' in confirmation
    response = ask(staff, "cancel_runs", run_id, from_run="yes", confirmed="yes")
    assert response.redirect_chain == [(page_of(run_id), 302)]


def test_a_page_offers_only_what_its_run_allows(staff):
    completed = text_of(staff, page_of(started("canyon/called")))
    assert re.findall(r">(\w+) this run</button>", completed) == ["Rerun"]
    run_id = started("bomb/found")
    advance("1m")
    failed = text_of(staff, page_of(run_id))
    assert "Retry this run" in failed
    assert "Cancel this run" not in failed


def test_an_action_without_a_csrf_token_is_refused(admin_user):
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user)
    run_id = started("nap/taken")
    data = {"action": "cancel_runs", "_selected_action": run_id, "confirmed": "yes"}
    assert client.post(RUNS, data).status_code == 403


def test_an_action_by_get_does_nothing(staff):
    run_id = started("nap/taken")
    query = {"action": "cancel_runs", "_selected_action": run_id, "confirmed": "yes"}
    staff.get(RUNS, query)
    drain()
    assert run_of(run_id).state == "started"


# -- events and waits --------------------------------------------------------------------------


def test_an_event_tells_how_far_it_is_and_how_many_runs_it_started(staff):
    send("nap/taken")
    drain()
    send("nobody/listens", ts=clock.now() + timedelta(hours=1))
    send("not/yet")
    shown = re.sub(r"<[^>]+>", " ", text_of(staff, EVENTS))
    assert re.search(r"nap/taken\s+routed\s+[\d\s:-]+\s1\s", shown)
    assert re.search(r"nobody/listens\s+waiting\s+until", shown)
    assert re.search(r"not/yet\s+to be routed", shown)


def test_an_event_is_found_by_the_beginning_of_its_name_and_by_its_id(staff):
    event_id = send("nap/taken")
    other = send("canyon/called")
    for term in ("nap/", "nap/taken", event_id):
        shown = text_of(staff, EVENTS, q=term)
        assert event_id in shown
        assert other not in shown


def test_events_that_are_not_routed_can_be_listed_alone(staff):
    routed = send("nap/taken")
    drain()
    waiting = send("nap/taken")
    shown = text_of(staff, EVENTS, routing="open")
    assert waiting in shown
    assert routed not in shown


def test_the_page_of_an_event_shows_payload_and_runs(staff):
    event_id = send("nap/taken", {"sheep": 3}, user={"email": "ada@example.com"}, v="2")
    drain()
    shown = text_of(staff, reverse("admin:durable_flows_event_change", args=[event_id]))
    assert "&quot;sheep&quot;: 3" in shown
    assert "ada@example.com" in shown
    assert page_of(run_of(event_id).id) in shown


def test_the_page_of_an_event_links_the_run_that_sent_it(staff):
    @flow("teller", on="story/known")
    def teller(event, step):
        from durable_flows import Event as Sent

        step.send_event("tell", Sent("story/told"))

    run_id = started("story/known")
    told = Event.objects.get(name="story/told")
    shown = text_of(staff, reverse("admin:durable_flows_event_change", args=[told.pk]))
    assert page_of(run_id) in shown


def test_a_refused_command_says_why(staff):
    run_id = started("bomb/found")
    advance("1m")
    retry(run_id)
    retry(run_id)
    drain()
    refused = Event.objects.exclude(error="").get()
    assert "refused" in text_of(staff, EVENTS)
    shown = text_of(staff, reverse("admin:durable_flows_event_change", args=[refused.pk]))
    assert refused.error in shown
    assert page_of(run_id) in shown


@pytest.fixture
def set_aside() -> str:
    """An event that could not be routed."""
    started("cart/filled", {"c": 1})
    event_id = send("cart/ordered", {"c": 1})
    Event.objects.filter(pk=event_id).update(data=f"{{ {HOSTILE}")
    drain()
    Event.objects.filter(pk=event_id).update(error=f"ValueError: {HOSTILE}")
    return event_id


def test_events_that_were_set_aside_are_listed_alone_with_their_error_escaped(staff, set_aside):
    shown = text_of(staff, EVENTS, routing="quarantined")
    assert set_aside in shown
    assert "set aside" in shown
    assert Event.objects.count() > shown.count("field-name") == 1
    page = text_of(staff, reverse("admin:durable_flows_event_change", args=[set_aside]))
    assert "ValueError: &lt;script&gt;" in page
    assert HOSTILE not in page
    assert "Route this event again" in page


def reroute(client: Client, *events: str, **more: str) -> Any:
    data = {"action": "reroute_events", "_selected_action": events, **more}
    return client.post(EVENTS, data, follow=True)


def test_an_event_that_was_set_aside_is_routed_again_and_that_is_logged(staff, set_aside):
    Event.objects.filter(pk=set_aside).update(data='{"c": 1}')
    response = reroute(staff, set_aside, from_event="yes")
    assert response.redirect_chain[-1][0].endswith(f"{set_aside}/change/")
    assert "to be routed again" in messages_of(response)[0]
    logged = LogEntry.objects.get()
    assert (logged.object_id, logged.change_message) == (
        set_aside,
        "Asked for it to be routed again.",
    )
    drain()
    assert Wait.objects.get(kind="step").outcome == "event"
    assert "Route this event again" not in text_of(
        staff, reverse("admin:durable_flows_event_change", args=[set_aside])
    )


def test_events_that_were_not_set_aside_stay_as_they_are(staff, set_aside):
    other = send("nap/taken")
    response = reroute(staff, other, set_aside)
    assert [message[:20] for message in messages_of(response)] == [
        "Asked for cart/order",
        "One event was not se",
    ]
    assert LogEntry.objects.count() == 1


def test_routing_again_needs_its_permission(client, set_aside):
    viewer = only_with(client, *VIEW)
    assert "reroute_events" not in text_of(viewer, EVENTS)
    page = reverse("admin:durable_flows_event_change", args=[set_aside])
    assert "Route this event again" not in text_of(viewer, page)
    reroute(viewer, set_aside)
    assert Event.objects.get(pk=set_aside).quarantined
    User.objects.get(username="grace").user_permissions.add(
        Permission.objects.get(codename="reroute_event")
    )
    assert "reroute_events" in text_of(viewer, EVENTS)
    reroute(viewer, set_aside)
    assert not Event.objects.get(pk=set_aside).quarantined


def test_routing_again_by_get_does_nothing(staff, set_aside):
    staff.get(EVENTS, {"action": "reroute_events", "_selected_action": set_aside})
    assert Event.objects.get(pk=set_aside).quarantined


def test_too_many_events_at_once_are_refused(staff, set_aside, monkeypatch):
    monkeypatch.setattr(reroute_action, "MOST_AT_ONCE", 1)
    response = reroute(staff, set_aside, send("nap/taken"))
    assert "Select fewer" in messages_of(response)[0]
    assert Event.objects.get(pk=set_aside).quarantined


def test_what_was_skipped_withdrawn_or_edited_is_marked(staff):
    run_id = started("nap/taken")
    skip(run_id, "doze")
    later = send("nap/taken", ts=clock.now() + timedelta(hours=1))
    withdraw(later)
    again = rerun(run_id, data={"edited": True})
    drain()
    assert "skipped" in text_of(staff, page_of(run_id))
    shown = text_of(staff, EVENTS)
    assert "withdrawn" in shown
    assert "for one run" in shown
    assert run_of(again).origin == run_id
    for name, leads_to in (("flows/event.withdraw", later), ("flows/run.skip", run_id)):
        command = Event.objects.get(name=name)
        page = reverse("admin:durable_flows_event_change", args=[command.pk])
        assert str(leads_to) in text_of(staff, page)


def test_pending_waits_are_listed_with_their_runs_and_ended_ones_are_not(staff):
    waiting = started("cart/filled", {"c": "still"})
    ended = started("cart/filled", {"c": "done"})
    send("cart/ordered", {"c": "done"})
    drain()
    shown = text_of(staff, WAITS)
    assert page_of(waiting) in shown
    assert page_of(ended) not in shown
    assert Wait.objects.filter(run_id=ended).count() == 2


def test_waits_are_found_by_event_name_and_by_run(staff):
    run_id = started("cart/filled", {"c": 1})
    for query in ({"event": "cart/ordered"}, {"q": "cart/ord"}):
        shown = text_of(staff, WAITS, **query)
        assert "resumes order" in shown
        assert "cancels the run" not in shown
    assert "resumes order" in text_of(staff, WAITS, q=run_id)


# -- empty lists, permissions, and what a strict browser allows --------------------------------


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        (RUNS, "No runs yet. Send"),
        (EVENTS, "No events yet. Send"),
        (WAITS, "Nothing is waited for"),
    ],
)
def test_an_empty_list_says_what_to_do(staff, url, sentence):
    assert sentence in text_of(staff, url)


def test_a_search_without_a_hit_offers_the_whole_list(staff):
    started("nap/taken")
    shown = text_of(staff, RUNS, q="nothing")
    assert "Nothing matches." in shown
    assert "No runs yet" not in shown


@pytest.mark.parametrize("url", [RUNS, EVENTS, WAITS])
def test_an_anonymous_user_gets_the_login_page(client, url):
    response = client.get(url)
    assert response.status_code == 302
    assert response["Location"].startswith("/admin/login/")


def test_permission_to_view_is_enough_to_look_and_not_to_command(client):
    run_id = started("nap/taken")
    viewer = only_with(client, *VIEW)
    event_id = Run.objects.get(pk=run_id).event_id
    for url in (RUNS, EVENTS, WAITS, reverse("admin:durable_flows_event_change", args=[event_id])):
        assert "Cancel" not in text_of(viewer, url)
    assert "Cancel this run" not in text_of(viewer, page_of(run_id))
    ask(viewer, "cancel_runs", run_id, confirmed="yes")
    drain()
    assert run_of(run_id).state == "started"


@pytest.mark.parametrize(
    ("codename", "allowed", "refused"),
    [
        ("cancel_run", "cancel_runs", "retry_runs"),
        ("retry_run", "retry_runs", "rerun_runs"),
        ("rerun_run", "rerun_runs", "cancel_runs"),
    ],
)
def test_each_command_has_a_permission_of_its_own(client, codename, allowed, refused):
    started("nap/taken")
    shown = text_of(only_with(client, *VIEW, codename), RUNS)
    assert f'value="{allowed}"' in shown
    assert f'value="{refused}"' not in shown


def test_a_command_alone_gives_no_look_at_the_runs(client):
    run_id = started("nap/taken")
    commander = only_with(client, "cancel_run")
    assert commander.get(RUNS).status_code == 403
    assert commander.get(page_of(run_id)).status_code == 403


@pytest.mark.parametrize("model", [Event, Run, Wait])
def test_nobody_adds_changes_or_deletes(staff, admin_user, rf, model):
    page = admin.site.get_model_admin(model)
    request = rf.get("/")
    request.user = admin_user
    assert page.get_model_perms(request) == {
        "add": False,
        "change": False,
        "delete": False,
        "view": True,
    }
    started("cart/filled", {"c": 1})
    row = model.objects.first()
    base = f"/admin/durable_flows/{model._meta.model_name}/"
    assert staff.post(f"{base}add/").status_code == 403
    assert staff.post(f"{base}{row.pk}/delete/", {"post": "yes"}).status_code == 403
    assert staff.post(f"{base}{row.pk}/change/", {"flow": "other"}).status_code == 403
    assert model.objects.filter(pk=row.pk).exists()


def test_no_page_needs_inline_script_or_style(staff):
    run_id = started("bomb/found")
    advance("1m")
    started("cart/filled", {"c": 1})
    event_id = Run.objects.get(pk=run_id).event_id
    event = reverse("admin:durable_flows_event_change", args=[event_id])
    pages = [text_of(staff, url) for url in (RUNS, EVENTS, WAITS, page_of(run_id), event)]
    pages.append(ask(staff, "retry_runs", run_id).content.decode())
    for html in pages:
        assert not re.search(r"<script(?![^>]*\ssrc=)|<style|<[^>]+\s(style|on[a-z]+)=", html)


def test_the_rows_come_from_the_database_of_the_settings(rf, admin_user, settings):
    settings.DURABLE_FLOWS = {**settings.DURABLE_FLOWS, "DATABASE": "elsewhere"}
    request = rf.get("/")
    request.user = admin_user
    assert conf.settings().DATABASE == "elsewhere"
    for model in (Event, Run, Wait):
        assert admin.site.get_model_admin(model).get_queryset(request).db == "elsewhere"
