"""The shop at the root, the admin at /admin/."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.staticfiles.urls import staticfiles_urlpatterns
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("", include("example_project.shop.urls")),
    *staticfiles_urlpatterns(),  # only with DEBUG, and then under any server
]
