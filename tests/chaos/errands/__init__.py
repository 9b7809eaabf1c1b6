"""A project whose flows are there to be killed: each tells a second database what it really did."""

from __future__ import annotations

from tests.chaos.errands.celery import app as celery_app

__all__ = ["celery_app"]
