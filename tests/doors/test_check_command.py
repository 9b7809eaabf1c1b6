"""``manage.py flows check``: whether unfinished runs can go on with the code at hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.core.management import call_command

from durable_flows import EventType, Step, flow, send
from durable_flows.models import Due, Event, RunWarning
from durable_flows.models import Step as Recorded
from durable_flows.registry import registry
from durable_flows.testing import crash_after
from tests.promises.staging import again, forget, played

pytestmark = pytest.mark.django_db


def check(*arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and what is found."""
    out, code = StringIO(), 0
    try:
        call_command("flows", "check", "--json", *arguments, stdout=out)
    except SystemExit as end:
        code = int(str(end.code))
    found: dict[str, Any] = json.loads(out.getvalue())
    return code, found


def never() -> int:
    pytest.fail("called")


def deployed(handler: Callable[..., Any], **options: Any) -> None:
    known = registry.find("order")
    if known is not None:
        forget(known)
    flow("order", on="go", **options)(handler)


def before(step: Step) -> None:
    step.run("reserve", lambda: "reserved")
    step.sleep("rest", "1h")


async def before_async(step: Any) -> None:
    await step.run("reserve", lambda: "reserved")
    await step.sleep("rest", "1h")


def error_of(after: Callable[..., Any], **options: Any) -> tuple[str, str]:
    """What is said of a run that began with `before`."""
    deployed(before)
    run = played()
    deployed(after, **options)
    code, found = check()
    assert (code, found["checked"]) == (1, 1)
    (finding,) = found["findings"]
    assert (finding["run_id"], finding["flow"]) == (run.id, "order")
    return finding["error"], finding["message"]


@pytest.mark.parametrize("handler", [before, before_async])
def test_runs_that_the_code_fits_are_no_finding(handler: Callable[..., Any]) -> None:
    deployed(handler)
    played()
    assert check() == (0, {"checked": 1, "findings": []})


def test_a_step_that_is_no_more_is_named() -> None:
    error, message = error_of(lambda step: step.sleep("rest", "1h"))
    assert error == "DeterminismError"
    assert "does not come to step 'reserve'" in message


def test_a_step_that_was_renamed_is_named_with_the_new_one() -> None:
    def after(step: Step) -> None:
        step.run("book", never)
        step.sleep("rest", "1h")

    _, message = error_of(after)
    assert "step 'book', which is new to this run, before step 'reserve'" in message


def test_an_async_flow_is_checked_too() -> None:
    async def after(step: Any) -> None:
        await step.run("book", never)
        await step.sleep("rest", "1h")

    assert "'book'" in error_of(after)[1]


def test_a_step_of_another_kind_is_named() -> None:
    _, message = error_of(lambda step: step.sleep("reserve", "1h"))
    assert "'reserve' is recorded as one of kind 'run'" in message


def test_an_error_between_recorded_steps_is_named() -> None:
    def after(step: Step) -> None:
        step.run("reserve", lambda: 1)
        raise ValueError("no such column")

    assert error_of(after) == ("ValueError", "no such column")


def test_a_flow_and_a_version_that_are_gone_are_named() -> None:
    deployed(before)
    played()
    old = registry.find("order")
    assert old is not None
    forget(old)
    _, found = check()
    assert found["findings"][0]["error"] == "UnknownFlow"
    flow("order", version=2)(before)
    _, found = check()
    assert found["findings"][0]["error"] == "VersionGone"


def test_patched_code_fits() -> None:
    def after(step: Step) -> None:
        if step.patched("book"):
            step.run("book", never)
        before(step)

    deployed(before)
    played()
    deployed(after)
    assert check()[0] == 0
    assert not Recorded.objects.filter(kind="patch").exists()


def test_no_step_is_called_and_nothing_stays_of_what_the_code_between_them_does() -> None:
    def after(step: Step) -> None:
        Group.objects.create(name="between")
        send("told")
        step.run("reserve", never)
        step.race(lambda: step.run("a", never), lambda: step.sleep("b", 1))

    deployed(before)
    run = played()
    deployed(after)
    events, due = Event.objects.count(), list(Due.objects.values())
    assert "'rest'" in check()[1]["findings"][0]["message"]
    assert not Group.objects.exists()
    assert Event.objects.count() == events
    assert list(Due.objects.values()) == due
    assert not RunWarning.objects.exists()
    assert again(run).step_keys == ["reserve", "rest"]


def test_a_run_between_a_race_and_its_decision_fits() -> None:
    def race(step: Step) -> None:
        step.race(lambda: step.run("won", lambda: 1), lambda: step.sleep("lost", "1h"))
        step.sleep("rest", "1h")

    deployed(race)
    with crash_after("race[0]/won"):
        played()
    assert check()[0] == 0


def test_one_flow_and_so_many_runs_are_checked_if_asked() -> None:
    deployed(before)
    flow("other", on="go")(before)
    for _ in range(3):
        send("go")
    from durable_flows.testing import drain

    drain()
    assert check()[1]["checked"] == 6
    assert check("--flow", "other")[1]["checked"] == 3
    assert check("--flow", "other", "--limit", "2")[1]["checked"] == 2


def test_people_are_told_in_lines_and_a_sum() -> None:
    deployed(before)
    run = played()
    deployed(lambda step: step.sleep("rest", "1h"))
    out = StringIO()
    with pytest.raises(SystemExit):
        call_command("flows", "check", stdout=out)
    first, last = out.getvalue().splitlines()
    assert first.startswith(f"run {run.id} of flow 'order': DeterminismError: ")
    assert last == "1 unfinished run checked, 1 do not fit"


def test_a_run_whose_event_does_not_fit_its_type_any_more_is_named():
    @dataclass
    class Order:
        number: int

    def after(event: Any, step: Step) -> None:
        before(step)

    deployed(before)
    run = played("go", {"number": "seven"})
    forget(registry.find("order"))  # type: ignore[arg-type]
    flow("order", on=EventType("go", Order))(after)
    code, found = check()
    assert (code, [finding["run_id"] for finding in found["findings"]]) == (1, [run.id])
    assert found["findings"][0]["error"] == "UnreadableEvent"
    assert "/data/number: does not fit" in found["findings"][0]["message"]
