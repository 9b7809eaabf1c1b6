"""Settings of the example project.

It runs as it is on SQLite with nothing else installed. The environment can change:

=========================  ====================================================================
EXAMPLE_SQLITE             path of the SQLite file (default ``demo.sqlite3`` beside ``manage.py``)
EXAMPLE_PGHOST             use PostgreSQL on this host or socket directory instead; with it
                           EXAMPLE_PGPORT, EXAMPLE_PGUSER, EXAMPLE_PGDATABASE, EXAMPLE_PGPASSWORD
CELERY_BROKER_URL          default ``memory://``, which serves one process only
EXAMPLE_MAIL_DIR           where e-mails are written as files (default ``mails``)
EXAMPLE_BASE_URL           what links in e-mails begin with (default ``http://localhost:8000``)
EXAMPLE_SECRET_KEY         set it wherever strangers can reach the shop
DEBUG                      ``1`` (default) or ``0``
=========================  ====================================================================
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

BASE_DIR = Path(__file__).resolve().parent.parent

SECRET_KEY = os.environ.get(
    "EXAMPLE_SECRET_KEY", "for-the-demo-only--not-a-secret--not-for-production"
)
DEBUG = os.environ.get("DEBUG", "1") == "1"
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]", "testserver"]

#: Small apps, each with flows of one kind; their stories are told by ``manage.py demo``.
STORIES = [
    "example_project.onboarding",
    "example_project.fan_out",
    "example_project.gather",
    "example_project.fan_in",
    "example_project.request_reply",
    "example_project.choreography",
    "example_project.routing",
    "example_project.orders",
    "example_project.payments",
    "example_project.approvals",
    "example_project.failure_alerts",
    "example_project.dead_letters",
]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_celery_beat",
    "durable_flows",
    "example_project.shop",
    *STORIES,
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "example_project.urls"
WSGI_APPLICATION = "example_project.wsgi.application"
ASGI_APPLICATION = "example_project.asgi.application"

TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "example_project.shop.carts.context",
            ],
        },
    },
]

# -- database --------------------------------------------------------------------------------

DATABASES: dict[str, dict[str, Any]]

if "EXAMPLE_PGHOST" in os.environ:
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": os.environ["EXAMPLE_PGHOST"],
            "PORT": os.environ.get("EXAMPLE_PGPORT", "5432"),
            "USER": os.environ.get("EXAMPLE_PGUSER", "postgres"),
            "PASSWORD": os.environ.get("EXAMPLE_PGPASSWORD", ""),
            "NAME": os.environ.get("EXAMPLE_PGDATABASE", "durable_flows_example"),
            "CONN_MAX_AGE": 60,
            "CONN_HEALTH_CHECKS": True,
        },
    }
else:
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": os.environ.get("EXAMPLE_SQLITE", BASE_DIR / "demo.sqlite3"),
            "OPTIONS": {
                # Writers queue for up to 20 s instead of failing with "database is locked".
                "transaction_mode": "IMMEDIATE",
                "timeout": 20,
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
            },
        },
    }

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# -- durable_flows and Celery ----------------------------------------------------------------

DURABLE_FLOWS: dict[str, Any] = {}

CELERY_BROKER_URL = os.environ.get("CELERY_BROKER_URL", "memory://")
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_IGNORE_RESULT = True
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
# Without it Celery opens a new database connection for every task.
CELERY_DB_REUSE_MAX = 1000
if CELERY_BROKER_URL.startswith("memory://"):
    CELERY_BROKER_TRANSPORT_OPTIONS = {"polling_interval": 0.05}

# -- people ----------------------------------------------------------------------------------

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
LOGIN_URL = "shop:log-in"
LOGIN_REDIRECT_URL = "shop:catalogue"
LOGOUT_REDIRECT_URL = "shop:catalogue"

# -- e-mail ----------------------------------------------------------------------------------

EMAIL_BACKEND = "django.core.mail.backends.filebased.EmailBackend"
EMAIL_FILE_PATH = os.environ.get("EXAMPLE_MAIL_DIR", BASE_DIR / "mails")
DEFAULT_FROM_EMAIL = "Slow Cupboard <shop@example.com>"
EXAMPLE_BASE_URL = os.environ.get("EXAMPLE_BASE_URL", "http://localhost:8000").rstrip("/")

# -- the rest --------------------------------------------------------------------------------

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_I18N = False
USE_TZ = True
STATIC_URL = "static/"
