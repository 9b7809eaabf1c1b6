"""What the flows left behind."""

from __future__ import annotations

from django.contrib import admin

from example_project.fan_out.models import Preferences, SignUp

admin.site.register([Preferences, SignUp])
