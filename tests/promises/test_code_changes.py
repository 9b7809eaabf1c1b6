"""Code that changes while runs are under way: the new way for some of them, and what does not fit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from durable_flows import NonRetriableError, Step, StepError, cancel, flow, retry
from durable_flows.engine.route import route
from durable_flows.models import Attempt, RunWarning
from durable_flows.registry import registry
from durable_flows.testing import RunView, advance, crash_after, drain
from tests.promises.staging import again, once_at, played

pytestmark = pytest.mark.django_db

ORDER = "order of steps"


def deployed(handler: Callable[..., Any], *, id: str = "order", **options: Any) -> None:
    """The flow as it is from now on."""
    known = registry.find(id)
    if known is not None:
        registry.remove(known)
    flow(id, on="go", **options)(handler)


def changed(before: Callable[..., Any], after: Callable[..., Any], **options: Any) -> RunView:
    """A run that begins with one handler, and ends an hour later with another."""
    deployed(before, **options)
    run = played()
    deployed(after, **options)
    advance("1h")
    return again(run)


def rests(step: Step) -> list[str]:
    done = [step.run("reserve", lambda: "reserve")]
    step.sleep("rest", "1h")
    return [*done, step.run("charge", lambda: "charge")]


# -- patches -------------------------------------------------------------------------------------


def test_a_run_that_comes_to_a_patch_first_takes_the_new_way_and_keeps_it():
    asked: list[bool] = []

    @flow("order", on="go")
    def order(step):
        asked.append(step.patched("faster"))
        step.sleep("rest", "1h")
        return asked[-1]

    run = played()
    advance("1h")
    assert asked == [True, True]
    assert again(run).result is True
    assert again(run).step("patched:faster").kind == "patch"


def test_a_run_that_was_past_the_place_of_a_patch_keeps_the_old_way():
    def after(step: Step) -> list[str]:
        done = [step.run("reserve", lambda: "reserve")]
        if step.patched("no-rest"):
            done.append("new")
        else:
            step.sleep("rest", "1h")
        return [*done, step.run("charge", lambda: "charge")]

    run = changed(rests, after)
    assert run.result == ["reserve", "charge"]
    assert run.step_keys == ["reserve", "rest", "charge"]
    assert played().result == ["reserve", "new", "charge"]


def test_a_run_that_has_yet_to_come_to_the_place_takes_the_new_way():
    def after(step: Step) -> list[Any]:
        done = [step.run("reserve", lambda: "reserve")]
        step.sleep("rest", "1h")
        return [*done, step.patched("no-charge") or step.run("charge", lambda: "charge")]

    assert changed(rests, after).result == ["reserve", True]


def test_patches_are_awaited_in_async_flows():
    async def before(step):
        await step.sleep("rest", "1h")

    async def after(step):
        old = await step.patched("first")
        await step.sleep("rest", "1h")
        return [old, await step.patched("second")]

    run = changed(before, after)
    assert run.result == [False, True]


@pytest.mark.parametrize("begins", ["waits", "invokes", "fails"])
def test_a_run_is_past_a_place_once_a_later_step_has_begun(begins: str):
    flow("child", on="never")(lambda step: step.sleep("long", "2h"))
    failures: list[str] = []

    def fail() -> None:
        failures.append("once")
        if len(failures) == 1:
            raise ConnectionError

    def later(step: Step) -> None:
        if begins == "waits":
            step.wait_for_event("reply", event="reply", timeout="2h")
        elif begins == "invokes":
            step.invoke("child", "child")
        else:
            step.run("fail", fail)

    def after(step: Step) -> bool:
        patched = step.patched("new")
        later(step)
        return patched

    deployed(later)
    run = played()
    deployed(after)
    advance("3h")
    assert again(run).result is False


def test_a_repeated_patch_is_asked_for_each_repetition():
    def before(step: Step) -> None:
        for _ in range(3):
            step.sleep("rest", "1h")

    def after(step: Step) -> list[bool]:
        asked = []
        for _ in range(3):
            asked.append(step.patched("new"))
            step.sleep("rest", "1h")
        return asked

    deployed(before)
    run = played()
    advance("30m")
    deployed(after)
    advance("3h")
    assert again(run).result == [False, True, True]


def test_a_patch_and_a_step_may_have_the_same_id():
    @flow("order", on="go")
    def order(step):
        return [step.patched("mail"), step.run("mail", lambda: "sent")]

    assert played().step_keys == ["patched:mail", "mail"]


def test_a_branch_has_patches_of_its_own():
    def before(step: Step) -> None:
        step.parallel(lambda: step.sleep("rest", "1h"), lambda: step.run("quick", lambda: 1))

    def after(step: Step) -> list[Any]:
        def slow() -> bool:
            patched = step.patched("new")
            step.sleep("rest", "1h")
            return patched

        return [
            step.patched("main"),
            *step.parallel(slow, lambda: [step.run("quick", lambda: 1), step.patched("new")]),
        ]

    assert changed(before, after).result == [False, False, [1, True]]


def test_a_branch_that_is_called_anew_gets_the_same_answer():
    def before(step: Step) -> None:
        step.parallel(lambda: step.sleep("rest", "1h"), lambda: step.sleep("longer", "2h"))

    asked: list[bool] = []

    def after(step: Step) -> None:
        def slow() -> None:
            asked.append(step.patched("new"))
            step.sleep("rest", "1h")
            step.sleep("more", "30m")

        step.parallel(slow, lambda: step.sleep("longer", "2h"))

    deployed(before)
    played()
    deployed(after)
    advance("3h")
    assert len(asked) > 2
    assert not any(asked)


def test_tasks_that_have_begun_are_past_a_place_before_them():
    async def before(step):
        async with asyncio.TaskGroup() as group:
            group.create_task(own(step))

    async def own(step):
        await step.sleep("rest-too", "1h")

    async def after(step):
        first = await step.patched("new")
        async with asyncio.TaskGroup() as group:
            group.create_task(own(step))
        return first

    assert changed(before, after).result is False


def test_a_patch_is_recorded_once_whatever_dies():
    @flow("order", on="go")
    def order(step):
        return step.patched("new")

    with crash_after("patched:new"):
        run = played()
    drain()
    assert again(run).result is True


@pytest.mark.parametrize("id", ["", "patched:x", "x#2", 7])
def test_what_is_no_id_of_a_patch_is_refused(id: Any):
    @flow("order", on="go", retries=0)
    def order(step):
        step.patched(id)

    assert played().reason.startswith("InvalidOption")


def test_a_step_may_not_be_called_as_a_patch_is_recorded():
    @flow("order", on="go", retries=0)
    def order(step):
        step.run("patched:x", lambda: 1)

    assert "choose another id" in played().reason


# -- what does not fit is noted ------------------------------------------------------------------


def test_a_run_that_fits_has_no_warning():
    deployed(rests)
    run = played()
    advance("1h")
    assert again(run).warnings == {}


def test_a_new_step_before_a_recorded_one_is_executed_and_noted():
    def after(step: Step) -> list[str]:
        return [step.run("check", lambda: "check"), *rests(step)]

    run = changed(rests, after)
    assert run.result == ["check", "reserve", "charge"]
    assert "step 'check', which is new to this run, before step 'reserve'" in run.warnings[ORDER]


def test_a_recorded_step_that_is_no_more_is_left_alone_and_noted():
    def after(step: Step) -> str:
        step.sleep("rest", "1h")
        return step.run("charge", lambda: "charge")

    run = changed(rests, after)
    assert (run.state, run.result) == ("completed", "charge")
    assert "new to this run, before step 'reserve'" in run.warnings[ORDER]


def test_an_end_without_a_recorded_step_is_noted_with_both_names():
    def after(step: Step) -> None:
        step.sleep("rest", "1h")

    run = changed(rests, after)
    assert run.state == "completed"
    assert "its end after step 'rest', and not to step 'reserve'" in run.warnings[ORDER]


def test_an_end_without_a_wait_that_was_begun_is_noted():
    def before(step: Step) -> None:
        step.wait_for_event("reply", event="reply", timeout="1h")

    run = changed(before, lambda: "done")
    assert "come to its end without any step, and not to step 'reply'" in run.warnings[ORDER]


def test_a_new_group_before_a_recorded_step_is_noted():
    def after(step: Step) -> None:
        step.parallel(lambda: step.run("new", lambda: 1), lambda: step.run("too", lambda: 1))
        rests(step)

    run = changed(rests, after)
    assert "step 'parallel[0]/new', which is new to this run, before" in run.warnings[ORDER]


def test_a_group_that_a_run_stopped_in_is_no_new_one():
    def quick(step: Step) -> None:
        step.race(lambda: step.run("won", lambda: 1), lambda: step.sleep("lost", "1h"))
        step.sleep("rest", "1h")

    deployed(quick, strict=True)
    with crash_after("race[0]/won"):
        run = played()
    advance("2h")
    assert (again(run).state, again(run).warnings) == ("completed", {})


def test_an_async_flow_that_does_not_fit_is_noted_too():
    async def before(step):
        await step.run("reserve", lambda: 1)
        await step.sleep("rest", "1h")

    async def after(step):
        await step.run("check", lambda: 1)
        await step.sleep("rest", "1h")

    run = changed(before, after)
    assert "step 'check', which is new to this run, before step 'reserve'" in run.warnings[ORDER]


def test_one_warning_is_noted_however_much_has_changed():
    def after(step: Step) -> None:
        for number in range(3):
            step.run(f"new-{number}", lambda: 1)
        step.sleep("rest", "1h")

    run = changed(rests, after)
    assert len(run.warnings) == RunWarning.objects.count() == 1


def test_a_patch_that_was_taken_out_again_is_not_noted():
    def before(step: Step) -> None:
        step.patched("new")
        step.sleep("rest", "1h")

    run = changed(before, lambda step: step.sleep("rest", "1h"))
    assert (run.state, run.warnings) == ("completed", {})


def test_a_retried_run_may_go_another_way():
    failing = [True]

    def do() -> None:
        if failing:
            raise ValueError

    @flow("order", on="go", retries=0, strict=True)
    def order(step):
        try:
            step.run("do", do)
        except StepError:
            step.run("apologise", lambda: 1)
            raise

    run = played()
    assert again(run).state == "failed"
    failing.clear()
    retry(run.id)
    drain()
    assert (again(run).state, again(run).warnings) == ("completed", {})


def test_the_losers_of_a_race_are_not_missed():
    @flow("order", on="go", strict=True)
    def order(step):
        def slow():
            step.run("slow", lambda: 1)
            step.sleep("long", "2h")

        def fast():
            step.sleep("short", "1h")
            return step.run("fast", lambda: "fast")

        won = step.race(slow, fast, step.later.sleep("longest", "3h"))
        step.sleep("rest", "1h")
        return [won, step.run("last", lambda: "last")]

    run = played()
    advance("3h")
    assert (again(run).result, again(run).warnings) == (["fast", "last"], {})


def test_a_loser_is_not_missed_in_the_slice_that_decides_before_it_is_played():
    @flow("order", on="go", strict=True)
    def order(step):
        def fast():
            step.sleep("short", "1h")
            return step.run("fast", lambda: "fast")

        def slow():
            step.run("slow", lambda: 1)
            step.sleep("long", "2h")

        return step.race(fast, slow)

    run = played()
    advance("1h")
    assert (again(run).result, again(run).warnings) == ("fast", {})


def test_branches_of_which_one_has_failed_are_not_missed():
    @flow("order", on="go", strict=True)
    def order(step):
        def fails():
            step.sleep("short", "1h")
            raise ValueError("no")

        def slow():
            step.run("slow", lambda: 1)
            step.sleep("long", "2h")

        try:
            step.parallel(slow, fails, on_error="stop")
        except ValueError:
            step.sleep("rest", "1h")
            return step.run("last", lambda: "last")

    run = played()
    advance("4h")
    assert (again(run).result, again(run).warnings) == ("last", {})


def test_several_waits_and_sagas_are_met_by_the_steps_that_asked_for_them():
    @flow("order", on="go", strict=True)
    def order(step):
        saga = step.saga()
        saga.run("charge", lambda: 1, undo=lambda found: None)
        step.wait_for_events("both", ["a", "b"], timeout="1h")
        step.collect("some", event="a", count=2, timeout="1h")
        return step.run("last", lambda: "last")

    run = played()
    advance("3h")
    assert (again(run).result, again(run).warnings) == ("last", {})


# -- strict ----------------------------------------------------------------------------------------


def renamed(step: Step) -> list[str]:
    done = [step.run("book", lambda: "book")]
    step.sleep("rest", "1h")
    return [*done, step.run("charge", lambda: "charge")]


def test_a_strict_run_is_parked_before_a_new_step_is_executed(caplog):
    with caplog.at_level(logging.WARNING):
        run = changed(rests, renamed, strict=True)
    assert (run.state, run.activity, run.step_keys) == ("started", "parked", ["reserve", "rest"])
    said = run.warnings["parked"]
    assert said.startswith("DeterminismError: the code comes to step 'book'")
    assert "before step 'reserve'" in said
    assert said in caplog.text


def test_a_strict_async_run_is_parked_too():
    async def before(step):
        await step.run("reserve", lambda: 1)
        await step.sleep("rest", "1h")

    async def after(step):
        async with asyncio.TaskGroup() as group:
            group.create_task(step.run("book", lambda: 1))
        await step.sleep("rest", "1h")

    run = changed(before, after, strict=True)
    assert (run.activity, run.step_keys) == ("parked", ["reserve", "rest"])


def test_a_strict_run_is_parked_at_an_end_without_a_recorded_step():
    run = changed(rests, lambda step: step.sleep("rest", "1h"), strict=True)
    assert run.activity == "parked"
    assert "after step 'rest', and not to step 'reserve'" in run.warnings["parked"]


def test_a_handler_that_catches_everything_does_not_get_past_it():
    def after(step: Step) -> str:
        with suppress(BaseException):
            step.run("book", lambda: 1)
        return "done"

    assert changed(rests, after, strict=True).activity == "parked"


def test_a_handler_that_catches_everything_and_goes_on_executes_nothing():
    def after(step: Step) -> list[str]:
        with suppress(BaseException):
            step.run("book", lambda: 1)
        return rests(step)

    run = changed(rests, after, strict=True)
    assert (run.activity, run.step_keys) == ("parked", ["reserve", "rest"])


def test_a_branch_of_a_strict_run_parks_it():
    def before(step: Step) -> None:
        def branch() -> None:
            step.run("reserve", lambda: 1)
            step.sleep("rest", "1h")

        step.parallel(branch, lambda: step.sleep("rest", "2h"))

    def after(step: Step) -> None:
        def branch() -> None:
            step.run("book", lambda: 1)
            step.sleep("rest", "1h")

        step.parallel(branch, lambda: step.sleep("rest", "2h"))

    run = changed(before, after, strict=True)
    assert run.activity == "parked"
    assert "'parallel[0]/book'" in run.warnings["parked"]
    assert "'parallel[0]/reserve'" in run.warnings["parked"]


def test_a_parked_run_goes_on_once_code_is_deployed_that_fits():
    run = changed(rests, renamed, strict=True)
    drain()
    assert again(run).activity == "parked", "the same code is not tried again and again"
    deployed(rests, strict=True)
    drain()
    assert again(run).result == ["reserve", "charge"]


def test_other_code_that_does_not_fit_either_parks_it_anew():
    run = changed(rests, renamed, strict=True)
    deployed(lambda step: step.run("other", lambda: 1), strict=True)
    drain()
    assert again(run).activity == "parked"


def test_a_parked_run_goes_on_once_its_flow_is_strict_no_more():
    run = changed(rests, renamed, strict=True)
    deployed(renamed)
    drain()
    assert again(run).result == ["book", "charge"]


def test_a_run_that_is_parked_can_be_cancelled():
    run = changed(rests, renamed, strict=True)
    cancel(run.id)
    drain()
    assert again(run).state == "cancelled"


def test_a_parked_run_that_is_cancelled_undoes_what_it_has_done():
    undone: list[str] = []

    def before(step: Step) -> None:
        saga = step.saga()
        saga.run("charge", lambda: "c1", undo=undone.append)
        step.sleep("rest", "1h")

    def after(step: Step) -> None:
        step.run("new", lambda: 1)
        before(step)

    run = changed(before, after, strict=True)
    assert run.activity == "parked"
    deployed(before, strict=True)
    cancel(run.id)
    drain()
    assert (again(run).state, undone) == ("cancelled", ["c1"])


def test_a_run_that_is_cancelled_when_it_is_to_be_parked_undoes_what_it_has_done():
    undone: list[str] = []

    def before(step: Step) -> None:
        step.saga().run("charge", lambda: "c1", undo=undone.append)
        step.sleep("rest", "1h")

    def after(step: Step) -> None:
        step.saga().run("charge", lambda: "c1", undo=undone.append)
        step.run("new", lambda: 1)
        step.sleep("rest", "1h")

    deployed(before, strict=True)
    run = played()
    deployed(after, strict=True)

    def stop() -> None:
        cancel(run.id)
        route()

    with once_at("histories_read", stop):
        advance("1h")
    assert (again(run).state, undone) == ("cancelled", ["c1"])
    assert again(run).warnings == {}


def test_a_strict_run_that_fails_before_a_recorded_step_is_undone_and_not_parked():
    undone: list[str] = []

    def before(step: Step) -> None:
        step.saga().run("charge", lambda: "c1", undo=undone.append)
        step.sleep("rest", "1h")

    def after(step: Step) -> None:
        step.saga().run("charge", lambda: "c1", undo=undone.append)
        raise NonRetriableError("not sold any more")

    run = changed(before, after, strict=True)
    assert (run.state, run.reason) == ("failed", "NonRetriableError: not sold any more")
    assert undone == ["c1"]


# -- another kind of step ------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [False, True])
def test_a_step_that_is_of_another_kind_now_parks_the_run(strict: bool):
    def after(step: Step) -> None:
        step.sleep("reserve", "1h")

    run = changed(rests, after, strict=strict)
    assert run.activity == "parked"
    assert (
        "DeterminismError: step 'reserve' is recorded as one of kind 'run', and is 'sleep'"
        in run.warnings["parked"]
    )
    deployed(rests, strict=strict)
    if not strict:  # what a process publishes tells nothing of the code of other flows
        flow("another", on="other")(lambda: None)
    drain()
    assert again(run).result == ["reserve", "charge"]


def test_a_failed_attempt_does_not_count_as_one_when_a_run_is_parked():
    changed(rests, renamed, strict=True)
    assert not Attempt.objects.exists()


@pytest.mark.parametrize("strict", [1, "yes", None])
def test_what_is_neither_strict_nor_not_is_refused(strict: Any):
    from durable_flows.errors import InvalidOption

    with pytest.raises(InvalidOption, match="strict= is True or False"):
        flow("order", strict=strict)(lambda: None)


def test_the_code_of_a_strict_flow_is_told_from_other_code():
    from durable_flows.handlers import fingerprint

    def one(step):
        return step.run("a", lambda: {"x"} & {"x", "y"})

    def same(step):
        return step.run("a", lambda: {"x"} & {"x", "y"})

    def other(step):
        return step.run("b", lambda: {"x"} & {"x", "y"})

    def inner(step):
        return step.run("a", lambda: {"x"} & {"x", "z"})

    assert fingerprint(one) == fingerprint(same)
    assert len({fingerprint(each) for each in (one, other, inner)}) == 3
