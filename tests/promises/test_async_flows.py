"""Handlers written with ``async def``: the same tools, awaited; branches are tasks."""

from __future__ import annotations

import asyncio
import threading
import time
from inspect import signature
from types import SimpleNamespace
from typing import Any, get_overloads

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import Group
from django.db import connection

from durable_flows import (
    AsyncStep,
    Event,
    NonRetriableError,
    RetryAfterError,
    Step,
    StepError,
    cancel,
    flow,
    send,
)
from durable_flows.engine import flight
from durable_flows.errors import InvalidOption
from durable_flows.models import Wait
from durable_flows.testing import advance, crash_after, drain
from tests.promises.staging import again, played

pytestmark = pytest.mark.django_db

#: With threads of their own: their connections see what is committed only.
in_threads = pytest.mark.django_db(transaction=True)


def raises(error: Exception) -> Any:
    raise error


def noted(seen: list[str], name: str) -> str:
    seen.append(name)
    return name


def test_each_tool_is_awaited_and_does_the_same():
    @flow("child")
    async def child(event, step):
        return await step.run("double", lambda: event.data["n"] * 2)

    @flow("tour", on="go")
    async def tour(event, step, run):
        first = await step.run("plain", lambda: 1)

        @step.run("decorated")
        async def second() -> int:
            return 2

        second = await second
        ids = await step.send_event("tell", Event("told", {"n": 3}))
        told = await step.wait_for_event("told", event="told", timeout="1h")
        await step.sleep("nap", "1h")
        await step.sleep_until("nap 2", "2000-01-01")
        doubled = await step.invoke("call", child, {"n": 5})
        return [first, second, told.data["n"], len(ids), doubled, run.flow]

    run = played()
    advance("1h")
    run = again(run)
    assert run.result == [1, 2, 3, 1, 10, "tour"]
    assert run.step_keys == [
        *("plain", "decorated", "tell", "told", "nap", "nap 2", "call"),
    ]


def test_a_coroutine_function_is_a_steps_function_in_either_colour():
    async def fetch(n: int) -> int:
        await asyncio.sleep(0)
        return n

    @flow("plain", on="go")
    def plain(step):
        return step.run("fetch", fetch, 1)

    @flow("coloured", on="go2")
    async def coloured(step):
        return await step.run("fetch", fetch, 2)

    assert (played().result, played("go2").result) == (1, 2)


def test_gather_executes_steps_and_their_keys_go_by_the_order_of_the_calls():
    @flow("gather", on="go")
    async def gather(step):
        return await asyncio.gather(*[step.run("mail", lambda n=n: n) for n in range(3)])

    run = played()
    assert run.result == [0, 1, 2]
    assert {step.key: step.output for step in run.steps} == {"mail": 0, "mail#2": 1, "mail#3": 2}


def test_a_task_with_code_of_its_own_has_keys_of_its_own():
    @flow("gather", on="go")
    async def gather(step):
        async def branch(name: str) -> str:
            first = await step.run("first", lambda: name)
            return await step.run("second", lambda: first * 2)

        return await asyncio.gather(branch("a"), branch("b"))

    run = played()
    assert run.result == ["aa", "bb"]
    assert sorted(run.step_keys) == [
        *("task[0]/first", "task[0]/second", "task[1]/first", "task[1]/second")
    ]


def test_a_task_group_with_one_sleeping_branch_is_not_cancelled_by_the_suspend():
    seen: list[str] = []

    @flow("group", on="go")
    async def group(step):
        async def sleeper() -> str:
            try:
                await step.sleep("nap", "1h")
            except Exception:  # what a suspend must never look like
                seen.append("disturbed")
            return "slept"

        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(sleeper())
            second = tasks.create_task(step.run("work", noted, seen, "work"))
        return [first.result(), second.result()]

    run = played()
    assert "work" in run.step_keys
    advance("1h")
    assert again(run).result == ["slept", "work"]
    assert seen == ["work"]


def test_parallel_and_race_are_awaited_like_the_others():
    @flow("both", on="go")
    async def both(step):
        async def branch() -> str:
            return await step.run("inner", lambda: "b")

        every = await step.parallel(step.later.run("a", lambda: "a"), branch, lambda: "c")
        first = await step.race(
            step.later.wait_for_event("never", event="never", timeout="1 day"),
            step.later.sleep("limit", "1h"),
        )
        return [every, first]

    run = played()
    advance("1h")
    run = again(run)
    assert run.result == [["a", "b", "c"], None]
    assert sorted(run.step_keys) == ["a", "limit", "parallel[1]/inner", "race"]
    assert Wait.objects.get(kind="step").outcome == "closed"


@pytest.mark.parametrize("within", ["a group", "two groups", "a TaskGroup"])
def test_a_branch_in_which_all_others_sleep_does_not_count_among_those_in_flight(within):
    seen: list[str] = []

    async def work() -> None:
        seen.append("begun")
        await asyncio.sleep(0.01)
        seen.append("done")

    @flow("nested", on="go")
    async def nested(step):
        naps = [step.later.sleep("x", "1h"), step.later.sleep("y", "2h")]

        async def rests() -> None:
            if within == "a TaskGroup":
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(step.sleep("x", "1h"))
                    tasks.create_task(step.run("work", work))
            elif within == "two groups":
                await step.parallel(lambda: step.parallel(*naps), step.later.run("work", work))
            else:
                await step.parallel(*naps, step.later.run("work", work))

        await step.parallel(rests, step.later.run("last", noted, seen, "last"), max_in_flight=1)
        return "through"

    run = played()
    assert seen == ["begun", "done", "last"]
    advance("2h")
    assert again(run).result == "through"


def test_an_error_of_a_step_is_raised_where_it_is_awaited():
    @flow("fails", on="go")
    async def fails(step):
        with pytest.raises(StepError, match="broken"):
            await step.run("bad", raises, NonRetriableError("broken"))
        return "caught"

    assert played().result == "caught"


def test_errors_of_a_task_group_that_are_all_final_fail_the_run_at_once():
    @flow("fails", on="go")
    async def fails(step):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(step.run("bad", raises, NonRetriableError("broken")))

    run = played()
    assert run.state == "failed"
    assert run.error["step"] == "bad"


def test_code_between_steps_is_retried():
    tried: list[int] = []

    @flow("shaky", on="go", retries=1)
    async def shaky(step):
        await step.run("first", lambda: 1)
        tried.append(1)
        if len(tried) == 1:
            raise ConnectionError("not yet")
        return "done"

    run = played()
    advance("1h")
    run = again(run)
    assert (run.result, run.attempts) == ("done", {"after:first": 1})


def test_the_orm_is_used_inside_steps_and_between_them():
    async def make(name: str) -> str:
        await Group.objects.acreate(name=name)
        return name

    @flow("orm", on="go")
    async def orm(step):
        await asyncio.gather(*[step.run(f"make {n}", make, n) for n in "abc"])
        await step.run("plain", lambda: Group.objects.create(name="d").name)
        return [group.name async for group in Group.objects.order_by("name")]

    assert played().result == ["a", "b", "c", "d"]


def test_an_atomic_step_is_a_plain_function():
    async def work() -> None: ...

    @flow("refused", on="go", retries=0)
    async def refused(step):
        with pytest.raises(InvalidOption, match="coroutine function 'test_an_atomic"):
            await step.run("work", work, atomic=True)
        await step.run("make", lambda: Group.objects.create(name="g").pk, atomic=True)
        await step.sleep("nap", "1h")

    with crash_after("make", recorded=False):
        run = played()
        advance("2h")
    assert again(run).state == "completed"
    assert Group.objects.count() == 1


def test_a_cancelled_run_ends_at_its_next_step():
    @flow("long", on="go")
    async def long(step):
        await step.sleep("nap", "1 day")

    run = played()
    cancel(run.id)
    drain()
    assert again(run).state == "cancelled"


def test_a_handler_that_swallows_its_cancellation_fails_with_a_named_error():
    @flow("deaf", on="go")
    async def deaf(step):
        try:
            await step.sleep("nap", "1h")
        except asyncio.CancelledError:
            return "never mind"

    run = played()
    assert (run.state, run.error["name"]) == ("failed", "SuspendSwallowed")


def test_clean_up_code_does_no_harm_when_a_slice_ends():
    closed: list[int] = []

    @flow("tidy", on="go")
    async def tidy(step):
        try:
            await step.sleep("nap", "1h")
        finally:
            closed.append(1)
            await step.run("tidy", lambda: closed.append(2))

    run = played()
    assert (closed, run.step_keys) == ([1], ["nap"])
    advance("1h")
    assert again(run).step_keys == ["nap", "tidy"]


def test_a_step_that_is_called_inside_a_steps_coroutine_is_a_named_error():
    @flow("nested", on="go", retries=0)
    async def nested(step):
        async def outer() -> None:
            await step.run("inner", lambda: 1)

        await step.run("outer", outer)

    assert "step 'inner' is called inside the function of step 'outer'" in played().reason


def test_tasks_that_a_steps_function_begins_are_no_branches():
    """On a replay they are not begun: counting them would change the keys of what follows."""

    async def fetch() -> int:
        return sum(await asyncio.gather(*[asyncio.sleep(0, n) for n in (1, 2)]))

    @flow("counts", on="go")
    async def counts(step):
        async def branch() -> str:
            await step.sleep("nap", "1h")
            return "b"

        total = await step.run("fetch", fetch)
        return [total, await asyncio.create_task(branch())]

    run = played()
    advance("1h")
    run = again(run)
    assert (run.result, run.step_keys) == ([3, "b"], ["fetch", "task[0]/nap"])


def test_the_declared_tools_are_those_that_there_are():
    """What type checkers read, against what handlers get."""
    public = {name for name in dir(Step) if not name.startswith("_")}
    assert {name for name in vars(AsyncStep) if not name.startswith("_")} == public
    # Of run each overload has parameters of its own.
    for name in public - {"run", "later", "idempotency_key", "is_replaying"}:
        there = signature(getattr(Step, name))
        for declared in declarations(name):
            assert list(signature(declared).parameters) == list(there.parameters), name


def declarations(name: str) -> list[Any]:
    """Of a tool for async handlers: its overloads, if it has some."""
    overloaded: Any = SimpleNamespace(
        __module__=AsyncStep.__module__, __qualname__=f"{AsyncStep.__qualname__}.{name}"
    )
    return list(get_overloads(overloaded)) or [getattr(AsyncStep, name)]


# -- in threads ------------------------------------------------------------------------------------


@in_threads
def test_coroutines_and_plain_functions_of_steps_execute_at_the_same_time():
    together = threading.Barrier(2, timeout=10)

    async def wait() -> int:
        return await asyncio.get_running_loop().run_in_executor(None, together.wait)

    @flow("both", on="go")
    async def both(step):
        return await asyncio.gather(step.run("a", wait), step.run("b", together.wait))

    assert sorted(played().result) == [0, 1]


@in_threads
def test_the_orm_of_two_steps_has_two_threads():
    together = threading.Barrier(2, timeout=10)

    async def read() -> int:
        def query() -> int:
            together.wait()
            return Group.objects.count()

        return await sync_to_async(query)()

    @flow("both", on="go")
    async def both(step):
        return await asyncio.gather(step.run("a", read), step.run("b", read))

    assert played().result == [0, 0]


@in_threads
def test_the_orm_works_with_threads_of_its_own():
    async def make(name: str) -> str:
        await Group.objects.acreate(name=name)
        return name

    @flow("orm", on="go")
    async def orm(step):
        await asyncio.gather(*[step.run(f"make {n}", make, n) for n in "abc"])
        await step.run("d", lambda: Group.objects.create(name="d").name)
        await step.run("e", lambda: Group.objects.create(name="e").name, atomic=True)
        return [group.name async for group in Group.objects.order_by("name")]

    assert played().result == ["a", "b", "c", "d", "e"]


@in_threads
def test_a_task_goes_on_though_another_is_still_in_a_step():
    over = threading.Event()

    @flow("gather", on="go")
    async def gather(step):
        async def short() -> None:
            await step.sleep("nap", 0.05)
            await step.run("then", over.set)

        return await asyncio.gather(step.run("slow", lambda: over.wait(10)), short())

    assert played().result == [True, None]


@in_threads
def test_connections_of_steps_are_closed():
    opened: list[Any] = []

    async def read() -> int:
        def query() -> int:
            found = Group.objects.count()
            opened.append(connection.connection)
            return found

        return await sync_to_async(query)()

    @flow("gather", on="go")
    async def gather(step):
        return await asyncio.gather(step.run("a", read), step.run("b", read))

    assert played().result == [0, 0]
    assert len(opened) == 2
    if connection.vendor == "postgresql":
        assert all(one.closed for one in opened)


@in_threads
def test_steps_wait_for_a_suspended_neighbour_no_longer_than_they_need():
    """The slice ends once nothing is in flight; what was in flight is recorded."""

    @flow("gather", on="go")
    async def gather(step):
        await asyncio.gather(
            step.wait_for_event("reply", event="reply", timeout="1 day"),
            *[step.run(f"s{n}", lambda n=n: n) for n in range(20)],
        )
        return "all"

    run = played()
    assert len(run.step_keys) == 20
    send("reply")
    drain()
    assert again(run).result == "all"


@in_threads
def test_a_branch_that_asks_the_orm_between_its_steps_is_not_left_behind():
    """Its neighbour waits for long: it must not wait for the same."""

    @flow("gather", on="go")
    async def gather(step):
        async def reads() -> None:
            found = await Group.objects.acount()
            await step.run("note", lambda: found)

        await asyncio.gather(
            step.wait_for_event("reply", event="reply", timeout="1 day"), *[reads() for _ in "abc"]
        )

    assert len(played().step_keys) == 3


async def over_http() -> bytes:
    """What a server says after a while."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.get_running_loop().run_in_executor(None, time.sleep, 0.1)
        writer.write(b"pong\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        said = await reader.readline()
        writer.close()
    return said


async def by_the_clock() -> bytes:
    await asyncio.sleep(0.1)
    return b"pong\n"


@in_threads
@pytest.mark.parametrize("ask", [over_http, by_the_clock])
@pytest.mark.parametrize("group", ["TaskGroup", "parallel"])
def test_a_branch_that_awaits_something_between_its_steps_is_not_left_behind(ask, group):
    @flow("gather", on="go")
    async def gather(step):
        async def asks() -> None:
            await step.run("before", lambda: 1)
            said = await ask()
            await step.run("after", lambda: said.decode())

        async def rests() -> None:
            await step.sleep("rest", "1 day")

        if group == "parallel":
            await step.parallel(rests, asks)
        else:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(rests())
                tasks.create_task(asks())

    began = time.monotonic()
    run = played()
    assert [key.rpartition("/")[2] for key in run.step_keys] == ["rest", "before", "after"]
    assert (run.steps[-1].output, run.warnings) == ("pong\n", {})
    assert time.monotonic() - began < flight.AWAITS / 2


@in_threads
@pytest.mark.parametrize("seconds", [0.3, 3600])
def test_what_a_branch_awaits_for_too_long_ends_the_slice_with_a_warning(seconds, monkeypatch):
    monkeypatch.setattr(flight, "AWAITS", 0.2)

    @flow("gather", on="go")
    async def gather(step):
        async def beats() -> None:
            while True:
                await asyncio.sleep(seconds)

        beat = asyncio.create_task(beats())
        await step.sleep("rest", "1h")
        beat.cancel()

    run = played()
    assert run.activity == "waiting"
    assert "await it inside a step's function" in run.warnings["left behind"]
    advance("1h")
    assert again(run).state == "completed"


@in_threads
def test_a_connection_that_stays_open_holds_up_no_run_whose_lines_all_await_steps():
    """It is kept for the next step, as clients do."""

    @flow("keeps", on="go")
    async def keeps(step):
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        async with server:
            await step.parallel(step.later.sleep("rest", "1 day"))

    began = time.monotonic()
    assert played().step_keys == ["rest"]
    assert time.monotonic() - began < flight.AWAITS / 2


@in_threads
def test_an_attempt_that_comes_while_others_are_in_a_step_calls_the_function_again():
    tried: list[int] = []
    enough = threading.Event()

    def shaky() -> str:
        tried.append(1)
        if len(tried) < 3:
            raise RetryAfterError(0.001)
        enough.set()
        return "there"

    @flow("gather", on="go", retries=3)
    async def gather(step):
        return await asyncio.gather(step.run("shaky", shaky), step.run("slow", enough.wait, 20))

    run = played()
    assert run.result == ["there", True]
    assert run.attempts == {"shaky": 2}


@in_threads
def test_naps_beside_a_step_leave_nothing_in_flight():
    """The slice ends once more when it is to rest for long."""
    rested = threading.Event()

    @flow("gather", on="go")
    async def gather(step):
        async def naps() -> None:
            for n in range(5):
                await step.sleep(f"nap {n}", 0.02)
            await step.run("rested", rested.set)

        await asyncio.gather(naps(), step.run("slow", rested.wait, 20))
        await step.sleep("long", "1h")

    run = played()
    assert (run.state, run.activity) == ("started", "waiting")
    assert run.step_keys[-1] == "long"


def test_a_task_group_cancels_a_neighbour_in_the_middle_of_its_function():
    cancelled: list[str] = []

    async def slow() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append("slow")
            raise

    async def bad() -> None:
        await asyncio.sleep(0.01)
        raise NonRetriableError("broken")

    @flow("group", on="go")
    async def group(step):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(step.run("slow", slow))
            tasks.create_task(step.run("bad", bad))

    run = played()
    assert (run.state, run.error["step"], run.attempts) == ("failed", "bad", {})
    assert cancelled == ["slow"]
