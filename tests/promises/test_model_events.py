"""`model_event`: a change of a row and its event are one transaction. And what does many rows at once."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core import serializers
from django.core.exceptions import FieldDoesNotExist
from django.db import connection, models, transaction
from django.db.models import Count, F, Value
from django.db.models.functions import Concat
from django.db.models.signals import post_save, pre_save
from django.test import override_settings
from django.test.utils import CaptureQueriesContext, isolate_apps

from durable_flows import Run, conf, flow, flows_bulk_create, flows_update, model_event
from durable_flows.errors import InvalidEvent, InvalidOption, WrongDatabase
from durable_flows.models import Event as StoredEvent
from durable_flows.testing import drain, run_of, sent
from tests.library.models import (
    Atlas,
    Author,
    Bestseller,
    Book,
    Card,
    Copy,
    Loan,
    Shelf,
)
from tests.promises.staging import listener, rolled_back, stored
from tests.promises.test_middleware import Shift, shifted
from tests.promises.test_two_writers import (
    Other,
    held_open,
    wait_until_somebody_waits_for_a_lock,
)

pytestmark = pytest.mark.django_db

#: Where each statement of the test is a transaction of its own, unless it says otherwise.
autocommit = pytest.mark.django_db(transaction=True)


def told() -> list[dict[str, Any]]:
    """The data of all events, in order of arrival."""
    return [event.data for name in dict.fromkeys(stored()) for event in sent(name)]


def last() -> dict[str, Any]:
    return told()[-1]


# -- what is told ------------------------------------------------------------------------------


def test_a_row_that_is_created_changed_and_deleted_sends_events():
    model_event(Book, fields=["status", "copies"], name="book/{verb}")
    book = Book.objects.create(copies=2)
    book.status = "there"
    book.save()
    pk = book.pk
    book.delete()
    assert stored() == ["book/created", "book/updated", "book/deleted"]
    about = {"model": "library.book", "pk": pk}
    first, second = {"status": "ordered", "copies": 2}, {"status": "there", "copies": 2}
    assert told() == [
        {**about, "verb": "created", "before": None, "after": first, "changed": [*first]},
        {**about, "verb": "updated", "before": first, "after": second, "changed": ["status"]},
        {**about, "verb": "deleted", "before": second, "after": None, "changed": [*first]},
    ]


def test_by_default_it_tells_of_all_changes_and_of_no_values():
    model_event(Book)
    book = Book.objects.create()
    book.save()
    book.delete()
    assert stored() == ["library/book.created", "library/book.updated", "library/book.deleted"]
    assert [(one["before"], one["after"], one["changed"]) for one in told()] == [
        (None, {}, []),
        ({}, {}, []),
        ({}, None, []),
    ]


def test_it_tells_of_those_changes_that_it_is_to_tell_of():
    model_event(Book, on="updated")
    book = Book.objects.create()
    book.save()
    book.delete()
    assert stored() == ["library/book.updated"]


def test_an_update_that_changes_none_of_the_fields_sends_nothing():
    model_event(Book, on="updated", fields="status")
    book = Book.objects.create()
    book.title = "Other"
    book.save()
    assert stored() == []
    book.status = "there"
    book.save()
    assert stored() == ["library/book.updated"]


def test_what_it_says_is_what_the_database_has():
    """Not what an instance says of itself: it may be stale, deferred, hand-made, or an expression."""
    model_event(Book, on="updated", fields=["title", "copies"])
    book = Book.objects.create(title="Notes", copies=1)
    stale = Book.objects.get()
    Book.objects.update(title="Notes, second edition")

    stale.copies = F("copies") + 4
    stale.save(update_fields=["copies"])
    assert last()["before"] == {"title": "Notes, second edition", "copies": 1}
    assert last()["after"] == {"title": "Notes, second edition", "copies": 5}

    deferred = Book.objects.only("pk").get()
    deferred.title = Concat("title", Value("!"))
    deferred.save()
    assert last()["after"] == {"title": "Notes, second edition!", "copies": 5}

    made = Book(pk=str(book.pk), title="By hand", copies="7")
    made.save()
    assert (last()["pk"], last()["after"]) == (book.pk, {"title": "By hand", "copies": 7})
    assert len(told()) == 3


def test_a_value_of_another_type_is_no_change():
    model_event(Book, on="updated", fields=["copies", "price"])
    book = Book.objects.create(copies=3, price="9.90")
    book.copies, book.price = "3", Decimal("9.900")
    book.save()
    assert stored() == []


def test_values_of_all_kinds_are_written_as_json():
    author, isbn = Author.objects.create(), uuid.uuid4()
    fields = [field.name for field in Book._meta.concrete_fields if field.name != "scan"]
    model_event(Book, on="created", fields=fields)
    book = Book.objects.create(
        price="12.50",
        published=date(2026, 3, 1),
        opens=time(9, 30),
        lent_for=timedelta(days=14, hours=1),
        isbn=isbn,
        cover="covers/notes.png",
        tags=["a", {"b": None}],
        author=author,
    )
    book.refresh_from_db()
    assert last()["after"] == {
        "id": book.pk,
        "title": "Notes",
        "status": "ordered",
        "copies": 0,
        "price": "12.50",
        "published": "2026-03-01",
        "changed_at": book.changed_at.isoformat(),
        "opens": "09:30:00",
        "lent_for": "P14DT01H00M00S",
        "isbn": str(isbn),
        "cover": "covers/notes.png",
        "tags": ["a", {"b": None}],
        "author": author.pk,
    }
    assert datetime.fromisoformat(last()["after"]["changed_at"]).tzinfo == UTC


def test_the_row_is_the_subject():
    @flow("look", on="library/author.updated")
    def look(run: Run) -> str:
        return str(run.subject)

    model_event(Author, on="updated")
    author = Author.objects.create()
    author.name = "Grace"
    author.save()
    drain()
    (event_id,) = StoredEvent.objects.values_list("pk", flat=True)
    assert run_of(str(event_id)).result == "Grace"
    assert author.flow_runs.count() == 1


def test_what_is_deleted_is_the_subject_of_its_event_too():
    model_event(Card, on="deleted")
    card = Card.objects.create()
    key = card.pk
    Card(pk=key).delete()
    assert last()["pk"] == str(key)
    assert StoredEvent.objects.get().subject_id == str(key)


def test_a_key_that_is_too_long_for_a_subject_is_told_all_the_same():
    model_event(Shelf)
    Shelf.objects.create(code="x" * 300)
    assert last()["pk"] == "x" * 300
    assert StoredEvent.objects.get().subject_id is None


def test_a_change_in_a_step_is_sent_by_its_run():
    @flow("write", on="library/author.created")
    def write(step):
        step.run("write", lambda: Shelf.objects.create(code="a").pk)

    model_event(Author, on="created")
    model_event(Shelf, on="created")
    author = Author.objects.create()
    drain()
    (event,) = StoredEvent.objects.filter(name="library/shelf.created")
    assert event.sender == author.flow_runs.get().pk


def test_two_events_of_one_model_have_fields_of_their_own():
    model_event(Book, on="updated", fields="status", name="status/{verb}")
    model_event(Book, on="updated", fields="copies", name="copies/{verb}")
    book = Book.objects.create()
    book.status = "there"
    book.save()
    assert told() == [
        {
            "model": "library.book",
            "pk": book.pk,
            "verb": "updated",
            "before": {"status": "ordered"},
            "after": {"status": "there"},
            "changed": ["status"],
        }
    ]
    assert stored() == ["status/updated"]


def test_what_is_registered_again_is_told_once():
    for _ in range(2):
        model_event(Book, on="created", fields="title")
    model_event(Book, on="created", fields="status")
    Book.objects.create()
    assert [one["after"] for one in told()] == [{"status": "ordered"}]


@pytest.mark.parametrize(
    "how", ["create", "get_or_create", "update_or_create", "queryset", "async"]
)
def test_each_way_that_django_tells_of_is_heard(how):
    model_event(Book, fields="title", name="{verb}")
    if how == "get_or_create":
        Book.objects.get_or_create(title="a")
        Book.objects.get_or_create(title="a")
    elif how == "async":

        async def view() -> None:
            await Book.objects.acreate(title="a")

        async_to_sync(view)()
    else:
        Book.objects.create(title="a")
    if how == "update_or_create":
        Book.objects.update_or_create(title="a", defaults={"title": "b"})
    if how == "queryset":
        Book.objects.create(title="b")
        Book.objects.all().delete()
    assert stored() == {
        "update_or_create": ["created", "updated"],
        "queryset": ["created", "created", "deleted", "deleted"],
    }.get(how, ["created"])


def test_a_cascade_is_heard():
    model_event(Book, on="deleted")
    author = Author.objects.create()
    Book.objects.create(author=author)
    author.delete()
    assert stored() == ["library/book.deleted"]


def test_fixtures_send_nothing():
    model_event(Book, fields="title")
    book = Book.objects.create()
    text = serializers.serialize("json", [book])
    StoredEvent.objects.all().delete()
    for found in serializers.deserialize("json", text):
        found.save()
    assert stored() == []


def test_a_model_that_nobody_listens_to_costs_nothing(django_assert_num_queries):
    model_event(Book, on="deleted", fields="title")
    with django_assert_num_queries(1):
        Book.objects.create()


# -- one transaction ---------------------------------------------------------------------------


@autocommit
def test_a_row_whose_event_cannot_be_stored_is_not_saved():
    model_event(Book, fields=["title"])
    book = Book.objects.create(title="short")
    StoredEvent.objects.all().delete()
    with override_settings(DURABLE_FLOWS={"RING": "off", "MAX_EVENT_BYTES": 200}):
        book.title = "long " * 20
        with pytest.raises(InvalidEvent, match="MAX_EVENT_BYTES"):
            book.save()
        with pytest.raises(InvalidEvent, match="MAX_EVENT_BYTES"):
            Book.objects.create(title="long " * 20)
    assert list(Book.objects.values_list("title", flat=True)) == ["short"]
    assert stored() == []


@autocommit
def test_a_process_that_dies_between_a_row_and_its_event_leaves_neither():
    class Died(BaseException):
        pass

    def die(**_: Any) -> None:
        raise Died

    post_save.connect(die, sender=Author)  # before ours
    try:
        model_event(Author, on="created")
        with pytest.raises(Died):
            Author.objects.create()
    finally:
        post_save.disconnect(die, sender=Author)
    assert not Author.objects.exists()
    assert stored() == []


@autocommit
def test_a_deletion_whose_event_cannot_be_stored_deletes_nothing():
    model_event(Book, on="deleted", fields=["title"])
    book = Book.objects.create(title="long " * 20)
    with (
        override_settings(DURABLE_FLOWS={"RING": "off", "MAX_EVENT_BYTES": 100}),
        pytest.raises(InvalidEvent),
    ):
        book.delete()
    assert Book.objects.exists()
    assert stored() == []


def test_a_rollback_takes_the_events_along():
    model_event(Book)
    with rolled_back():
        Book.objects.create()
        assert stored() == ["library/book.created"]
    assert stored() == []


@autocommit
def test_a_change_starts_flows_when_it_is_committed():
    started = listener("library/book.created")
    model_event(Book, on="created")
    with transaction.atomic():
        Book.objects.create()
    drain()
    assert len(started) == 1


@pytest.mark.parametrize("how", ["save", "delete", "update", "bulk_create"])
def test_rows_of_another_database_are_refused_before_anything_is_written(how):
    book = Book.objects.create()
    model_event(Book, fields="title")
    book.title = "Other"
    writes: dict[str, Callable[[], Any]] = {
        "save": book.save,
        "delete": book.delete,
        "update": lambda: flows_update(Book.objects, title="Other"),
        "bulk_create": lambda: flows_bulk_create(Book.objects, [Book()]),
    }
    with (
        override_settings(DURABLE_FLOWS={"DATABASE": "flows", "RING": "off"}),
        pytest.raises(WrongDatabase, match=r"library.Book.*'default'.*'flows'"),
        transaction.atomic(),
    ):
        writes[how]()
    assert Book.objects.get().title == "Notes"


# -- inheritance: as Django's signals have it -----------------------------------------------------


def test_a_proxy_is_a_model_of_its_own():
    model_event(Book, on="created", name="book")
    model_event(Bestseller, on=["created", "updated"], name="bestseller/{verb}")
    Book.objects.create()
    assert stored() == ["book"]
    bestseller = Bestseller.objects.create()
    Bestseller.objects.get(pk=bestseller.pk).save()
    assert stored() == ["book", "bestseller/created", "bestseller/updated"]
    assert StoredEvent.objects.order_by("arrival")[1].subject_type.model == "book"  # type: ignore[union-attr]


def test_a_child_with_a_table_of_its_own_is_a_model_of_its_own():
    model_event(Atlas, fields=["title", "scale"], name="atlas/{verb}")
    atlas = Atlas.objects.create(title="Europe", scale=100)
    atlas.title = "Asia"
    atlas.save()
    assert [one["after"] for one in told()] == [
        {"title": "Europe", "scale": 100},
        {"title": "Asia", "scale": 100},
    ]


def test_the_parent_of_such_a_child_is_heard_of_only_when_it_is_deleted():
    model_event(Book, name="book/{verb}")
    atlas = Atlas.objects.create()
    atlas.save()
    assert stored() == []
    atlas.delete()
    assert stored() == ["book/deleted"]


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        (Book, {"fields": ["colour"]}, "Book has no field 'colour'; it has id, title"),
        (Book, {"fields": ["shelves"]}, "'shelves' has no value in the row"),
        (Author, {"fields": ["flow_runs"]}, "'flow_runs' has no value in the row"),
        (Book, {"fields": ["scan"]}, "'scan' is binary"),
        (Book, {"on": ["made"]}, "some of created, updated, deleted, not \\['made'\\]"),
        (Book, {"on": []}, "some of created"),
        (Book, {"name": "book/{state}"}, "placeholder {state}; there are {verb}, {model}, {app}"),
        (Book, {"name": "book/{}"}, "placeholder {}"),
        (Book, {"name": "book/{verb.upper}"}, "placeholder"),
        (Book, {"name": "book/{verb!r}"}, "placeholder"),
        (Book, {"name": "book/{"}, "Single '{'"),
        (Book, {"name": "flows/{verb}"}, "reserved"),
        (Book, {"name": ""}, "1 to 256 characters"),
        (Book, {"name": 7}, "not 7"),
        (Copy, {}, "composite primary key"),
        ("library.Book", {}, "this takes a model, not 'library.Book'"),
        (int, {}, "this takes a model"),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_said(model, options, says):
    with pytest.raises(InvalidOption, match=says):
        model_event(model, **options)
    if isinstance(model, type) and model is Book:
        Book.objects.create()
    assert stored() == []


@isolate_apps("tests.library")
def test_an_abstract_model_is_refused():
    class Thing(models.Model):
        class Meta:
            abstract = True
            app_label = "library"

    with pytest.raises(InvalidOption, match="an abstract model has no rows"):
        model_event(Thing)


# -- many rows at once -------------------------------------------------------------------------


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from durable_flows import bulk_changes

    monkeypatch.setattr(bulk_changes, "PIECE", 2)


def books(count: int, **values: Any) -> list[Book]:
    return Book.objects.bulk_create(Book(title=f"b{number}", **values) for number in range(count))


def test_django_does_not_tell_of_updates_and_bulk_creates():
    model_event(Book, fields="copies")
    books(2)
    Book.objects.update(copies=1)
    Book.objects.bulk_update([Book.objects.all()[0]], ["copies"])
    assert stored() == []


def test_flows_update_updates_and_tells_of_each_row(small_pieces):
    books(5)
    model_event(Book, on="updated", fields=["title", "copies"])
    rows = Book.objects.exclude(title="b3").order_by("-title")
    assert flows_update(rows, copies=F("copies") + 1, status="there") == 4
    assert [(one["before"], one["after"], one["changed"]) for one in told()] == [
        ({"title": f"b{n}", "copies": 0}, {"title": f"b{n}", "copies": 1}, ["copies"])
        for n in (0, 1, 2, 4)
    ]
    assert Book.objects.filter(copies=1, status="there").count() == 4


def test_flows_update_may_change_what_the_rows_were_chosen_by(small_pieces):
    books(5)
    model_event(Book, on="updated", fields="status")
    assert flows_update(Book.objects.filter(status="ordered"), status="there") == 5
    assert len(told()) == 5


def test_flows_update_tells_nothing_of_rows_that_stay_as_they_are():
    books(2)
    Book.objects.filter(title="b0").update(status="there")
    model_event(Book, on="updated", fields="status")
    assert flows_update(Book.objects, status="there") == 2
    assert [one["before"] for one in told()] == [{"status": "ordered"}]


def test_flows_update_through_a_join_changes_each_row_once(small_pieces):
    shelves = [Shelf.objects.create(code=str(number)) for number in range(3)]
    for book in books(3):
        book.shelves.set(shelves)
    model_event(Book, on="updated", fields="copies")
    rows = Book.objects.filter(shelves__code__in="012")
    assert flows_update(rows, copies=F("copies") + 1) == 3
    assert len(told()) == 3
    assert set(Book.objects.values_list("copies", flat=True)) == {1}


def test_flows_update_of_rows_that_are_grouped():
    author = Author.objects.create()
    books(3, author=author)
    model_event(Book, on="updated", fields="copies")
    grouped = Book.objects.annotate(found=Count("shelves")).filter(found=0)
    assert flows_update(grouped, copies=1) == 3
    assert len(told()) == 3


def test_flows_update_of_children_with_a_table_of_their_own(small_pieces):
    for number in range(3):
        Atlas.objects.create(title=f"a{number}")
    model_event(Atlas, on="updated", fields=["title", "scale"])
    assert flows_update(Atlas.objects.all(), title="Atlas", scale=5) == 3
    assert [one["after"] for one in told()] == [{"title": "Atlas", "scale": 5}] * 3


def test_flows_update_of_what_nobody_listens_to_is_an_update(django_assert_num_queries):
    books(3)
    with django_assert_num_queries(1):
        assert flows_update(Book.objects.all(), copies=1) == 3


def test_flows_update_says_what_is_wrong_with_its_values_though_no_row_matches():
    model_event(Book, on="updated")
    with pytest.raises(FieldDoesNotExist):
        flows_update(Book.objects.none(), colour="red")
    with pytest.raises(TypeError, match="slice"):
        flows_update(Book.objects.all()[:3], copies=1)


@autocommit
def test_flows_update_is_one_transaction(small_pieces):
    books(4)
    Book.objects.create(title="x" * 60)
    titles = set(Book.objects.values_list("title", flat=True))
    model_event(Book, on="updated", fields="title")
    with (
        override_settings(DURABLE_FLOWS={"RING": "off", "MAX_EVENT_BYTES": 200}),
        pytest.raises(InvalidEvent),
    ):
        flows_update(Book.objects, title=Concat("title", Value("!")))
    assert set(Book.objects.values_list("title", flat=True)) == titles
    assert stored() == []


def test_flows_bulk_create_creates_and_tells_of_each_row(small_pieces):
    model_event(Book, on="created", fields=["title", "price"])
    made = flows_bulk_create(Book.objects, [Book(title=f"b{n}", price=n) for n in range(5)])
    assert [book.title for book in made] == [f"b{n}" for n in range(5)]
    assert [(one["pk"], one["after"]) for one in told()] == [
        (book.pk, {"title": f"b{n}", "price": f"{n}.00"}) for n, book in enumerate(made)
    ]
    assert {event.subject_id for event in StoredEvent.objects.all()} == {
        str(book.pk) for book in made
    }


def test_flows_bulk_create_takes_the_options_of_bulk_create():
    model_event(Book, on="created")
    flows_bulk_create(Book.objects.all(), (Book() for _ in range(3)), batch_size=1)
    assert len(told()) == 3
    for option in ("ignore_conflicts", "update_conflicts"):
        with pytest.raises(InvalidOption, match=option):
            flows_bulk_create(Book.objects, [Book()], **{option: True})
    assert Book.objects.count() == 3


def test_flows_bulk_create_of_what_nobody_listens_to_is_a_bulk_create(django_assert_num_queries):
    with django_assert_num_queries(1):
        assert len(flows_bulk_create(Author.objects, [Author(), Author()])) == 2
    assert stored() == []


@autocommit
def test_flows_bulk_create_is_one_transaction(small_pieces):
    model_event(Book, on="created", fields="title")
    with (
        override_settings(DURABLE_FLOWS={"RING": "off", "MAX_EVENT_BYTES": 200}),
        pytest.raises(InvalidEvent),
    ):
        flows_bulk_create(Book.objects, [Book(title="x" * n) for n in (1, 1, 100)])
    assert not Book.objects.exists()
    assert stored() == []


def test_more_events_than_a_call_may_have_are_stored_by_several_statements():
    model_event(Book, on=["created", "updated"], fields="title")
    limits = {"RING": "off", "MAX_EVENTS": 2, "MAX_SEND_BYTES": 400}
    with override_settings(DURABLE_FLOWS=limits):
        assert conf.settings().MAX_EVENTS == 2
        flows_bulk_create(Book.objects, [Book(title=str(number)) for number in range(7)])
        assert flows_update(Book.objects, title="x" * 50) == 7
    assert len(told()) == 14


def test_middleware_has_its_say_about_the_events_of_one_row_and_of_many():
    model_event(Book, fields="title")
    with override_settings(DURABLE_FLOWS={"RING": "off", "MIDDLEWARE": [Shift()]}):
        Book.objects.create(title="secret")
        flows_bulk_create(Book.objects, [Book(title="secret")])
        flows_update(Book.objects, title="secrets")
        kept = list(StoredEvent.objects.values_list("data", flat=True))
    assert len(kept) == 4
    assert not [text for text in kept if "secret" in text]
    assert all(shifted("secret", 1) in text for text in kept)


def test_the_statements_of_an_update_grow_by_pieces_and_not_by_rows():
    model_event(Book, on="updated", fields="copies")

    def statements() -> int:
        with CaptureQueriesContext(connection) as queries:
            flows_update(Book.objects, copies=F("copies") + 1)
        return len(queries)

    books(1)
    statements()
    few = statements()
    books(50)
    assert statements() == few


# -- two at once -------------------------------------------------------------------------------

both = [pytest.mark.two_writers, autocommit]


def marked(test: Callable[..., None]) -> Callable[..., None]:
    for mark in both:
        test = mark(test)
    return test


@marked
def test_what_a_row_was_is_what_the_one_before_has_made_of_it():
    model_event(Book, on="updated", fields="status")
    pk = Book.objects.create().pk

    def change(status: str) -> None:
        Book(pk=pk, title="Notes", status=status).save(update_fields=["status"])

    with held_open(lambda: change("there")):
        other = Other(lambda: change("lent"))
        wait_until_somebody_waits_for_a_lock()
    other.done()
    steps = [(one["before"]["status"], one["after"]["status"]) for one in told()]
    assert steps == [("ordered", "there"), ("there", "lent")]


@marked
def test_a_row_that_two_delete_at_once_is_told_to_be_gone_once():
    model_event(Loan, on="deleted")
    pk = Loan.objects.create().pk
    with held_open(lambda: Loan.objects.get(pk=pk).delete()):
        other = Other(lambda: Loan.objects.get(pk=pk).delete())
        wait_until_somebody_waits_for_a_lock()
    other.done()
    assert stored() == ["library/loan.deleted"]


@marked
@pytest.mark.parametrize("fields", ["status", ()])
def test_flows_update_passes_over_a_row_that_does_not_match_any_more(fields):
    model_event(Book, on="updated", fields=fields)
    books(2)
    first = Book.objects.order_by("pk")[0]

    def withdraw() -> None:
        Book.objects.filter(pk=first.pk).update(status="withdrawn")

    with held_open(withdraw):
        other = Other(lambda: flows_update(Book.objects.filter(status="ordered"), status="there"))
        wait_until_somebody_waits_for_a_lock()
    assert other.done() == 1
    first.refresh_from_db()
    assert first.status == "withdrawn"
    assert len(told()) == 1


def test_receivers_of_others_are_called_as_ever():
    seen: list[str] = []

    def note(signal: Any, **_: Any) -> None:
        seen.append("before" if signal is pre_save else "after")

    model_event(Book)
    for signal in (pre_save, post_save):
        signal.connect(note, sender=Book)
    try:
        Book.objects.create()
    finally:
        for signal in (pre_save, post_save):
            signal.disconnect(note, sender=Book)
    assert seen == ["before", "after"]
