"""The Django app: finds flows, registers checks, signals the tick to beat."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig, apps
from django.core.exceptions import ImproperlyConfigured
from django.db.models.signals import post_migrate
from django.utils.module_loading import autodiscover_modules


class DurableFlowsConfig(AppConfig):
    """``"durable_flows"`` in INSTALLED_APPS."""

    name = "durable_flows"
    verbose_name = "Durable flows"
    default_auto_field = "django.db.models.BigAutoField"

    def import_models(self) -> None:
        """Import the models. Raises `ImproperlyConfigured` without the app that they refer to."""
        if not apps.is_installed("django.contrib.contenttypes"):
            raise ImproperlyConfigured(
                "durable_flows links runs to rows of any model: add 'django.contrib.contenttypes' to "
                "INSTALLED_APPS"
            )
        super().import_models()

    def ready(self) -> None:
        """Import what registers itself: checks, tasks, the worker's step, then everybody's flows."""
        from celery import current_app

        from durable_flows import checks, tasks, worker  # noqa: F401
        from durable_flows.engine import emitted, ingest  # noqa: F401  (provides Flow.start)

        current_app.steps["worker"].add(worker.Heart)
        post_migrate.connect(_register_tick, sender=self)
        emitted.listen()
        autodiscover_modules("flows")


def _register_tick(using: str, **_: Any) -> None:
    from durable_flows import beat, conf

    if using == conf.settings().DATABASE:
        beat.register()
