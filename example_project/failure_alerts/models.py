"""A bank that lets only so many payments through, and the book of failures."""

from __future__ import annotations

from django.db import models


class Bank(models.Model):
    """The provider, which refuses what is too much for it."""

    name = models.CharField(max_length=40, unique=True)
    accepts = models.IntegerField(help_text="How many payments more, for now.")

    def __str__(self) -> str:
        return self.name


class Payment(models.Model):
    """What is to be paid out."""

    bank = models.ForeignKey(Bank, models.CASCADE)
    amount = models.IntegerField()
    paid = models.BooleanField(default=False)

    def __str__(self) -> str:
        return f"{self.amount} by {self.bank}"


class Failure(models.Model):
    """A line in the book of failures."""

    flow = models.CharField(max_length=255)
    run = models.UUIDField()
    error = models.TextField()

    def __str__(self) -> str:
        return f"{self.flow}: {self.error}"
