"""One flow that asks and gathers, three that answer."""

from __future__ import annotations

from typing import Any

from django.core.mail import send_mail

from durable_flows import Awaited, Event, NonRetriableError, Step, flow
from example_project.gather.models import Customer

QUESTIONS = ("mail/welcome.wanted", "billing/trial.wanted", "sales/contact.wanted")
ANSWERS = ("mail/welcome.sent", "billing/trial.started", "sales/contact.added")


@flow("take-in", on="customer/signed-up")
def take_in(event: Event, step: Step) -> dict[str, Any]:
    """Ask all three, wait for all three; whoever keeps silent for five minutes is named."""
    step.send_event("ask", [Event(name, event.data) for name in QUESTIONS])
    awaited = [Awaited(name, match="data.customer_id") for name in ANSWERS]
    answers = step.wait_for_events("answers", awaited, timeout="5m")
    missing = [name for name, answer in zip(ANSWERS, answers, strict=True) if answer is None]
    if not missing:
        step.run("complete", note, event.data["customer_id"], "complete", atomic=True)
    return {"missing": missing}


@flow("mail-welcome", on="mail/welcome.wanted")
def mail_welcome(event: Event, step: Step) -> None:
    """The first service."""
    step.run("send-mail", send_mail, "Welcome", "", None, [event.data["email"]])
    answer(event, step, "mailed", "mail/welcome.sent")


@flow("start-trial", on="billing/trial.wanted")
def start_trial(event: Event, step: Step) -> None:
    """The second service."""
    answer(event, step, "subscribed", "billing/trial.started")


@flow("add-contact", on="sales/contact.wanted")
def add_contact(event: Event, step: Step) -> None:
    """The third service, which has been switched off for some addresses."""
    step.run("look-up", look_up, event.data["email"])
    answer(event, step, "known_to_sales", "sales/contact.added")


def look_up(email: str) -> None:
    if email.startswith("secret"):
        raise NonRetriableError("sales must not know of them")


def answer(event: Event, step: Step, field: str, name: str) -> None:
    """What a service did, and word of it. A handler's helpers may have steps too."""
    customer_id = event.data["customer_id"]
    step.run("note", note, customer_id, field, atomic=True)
    step.send_event("answer", Event(name, {"customer_id": customer_id}))


def note(customer_id: int, field: str) -> None:
    Customer.objects.filter(pk=customer_id).update(**{field: True})
