"""Who becomes a customer."""

from __future__ import annotations

from django.db import models


class Customer(models.Model):
    """Somebody who is being taken in, and what the three services have done."""

    email = models.EmailField()
    mailed = models.BooleanField(default=False)
    subscribed = models.BooleanField(default=False)
    known_to_sales = models.BooleanField(default=False)
    complete = models.BooleanField(default=False)

    def __str__(self) -> str:
        return self.email
