"""Django settings of the benchmarks: production's, on servers that benchmarks/stage.py starts."""

import os
from typing import Any

SECRET_KEY = "for benchmarks only"
DEBUG = False  # otherwise Django keeps every statement
USE_TZ = True
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django_celery_beat",
    "durable_flows",
    "benchmarks",
]
_DATABASE = {
    "ENGINE": "django.db.backends.postgresql",
    "HOST": os.environ.get("BENCHMARKS_POSTGRES_HOST", ""),
    "PORT": os.environ.get("BENCHMARKS_POSTGRES_PORT", ""),
    "USER": os.environ.get("BENCHMARKS_POSTGRES_USER", ""),
    "CONN_MAX_AGE": 60,
    "CONN_HEALTH_CHECKS": True,
}
DATABASES: dict[str, dict[str, Any]] = {
    "default": {**_DATABASE, "NAME": os.environ.get("BENCHMARKS_POSTGRES_NAME", "")},
    # The same tables again, for questions that compare full ones with empty ones.
    "crowded": {**_DATABASE, "NAME": "benchmarks_crowded"},
}
CELERY_BROKER_URL = os.environ.get("BENCHMARKS_BROKER", "memory://")
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_IGNORE_RESULT = True
# Without it Celery opens a new database connection for every task.
CELERY_DB_REUSE_MAX = 1000
# Every setting of the app at its default.
DURABLE_FLOWS: dict[str, Any] = {}
