"""Sending joins the caller's transaction, whoever opened it: a view, a test, async code, or nobody.

What a plain transaction and a savepoint have to do with it is in `test_events`, with ids in
`test_event_ids`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, TestCase, override_settings
from django.urls import path

from durable_flows import (
    Event,
    asend,
    cancel,
    flow,
    rerun,
    retry,
    send,
    send_signal,
    signals,
    skip,
)
from durable_flows.errors import WrongDatabase
from durable_flows.models import Run
from durable_flows.testing import drain, run_of
from tests.library.models import Author
from tests.promises.staging import again, listener, played, rolled_back, stored

pytestmark = pytest.mark.django_db

#: Where each statement of the test is a transaction of its own, unless it says otherwise.
autocommit = pytest.mark.django_db(transaction=True)


class Broken(Exception):
    """The view is broken."""


# -- views -------------------------------------------------------------------------------------


def buy(request: HttpRequest) -> HttpResponse:
    Author.objects.create()
    send("cart/purchased")
    return HttpResponse("bought")


def buy_and_break(request: HttpRequest) -> HttpResponse:
    buy(request)
    raise Broken


def buy_and_take_back(request: HttpRequest) -> HttpResponse:
    buy(request)
    transaction.set_rollback(True)
    return HttpResponse("no money", status=402)


@transaction.non_atomic_requests
def buy_by_itself_and_break(request: HttpRequest) -> HttpResponse:
    return buy_and_break(request)


async def buy_in_the_loop(request: HttpRequest) -> HttpResponse:
    await asend("cart/purchased")
    return HttpResponse("bought")


async def buy_in_the_loop_and_break(request: HttpRequest) -> HttpResponse:
    await buy_in_the_loop(request)
    raise Broken


async def buy_in_a_transaction_and_break(request: HttpRequest) -> HttpResponse:
    @transaction.atomic
    def work() -> None:
        buy(request)
        raise Broken

    await sync_to_async(work)()
    return HttpResponse("bought")


async def buy_in_a_transaction(request: HttpRequest) -> HttpResponse:
    return await sync_to_async(transaction.atomic(buy))(request)


async def forget_to_await(request: HttpRequest) -> HttpResponse:
    send("cart/purchased")
    return HttpResponse("bought")


VIEWS = (
    *(buy, buy_and_break, buy_and_take_back, buy_by_itself_and_break),
    *(buy_in_the_loop, buy_in_the_loop_and_break, buy_in_a_transaction),
    *(buy_in_a_transaction_and_break, forget_to_await),
)
urlpatterns = [path(view.__name__, view) for view in VIEWS]


@pytest.fixture
def urls() -> Iterator[None]:
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[]):
        yield


@pytest.fixture
def atomic_requests(urls: None) -> Iterator[None]:
    """As ATOMIC_REQUESTS in DATABASES does it."""
    database = connections.settings["default"]
    before = database["ATOMIC_REQUESTS"]
    database["ATOMIC_REQUESTS"] = True
    try:
        yield
    finally:
        database["ATOMIC_REQUESTS"] = before


def status_of(view: Callable[..., Any]) -> int:
    client = Client(raise_request_exception=False)
    return client.get(f"/{view.__name__}").status_code


def status_of_async(view: Callable[..., Any]) -> int:
    async def get() -> int:
        client = AsyncClient(raise_request_exception=False)
        return (await client.get(f"/{view.__name__}")).status_code

    return async_to_sync(get)()


def test_what_a_view_sends_is_committed_with_its_request(atomic_requests):
    started = listener("cart/purchased")
    assert status_of(buy) == 200
    drain()
    assert len(started) == 1


@autocommit
def test_what_a_view_has_sent_before_it_fails_never_happened(atomic_requests):
    started = listener("cart/purchased")
    assert status_of(buy_and_break) == 500
    drain()
    assert (stored(), started) == ([], [])
    assert not Author.objects.exists()


def test_what_a_view_has_sent_before_it_takes_its_transaction_back_never_happened(atomic_requests):
    assert status_of(buy_and_take_back) == 402
    assert stored() == []


def test_a_view_outside_of_such_transactions_sends_at_once(atomic_requests):
    assert status_of(buy_by_itself_and_break) == 500
    assert stored() == ["cart/purchased"]
    assert Author.objects.exists()


# -- async views -------------------------------------------------------------------------------


def test_an_async_view_sends(urls):
    started = listener("cart/purchased")
    assert status_of_async(buy_in_the_loop) == 200
    drain()
    assert len(started) == 1


def test_an_async_view_has_no_transaction_and_sends_at_once(urls):
    assert status_of_async(buy_in_the_loop_and_break) == 500
    assert stored() == ["cart/purchased"]


def test_an_async_view_sends_in_the_transaction_of_sync_code(urls):
    assert status_of_async(buy_in_a_transaction) == 200
    assert stored() == ["cart/purchased"]


@autocommit
def test_a_rollback_of_sync_code_in_an_async_view_takes_its_events_along(urls):
    assert status_of_async(buy_in_a_transaction_and_break) == 500
    assert stored() == []
    assert not Author.objects.exists()


def test_asend_joins_a_transaction_that_sync_code_holds_open():
    async def work() -> None:
        block = transaction.atomic()
        await sync_to_async(block.__enter__)()
        await asend("cart/purchased")
        assert await sync_to_async(stored)() == ["cart/purchased"]
        await sync_to_async(block.__exit__)(Broken, Broken(), None)

    async_to_sync(work)()
    assert stored() == []


def test_send_in_the_event_loop_is_refused_as_any_query_is(urls):
    assert status_of_async(forget_to_await) == 500

    async def work() -> None:
        send("cart/purchased")

    with pytest.raises(SynchronousOnlyOperation):
        async_to_sync(work)()
    assert stored() == []


# -- savepoints, callbacks, transactions by hand -------------------------------------------------


def test_commands_in_a_savepoint_that_is_rolled_back_are_taken_back_and_the_others_stay():
    @flow("nap", on="go")
    def nap(step):
        step.sleep("doze", "1h")

    run, other = played(), played()
    with transaction.atomic():
        cancel(run.id)
        with rolled_back():
            cancel(other.id)
            undone = nap.start()
        kept = nap.start()
    drain()
    assert (again(run).state, again(other).activity) == ("cancelled", "waiting")
    assert run_of(kept).activity == "waiting"
    assert not Run.objects.filter(pk=undone).exists()


def test_what_a_savepoint_has_sent_is_taken_back_when_the_outer_transaction_is():
    with rolled_back():
        with transaction.atomic():
            send("cart/purchased")
        assert stored() == ["cart/purchased"]
    assert stored() == []


@autocommit
def test_an_event_is_sent_when_a_commit_is_over():
    started = listener("cart/purchased")
    with transaction.atomic():
        transaction.on_commit(lambda: started.extend(send("cart/purchased")))
        assert stored() == []
    (sent,) = started
    drain()
    assert started == [sent, sent]


@autocommit
@pytest.mark.parametrize("commits", [True, False])
def test_an_event_joins_a_transaction_that_is_managed_by_hand(commits):
    """Nobody tells when it is committed: the doorbell is not rung, and the tick finds the event."""
    transaction.set_autocommit(False)
    try:
        send("cart/purchased", id="c1")
        assert stored() == ["cart/purchased"]
        if commits:
            transaction.commit()
        else:
            transaction.rollback()
    finally:
        transaction.set_autocommit(True)
    # Django has SQLite commit each statement all the same.
    is_kept = commits or connection.vendor == "sqlite"
    assert stored() == (["cart/purchased"] if is_kept else [])


def test_a_transaction_that_is_broken_takes_no_event():
    with transaction.atomic():
        transaction.set_rollback(True)
        with pytest.raises(transaction.TransactionManagementError):
            send("cart/purchased")
    assert stored() == []


# -- another database --------------------------------------------------------------------------


@autocommit
def test_whatever_is_asked_for_in_a_transaction_on_another_database_is_refused(other_database):
    @flow("nap", on="go")
    def nap(step):
        step.sleep("doze", "1h")

    @flow("breaks", on="go", retries=0)
    def breaks():
        raise Broken

    (event_id,) = send("go")
    drain()
    resting, failed = run_of(event_id, "nap").id, run_of(event_id, "breaks").id
    before = stored()

    def asend_it() -> Any:
        async def work() -> None:
            await asend("cart/purchased")

        return async_to_sync(work)()

    verbs: dict[str, Callable[[], Any]] = {
        "send": lambda: send(Event("cart/purchased")),
        "asend": asend_it,
        "emit": lambda: signals.emit.send(None, name="cart/purchased"),
        "start": nap.start,
        "cancel": lambda: cancel(resting),
        "retry": lambda: retry(failed),
        "rerun": lambda: rerun(failed),
        "skip": lambda: skip(resting, "doze"),
        "signal": lambda: send_signal("s"),
    }
    with transaction.atomic(using=other_database):
        for name, ask in verbs.items():
            with pytest.raises(WrongDatabase, match=r"'other'.*'default'"):
                ask()
            assert stored() == before, name


# -- Django's TestCase -------------------------------------------------------------------------


class FlowsInATestCase(TestCase):
    """Everything is one transaction: the test kit works in it, and nothing is left of it."""

    sent: str

    @classmethod
    def setUpTestData(cls) -> None:
        (cls.sent,) = send("cart/filled")

    def test_a_flow_is_played_through_inside_the_transaction_of_the_test(self) -> None:
        @flow("buy", on="cart/filled")
        def buy(step: Any) -> Any:
            step.run("book", Author.objects.count, atomic=True)
            return step.run("count", Author.objects.count)

        Author.objects.create()
        drain()
        assert run_of(self.sent).result == 1

    def test_nothing_is_left_of_other_tests_but_what_all_of_them_share(self) -> None:
        assert stored() == ["cart/filled"]
        assert not Run.objects.exists()
        send("cart/emptied")

    def test_the_doorbell_waits_for_a_commit_that_never_comes(self) -> None:
        with self.captureOnCommitCallbacks() as callbacks:
            send("cart/purchased")
        assert len(callbacks) == 1

    def test_a_rollback_inside_of_it_takes_the_doorbell_along(self) -> None:
        with self.captureOnCommitCallbacks() as callbacks, rolled_back():
            send("cart/purchased")
        assert callbacks == []
        assert stored() == ["cart/filled"]

    def test_callbacks_of_the_code_under_test_can_be_had(self) -> None:
        with self.captureOnCommitCallbacks(execute=True):
            transaction.on_commit(lambda: send("cart/purchased"))
        assert stored() == ["cart/filled", "cart/purchased"]

    def test_it_is_a_transaction(self) -> None:
        assert connection.in_atomic_block
