"""Ada subscribes on day nine of her trial; Bob confirms his address; Cleo does neither."""

from __future__ import annotations

from uuid import uuid4

from durable_flows.testing import advance, drain, send
from example_project.onboarding.models import Account


def play() -> None:
    """Fifteen days with three new accounts."""
    ada, bob, _ = (sign_up(name) for name in ("Ada", "Bob", "Cleo"))
    advance("2h")
    send("user/email.verified", {"user_id": ada})
    send("user/email.verified", {"user_id": bob})
    advance("9 days")
    Account.objects.get(user_id=ada).subscribe("sub-1")
    advance("6 days")


def sign_up(name: str) -> str:
    """What the page does that somebody signs up on; returns the user's id."""
    user_id = uuid4().hex
    email = f"{name.lower()}@onboarding.example"
    facts = {"user_id": user_id, "email": email, "name": name, "plan": "pro"}
    send("user/signup.completed", facts, id=f"signup-{user_id}")
    drain()
    return user_id


PROVISIONED = (
    "provision-account completed (create-account, create-workspace, seed-defaults, start-trial)"
)
WELCOMED = "send-welcome-mail completed (render-template, send-mail, track)"
VERIFIED = "verify-address completed (send-verification, verified, open-access)"
UNVERIFIED = "verify-address completed (send-verification, verified, send-reminder)"
SUBSCRIBED = "manage-trial cancelled (until-day-7, send-halfway, until-day-13)"
DOWNGRADED = (
    "manage-trial completed (until-day-7, send-halfway, until-day-13, send-ending, until-the-end, "
    "check-subscription, downgrade-to-free, send-downgraded)"
)

ENDED = [
    *[PROVISIONED, WELCOMED] * 3,
    *[VERIFIED] * 2,
    UNVERIFIED,
    SUBSCRIBED,
    *[DOWNGRADED] * 2,
]
