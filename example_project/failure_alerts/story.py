"""Of three payments the bank takes one at once; the others go through five and ten minutes later."""

from __future__ import annotations

from django.db import transaction

from durable_flows.testing import advance, drain, send
from example_project.failure_alerts.models import Bank, Payment


def play() -> None:
    """Ten minutes."""
    bank, _ = Bank.objects.update_or_create(name="Old Mill Bank", defaults={"accepts": 1})
    for amount, paper in ((100, True), (250, True), (400, False)):
        approve(bank, amount, paper=paper)
    drain()
    for _ in range(2):
        Bank.objects.filter(pk=bank.pk).update(accepts=1)
        advance("5m")


@transaction.atomic
def approve(bank: Bank, amount: int, *, paper: bool = True) -> Payment:
    """What the page does: the row and the event are one commit."""
    payment = Payment.objects.create(bank=bank, amount=amount)
    send("payment/approved", {"payment_id": payment.pk, "paper": paper})
    return payment


ENDED = [
    *["critical-pay-out completed (pay, paid)"] * 3,
    *["print-receipt completed (print)"] * 2,
    "print-receipt failed (print)",
    *["watch-failures completed (log-failure, send-alert, cool-down, retry)"] * 3,
    "watch-failures completed (log-failure)",
]
