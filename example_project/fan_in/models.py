"""Parcels, and what they wait for."""

from __future__ import annotations

from django.db import models, transaction

from durable_flows import send


class Parcel(models.Model):
    """What is to be sent to somebody."""

    paid = models.BooleanField(default=False)
    packed = models.BooleanField(default=False)
    addressed = models.BooleanField(default=False)
    claimed = models.BooleanField(default=False)

    def __str__(self) -> str:
        return f"parcel {self.pk}"

    @transaction.atomic
    def note(self, what: str) -> None:
        """It was paid, packed or addressed: the column and the event are one commit."""
        Parcel.objects.filter(pk=self.pk).update(**{what: True})
        send(f"parcel/{what}", {"parcel_id": self.pk})


class Shipment(models.Model):
    """A parcel that the carrier has been told of. Nothing here prevents two for one parcel."""

    parcel = models.ForeignKey(Parcel, on_delete=models.CASCADE, related_name="shipments")

    def __str__(self) -> str:
        return f"shipment of {self.parcel}"
