"""Parcels and shipments."""

from __future__ import annotations

from django.contrib import admin

from example_project.fan_in.models import Parcel, Shipment

admin.site.register([Parcel, Shipment])
