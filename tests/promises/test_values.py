"""Values that JSON does not have: one set of rules, wherever something is stored."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any

import pydantic
import pytest
from django.contrib.auth.models import Group

from durable_flows import Event, InvalidEvent, flow, rerun, send, send_signal
from durable_flows.rules import payload
from durable_flows.testing import crash_after, drain, run_of
from tests.promises.staging import again, played, row, stored

pytestmark = pytest.mark.django_db

ID = uuid.UUID("0190d5e4-7d3a-7c3e-8f5e-3b2a1c0d9e8f")


class Size(Enum):
    SMALL = "s"


@dataclass
class Line:
    sku: uuid.UUID
    price: Decimal


class Customer(pydantic.BaseModel):
    id: uuid.UUID
    since: date


VALUES: dict[str, Any] = {
    "datetime": datetime(2026, 3, 1, 12, tzinfo=UTC),
    "date": date(2026, 3, 1),
    "time": time(9, 30),
    "uuid": ID,
    "decimal": Decimal("1.10"),
    "enum": Size.SMALL,
    "dataclass": Line(ID, Decimal("9.90")),
    "model": Customer(id=ID, since=date(2026, 3, 1)),
}
WRITTEN: dict[str, Any] = {
    "datetime": "2026-03-01T12:00:00+00:00",
    "date": "2026-03-01",
    "time": "09:30:00",
    "uuid": str(ID),
    "decimal": "1.10",
    "enum": "s",
    "dataclass": {"sku": str(ID), "price": "9.90"},
    "model": {"id": str(ID), "since": "2026-03-01"},
}


def test_the_result_of_a_step_is_what_is_recorded_the_first_time_and_on_each_replay():
    got: list[Any] = []

    @flow("pricing", on="go")
    def pricing(step):
        got.append(step.run("look-up", lambda: VALUES))
        step.sleep("rest", 0)
        step.run("more", lambda: None)

    with crash_after("more"):
        run = played()
    drain()
    assert again(run).state == "completed"
    assert got == [WRITTEN, WRITTEN]
    assert again(run).step("look-up").output == WRITTEN


def test_the_result_of_an_atomic_step_is_written_by_the_same_rules():
    @flow("founding", on="go")
    def founding(step):
        Group.objects.create(name="first")
        return step.run("found", lambda: VALUES, atomic=True)

    assert played().result == WRITTEN


def test_the_result_of_a_run_is_written_by_the_same_rules_and_its_parent_gets_that():
    @flow("child")
    def child():
        return VALUES

    @flow("parent", on="go")
    def parent(step):
        return [step.invoke("call", child), step.map("each", child, [{}])]

    assert played().result == [WRITTEN, [WRITTEN]]


def test_a_handler_may_return_its_event():
    @flow("echo", on="go")
    def echo(event):
        return event

    result = played("go", {"n": 1}, user={"id": 7}).result
    assert (result["name"], result["data"], result["user"]) == ("go", {"n": 1}, {"id": 7})
    assert "subject" not in result


def test_data_and_user_of_an_event_are_written_by_the_same_rules():
    got: list[Any] = []

    @flow("reader", on="go")
    def reader(event):
        got.append((event.data, event.user))

    played("go", VALUES, user={"born": date(1815, 12, 10)})
    assert got == [(WRITTEN, {"born": "1815-12-10"})]


@pytest.mark.parametrize("kind", ["dataclass", "model"])
def test_the_data_of_an_event_may_be_such_an_object(kind):
    (event_id,) = send(Event("go", VALUES[kind], user=VALUES[kind]))
    kept = row(event_id)
    assert payload.loads(kept.data) == WRITTEN[kind]
    assert kept.user == kept.data


def test_what_a_flow_is_started_with_is_written_by_the_same_rules():
    @flow("reader")
    def reader(event):
        return event.data

    @flow("parent", on="go")
    def parent(step):
        line = VALUES["dataclass"]
        return [step.invoke("call", reader, line), step.map("each", reader, [line, {"l": line}])]

    run_id = reader.start(VALUES["model"])
    drain()
    assert run_of(run_id).result == WRITTEN["model"]
    line = WRITTEN["dataclass"]
    assert played().result == [line, [line, {"l": line}]]


def test_the_data_of_a_signal_are_written_by_the_same_rules():
    @flow("asks", on="go")
    def asks(step):
        signal = step.wait_for_signal("wait", "door", timeout="1h")
        return signal and signal.data

    send_signal("door", VALUES)
    assert played().result == WRITTEN
    send_signal("door", VALUES["dataclass"])
    assert played().result == WRITTEN["dataclass"]


def test_edits_of_a_run_that_is_done_again_are_written_by_the_same_rules():
    @flow("adding", on="go")
    def adding(event, step):
        first = step.run("first", lambda value: value, event.data)
        return [first, step.run("second", lambda value: value, 1)]

    run = played()
    with_data = rerun(run.id, data=VALUES)
    with_input = rerun(run.id, from_step="second", input=[VALUES])
    with_output = rerun(run.id, from_step="second", output=VALUES["model"])
    drain()
    assert run_of(with_data).result == [WRITTEN, 1]
    assert run_of(with_input).result == [{}, WRITTEN]
    assert run_of(with_output).result == [{}, WRITTEN["model"]]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (timedelta(days=1), "use value.total_seconds()"),
        ({1}, "use sorted(value)"),
        (b"x", "base64"),
        (Decimal("NaN"), "use None"),
        (Group(pk=7, name="x"), "use value.pk"),
        (Group.objects, "values_list"),
    ],
    ids=["timedelta", "set", "bytes", "nan", "row", "manager"],
)
def test_what_has_no_rule_is_refused_with_a_pointer_and_a_remedy(value, says):
    with pytest.raises(InvalidEvent, match="^/data/line/price: ") as caught:
        send("go", {"line": Line(ID, value)})
    assert says in caught.value.problem
    assert stored() == []

    @flow("returns", on="go")
    def returns(step):
        return step.run("work", lambda: {"line": Line(ID, value)})

    run = played()
    assert (run.state, run.attempts) == ("failed", {})
    assert run.error["name"] == "UnserialisableResult"
    assert "/line/price: " in run.error["message"]
    assert says in run.error["message"]


def test_a_queryset_is_refused_without_being_evaluated(django_assert_num_queries):
    with (
        django_assert_num_queries(0),
        pytest.raises(InvalidEvent, match='values_list\\("pk", flat=True\\)'),
    ):
        send("go", {"groups": Group.objects.all()})
