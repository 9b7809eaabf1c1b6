"""Reports."""

from __future__ import annotations

from django.contrib import admin

from example_project.request_reply.models import Report

admin.site.register(Report)
