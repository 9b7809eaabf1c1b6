"""Accounts and what belongs to them."""

from __future__ import annotations

from django.contrib import admin

from example_project.onboarding.models import Account, Tracked, Workspace

admin.site.register([Account, Workspace, Tracked])
