"""Both ledgers."""

from __future__ import annotations

from django.contrib import admin

from example_project.payments.models import BankEntry, Payment

admin.site.register([Payment, BankEntry])
