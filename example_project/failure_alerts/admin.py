"""The bank, its payments, and the book of failures."""

from __future__ import annotations

from django.contrib import admin

from example_project.failure_alerts.models import Bank, Failure, Payment

admin.site.register([Bank, Payment, Failure])
