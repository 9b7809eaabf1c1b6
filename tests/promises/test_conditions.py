"""Conditions: which events start a flow, which of them a wait takes, and which cancel."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from durable_flows import CancelOn, Event, On, cancel, flow, send
from durable_flows.engine import lookback, sql
from durable_flows.engine.route import route
from durable_flows.errors import InvalidExpression, InvalidKey, InvalidOption
from durable_flows.models import Admission, EventMatch, Run, Wait
from durable_flows.registry import registry
from durable_flows.testing import advance, crash_at, drain, run_of, runs_of
from tests.promises.staging import again, execute_due, once_at, played, row

pytestmark = pytest.mark.django_db

ROOT = Path(__file__).resolve().parents[2]


def listener(*on: str | On) -> list[Any]:
    """A flow; the list grows by the data of each event that starts it."""
    started: list[Any] = []

    @flow("listener", on=on)
    def handler(event):
        started.append(event.data)

    return started


def waiter(**options: Any) -> None:
    """A flow that waits for ``replied``, or for what the options say."""

    @flow("waiter", on="go")
    def handler(step):
        found = step.wait_for_event("reply", **{"event": "replied", "timeout": "1h", **options})
        return found and found.data


def sleeper(*rules: CancelOn) -> None:
    @flow("sleeper", on="go", cancel_on=rules)
    def handler(step):
        step.sleep("long", "1 day")


# -- triggers --------------------------------------------------------------------------------


@pytest.mark.parametrize("if_", ["event.data.plan == 'pro'", "event.data.plan.startsWith('pro')"])
def test_a_trigger_with_a_condition_starts_the_flow_for_the_events_that_meet_it(if_):
    started = listener(On("app/signed.up", if_=if_))
    send([Event("app/signed.up", {"plan": plan}) for plan in ("free", "pro", "team")])
    drain()
    assert started == [{"plan": "pro"}]
    assert not Admission.objects.exists()


def test_a_condition_may_look_at_every_field_of_the_event():
    started = listener(
        On(
            "a",
            if_="event.user.id == 7 && event.id == 'mine' && event.v == '2' && event.name == 'a'",
        ),
        On("b", if_="event.ts > 0 && event.user == null && event.v == null && event.data == {}"),
    )
    send("a", user={"id": 7.0}, id="mine", v="2")
    send("a", user={"id": 8}, id="others", v="2")
    send("b")
    drain()
    assert len(started) == 2


@pytest.mark.parametrize("plain_first", [True, False])
def test_one_event_starts_a_flow_once_whichever_triggers_match(plain_first):
    triggers = [
        "app/user.*",
        On("app/user.made", if_="event.data.n == 1"),
        "app/user.made",
        "app/*",
    ]
    started = listener(*(triggers if plain_first else reversed(triggers)))
    send("app/user.made", {"n": 1})
    drain()
    assert started == [{"n": 1}]
    assert Run.objects.count() == 1


def test_any_of_several_conditions_starts_the_flow():
    started = listener(On("a", if_="event.data.n < 2"), On("a", if_="event.data.n > 3"))
    send([Event("a", {"n": n}) for n in range(6)])
    drain()
    assert sorted(data["n"] for data in started) == [0, 1, 4, 5]


def test_flows_decide_each_for_themselves():
    @flow("large", on=On("order/placed", if_="event.data.total >= 100"))
    def large(event):
        return "large"

    @flow("any", on="order/placed")
    def any_(event):
        return "any"

    small, big = send([Event("order/placed", {"total": n}) for n in (5, 500)])
    drain()
    assert [run.flow for run in runs_of(small)] == ["any"]
    assert [run.flow for run in runs_of(big)] == ["any", "large"]


def test_a_flow_with_conditions_can_be_started_directly():
    @flow("mine", on=On("a", if_="event.data.n == 1"))
    def mine(event):
        return event.data

    run_id = mine.start({"n": 2})
    drain()
    assert run_of(run_id).result == {"n": 2}


@pytest.mark.parametrize(
    ("if_", "problem"),
    [
        ("event.data.total > 100", "total"),
        ("event.data.paid || false", "paid"),
        ("event.data.note", "of type STRING, not a boolean"),
    ],
)
def test_a_condition_that_comes_to_nothing_does_not_start_the_flow_and_is_recorded(if_, problem):
    started = listener(On("order/placed", if_=if_))
    (event_id,) = send("order/placed", {"note": "true"})
    drain()
    assert started == []
    admission = Admission.objects.get()
    assert (str(admission.event_id), admission.flow, admission.verdict) == (
        event_id,
        "listener",
        "skip",
    )
    assert if_ in admission.reason
    assert problem in admission.reason
    assert row(event_id).routed_at is not None


def test_it_is_recorded_once_however_often_the_event_is_routed():
    listener(On("a", if_="event.data.x > 1"))
    (event_id,) = send("a")
    with crash_at("between_routing_transactions") as crash:
        drain()
    assert crash.happened
    drain()
    assert Admission.objects.count() == 1
    assert (row(event_id).quarantined, row(event_id).error) == (False, "")


def test_a_trigger_that_comes_to_nothing_matters_not_if_another_is_met():
    started = listener(On("a", if_="event.data.x > 1"), On("a", if_="event.data.y == 1"))
    send("a", {"y": 1})
    drain()
    assert started == [{"y": 1}]
    assert not Admission.objects.exists()


def test_a_missing_value_in_an_equality_equals_nothing_and_is_no_failure():
    started = listener(On("a", if_="event.data.x == null"))
    send("a")
    send("a", {"x": None})
    drain()
    assert started == [{"x": None}]
    assert not Admission.objects.exists()


def test_a_payload_made_to_keep_the_router_busy_harms_nobody_else():
    started = listener(
        On("a", if_="event.data.list.all(x, event.data.list.all(y, x != y || x == y))")
    )
    others = played_flow()
    send([Event("a", {"list": list(range(5_000))}), Event("fine"), Event("a", {"list": [1]})])
    drain()
    assert len(started) == 1
    assert others == ["fine"]
    assert Admission.objects.count() == 1


def played_flow() -> list[str]:
    names: list[str] = []

    @flow("other", on="fine")
    def handler(event):
        names.append(event.name)

    return names


def test_a_changed_condition_is_a_new_version_of_the_code():
    digests = []
    for if_ in ("event.data.n == 1", "event.data.n == 2", "event.data.n == 1"):
        with registry.isolated():
            listener(On("a", if_=if_))
            digests.append(registry.digest)
    assert digests[0] == digests[2] != digests[1]


# -- wildcards -------------------------------------------------------------------------------


def test_a_wildcard_at_the_end_stands_for_any_further_characters():
    started = listener("app/user.*")
    names = ["app/user.created", "app/user.a/b.c", "app/user.*", "app/users.created", "app/user"]
    for name in names:
        send(name, {"name": name})
    drain()
    assert started == [{"name": name} for name in names[:3]]


def test_a_wildcard_after_a_slash_takes_the_whole_domain_and_a_condition_narrows_it():
    started = listener(On("app/*", if_="event.name != 'app/noise'"))
    send([Event(name, {"n": name}) for name in ("app/a", "app/noise", "other/a")])
    drain()
    assert started == [{"n": "app/a"}]


def test_ends_of_runs_meet_a_wildcard_and_commands_do_not():
    started = listener("flows/*", "go")
    run = played("go")
    cancel(run.id)
    drain()
    assert [data.get("function_id") for data in started] == [None, "listener"]


def test_a_flow_that_is_declared_later_hears_a_name_that_was_looked_up_before():
    send("app/a")
    drain()
    started = listener("app/*")
    send("app/a", {"n": 1})
    drain()
    assert started == [{"n": 1}]


def test_names_are_looked_up_once_and_not_all_of_them_are_kept(monkeypatch):
    monkeypatch.setattr("durable_flows.registry.NAMES_KEPT", 3)
    listener("app/*")
    assert registry.listeners("app/x") is registry.listeners("app/x")
    for number in range(10):
        registry.listeners(f"app/{number}")
    assert len(registry._found) <= 3


@pytest.mark.parametrize(
    "name", ["app/*/made", "*", "app*", "app/user*", "app/**", "*/made", "a*/*"]
)
def test_a_wildcard_elsewhere_is_an_error_at_import(name):
    with pytest.raises(InvalidOption, match=r"flow 'listener', on=: .*wildcard") as caught:
        listener(name)
    assert repr(name) in str(caught.value)
    with pytest.raises(InvalidOption, match="On: .*wildcard"):
        On(name)


def test_waits_and_cancels_take_no_wildcard():
    with pytest.raises(InvalidOption, match=r"CancelOn: 'app/\*' has a wildcard; only triggers"):
        CancelOn("app/*")
    waiter(event="app/*")
    run = played()
    assert run.state == "failed"
    assert "step.wait_for_event('reply'): 'app/*' has a wildcard" in run.error["message"]


# -- waits -----------------------------------------------------------------------------------

EQUAL = "async.data.order == event.data.order"
CEL = "async.data.order == event.data.order && async.data.total > 100"
ALL_CEL = "(async.data.order == event.data.order) && async.data.total > 100"


@pytest.mark.parametrize("if_", [EQUAL, CEL, ALL_CEL])
def test_a_wait_takes_the_event_that_meets_its_condition(if_):
    waiter(if_=if_)
    run = played("go", {"order": 1})
    send([Event("replied", {"order": n, "total": n * 150}) for n in (2, 3)])
    drain()
    assert again(run).state == "started"
    send("replied", {"order": 1.0, "total": 150})
    drain()
    assert again(run).result == {"order": 1.0, "total": 150}
    assert again(run).warnings == {}


@pytest.mark.parametrize("if_", [EQUAL, CEL, ALL_CEL])
def test_a_wait_with_a_condition_looks_back(if_):
    def ask() -> None:
        totals = [10] * (2 * lookback.AT_ONCE) + [150]
        send([Event("replied", {"order": 2, "total": 999})])
        send([Event("replied", {"order": 1, "total": total}) for total in totals])
        route()

    @flow("asks", on="go")
    def asks(step):
        step.run("ask", ask)
        found = step.wait_for_event("reply", event="replied", if_=if_, timeout="1h")
        return found and found.data["total"]

    expected = 10 if if_ == EQUAL else 150
    first = played("go", {"order": 1})  # by name: nobody has waited so before
    assert first.result == expected
    assert EventMatch.objects.count() == 0
    second = played("go", {"order": 1})  # by hash
    assert second.result == expected
    assert EventMatch.objects.exists()
    assert (first.warnings, second.warnings) == ({}, {})


def test_match_and_condition_must_both_hold():
    waiter(match="data.order", if_="async.data.total > 100")
    run = played("go", {"order": 1})
    send([Event("replied", {"order": 1, "total": 5}), Event("replied", {"order": 2, "total": 500})])
    drain()
    assert again(run).state == "started"
    send("replied", {"order": 1, "total": 500})
    drain()
    assert again(run).result == {"order": 1, "total": 500}


def test_a_condition_may_compare_with_literals():
    waiter(if_="async.data.kind == 'final' && async.data.ok == true && async.data.error == null")
    run = played()
    send("replied", {"kind": "final", "ok": 1, "error": None})
    send("replied", {"kind": "final", "ok": True})
    drain()
    assert again(run).state == "started"
    send("replied", {"kind": "final", "ok": True, "error": None})
    drain()
    assert again(run).state == "completed"


def test_the_timeout_ends_a_wait_whose_condition_nothing_meets():
    waiter(if_="async.data.total > 100")
    run = played()
    send("replied", {"total": 1})
    advance("1h")
    assert (again(run).state, again(run).result) == ("completed", None)


def test_waits_of_different_conditions_may_take_the_same_event_and_of_one_condition_not():
    @flow("waiter", on="go")
    def handler(step):
        got = [
            step.wait_for_event(id, event="replied", if_=f"async.data.n > {least}", timeout="1h")
            for id, least in (("a", 1), ("b", 5), ("c", 1))
        ]
        return [event and event.data["n"] for event in got]

    run = played()
    send("replied", {"n": 7})
    advance("1h")
    assert again(run).result == [7, 7, None]


def test_the_condition_that_was_registered_is_kept_whatever_is_deployed_later():
    waiter(if_="async.data.total > 100")
    run = played()
    with registry.isolated():
        waiter(if_="async.data.total > 1000")
        send("replied", {"total": 500})
        drain()
    assert again(run).result == {"total": 500}


def test_an_event_on_which_a_condition_comes_to_nothing_does_not_match_and_leaves_a_warning():
    waiter(if_="async.data.total > 100")
    run = played()
    ids = [*send("replied", {"total": "<b>lots</b>"}), *send("replied")]
    drain()
    assert again(run).state == "started"
    warning = again(run).warnings["reply"]
    assert ids[0] in warning
    assert "'async.data.total > 100'" in warning
    send("replied", {"total": 101})
    drain()
    assert again(run).result == {"total": 101}
    assert again(run).warnings == {"reply": warning}


def test_so_does_one_that_is_found_by_looking_back():
    def ask() -> None:
        send([Event("replied", {}), Event("replied", {"total": 101})])
        route()

    @flow("asks", on="go")
    def asks(step):
        step.run("ask", ask)
        return step.wait_for_event(
            "reply", event="replied", if_="async.data.total > 100", timeout="1h"
        ).data

    run = played()
    assert run.result == {"total": 101}
    assert list(run.warnings) == ["reply"]


def test_a_value_that_the_runs_own_event_lacks_matches_nothing_and_leaves_a_warning():
    waiter(if_=EQUAL)
    run = played("go", {})
    send([Event("replied", {}), Event("replied", {"order": None})])
    drain()
    assert again(run).state == "started"
    assert (
        "'go' has no value at data.order: no event can ever match" in again(run).warnings["reply"]
    )
    advance("1h")
    assert (again(run).state, again(run).result) == ("completed", None)


def test_a_missing_match_stays_an_error_beside_a_condition():
    waiter(match="data.order", if_="async.data.total > 100")
    run = played("go", {})
    assert run.error["name"] == "MissingMatch"


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"if_": "async.data.x ="}, InvalidExpression, "step.wait_for_event('reply'), if_="),
        ({"if_": "order == 1"}, InvalidExpression, "undeclared reference to 'order'"),
        ({"if_": "async.data..x == 1"}, InvalidExpression, "does not compile"),
        ({"if_": ""}, InvalidExpression, "takes an expression as text"),
        ({"match": "data..x"}, InvalidKey, "empty segment"),
    ],
)
def test_what_a_wait_cannot_read_fails_the_run_at_the_call(options, error, says):
    waiter(**options)
    run = played()
    assert run.state == "failed"
    assert run.error["name"] == error.__name__
    assert says in run.error["message"]
    assert run.attempts == {}


def test_the_wait_says_what_it_is_waiting_for():
    waiter(match="data.order", if_="async.data.kind == 'x' && async.data.total > 100")
    played("go", {"order": 7})
    wait = Wait.objects.get()
    assert wait.criteria == "data.kind = 'x', data.order = 7, async.data.total > 100"
    assert wait.expression == "async.data.total > 100"


@pytest.mark.parametrize("if_", [EQUAL, CEL, ALL_CEL])
@pytest.mark.parametrize("place", ["between_routing_transactions", "wait_registered"])
def test_no_event_is_lost_between_a_wait_with_a_condition_and_the_router(if_, place):
    """The one looks before the other has committed, and the other way round."""
    waiter(if_=if_)
    played("go", {"order": 0})  # makes the signature known
    run_id = send("go", {"order": 1})[0]
    if place == "wait_registered":

        def reply() -> None:
            send("replied", {"order": 1, "total": 150})
            route()

        with once_at("wait_registered", reply):
            drain()
    else:
        route()
        send("replied", {"order": 1, "total": 150})
        with once_at("between_routing_transactions", execute_due):
            drain()
    drain()
    assert run_of(run_id).result == {"order": 1, "total": 150}


def test_the_request_reply_of_the_documents():
    @flow("process-report", on="app/report.requested")
    def process_report(event, step):
        step.send_event(
            "start-generation",
            Event("app/report.generate", {"reportId": event.data["reportId"]}),
        )
        result = step.wait_for_event(
            "wait-for-result",
            event="app/report.generated",
            timeout="30m",
            if_="async.data.reportId == event.data.reportId",
        )
        if result is None:
            return {"status": "timeout", "reportId": event.data["reportId"]}
        return step.run("save-result", lambda: result.data)

    @flow("generate-report", on="app/report.generate")
    def generate(event, step):
        if event.data["reportId"] != "lost":
            step.send_event("done", Event("app/report.generated", {**event.data, "url": "/r"}))

    ids = [send("app/report.requested", {"reportId": id})[0] for id in ("a", "b", "lost")]
    advance("30m")
    results = [run_of(id, "process-report").result for id in ids]
    assert results == [
        {"reportId": "a", "url": "/r"},
        {"reportId": "b", "url": "/r"},
        {"status": "timeout", "reportId": "lost"},
    ]


def test_the_fan_out_and_fan_in_of_the_documents():
    @flow("onboarding", on="user/signup.completed")
    def onboarding(event, step):
        names = ["email/welcome", "subscription/trial", "crm/contact"]
        step.send_event("fan-out", [Event(f"{name}.send", event.data) for name in names])
        answers = [
            step.wait_for_event(
                name,
                event=f"{name}.sent",
                timeout="5m",
                if_="event.data.userId == async.data.userId",
            )
            for name in names
        ]
        return [answer and answer.name for answer in answers]

    @flow("does-all", on=["email/*", "subscription/*", "crm/*"])
    def does_all(event, step):
        if event.name.endswith(".send"):
            step.send_event("sent", Event(event.name.replace(".send", ".sent"), event.data))

    ids = [send("user/signup.completed", {"userId": n})[0] for n in (1, 2)]
    drain()
    for id in ids:
        assert run_of(id, "onboarding").result == [
            "email/welcome.sent",
            "subscription/trial.sent",
            "crm/contact.sent",
        ]


# -- cancels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("if_", [EQUAL, CEL, ALL_CEL])
def test_a_cancel_rule_with_a_condition_cancels_the_runs_it_matches(if_):
    sleeper(CancelOn("order/void", if_=if_))
    one, other = send([Event("go", {"order": 1}), Event("go", {"order": 2})])
    drain()
    send("order/void", {"order": 1, "total": 150})
    drain()
    assert [run_of(id).state for id in (one, other)] == ["cancelled", "started"]


def test_match_and_condition_of_a_cancel_rule_must_both_hold():
    sleeper(CancelOn("void", match="data.order", if_="async.data.total > event.data.total"))
    run = played("go", {"order": 1, "total": 10})
    for data in ({"order": 1, "total": 10}, {"order": 2, "total": 11}):
        send("void", data)
        drain()
        assert again(run).state == "started"
    send("void", {"order": 1, "total": 11})
    drain()
    assert again(run).state == "cancelled"


def started_late(data: dict[str, Any], *before: Event) -> tuple[str, list[str]]:
    """A run whose trigger commits after events that came later were routed, and their ids."""
    played("go", {"order": 0, "total": 0})  # makes the signature known
    (late,) = send("go", data)
    stored = type(row(late)).objects.filter(pk=late)
    stored.update(routed_at=row(late).received_at)
    ids = send(list(before))
    drain()
    stored.update(routed_at=None)
    drain()
    return late, ids


@pytest.mark.parametrize("if_", [EQUAL, CEL, ALL_CEL])
def test_a_cancel_that_is_routed_before_its_late_trigger_is_found_by_looking_back(if_):
    sleeper(CancelOn("void", if_=if_))
    voids = [
        Event("void", {"order": n, "total": total}) for n, total in ((3, 150), (1, 5), (1, 150))
    ]
    late, ids = started_late({"order": 1}, *voids)
    assert run_of(late).state == "cancelled"
    assert run_of(late).reason == f"event void {ids[1] if if_ == EQUAL else ids[2]}"
    assert run_of(late).warnings == {}


@pytest.mark.parametrize("if_", [EQUAL, CEL, ALL_CEL])
def test_what_does_not_meet_the_condition_is_not_found_by_looking_back(if_):
    sleeper(CancelOn("void", if_=if_))
    total = {} if if_ == EQUAL else {"total": 5}
    late, _ = started_late({"order": 1}, Event("void", {"order": 3, **total}))
    assert run_of(late).state == "started"
    late, _ = started_late({"order": 3}, Event("void", {"order": 3, "total": 5}))
    assert run_of(late).state == ("cancelled" if if_ == EQUAL else "started")


def test_a_cancel_rule_that_comes_to_nothing_when_it_looks_back_leaves_a_warning():
    sleeper(CancelOn("void", if_="async.data.total > 100"))
    late, _ = started_late({}, Event("void", {}))
    assert run_of(late).state == "started"
    assert list(run_of(late).warnings) == ["cancel_on[0]"]


def test_a_cancel_rule_that_comes_to_nothing_does_not_cancel_and_leaves_a_warning():
    sleeper(CancelOn("never"), CancelOn("void", if_="async.data.total > 100"))
    run = played()
    send("void", {"total": None})
    drain()
    assert again(run).state == "started"
    assert list(again(run).warnings) == ["cancel_on[1]"]
    send("void", {"total": 101})
    drain()
    assert again(run).state == "cancelled"


@pytest.mark.parametrize("rule", [{"if_": EQUAL}, {"match": "data.order"}])
def test_a_rule_whose_value_the_trigger_lacks_never_cancels_and_leaves_a_warning(rule):
    sleeper(CancelOn("void", **rule))
    run = played("go", {})
    send("void", {"order": 1})
    send("void", {})
    drain()
    assert again(run).state == "started"
    assert "no value at data.order" in again(run).warnings["cancel_on[0]"]


def test_cancelling_on_the_own_trigger_by_a_condition_leaves_only_the_newest_run():
    sleeper(CancelOn("go", if_="async.data.cart == event.data.cart && async.data.n > event.data.n"))
    ids = send([Event("go", {"cart": 1, "n": n}) for n in range(3)])
    drain()
    assert [run_of(id).state for id in ids] == ["cancelled", "cancelled", "started"]


# -- where it is written ---------------------------------------------------------------------


def declare_trigger(if_: Any) -> None:
    listener(On("order/placed", if_=if_))


def declare_cancel(if_: Any) -> None:
    @flow("listener", cancel_on=CancelOn("order/void", if_=if_))
    def handler(event):
        return None


@pytest.mark.parametrize(
    ("declare", "place"),
    [
        (declare_trigger, "flow 'listener', On('order/placed'), if_="),
        (declare_cancel, "flow 'listener', CancelOn('order/void'), if_="),
    ],
)
@pytest.mark.parametrize("if_", ["event.data.x >", "x == 1", "event.data..x == 1", "", 7])
def test_a_wrong_condition_is_an_error_at_import_that_names_flow_and_expression(
    declare: Callable[[Any], None], place, if_
):
    with pytest.raises(InvalidExpression) as caught:
        declare(if_)
    assert str(caught.value).startswith(f"{place}: {if_!r}: ")
    assert registry.find("listener") is None


WITHOUT_CEL = """
import sys
sys.modules["cel_expr_python"] = None
from durable_flows import CancelOn, On, flow
from durable_flows.errors import InvalidExpression

@flow("plain", on=[On("a", if_="event.data.kind == 'x'"), "b/*"],
      cancel_on=CancelOn("c", if_="event.data.id == async.data.id && async.data.ok == true"))
def plain(event):
    pass

assert plain.on[0].condition().residual == ""
try:
    @flow("rich", on=On("a", if_="event.data.total > 100"))
    def rich(event):
        pass
except InvalidExpression as error:
    print(error)
"""


def test_equalities_need_no_extra_and_what_does_is_an_error_at_import_that_names_it():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_CEL], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "flow 'rich', On('a'), if_=: 'event.data.total > 100'" in done.stdout
    assert "pip install 'durable-flows[cel]'" in done.stdout


def test_a_flow_may_listen_to_one_event_under_several_conditions_but_says_nothing_twice():
    with pytest.raises(InvalidOption, match="twice"):
        listener(On("a", if_="event.data.x == 1"), On("a", if_="event.data.x == 1"))
    with pytest.raises(InvalidOption, match="at most 10 triggers, not 11"):
        listener(*(On("a", if_=f"event.data.x == {n}") for n in range(11)))
    with pytest.raises(InvalidOption, match="on="):
        listener(7)  # type: ignore[arg-type]


# -- what it costs ---------------------------------------------------------------------------


@contextmanager
def counted() -> Iterator[list[str]]:
    statements: list[str] = []
    sql.observers.append(statements.append)
    try:
        yield statements
    finally:
        sql.observers.remove(statements.append)


def routed_with(waits: int, **options: Any) -> int:
    """The statements of routing a reply that concerns so many waits."""
    with registry.isolated():
        waiter(**options)
        send([Event("go", {"order": 1}) for _ in range(waits)])
        route()
        while execute_due():
            pass
        send("replied", {"order": 1, "total": 0})
        with counted() as statements:
            route()
    return len(statements)


@pytest.mark.parametrize("if_", [CEL, "async.data.total > 100"])
def test_the_statements_of_routing_do_not_grow_with_the_number_of_waits(if_):
    assert routed_with(1, if_=if_) == routed_with(40, if_=if_)


def test_only_waits_with_an_expression_cost_a_statement_more():
    plain = routed_with(3, match="data.order")
    assert routed_with(3, if_=EQUAL) == plain
    # one for the runs' own events; as nothing matches, nothing is locked or ended, nobody woken
    assert routed_with(3, if_=CEL) == plain - 3 + 1
