"""What is known of those who signed up."""

from __future__ import annotations

from django.db import models, transaction

from durable_flows import send


class Account(models.Model):
    """Somebody who signed up, and the plan they are on."""

    user_id = models.CharField(max_length=40, unique=True)
    email = models.EmailField()
    name = models.CharField(max_length=80)
    plan = models.CharField(max_length=20)
    trial_ends_at = models.DateTimeField()
    subscription_id = models.CharField(max_length=40, blank=True)
    full_access = models.BooleanField(default=False)

    def __str__(self) -> str:
        return f"{self.name} ({self.plan})"

    @transaction.atomic
    def subscribe(self, subscription_id: str) -> None:
        """What the billing provider's webhook does: row and event are one commit."""
        self.subscription_id = subscription_id
        self.save()
        send(
            "billing/subscription.created",
            {"user_id": self.user_id, "subscription_id": subscription_id, "plan": self.plan},
        )


class Workspace(models.Model):
    """Where an account works."""

    account = models.OneToOneField(Account, on_delete=models.CASCADE)
    name = models.CharField(max_length=100)
    settings = models.JSONField(default=dict)

    def __str__(self) -> str:
        return self.name


class Tracked(models.Model):
    """What the analytics provider was told."""

    what = models.CharField(max_length=40)
    user_id = models.CharField(max_length=40)

    def __str__(self) -> str:
        return f"{self.what} {self.user_id}"
