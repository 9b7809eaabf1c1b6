"""The example project: a small shop whose pages send events and whose flows follow them up."""

from __future__ import annotations

from example_project.celery import app as celery_app

__all__ = ["celery_app"]
