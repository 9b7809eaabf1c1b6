"""Dead letters."""

from __future__ import annotations

from django.contrib import admin

from example_project.dead_letters.models import DeadLetter

admin.site.register(DeadLetter)
