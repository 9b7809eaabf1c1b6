"""Who pays, and who looks after those that could not."""

from __future__ import annotations

from typing import Any

from django.core.mail import send_mail
from django.db.models import F

from durable_flows import Event, NonRetriableError, On, Step, flow, retry
from example_project.failure_alerts.models import Bank, Failure, Payment

RATE_LIMITED = "RATE_LIMIT_EXCEEDED"
MOST_RETRIES = 3
ON_CALL = "on-call@alerts.example"
WATCHED = ("critical-pay-out", "print-receipt")


class TooMany(NonRetriableError):
    """The bank wants no more for now."""

    code = RATE_LIMITED


@flow("critical-pay-out", on="payment/approved", retries=2)
def pay_out(event: Event, step: Step) -> None:
    """Pay, and let a receipt be printed."""
    payment_id = event.data["payment_id"]
    step.run("pay", pay, payment_id, atomic=True)
    step.send_event("paid", Event("payment/paid", event.data))


def pay(payment_id: int) -> None:
    payment = Payment.objects.select_related("bank").get(pk=payment_id)
    accepted = Bank.objects.filter(pk=payment.bank_id, accepts__gt=0)
    if not accepted.update(accepts=F("accepts") - 1):
        raise TooMany(f"{payment.bank} has had enough")
    Payment.objects.filter(pk=payment_id).update(paid=True)


@flow("print-receipt", on="payment/paid", retries=0)
def print_receipt(event: Event, step: Step) -> None:
    """Nothing depends on it."""
    step.run("print", put_on_paper, event.data["paper"])


def put_on_paper(paper: bool) -> None:
    if not paper:
        raise OSError("out of paper")


@flow(
    "watch-failures",
    on=[On("flows/function.failed", if_=f"event.data.function_id == '{id}'") for id in WATCHED],
)
def watch_failures(event: Event, step: Step) -> str:
    """Log it, raise an alarm if it is critical, and go on in five minutes if it was too fast."""
    failed, error = event.data["run_id"], event.data["error"]
    step.run("log-failure", log_failure, event.data, atomic=True)
    if "critical" in event.data["function_id"]:
        step.run("send-alert", send_alert, event.data["function_id"], failed)
    if error["code"] != RATE_LIMITED or event.data["generation"] >= MOST_RETRIES:
        return "left to people"
    step.sleep("cool-down", "5m")
    # One commit with the step's record: if this worker dies, the run is not retried twice.
    step.run("retry", retry, failed, atomic=True)
    return "retried"


def log_failure(told: dict[str, Any]) -> None:
    Failure.objects.create(
        flow=told["function_id"], run=told["run_id"], error=told["error"]["message"]
    )


def send_alert(flow_id: str, run_id: str) -> int:
    return send_mail(f"Critical: {flow_id} failed", f"Run {run_id}.", None, [ON_CALL])
