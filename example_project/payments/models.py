"""Our ledger, and the bank's."""

from __future__ import annotations

from django.db import models


class Payment(models.Model):
    """An entry of ours."""

    payment_id = models.CharField(max_length=40, unique=True)
    charge = models.CharField(max_length=60)
    amount = models.PositiveIntegerField()

    def __str__(self) -> str:
        return f"payment {self.payment_id}"


class BankEntry(models.Model):
    """An entry of the bank, which carries out each key once."""

    key = models.CharField(max_length=60, unique=True)
    amount = models.IntegerField()

    def __str__(self) -> str:
        return f"{self.key}: {self.amount}"
