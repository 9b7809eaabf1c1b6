"""Four reactions to ``club/member.signed-up``."""

from __future__ import annotations

from typing import Any

from django.core.mail import send_mail

from durable_flows import Event, Step, flow
from example_project.fan_out.models import Preferences, SignUp

BOARD = "board@club.example"


@flow("greet-member", on="club/member.signed-up")
def greet_member(event: Event, step: Step) -> None:
    """A mail, and then word that the member was greeted: who listens to that is not its business."""
    step.run("send-mail", mail, event.data["email"], "Good to have you")
    step.send_event("tell", Event("club/member.greeted", {"member_id": event.data["member_id"]}))


@flow("set-up-defaults", on="club/member.signed-up")
def set_up_defaults(event: Event, step: Step) -> None:
    """A row of preferences."""
    step.run("create-preferences", create_preferences, event.data["member_id"], atomic=True)


def create_preferences(member_id: str) -> None:
    Preferences.objects.create(member_id=member_id, theme="light", notifications=True)


@flow("record-sign-up", on="club/member.signed-up")
def record_sign_up(event: Event, step: Step) -> None:
    """A row for the statistics."""
    referred_by = event.data.get("referred_by", "")
    step.run("record", record, event.data["member_id"], referred_by, atomic=True)


def record(member_id: str, referred_by: str) -> None:
    SignUp.objects.create(member_id=member_id, referred_by=referred_by)


@flow("notify-board", on="club/member.signed-up")
def notify_board(event: Event, step: Step) -> None:
    """A mail to those who run the club."""
    step.run("send-mail", mail, BOARD, f"{event.data['name']} has joined")


def mail(to: str, subject: str) -> dict[str, Any]:
    return {"to": to, "subject": subject, "sent": send_mail(subject, "", None, [to])}
