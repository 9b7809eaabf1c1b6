"""Subjects: events and runs are about rows of the project's own models."""

from __future__ import annotations

from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.contenttypes.models import ContentType
from django.db import models as django_models
from django.db import transaction
from django.db.models.deletion import ProtectedError
from django.test import override_settings
from django.test.utils import isolate_apps

from durable_flows import (
    AsyncStep,
    Event,
    FlowSubject,
    Run,
    Step,
    StepError,
    asend,
    cancel,
    flow,
    rerun,
    retry,
    send_signal,
    signals,
)
from durable_flows import send as send_all
from durable_flows.errors import InvalidEvent, InvalidOption, WrongDatabase
from durable_flows.models import Event as StoredEvent
from durable_flows.models import Run as StoredRun
from durable_flows.testing import advance, crash_after, drain, run_of, runs_of, send
from tests.library.models import (
    Author,
    Book,
    Card,
    Copy,
    Loan,
    LoanByPost,
    LongLoan,
    Shelf,
)
from tests.promises.staging import again, played, rolled_back, stored

pytestmark = pytest.mark.django_db


@pytest.fixture
def author() -> Author:
    return Author.objects.create(name="Grace")


def about(name: str) -> list[Any]:
    """What the stored events of a name are about."""
    events = StoredEvent.objects.filter(name=name).order_by("arrival")
    return [
        event.subject_type and event.subject_type.get_object_for_this_type(pk=event.subject_id)
        for event in events
    ]


def waiting(id: str = "wait", on: str = "go") -> None:
    @flow(id, on=on)
    def wait(step):
        step.sleep("rest", "30 days")


# -- saying it -------------------------------------------------------------------------------


def test_a_run_is_about_what_its_event_is_about(author):
    waiting()
    run = played(subject=author)
    assert about("go") == [author]
    assert run.subject == author
    kept = StoredRun.objects.get(pk=run.id)
    assert (kept.subject, kept.subject_id) == (author, str(author.pk))


def test_without_a_subject_a_run_is_about_nothing():
    waiting()
    run = played()
    assert run.subject is None
    kept = StoredRun.objects.get(pk=run.id)
    assert (kept.subject_type, kept.subject_id) == (None, None)


def test_each_event_of_a_list_has_its_own_subject(author):
    other = Author.objects.create()
    send_all([Event("a", subject=author), Event("a"), Event("a", subject=other)])
    assert about("a") == [author, None, other]


def test_a_coroutine_sends_with_a_subject(author):
    async def view() -> None:
        await asend("a", subject=author)

    async_to_sync(view)()
    assert about("a") == [author]


def test_emit_takes_a_subject(author):
    signals.emit.send(None, name="a", subject=author)
    assert about("a") == [author]


def test_a_run_is_started_with_a_subject(author):
    @flow("count")
    def count(run: Run) -> int:
        return int(run.subject.pk)

    run_id = count.start(subject=author)
    drain()
    assert run_of(run_id).result == author.pk


def test_a_subject_may_have_any_single_key():
    waiting()
    for row in (Card.objects.create(), Shelf.objects.create(code="x" * 255)):
        assert played(subject=row).subject == row


def test_a_row_of_a_proxy_counts_as_one_of_the_table_and_a_child_as_itself():
    proxy, child = LoanByPost.objects.create(), LongLoan.objects.create()
    send_all([Event("a", subject=proxy), Event("a", subject=child)])
    assert [type(row) for row in about("a")] == [Loan, LongLoan]


def test_an_event_that_is_dropped_for_its_id_keeps_the_subject_of_the_first(author):
    send("a", id="1", subject=author)
    send("a", id="1", subject=Author.objects.create())
    assert about("a") == [author]


# -- what is refused ---------------------------------------------------------------------------


def refusal(subject: Any) -> InvalidEvent:
    with pytest.raises(InvalidEvent) as caught:
        send("a", subject=subject)
    assert stored() == []
    return caught.value


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (Author(), "this Author is not saved: save\\(\\) it first"),
        (Author(pk=7), "not saved"),
        (Card(), "not saved"),
        (Copy(shelf="a", number=1), "composite primary key"),
        (7, "is a row, an instance of a model, or None, not 7"),
        (Author, "pass an instance of it"),
    ],
    ids=["unsaved", "hand-made", "with a default key", "composite", "a key", "a model"],
)
def test_what_is_no_saved_row_is_refused(row, says):
    error = refusal(row)
    assert error.pointer == "/subject"
    with pytest.raises(InvalidEvent, match=says):
        raise error


def test_a_key_that_is_too_long_is_refused():
    assert "256 characters" in str(refusal(Shelf.objects.create(code="x" * 256)))


def test_in_a_list_the_error_says_which_event_it_is(author):
    with pytest.raises(InvalidEvent) as caught:
        send_all([Event("a", subject=author), Event("a", subject=Author())])
    assert caught.value.pointer == "/1/subject"
    assert stored() == []


def test_a_row_of_another_database_is_refused(author):
    author._state.db = "archive"
    assert "on database 'archive'" in str(refusal(author))


class Replicas:
    """Reads from elsewhere, writes to the same."""

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"


@override_settings(DATABASE_ROUTERS=[Replicas()])
def test_a_row_that_was_read_from_a_replica_is_none_of_another_database(author):
    author._state.db = "replica"
    send("a", subject=author)
    assert about("a") == [Author.objects.get()]


def test_beside_an_event_object_a_subject_is_a_type_error(author):
    with pytest.raises(TypeError, match="subject in the Event"):
        send_all(Event("a"), subject=author)  # type: ignore[call-overload]


def test_what_is_deleted_is_no_subject(author):
    author.delete()
    refusal(author)


# -- what inherits it --------------------------------------------------------------------------


def test_whatever_a_run_sends_or_starts_is_about_the_same(author):
    @flow("child", on="told")
    def child(run): ...

    @flow("parent", on="go")
    def parent(step):
        step.send_event("send", Event("sent"))
        step.run("plain", lambda: send_all("plain") and None)
        step.run("start", child.start)
        step.run("signal", lambda: send_signal("s"))
        step.invoke("call", child)
        step.map("map", child, [{}, {}])
        step.send_event("tell", Event("told"))

    run = played(subject=author)
    drain()
    assert run.state == "completed"
    assert about("sent") + about("plain") == [author, author]
    children = [view for event in StoredRun.objects.exclude(pk=run.id) for view in [event.subject]]
    assert children == [author] * 5


def test_an_async_flow_hands_it_on_too(author):
    @flow("parent", on="go")
    async def parent(step: AsyncStep) -> None:
        await step.send_event("send", Event("sent"))
        await step.run("plain", lambda: send_all("plain") and None)

    played(subject=author)
    assert about("sent") + about("plain") == [author, author]


def test_a_run_may_say_otherwise(author):
    other = Author.objects.create()

    @flow("child")
    def child(): ...

    @flow("parent", on="go")
    def parent(step):
        step.send_event("send", [Event("sent", subject=other), Event("sent", subject=None)])
        step.invoke("call", child, subject=other)
        step.invoke("call nobody", child, subject=None)

    run = played(subject=author)
    drain()
    assert about("sent") == [other, None]
    assert [run_of(child_id).subject for child_id in again(run).children] == [other, None]


def test_a_subject_that_cannot_be_one_fails_the_step_that_invokes(author):
    @flow("child")
    def child(): ...

    @flow("parent", on="go")
    def parent(step):
        with pytest.raises(StepError, match="not saved"):
            step.invoke("call", child, subject=Author())
        return "caught"

    assert played().result == "caught"


def test_what_handles_the_end_of_a_run_is_about_the_same(author):
    @flow("breaks", on="go", retries=0)
    def breaks(step):
        step.run("charge", lambda: 1 / 0)

    @breaks.on_failure
    def failed(run):
        return str(run.subject)

    @flow("rests", on="go")
    def rests(step):
        step.sleep("rest", "1 day")

    @rests.on_cancel
    def cancelled(run):
        return str(run.subject)

    event_id = send("go", subject=author)
    drain()
    cancel(run_of(event_id, "rests").id)
    drain()
    handlers = StoredRun.objects.filter(flow__contains="/on-")
    assert sorted((run.flow, run.result) for run in handlers) == [
        ("breaks/on-failure", '"Grace"'),
        ("rests/on-cancel", '"Grace"'),
    ]


def test_a_run_that_is_done_again_is_about_the_same(author):
    waiting()
    run = played(subject=author)
    for new in (rerun(run.id), rerun(run.id, data={"other": 1})):
        drain()
        assert run_of(new).subject == author


def test_a_run_that_is_retried_is_about_the_same(author):
    broken = True

    @flow("breaks", on="go", retries=0)
    def breaks(step, run):
        step.run("charge", lambda: 1 / int(not broken))
        return str(run.subject)

    run = played(subject=author)
    broken = False
    retry(run.id)
    drain()
    assert again(run).result == "Grace"


def test_it_survives_the_death_of_the_worker(author):
    @flow("parent", on="go")
    def parent(step):
        step.run("first", int)
        step.send_event("send", Event("sent"))

    with crash_after("first") as crash:
        send("go", subject=author)
        drain()
        drain()
    assert crash.happened
    assert about("sent") == [author]


# -- in the handler ----------------------------------------------------------------------------


def test_a_handler_sees_the_row_as_it_stands_now(author):
    @flow("look", on="go")
    def look(step: Step, run: Run) -> list[str]:
        before = str(run.subject)
        step.run("rename", lambda: Author.objects.update(name="Ada"))
        return [before, str(run.subject)]

    assert played(subject=author).result == ["Grace", "Ada"]


def test_a_handler_sees_none_once_the_row_is_gone(author):
    @flow("look", on="go")
    def look(step, run):
        step.sleep("rest", "1h")
        return run.subject is None

    run = played(subject=author)
    author.delete()
    advance("1h")
    assert again(run).result is True


def test_a_handler_sees_none_once_the_model_is_gone(author):
    @flow("look", on="go")
    def look(step, run):
        return run.subject is None

    event_id = send("go", subject=author)
    ContentType.objects.filter(model="author", app_label="library").update(model="forgotten")
    ContentType.objects.clear_cache()
    drain()
    assert run_of(event_id).result is True
    ContentType.objects.clear_cache()


def test_a_coroutine_awaits_the_row(author):
    @flow("look", on="go")
    async def look(step: AsyncStep, run: Run) -> list[Any]:
        return [str(await run.asubject())]

    assert played(subject=author).result == ["Grace"]


# -- the rows' side ----------------------------------------------------------------------------


def test_a_row_has_its_runs(author):
    waiting()
    run = played(subject=author)
    played(subject=Author.objects.create())
    assert [str(one.pk) for one in author.flow_runs.all()] == [run.id]
    assert author.flow_runs.unfinished().count() == 1
    cancel(run.id)
    drain()
    assert author.flow_runs.unfinished().count() == 0
    assert author.flow_runs.get().state == "cancelled"


def test_the_runs_of_many_rows_are_read_at_once(django_assert_num_queries):
    waiting()
    cards = [Card.objects.create() for _ in range(3)]
    for card in cards:
        send("go", subject=card)
    drain()
    ContentType.objects.get_for_model(Card)
    with django_assert_num_queries(2):
        found = [card.flow_runs.all() for card in Card.objects.prefetch_related("flow_runs")]
        assert [len(runs) for runs in found] == [1, 1, 1]


def test_a_row_of_a_proxy_has_the_runs_of_the_table():
    waiting()
    loan = Loan.objects.create()
    played(subject=loan)
    assert LoanByPost.objects.get().flow_runs.count() == 1


# -- when the row is deleted -------------------------------------------------------------------


def test_runs_are_kept_when_their_row_is_deleted(author):
    waiting()
    run = played(subject=author)
    author.delete()
    drain()
    assert again(run).activity == "waiting"
    assert again(run).subject is None


def test_deleting_many_rows_deletes_no_run(author):
    waiting()
    for row in (author, Loan.objects.create(author=author)):
        send("go", subject=row)
    drain()
    Author.objects.all().delete()
    assert not Loan.objects.exists()
    assert StoredRun.objects.count() == 2


def test_runs_are_cancelled_with_their_row():
    waiting()
    loan, other = Loan.objects.create(), Loan.objects.create()
    run, left = played(subject=loan), played(subject=other)
    loan.delete()
    drain()
    assert again(run).state == "cancelled"
    assert again(run).reason == "library.Loan 1 was deleted".replace("1", str(other.pk - 1))
    assert again(left).activity == "waiting"


def test_a_deletion_that_is_rolled_back_cancels_nothing():
    waiting()
    loan = Loan.objects.create()
    run = played(subject=loan)
    with rolled_back():
        loan.delete()
    drain()
    assert again(run).activity == "waiting"


@pytest.mark.parametrize("how", ["queryset", "cascade", "proxy", "child"])
def test_runs_are_cancelled_however_their_row_is_deleted(how, author):
    waiting()
    loan: Loan = (
        LongLoan.objects.create(author=author)
        if how == "child"
        else (Loan.objects.create(author=author))
    )
    run = played(subject=loan)
    if how == "queryset":
        Loan.objects.filter(pk=loan.pk).delete()
    elif how == "cascade":
        author.delete()
    elif how == "proxy":
        LoanByPost.objects.get().delete()
    else:
        loan.delete()
    drain()
    assert not Loan.objects.exists()
    assert again(run).state == "cancelled"


def test_a_run_is_not_cancelled_by_the_deletion_that_it_does_itself():
    @flow("clean-up", on="go")
    def clean_up(step, run):
        step.run("delete", lambda: run.subject.delete() and None)
        return "cleaned"

    waiting()
    event_id = send("go", subject=Loan.objects.create())
    drain()
    assert run_of(event_id, "clean-up").result == "cleaned"
    assert run_of(event_id, "wait").state == "cancelled"


def test_a_row_is_protected_by_unfinished_runs():
    waiting()
    card = Card.objects.create()
    run = played(subject=card)
    with pytest.raises(ProtectedError, match="flow 'wait'") as caught, transaction.atomic():
        card.delete()
    assert {str(one.pk) for one in caught.value.protected_objects} == {run.id}
    with pytest.raises(ProtectedError), transaction.atomic():
        Card.objects.all().delete()
    assert Card.objects.count() == 1
    cancel(run.id)
    drain()
    card.delete()
    assert again(run).state == "cancelled"


def test_a_row_that_is_protected_protects_what_it_would_be_deleted_with(author):
    waiting()
    played(subject=Card.objects.create(author=author))
    with pytest.raises(ProtectedError), transaction.atomic():
        author.delete()
    assert Author.objects.exists()


def test_a_row_is_not_protected_by_the_run_that_deletes_it():
    @flow("clean-up", on="go")
    def clean_up(step, run):
        step.run("delete", lambda: run.subject.delete() and None)

    assert played(subject=Card.objects.create()).state == "completed"
    assert not Card.objects.exists()


@pytest.mark.parametrize("model", [Loan, Card])
def test_rows_of_another_database_cannot_take_their_runs_along(model):
    row = model.objects.create()
    with (
        override_settings(DURABLE_FLOWS={"DATABASE": "flows", "RING": "off"}),
        pytest.raises(WrongDatabase, match=r"(?s)'default'.*'flows'.*'keep'"),
        transaction.atomic(),
    ):
        row.delete()
    assert model.objects.exists()


@isolate_apps("tests.library")
def test_a_policy_that_nobody_knows_is_refused_where_the_model_is_declared():
    with pytest.raises(InvalidOption, match=r"Pen.flow_runs_on_delete is 'keep'.*not 'forget'"):

        class Pen(FlowSubject):
            flow_runs_on_delete = "forget"  # type: ignore[assignment]

            class Meta:
                app_label = "library"


@isolate_apps("tests.library")
def test_an_abstract_model_hands_its_policy_on():
    class Thing(FlowSubject):
        flow_runs_on_delete = "protect"

        class Meta:
            app_label = "library"
            abstract = True

    class Pen(Thing):
        class Meta:
            app_label = "library"

    assert Pen.flow_runs_on_delete == "protect"
    assert not Pen.check()
    assert isinstance(Pen._meta.get_field("flow_runs"), django_models.Field)


def test_models_without_the_mixin_are_subjects_too():
    waiting()
    book = Book.objects.create()
    run = played(subject=book)
    book.delete()
    drain()
    assert again(run).activity == "waiting"
    assert runs_of(run.id)[0].subject is None
