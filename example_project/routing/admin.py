"""What arrived where."""

from __future__ import annotations

from django.contrib import admin

from example_project.routing.models import Contact, Entry

admin.site.register([Contact, Entry])
