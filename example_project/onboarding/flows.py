"""From the sign-up to the end of the trial."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.core.mail import send_mail

from durable_flows import CancelOn, Event, Run, Step, flow
from example_project.onboarding.models import Account, Tracked, Workspace

TRIAL = timedelta(days=14)


# -- the account -----------------------------------------------------------------------------


@flow("provision-account", on="user/signup.completed", retries=3)
def provision_account(event: Event, step: Step, run: Run) -> dict[str, Any]:
    """Make the rows of an account, then let its trial begin."""
    # The flow's own time, not the wall clock's: the same at each replay, and the test kit moves it.
    trial_ends_at = run.created_at + TRIAL
    account = step.run("create-account", create_account, event.data, trial_ends_at, atomic=True)
    workspace = step.run("create-workspace", create_workspace, account["id"], atomic=True)
    step.run("seed-defaults", seed_defaults, workspace["id"], atomic=True)
    trial = {"user_id": account["user_id"], "trial_ends_at": trial_ends_at.isoformat()}
    step.send_event("start-trial", Event("user/trial.started", trial))
    return {"account": account, "workspace": workspace, "status": "provisioned"}


def create_account(signup: dict[str, Any], trial_ends_at: datetime) -> dict[str, Any]:
    account = Account.objects.create(
        user_id=signup["user_id"],
        email=signup["email"],
        name=signup["name"],
        plan=signup["plan"],
        trial_ends_at=trial_ends_at,
    )
    return {"id": account.pk, "user_id": account.user_id}


def create_workspace(account_id: int) -> dict[str, Any]:
    account = Account.objects.get(pk=account_id)
    workspace = Workspace.objects.create(account=account, name=f"{account.name}'s workspace")
    return {"id": workspace.pk, "name": workspace.name}


def seed_defaults(workspace_id: int) -> None:
    defaults = {"project": "First steps", "notifications": "weekly"}
    Workspace.objects.filter(pk=workspace_id).update(settings=defaults)


# -- the welcome -----------------------------------------------------------------------------


@flow("send-welcome-mail", on="user/signup.completed", retries=5)
def send_welcome_mail(event: Event, step: Step) -> dict[str, Any]:
    """Greet whoever has signed up; it neither waits for the account nor minds if that fails."""
    text = step.run("render-template", render_welcome, event.data["name"], event.data["plan"])
    sent: dict[str, Any] = step.run("send-mail", mail, event.data["email"], "Welcome aboard", text)
    step.run("track", track, "welcome mail sent", event.data["user_id"], atomic=True)
    return sent


def render_welcome(name: str, plan: str) -> str:
    return f"Dear {name},\n\nyou are on the {plan} plan, and try it for 14 days.\n"


def track(what: str, user_id: str) -> None:
    Tracked.objects.create(what=what, user_id=user_id)


# -- the address -----------------------------------------------------------------------------


@flow("verify-address", on="user/signup.completed")
def verify_address(event: Event, step: Step) -> dict[str, Any]:
    """Full access for those who confirm their address within a day, a reminder for the others."""
    to, user_id = event.data["email"], event.data["user_id"]
    step.run("send-verification", mail, to, "Is this your address?", f"/verify/{user_id}")
    verified = step.wait_for_event(
        "verified", event="user/email.verified", match="data.user_id", timeout="24h"
    )
    if verified is None:
        step.run("send-reminder", mail, to, "Please confirm your address", f"/verify/{user_id}")
        return {"status": "unverified"}
    # Whoever clicks before the account is there is not too early: the step fails, and is tried again.
    step.run("open-access", open_access, user_id, atomic=True)
    return {"status": "verified"}


def open_access(user_id: str) -> None:
    account = Account.objects.get(user_id=user_id)
    account.full_access = True
    account.save(update_fields=["full_access"])


# -- the trial -------------------------------------------------------------------------------


@flow(
    "manage-trial",
    on="user/trial.started",
    cancel_on=CancelOn("billing/subscription.created", match="data.user_id"),
    retries=3,
)
def manage_trial(event: Event, step: Step) -> dict[str, Any]:
    """Two reminders and an end, 14 days long; a subscription cancels it wherever it is."""
    user_id = event.data["user_id"]
    step.sleep("until-day-7", "7 days")
    step.run("send-halfway", remind, user_id, "You are halfway through your trial")
    step.sleep("until-day-13", "6 days")
    step.run("send-ending", remind, user_id, "Your trial ends tomorrow")
    step.sleep("until-the-end", "1 day")
    subscribed = step.run("check-subscription", has_subscription, user_id)
    if not subscribed:
        step.run("downgrade-to-free", downgrade, user_id, atomic=True)
        step.run("send-downgraded", remind, user_id, "You are on the free plan now")
    return {"user_id": user_id, "converted": subscribed}


def has_subscription(user_id: str) -> bool:
    return Account.objects.filter(user_id=user_id).exclude(subscription_id="").exists()


def downgrade(user_id: str) -> None:
    # Asks again: whoever subscribes in this very moment keeps the plan.
    Account.objects.filter(user_id=user_id, subscription_id="").update(plan="free")


def remind(user_id: str, subject: str) -> dict[str, Any]:
    account = Account.objects.get(user_id=user_id)
    return mail(account.email, subject, f"Dear {account.name},\n\n{subject.lower()}.\n")


def mail(to: str, subject: str, text: str) -> dict[str, Any]:
    return {"to": to, "subject": subject, "sent": send_mail(subject, text, None, [to])}
