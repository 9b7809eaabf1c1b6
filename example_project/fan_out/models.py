"""What the flows leave behind."""

from __future__ import annotations

from django.db import models


class Preferences(models.Model):
    """How somebody likes it."""

    member_id = models.CharField(max_length=40, unique=True)
    theme = models.CharField(max_length=20)
    notifications = models.BooleanField()

    def __str__(self) -> str:
        return f"preferences of {self.member_id}"


class SignUp(models.Model):
    """A sign-up, as the statistics count it."""

    member_id = models.CharField(max_length=40, unique=True)
    referred_by = models.CharField(max_length=40, blank=True)

    def __str__(self) -> str:
        return f"sign-up of {self.member_id}"
