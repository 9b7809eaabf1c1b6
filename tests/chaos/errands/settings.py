"""Short leases, and two databases: the app's, and that of a witness whom no rollback reaches."""

from __future__ import annotations

import os
from typing import Any


def database(name: str) -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": os.environ["ERRANDS_HOST"],
        "PORT": os.environ["ERRANDS_PORT"],
        "USER": os.environ["ERRANDS_USER"],
        "NAME": name,
        "CONN_MAX_AGE": None,
    }


SECRET_KEY = "for tests only"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True

INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django_celery_beat",
    "durable_flows",
    "tests.chaos.errands",
]

DATABASES = {
    "default": database(os.environ["ERRANDS_DATABASE"]),
    "witness": database("witness"),
}

DURABLE_FLOWS = {
    "TICK_SECONDS": 0.5,
    "LEASE_SECONDS": float(os.environ.get("ERRANDS_LEASE", "1")),
    "HEARTBEAT_SECONDS": 0.3,
    "POISON_CLAIMS": int(os.environ.get("ERRANDS_POISON", "3")),
}

CELERY_BROKER_URL = os.environ.get("CELERY_BROKER_URL", "memory://")
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_IGNORE_RESULT = True
CELERY_DB_REUSE_MAX = 1000
if CELERY_BROKER_URL.startswith("memory://"):
    CELERY_BROKER_TRANSPORT_OPTIONS = {"polling_interval": 0.05}
