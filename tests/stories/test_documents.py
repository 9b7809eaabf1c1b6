"""Every flow of the documents that users come from: where its like is, or what it still needs.

What has no app of its own is written out below, line for line, and played.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import Group
from django.core import mail
from django.core.mail import send_mail

import durable_flows
from durable_flows import Event, Exponential, Retries, Run, Step, StepError, flow
from durable_flows import send as send_from_a_view
from durable_flows.rules import clock
from durable_flows.testing import advance, drain, run_of, runs_of, send, sent
from example_project.stories import flows_of

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("own_clock"),
]


@dataclass(frozen=True)
class Needs:
    """A flow that cannot be written yet.

    Attributes:
        what: the feature.
        there: whether it is there by now, so that the row must say where the flow is.
    """

    what: str
    there: Callable[[], bool]


CRON = Needs("schedules", lambda: hasattr(durable_flows, "Cron"))
CONCURRENCY = Needs("flow control", lambda: hasattr(durable_flows, "Concurrency"))
SAGA = Needs("sagas", lambda: hasattr(Step, "saga"))

#: Document, flow, and where it is: ``app/flow id``, or a test below.
TABLE: list[tuple[str, str, str | Needs]] = [
    ("lost customers", "cart reminder", "shop/cart-abandonment"),
    #
    ("multi-step functions", "activation mail, one step", "test_a_command_is_carried_out"),
    ("multi-step functions", "activation mail with a wait", "shop/activation-email"),
    ("multi-step functions", "two effects, two steps", "test_two_effects_are_two_steps"),
    ("multi-step functions", "a birthday", "test_a_moment_that_a_step_has_found"),
    ("multi-step functions", "a loop", "test_a_loop_of_steps"),
    #
    ("messaging patterns", "command", "test_a_command_is_carried_out"),
    ("messaging patterns", "event: welcome mail", "fan_out/greet-member"),
    ("messaging patterns", "event: recorded sign-up", "fan_out/record-sign-up"),
    ("messaging patterns", "event: admins notified", "fan_out/notify-board"),
    ("messaging patterns", "order saga", "orders/process-order"),
    ("messaging patterns", "fan-out of a payment", "test_a_payment_is_seen_by_four_flows"),
    ("messaging patterns", "fan-in", "fan_in/ship-parcel"),
    ("messaging patterns", "choreography: begin", "choreography/begin-welcome"),
    ("messaging patterns", "choreography: welcome", "choreography/greet-singer"),
    ("messaging patterns", "choreography: guide", "choreography/guide-singer"),
    ("messaging patterns", "fire and forget", "test_a_view_sends_and_goes_on"),
    ("messaging patterns", "request and reply", "request_reply/get-report"),
    ("messaging patterns", "batch by the hour", CRON),
    ("messaging patterns", "route by type", "routing/sync-contact"),
    ("messaging patterns", "route by condition", "routing/route-order"),
    ("messaging patterns", "three at a time per user", CONCURRENCY),
    ("messaging patterns", "a key against duplicates", "test_the_same_action_is_done_once"),
    ("messaging patterns", "a pause before each call", "test_a_pause_before_the_call"),
    ("messaging patterns", "dead letters", "test_what_fails_for_good_goes_to_the_dead_letters"),
    ("messaging patterns", "weekly review", "dead_letters/review-dead-letters"),
    ("messaging patterns", "sign-up: welcome, then onboarding", "fan_out/greet-member"),
    ("messaging patterns", "sign-up: defaults", "fan_out/set-up-defaults"),
    ("messaging patterns", "sign-up: analytics", "fan_out/record-sign-up"),
    ("messaging patterns", "payment saga", "payments/process-payment"),
    ("messaging patterns", "an event a mail", "test_many_mails_are_as_many_runs"),
    ("messaging patterns", "fifty mails at a time", CONCURRENCY),
    ("messaging patterns", "alert where a chain breaks", "choreography/greet-singer"),
    ("messaging patterns", "batches of a hundred", "test_many_mails_in_few_runs"),
    ("messaging patterns", "a poll that starts itself", "test_a_flow_that_starts_itself_each_hour"),
    ("messaging patterns", "a poll by the hour", CRON),
    #
    ("onboarding tutorial", "provisioning", "onboarding/provision-account"),
    ("onboarding tutorial", "welcome mail", "onboarding/send-welcome-mail"),
    ("onboarding tutorial", "welcome mail, ten a minute", CONCURRENCY),
    ("onboarding tutorial", "trial of 14 days", "onboarding/manage-trial"),
    ("onboarding tutorial", "daily churn report", CRON),
    ("onboarding tutorial", "verification", "onboarding/verify-address"),
    ("onboarding tutorial", "CRM, backing off", "test_the_crm_is_tried_again_by_powers_of_two"),
    ("onboarding tutorial", "CRM, five at a time", CONCURRENCY),
    #
    ("events guide", "fan-out of a sign-up", "fan_out/set-up-defaults"),
    ("events guide", "ask three, wait for three", "gather/take-in"),
    ("events guide", "failures, alerts, a retry later", "failure_alerts/watch-failures"),
    ("events guide", "a reminder in an hour", "test_an_event_for_later"),
    ("events guide", "an event an item", "test_an_event_for_each_item"),
    ("events guide", "fulfilment with a priority", "test_an_order_passes_on_its_priority"),
    ("events guide", "ids against duplicates", "test_the_same_action_is_done_once"),
]

FLOWS = {
    f"{package.rpartition('.')[2]}/{flow.id}"
    for package in ("example_project.shop", *settings.STORIES)
    for flow in flows_of(package)
}


@pytest.mark.parametrize(("document", "what", "where"), TABLE)
def test_a_flow_of_the_documents_is_where_the_table_says(
    document: str, what: str, where: str | Needs
) -> None:
    if isinstance(where, Needs):
        assert not where.there(), f"{what}: {where.what} are there, so write it"
    else:
        assert where in FLOWS or where in globals()


# -- what has no app of its own --------------------------------------------------------------


def told(to: str) -> list[str]:
    return [str(message.subject) for message in mail.outbox if message.to == [to]]


def write(to: str, subject: str) -> None:
    send_mail(subject, "", None, [to])


def test_a_command_is_carried_out() -> None:
    @flow("welcome-on-command", on="mail/welcome.send")
    def welcome(event: Event, step: Step) -> None:
        step.run("send", write, event.data["email"], "Welcome")

    send("mail/welcome.send", {"email": "ada@example.com"})
    drain()
    assert told("ada@example.com") == ["Welcome"]


def test_two_effects_are_two_steps() -> None:
    calls: list[str] = []

    @flow("raise-alarm", on="alarm/wanted", retries=1)
    def raise_alarm(event: Event, step: Step) -> None:
        alarm = step.run("create", create)
        step.run("tell", tell, alarm)

    def create() -> int:
        calls.append("create")
        return 7

    def tell(alarm: int) -> None:
        calls.append(f"tell {alarm}")
        if len(calls) < 3:
            raise ConnectionError("nobody answers")

    send("alarm/wanted")
    advance("1m")
    assert calls == ["create", "tell 7", "tell 7"]


def test_a_moment_that_a_step_has_found() -> None:
    @flow("congratulate", on="user/created")
    def congratulate(event: Event, step: Step, run: Run) -> None:
        birthday = step.run("look-up", lambda: (run.created_at + timedelta(days=3)).isoformat())
        step.sleep_until("birthday", birthday)
        step.run("congratulate", write, "ada@example.com", "Happy birthday")

    event = send("user/created")
    advance("2 days")
    assert told("ada@example.com") == []
    advance("1 day")
    assert told("ada@example.com") == ["Happy birthday"]
    assert run_of(event).state == "completed"


def test_a_loop_of_steps() -> None:
    @flow("write-to-all", on="letter/written", retries=0)
    def write_to_all(event: Event, step: Step) -> None:
        for address in event.data["to"]:
            step.run("write", write, address, "A letter")
            step.sleep("breathe", "1m")

    event = send("letter/written", {"to": ["a@example.com", "b@example.com"]})
    advance("3m")
    assert run_of(event).step_keys == ["write", "breathe", "write#2", "breathe#2"]
    assert len(mail.outbox) == 2


def test_a_payment_is_seen_by_four_flows() -> None:
    seen: list[str] = []
    for ledger in ("invoice", "receipt", "revenue", "metrics"):

        @flow(f"note-{ledger}", on="payment/received")
        def note(event: Event, step: Step, run: Run) -> None:
            step.run("note", lambda: seen.append(run.flow))

    event = send("payment/received", {"payment_id": 7, "amount": 120})
    drain()
    assert sorted(seen) == ["note-invoice", "note-metrics", "note-receipt", "note-revenue"]
    assert [run.state for run in runs_of(event)] == ["completed"] * 4


def test_a_view_sends_and_goes_on() -> None:
    @flow("note-visit", on="page/visited")
    def note_visit(event: Event, step: Step) -> None:
        step.run("note", lambda: Group.objects.create(name="visited").pk, atomic=True)

    (event,) = send_from_a_view("page/visited")
    assert not Group.objects.exists()
    drain()
    assert run_of(event).state == "completed"
    assert Group.objects.exists()


def test_the_same_action_is_done_once() -> None:
    @flow("act", on="action/wanted")
    def act(event: Event, step: Step) -> None:
        step.run("act", write, event.data["to"], "Done")

    ids = {send("action/wanted", {"to": "ada@example.com"}, id="ada-7") for _ in range(3)}
    started = {act.start({"to": "bob@example.com"}, key="bob-7") for _ in range(3)}
    drain()
    assert (len(ids), len(started)) == (1, 1)
    assert told("ada@example.com") == told("bob@example.com") == ["Done"]


def test_a_pause_before_the_call() -> None:
    @flow("call-out", on="call/wanted")
    def call_out(event: Event, step: Step) -> Any:
        step.sleep("pause", "1s")
        return step.run("call", lambda: "answered")

    event = send("call/wanted")
    drain()
    assert run_of(event).step_keys == ["pause"]
    advance("1s")
    assert run_of(event).result == "answered"


def test_what_fails_for_good_goes_to_the_dead_letters() -> None:
    letters: list[tuple[Any, str]] = []

    @flow("process", on="data/given", retries=1)
    def process(event: Event, step: Step) -> None:
        try:
            step.run("process", lambda: 1 // event.data["by"])
        except StepError as error:
            step.run("keep", keep, event.data, error.name)
            raise

    def keep(data: Any, why: str) -> None:
        letters.append((data, why))

    event = send("data/given", {"by": 0})
    advance("1h")
    assert run_of(event).state == "failed"
    assert letters == [({"by": 0}, "ZeroDivisionError")]


def test_many_mails_are_as_many_runs() -> None:
    @flow("send-all", on="letters/ready")
    def send_all(event: Event, step: Step) -> None:
        step.send_event("each", [Event("letter/ready", {"to": to}) for to in event.data["to"]])

    @flow("send-one", on="letter/ready")
    def send_one(event: Event, step: Step) -> None:
        step.run("send", write, event.data["to"], "A letter")

    send("letters/ready", {"to": [f"{n}@example.com" for n in range(100)]})
    drain()
    assert len(mail.outbox) == len(sent("letter/ready")) == 100


def test_many_mails_in_few_runs() -> None:
    @flow("send-batches", on="letters/ready")
    def send_batches(event: Event, step: Step) -> None:
        to = event.data["to"]
        batches = [to[n : n + 100] for n in range(0, len(to), 100)]
        step.send_event("each", [Event("batch/ready", {"to": batch}) for batch in batches])

    @flow("send-batch", on="batch/ready")
    def send_batch(event: Event, step: Step) -> None:
        step.run("send", write_all, event.data["to"])

    def write_all(addresses: list[str]) -> None:
        for address in addresses:
            write(address, "A letter")

    send("letters/ready", {"to": [f"{n}@example.com" for n in range(250)]})
    drain()
    assert [len(event.data["to"]) for event in sent("batch/ready")] == [100, 100, 50]
    assert len(mail.outbox) == 250


def test_a_flow_that_starts_itself_each_hour() -> None:
    hours: list[int] = []

    @flow("poll", on="poll/due")
    def poll(event: Event, step: Step) -> None:
        step.run("fetch", lambda: hours.append(event.data["n"]))
        step.sleep("an-hour", "1h")
        step.send_event("next", Event("poll/due", {"n": event.data["n"] + 1}))

    send("poll/due", {"n": 0})
    advance("59h30m")
    assert hours == list(range(60))


def test_the_crm_is_tried_again_by_powers_of_two() -> None:
    moments: list[float] = []

    @flow("sync-crm", on="user/created", retries=Retries(10, Exponential(min="1s", max="5m")))
    def sync_crm(event: Event, step: Step) -> None:
        step.run("push", push)

    def push() -> None:
        moments.append(clock.now().timestamp())
        if len(moments) < 11:
            raise ConnectionError("too many requests")

    event = send("user/created")
    advance("1h")
    assert run_of(event).state == "completed"
    pauses = [int(b - a) for a, b in zip(moments, moments[1:], strict=False)]
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]


def test_an_event_for_later() -> None:
    @flow("remind", on="trial/reminder")
    def remind(event: Event, step: Step) -> None:
        step.run("write", write, event.data["to"], "Your trial ends soon")

    in_an_hour = clock.now() + timedelta(hours=1)
    send("trial/reminder", {"to": "ada@example.com"}, ts=in_an_hour)
    advance("59m")
    assert not mail.outbox
    advance("1m")
    assert told("ada@example.com") == ["Your trial ends soon"]


def test_an_event_for_each_item() -> None:
    @flow("reserve", on="stock/item.reserved")
    def reserve(event: Event) -> Any:
        return event.data["item"]

    items = [{"item": name, "quantity": n} for n, name in enumerate(("mug", "towel"), 1)]
    ids = send_from_a_view([Event("stock/item.reserved", item) for item in items])
    drain()
    assert [run_of(id_).result for id_ in ids] == ["mug", "towel"]


def test_an_order_passes_on_its_priority() -> None:
    @flow("accept-order", on="order/placed")
    def accept_order(event: Event, step: Step) -> None:
        priority = "high" if event.data["tier"] == "premium" else "normal"
        wanted = {"order": event.data["order"], "priority": priority}
        step.send_event("fulfil", Event("fulfilment/wanted", wanted))

    for order, tier in enumerate(("premium", "basic")):
        send("order/placed", {"order": order, "tier": tier})
    drain()
    assert [event.data["priority"] for event in sent("fulfilment/wanted")] == ["high", "normal"]
