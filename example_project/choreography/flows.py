"""Joined, greeted, guided."""

from __future__ import annotations

from django.core.mail import send_mail

from durable_flows import Event, NonRetriableError, Step, StepError, flow

OFFICE = "office@choir.example"


@flow("begin-welcome", on="choir/singer.joined")
def begin_welcome(event: Event, step: Step) -> None:
    """The first link decides that there shall be a welcome."""
    step.send_event("pass-on", Event("choir/welcome.wanted", event.data))


@flow("greet-singer", on="choir/welcome.wanted")
def greet_singer(event: Event, step: Step) -> None:
    """The second link greets; if it cannot, somebody must know that the chain ends here."""
    try:
        step.run("send-mail", mail, event.data["email"], "Welcome to the choir")
    except StepError as error:
        step.run("alert", mail, OFFICE, f"Not greeted: {event.data['email']} ({error.message})")
        raise
    step.send_event("pass-on", Event("choir/singer.greeted", event.data))


@flow("guide-singer", on="choir/singer.greeted")
def guide_singer(event: Event, step: Step) -> None:
    """The third link waits for nobody."""
    step.run("send-guide", mail, event.data["email"], "Where to find your scores")


def mail(to: str, subject: str) -> int:
    if "@" not in to:
        raise NonRetriableError(f"{to} is no address")
    return send_mail(subject, "", None, [to])
