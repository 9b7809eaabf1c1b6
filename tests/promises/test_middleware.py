"""Middleware: around events, runs, steps and values; and tenants, which are captured by it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from cryptography.fernet import Fernet
from django.core.checks import run_checks

from durable_flows import (
    Event,
    Middleware,
    NonRetriableError,
    Retries,
    StepError,
    asend,
    cancel,
    flow,
    rerun,
    retry,
    send_signal,
)
from durable_flows.encryption import Encryption
from durable_flows.errors import InvalidEvent, InvalidOption, InvalidSetting
from durable_flows.middleware import Chain
from durable_flows.models import Event as StoredEvent
from durable_flows.models import Run
from durable_flows.models import Step as StepRow
from durable_flows.testing import advance, drain, run_of, send, sent
from tests.promises.staging import again, played, rolled_back

pytestmark = pytest.mark.django_db


class Notes(Middleware):
    """Notes each hook that is called."""

    def __init__(self, name: str = "", notes: list[str] | None = None) -> None:
        self.name = name
        self.notes = [] if notes is None else notes

    def note(self, text: str) -> None:
        self.notes.append(f"{self.name}{text}")

    def event_sent(self, event):
        self.note(f"sent {event.name}")
        return event

    @contextmanager
    def around_run(self, run):
        self.note(f"run {run.flow}")
        try:
            yield
        finally:
            self.note("end of run")

    @contextmanager
    def around_step(self, step):
        self.note(f"step {step.key} {step.attempt}")
        try:
            yield
        finally:
            self.note("end of step")

    def value_in(self, value, about):
        self.note(f"in {about.kind} {about.name} {about.key}".strip())
        return value

    def value_out(self, value, about):
        self.note(f"out {about.kind} {about.name} {about.key}".strip())
        return value


class Shift(Middleware):
    """Stores each text with its letters shifted."""

    def value_in(self, value, about):
        return shifted(value, 1)

    def value_out(self, value, about):
        return shifted(value, -1)


def shifted(value: Any, by: int) -> Any:
    if isinstance(value, str):
        return "".join(chr(ord(letter) + by) for letter in value)
    if isinstance(value, dict):
        return {key: shifted(item, by) for key, item in value.items()}
    return [shifted(item, by) for item in value] if isinstance(value, list) else value


@pytest.fixture
def use(settings):
    """Let the settings list these."""

    def use(*members: Any, **more: Any) -> None:
        settings.DURABLE_FLOWS = {"RING": "off", "MIDDLEWARE": list(members), **more}

    return use


# -- the hooks -------------------------------------------------------------------------------


def test_hooks_are_called_around_events_runs_steps_and_values(use):
    @flow("asks", on="go")
    def asks(event, step):
        return step.run("one", str.upper, event.data["text"])

    notes = Notes()
    use(notes)
    assert played("go", {"text": "a"}).result == "A"
    assert notes.notes[: notes.notes.index("in result asks") + 1] == [
        "sent go",
        "in data go",
        "out data go",
        "run asks",
        "step one 1",
        "end of step",
        "in step asks one",
        "out step asks one",
        "end of run",
        "in result asks",
    ]


def test_the_first_of_the_list_is_the_outermost(use):
    @flow("asks", on="go")
    def asks(step):
        step.run("one", str, 1)

    notes: list[str] = []
    use(Notes("a ", notes), Notes("b ", notes))
    played("go")
    assert notes.index("a run asks") < notes.index("b run asks")
    assert notes.index("b end of run") < notes.index("a end of run")
    assert notes.index("a in step asks one") < notes.index("b in step asks one")
    assert notes.index("b out step asks one") < notes.index("a out step asks one")


def test_middleware_of_a_flow_is_inside_that_of_the_settings_and_of_no_other_flow(use):
    notes: list[str] = []

    @flow("mine", on="go", middleware=[Notes("flow ", notes)])
    def mine(step):
        return step.run("one", str, 1)

    @flow("other", on="go")
    def other(step):
        return step.run("one", str, 1)

    use(Notes("all ", notes))
    (event_id,) = [send("go")]
    drain()
    assert {run_of(event_id, "mine").result, run_of(event_id, "other").result} == {"1"}
    assert notes.index("all run mine") < notes.index("flow run mine")
    assert "all run other" in notes
    assert "flow run other" not in notes
    # Any flow may get an event: its values pass through the settings' alone.
    assert not [note for note in notes if note.startswith("flow ") and " data " in note]


def test_middleware_of_a_flow_has_its_say_about_what_its_runs_send_and_about_nothing_else(use):
    notes: list[str] = []

    @flow("mine", on="go", middleware=[Notes("flow ", notes)])
    def mine(step):
        step.send_event("tell", Event("told"))
        step.run("send", lambda: send("sent"))

    use(Notes("all ", notes))
    played("go")
    assert [note for note in notes if " sent " in note] == [
        "all sent go",
        *("all sent told", "flow sent told"),
        *("all sent sent", "flow sent sent"),
    ]


def test_a_handler_of_failures_has_its_owners_middleware(use):
    notes: list[str] = []

    @flow("mine", on="go", retries=0, middleware=[Notes("", notes)])
    def mine():
        raise ValueError("no")

    @mine.on_failure
    def failed(event):
        return event.data["error"]["message"]

    played("go")
    assert "run mine/on-failure" in notes


def test_what_is_stored_is_what_middleware_made_and_handlers_get_it_as_it_was(use):
    @flow("asks", on="go")
    def asks(event, step):
        said = step.run("one", lambda: {"text": event.data["text"]})
        step.sleep("rest", "1h")
        return [said, event.user]

    use(Shift)
    run = played("go", {"text": "ab"}, user={"name": "ad"})
    advance("1h")
    drain()
    assert again(run).result == [{"text": "ab"}, {"name": "ad"}]
    assert StoredEvent.objects.get(name="go").data == '{"text":"bc"}'
    assert StepRow.objects.get(key="one").output == '{"text":"bc"}'


def test_errors_pass_through_it_as_well(use):
    @flow("asks", on="go", retries=0)
    def asks(step):
        try:
            step.run("one", int, "x")
        except StepError as error:
            return error.message

    use(Shift)
    assert "invalid literal" in played("go").result
    assert "invalid literal" not in (StepRow.objects.get(key="one").error or "")


def test_of_an_error_that_it_changes_the_reason_tells_the_kind_only(use):
    @flow("fails", on="go", retries=0)
    def fails():
        raise ValueError("a secret")

    use(Shift)
    run = played("go")
    assert run.reason == "ValueError"
    assert run.error["message"] == "a secret"


def test_awaited_events_signals_and_children_pass_through_it(use):
    @flow("child")
    def child(event):
        return event.data["text"]

    @flow("asks", on="go")
    def asks(step):
        found = step.wait_for_event("event", event="told", timeout="1h")
        signal = step.wait_for_signal("signal", "door", timeout="1h")
        return [
            found.data["text"],
            signal.data["text"],
            step.invoke("child", child, {"text": "c"}),
            step.map("children", child, [{"text": "d"}]),
        ]

    use(Shift)
    run = played("go")
    send("told", {"text": "a"})
    send_signal("door", {"text": "b"})
    drain()
    assert again(run).result == ["a", "b", "c", ["d"]]
    assert StoredEvent.objects.get(name="told").data == '{"text":"b"}'


def test_the_test_kit_shows_what_was_sent_as_it_was(use):
    use(Shift)
    send("go", {"text": "a"})
    (event,) = sent("go")
    assert event.data == {"text": "a"}


def test_what_event_sent_raises_the_sender_gets_and_nothing_is_stored(use):
    class Refuses(Middleware):
        def event_sent(self, event):
            raise InvalidEvent("not from here", pointer="/name")

    use(Refuses)
    with pytest.raises(InvalidEvent, match="not from here"):
        send("go")
    assert not StoredEvent.objects.exists()


def test_event_sent_that_returns_no_event_is_told_so(use):
    class Forgets(Middleware):
        def event_sent(self, event):
            return None

    use(Forgets)
    with pytest.raises(InvalidOption, match=r"Forgets\.event_sent returns the event"):
        send("go")


def test_a_send_that_is_rolled_back_leaves_nothing_of_what_middleware_added(use):
    class Adds(Middleware):
        def event_sent(self, event):
            return replace(event, context={"trace": 1})

    use(Adds)
    with rolled_back():
        send("go")
    assert not StoredEvent.objects.exists()


def test_what_around_step_raises_is_a_failed_attempt_of_the_step(use):
    class Refuses(Middleware):
        @contextmanager
        def around_step(self, step):
            if step.attempt == 1:
                raise ConnectionError("not yet")
            yield

    @flow("asks", on="go")
    def asks(step):
        return step.run("one", str, 1)

    use(Refuses)
    run = played("go")
    assert run.attempts == {"one": 1}
    advance("1m")
    drain()
    assert again(run).result == "1"


def test_what_value_out_raises_is_no_business_of_the_handlers_except(use):
    class Locked(Middleware):
        is_locked = True

        def value_out(self, value, about):
            if about.kind == "step" and Locked.is_locked:
                raise ConnectionError("the key is not there")
            return value

    @flow("asks", on="go")
    def asks(step):
        try:
            return step.run("one", str, 1)
        except Exception:
            return "caught"

    use(Locked)
    run = played("go")
    assert run.state == "started"
    Locked.is_locked = False
    advance("1m")
    drain()
    assert again(run).result == "1"


def test_what_value_out_raises_for_good_fails_the_run_and_it_can_be_retried(use):
    class Locked(Middleware):
        is_locked = True

        def value_out(self, value, about):
            if Locked.is_locked:
                raise LookupError("the key is not there")
            return value

    @flow("asks", on="go", retries=0)
    def asks(event):
        return event.data["n"]

    use(Locked)
    (event_id,) = [send("go", {"n": 1})]
    drain()
    Locked.is_locked = False
    run = run_of(event_id)
    assert (run.state, run.reason) == ("failed", "LookupError: the key is not there")
    retry(run.id)
    drain()
    assert again(run).result == 1


# -- sync and async --------------------------------------------------------------------------

here: ContextVar[str] = ContextVar("here", default="")


class Sync(Middleware):
    """Sets a context variable around runs and steps."""

    @contextmanager
    def around_run(self, run):
        token = here.set("run")
        try:
            yield
        finally:
            here.reset(token)

    @contextmanager
    def around_step(self, step):
        token = here.set("step")
        try:
            yield
        finally:
            here.reset(token)


class Async(Middleware):
    """The same, asynchronously."""

    @asynccontextmanager
    async def around_run(self, run):
        await asyncio.sleep(0)
        here.set("run")
        yield
        here.set("")

    @asynccontextmanager
    async def around_step(self, step):
        await asyncio.sleep(0)
        here.set("step")
        yield
        here.set("")


@pytest.mark.parametrize("kind", [Sync, Async])
def test_it_surrounds_ordinary_handlers_and_their_steps(use, kind):
    @flow("asks", on="go")
    def asks(step):
        return [here.get(), step.run("one", here.get), step.run("two", here.get, atomic=True)]

    use(kind)
    first, *steps = played("go").result
    assert first == "run"
    assert steps == ["step", "step"]


@pytest.mark.parametrize("kind", [Sync, Async])
def test_it_surrounds_async_handlers_and_their_steps(use, kind):
    async def ask() -> str:
        await asyncio.sleep(0)
        return here.get()

    @flow("asks", on="go")
    async def asks(step):
        first = here.get()
        return [
            first,
            await step.run("function", here.get),
            await step.run("coroutine", ask),
            await step.run("later", lambda: ask()),
        ]

    use(kind)
    assert played("go").result == ["run", "step", "step", "step"]


@pytest.mark.parametrize("kind", [Sync, Async])
def test_it_surrounds_the_steps_of_branches(use, kind):
    @flow("asks", on="go")
    def asks(step):
        return step.parallel(lambda: step.run("a", here.get), step.later.run("b", here.get))

    use(kind)
    assert played("go").result == ["step", "step"]


def test_it_surrounds_what_undoes_a_step(use):
    seen = []

    @flow("trip", on="go", retries=0)
    def trip(step):
        step.saga().run("book", str, 1, undo=lambda result, _: seen.append((here.get(), result)))
        raise ValueError("no")

    use(Sync, Shift)
    assert played("go").state == "failed"
    assert seen == [("step", "1")]


def test_what_was_undone_and_cannot_be_read_is_not_undone_again(use):
    class Locked(Middleware):
        is_locked = False

        def value_out(self, value, about):
            if Locked.is_locked and about.key.endswith("#undo"):
                raise ConnectionError("the key is not there")
            return value

    undone = []

    @flow("trip", on="go", retries=0)
    def trip(step):
        saga = step.saga()
        saga.run("first", str, 1, undo=lambda *_: undone.append("first"))
        saga.run("second", str, 2, undo=lambda *_: undone.append("second"))
        raise ValueError("no")

    use(Locked)
    Locked.is_locked = True
    run = played("go")
    assert undone == ["second"]
    assert run.state == "started"
    Locked.is_locked = False
    advance("1m")
    assert again(run).state == "failed"
    assert undone == ["second", "first"]


def test_asend_calls_it_in_the_senders_transaction(use):
    notes = Notes()
    use(notes)

    async def view() -> None:
        await asend("go")

    async_to_sync(view)()
    assert notes.notes[0] == "sent go"


# -- what it costs ---------------------------------------------------------------------------


def test_a_hook_that_nobody_overrides_is_not_called():
    class Nothing(Middleware):
        pass

    chain = Chain([Nothing(), Nothing()])
    assert not chain.changes_values
    assert not chain.surrounds_steps


# -- what travels with an event --------------------------------------------------------------


class Counts(Middleware):
    """Captures a number that rises."""

    def __init__(self) -> None:
        self.count = 0

    def event_sent(self, event):
        self.count += 1
        return replace(event, context={"n": self.count, **event.context})


def test_what_is_captured_travels_with_an_event_to_all_that_comes_of_it(use):
    @flow("child")
    def child(event):
        return event.context["n"]

    @flow("asks", on="go")
    def asks(event, step):
        step.send_event("tell", Event("told"))
        invoked = step.invoke("child", child)
        return [event.context["n"], invoked, step.map("all", child, [{}])]

    @flow("listens", on="told", retries=0)
    def listens(event):
        raise ValueError

    @listens.on_failure
    def failed(event):
        return event.context["n"]

    use(Counts())
    assert played("go").result == [1, 1, [1]]
    (told,) = StoredEvent.objects.filter(name="flows/function.failed")
    assert told.context == '{"n":1}'


def test_what_is_captured_can_be_matched(use):
    @flow("asks", on="go")
    def asks(step):
        found = step.wait_for_event("reply", event="reply", match="context.n", timeout="1h")
        return found and found.context

    class Says(Middleware):
        n = 1

        def event_sent(self, event):
            return replace(event, context={"n": Says.n})

    use(Says)
    run = played("go")
    Says.n = 2
    send("reply")
    drain()
    assert again(run).state == "started"
    Says.n = 1
    send("reply")
    drain()
    assert again(run).result == {"n": 1}


# -- what the settings may say ---------------------------------------------------------------


def test_it_is_listed_as_itself_as_a_class_or_as_a_path(use):
    use(Notes(), Sync, "tests.promises.test_middleware.Shift")
    assert played_shift() == "a"


def played_shift() -> str:
    @flow("asks", on="go")
    def asks(event):
        return event.data["text"]

    result: str = played("go", {"text": "a"}).result
    return result


@pytest.mark.parametrize(
    ("listed", "says"),
    [
        (["no.such.thing"], "'no.such.thing' cannot be imported"),
        ([int], "not <class 'int'>"),
        ("a path", "takes list or tuple"),
    ],
)
def test_what_is_no_middleware_is_named_by_the_check_and_by_send(settings, listed, says):
    settings.DURABLE_FLOWS = {"RING": "off", "MIDDLEWARE": listed}
    assert says in "".join(message.msg for message in run_checks())
    with pytest.raises(InvalidSetting, match=says.replace("(", r"\(")):
        send("go")


def test_what_is_no_middleware_of_a_flow_is_an_error_at_import():
    with pytest.raises(InvalidOption, match=r"flow 'asks': middleware= .* not 5"):

        @flow("asks", middleware=[5])  # type: ignore[list-item]
        def asks():
            pass


# -- tenants ---------------------------------------------------------------------------------

tenant: ContextVar[str | None] = ContextVar("tenant", default=None)


@contextmanager
def tenant_scope(name: str) -> Iterator[None]:
    token = tenant.set(name)
    try:
        yield
    finally:
        tenant.reset(token)


@pytest.fixture
def tenants(use):
    use(TENANT=tenant.get, TENANT_SCOPE="tests.promises.test_middleware.tenant_scope")


def test_a_tenant_is_captured_where_an_event_is_sent_and_restored_in_the_worker(tenants):
    @flow("asks", on="go")
    def asks(run, step):
        one = step.run("one", tenant.get)
        return [run.tenant, tenant.get(), one, *step.parallel(step.later.run("two", tenant.get))]

    with tenant_scope("acme"):
        event_id = send("go")
    drain()
    assert run_of(event_id).result == ["acme"] * 4
    assert tenant.get() is None


def test_a_tenant_is_restored_in_an_async_handler(tenants):
    async def ask() -> str | None:
        return tenant.get()

    @flow("asks", on="go")
    async def asks(step):
        return [tenant.get(), await step.run("f", tenant.get), await step.run("c", ask)]

    with tenant_scope("acme"):
        event_id = send("go")
    drain()
    assert run_of(event_id).result == ["acme"] * 3


def test_each_tenants_runs_are_their_own_though_one_worker_executes_them(tenants):
    @flow("asks", on="go")
    def asks(run, step):
        return [run.tenant, step.run("one", tenant.get)]

    ids: dict[str | None, str] = {}
    for name in ("acme", "bolt", None):
        if name is None:
            ids[name] = send("go")
        else:
            with tenant_scope(name):
                ids[name] = send("go")
    drain()
    assert {name: run_of(id).result for name, id in ids.items()} == {
        "acme": ["acme", "acme"],
        "bolt": ["bolt", "bolt"],
        None: [None, None],
    }


def test_what_a_run_sends_starts_and_invokes_is_for_its_tenant_though_none_is_captured(use):
    use(TENANT=tenant.get)  # and no scope

    @flow("child")
    def child(run):
        return run.tenant

    @flow("asks", on="go")
    def asks(step):
        step.send_event("tell", Event("told"))
        started = step.run("start", lambda: child.start())
        return [step.invoke("child", child), started]

    with tenant_scope("acme"):
        event_id = send("go")
    drain()
    invoked, started = run_of(event_id).result
    assert invoked == "acme"
    assert run_of(started).result == "acme"
    assert StoredEvent.objects.get(name="told").context == '{"tenant":"acme"}'


@pytest.mark.parametrize("wrong", ["", "x" * 256, 7])
def test_a_tenant_that_is_no_short_text_is_refused_where_it_is_sent(use, wrong):
    use(TENANT=lambda: wrong)
    with pytest.raises(InvalidEvent, match=r'DURABLE_FLOWS\["TENANT"\] returns text'):
        send("go")
    assert not StoredEvent.objects.exists()


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"TENANT": "no.such.thing"}, "cannot be imported"),
        ({"TENANT": "json.decoder.NaN"}, "is a callable, or its path"),
        ({"TENANT_SCOPE": tenant_scope}, "set that, too"),
        ({"TENANT": 5}, "takes str"),
    ],
)
def test_wrong_tenant_settings_are_named_by_the_check(settings, said, says):
    settings.DURABLE_FLOWS = {"RING": "off", **said}
    assert says in "".join(message.msg for message in run_checks())


# -- what fails, or does otherwise -------------------------------------------------------------


class Locked(Middleware):
    """Reads nothing while it is locked."""

    is_locked = False

    def value_out(self, value, about):
        if Locked.is_locked:
            raise ConnectionError("the key is not there")
        return value


@pytest.fixture
def locked(use):
    use(Locked)
    Locked.is_locked = False
    yield
    Locked.is_locked = False


@pytest.mark.parametrize("strict", [False, True])
def test_a_failure_that_cannot_be_read_leads_the_handler_no_other_way(locked, strict):
    @flow("asks", on="go", strict=strict)
    def asks(step):
        try:
            step.run("charge", int, "x", retries=0)
        except StepError:
            step.sleep("rest", "1h")
        except Exception:
            step.run("page", str, "somebody")

    run = played("go")
    Locked.is_locked = True
    advance("1h")
    assert again(run).state == "started"
    Locked.is_locked = False
    advance("1m")
    assert again(run).state == "completed"
    assert again(run).step_keys == ["charge", "rest"]


@pytest.mark.parametrize("in_saga", [False, True])
def test_an_edited_input_that_cannot_be_read_now_is_read_later(locked, in_saga):
    @flow("asks", on="go")
    def asks(step):
        if in_saga:
            return step.saga().run("one", str, "a", undo=lambda *_: None)
        return step.run("one", str, "a")

    run = played("go")
    later = rerun(run.id, from_step="one", input=["b"])
    Locked.is_locked = True
    drain()
    assert run_of(later).state == "started"
    Locked.is_locked = False
    advance("1m")
    assert run_of(later).result == "b"


@pytest.mark.parametrize("cancelled", [False, True])
def test_what_cannot_be_read_now_is_undone_later_however_long_that_takes(locked, cancelled):
    undone = []

    @flow("trip", on="go", retries=0)
    def trip(event, step):
        step.saga().run("book", str, "a room", undo=lambda result, _: undone.append(result))
        step.sleep("rest", "1h")
        raise ValueError("no")

    run = played("go")
    Locked.is_locked = True
    if cancelled:
        cancel(run.id)
    for _ in range(10):
        advance("1h")
    Locked.is_locked = False
    assert undone == []
    advance("1m")
    assert again(run).state == ("cancelled" if cancelled else "failed")
    assert undone == ["a room"]


def test_an_undo_that_failed_and_cannot_be_read_now_keeps_the_others_from_being_given_up(use):
    class Hides(Middleware):
        is_locked = False

        def value_out(self, value, about):
            if Hides.is_locked and about.kind == "error":
                raise ConnectionError("the key is not there")
            return value

    tries = []

    def undo_first(*_):
        tries.append(1)
        if len(tries) == 1:
            raise ConnectionError("not yet")

    @flow("trip", on="go", retries=1)
    def trip(step):
        saga = step.saga()
        saga.run("first", str, 1, undo=undo_first)
        saga.run("second", str, 2, undo=int, retries=0)
        raise NonRetriableError("no")

    use(Hides)
    run = played("go")
    Hides.is_locked = True
    advance("5m")
    assert again(run).state == "started"
    Hides.is_locked = False
    advance("5m")
    assert again(run).state == "failed"
    assert len(tries) == 2


@pytest.mark.parametrize("answer", [None, "z", {"z": 1}])
def test_of_an_error_that_middleware_makes_nothing_of_the_kind_is_recorded(use, answer):
    class Breaks(Middleware):
        def value_in(self, value, about):
            if about.kind != "error":
                return value
            if answer is None:
                raise ConnectionError("the key service is down")
            return answer

    @flow("fails", on="go", retries=0)
    def fails(step):
        step.run("one", int, "x")

    use(Breaks)
    run = played("go")
    assert run.state == "failed"
    assert run.error["name"] == "ValueError"
    assert "hidden" in run.error["message"]
    assert "invalid literal" not in str(run)


class Box(Middleware):
    """Stores each value in a box, but for errors, which stay what they are."""

    def value_in(self, value, about):
        return value if about.kind == "error" else {"box": value}

    def value_out(self, value, about):
        return value if about.kind == "error" else value["box"]


def test_each_result_of_children_and_each_part_of_an_end_passes_by_itself(use):
    @flow("child")
    def child(event):
        return event.data["n"]

    @flow("asks", on="go")
    def asks(step):
        return step.map("all", child, [{"n": 1}, {"n": 2}])

    @flow("listens", on="flows/function.finished")
    def listens(event):
        return [event.data["function_id"], event.data["event"]["data"], event.data["result"]]

    use(Box)
    assert played("go", {"a": 1}).result == [1, 2]
    told = Run.objects.filter(flow="listens").values_list("result", flat=True)
    assert '{"box":["asks",{"a":1},[1,2]]}' in told


def test_an_error_of_a_child_is_stored_as_those_of_its_own(use):
    @flow("child", retries=0)
    def child():
        raise ValueError("no such card")

    @flow("asks", on="go")
    def asks(step):
        try:
            step.invoke("one", child)
        except StepError as error:
            return [error.message, "no such card" in error.stack]

    use(Shift)
    message, is_told = played("go").result
    assert message.endswith("ValueError")
    assert is_told
    assert "no such card" not in (StepRow.objects.get(key="one").error or "")


def test_middleware_of_a_flow_need_not_be_hashable():
    @dataclass
    class Settings(Middleware):
        name: str = ""

    @flow("asks", on="go", middleware=[Settings("a")])
    def asks():
        return 1

    assert played("go").result == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_an_async_manager_is_left_after_the_work_whatever_that_is(use, is_async):
    notes = []

    class Around(Middleware):
        @asynccontextmanager
        async def around_step(self, step):
            notes.append("in")
            try:
                yield
            finally:
                await asyncio.sleep(0)
                notes.append("out")

    @flow("asks", on="go")
    def asks(step):
        step.run("one", notes.append, "work")

    @flow("asks-async", on="go-async")
    async def asks_async(step):
        await step.run("one", notes.append, "work")

    use(Around)
    played("go-async" if is_async else "go")
    assert notes == ["in", "work", "out"]


@pytest.mark.parametrize("hook", ["around_run", "around_step"])
def test_a_manager_that_swallows_an_exception_is_told_so(use, hook):
    class Swallows(Middleware):
        pass

    setattr(Swallows, hook, lambda self, _: suppress(ValueError))

    @flow("asks", on="go", retries=0)
    def asks(step):
        step.run("one", str, 1)
        if hook == "around_run":
            raise ValueError("no")
        step.run("two", int, "x")

    use(Swallows)
    run = played("go")
    assert run.state == "failed"
    assert "has swallowed an exception" in run.error["message"]


def test_a_failed_read_is_tried_again_whatever_the_retries_are_on(locked):
    @flow("asks", on="go", retries=Retries(3, on=(KeyError,)))
    def asks(event):
        return event.data["n"]

    Locked.is_locked = True
    run = played("go", {"n": 1})
    assert run.state == "started"
    Locked.is_locked = False
    advance("1m")
    assert again(run).result == 1


def test_encryption_on_a_flow_is_refused_at_import():
    with pytest.raises(InvalidOption, match=r"list it in DURABLE_FLOWS\[\"MIDDLEWARE\"\]"):

        @flow("asks", middleware=[Encryption([Fernet.generate_key()])])
        def asks():
            pass
