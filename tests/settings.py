"""Django settings of the test suite. DURABLE_FLOWS_TEST_DATABASE chooses the database."""

import os
import tempfile
from pathlib import Path
from typing import Any

from example_project.settings import STORIES


def database() -> dict[str, Any]:
    """Read which database from the environment, which tests/conftest.py fills."""
    chosen = os.environ.get("DURABLE_FLOWS_TEST_DATABASE") or "sqlite"
    return {"sqlite": sqlite, "postgres": postgres}[chosen]()


def sqlite() -> dict[str, Any]:
    directory = Path(os.environ.get("DURABLE_FLOWS_TEST_DIR") or tempfile.gettempdir())
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(directory / "durable_flows.sqlite3"),
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
        },
        # A file, and not memory: threads and other processes open it too.
        "TEST": {"NAME": str(directory / "test_durable_flows.sqlite3")},
    }


def postgres() -> dict[str, Any]:
    variable = "DURABLE_FLOWS_TEST_POSTGRES_"
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "durable_flows",
        "HOST": os.environ.get(variable + "HOST", ""),
        "PORT": os.environ.get(variable + "PORT", ""),
        "USER": os.environ.get(variable + "USER", ""),
        "PASSWORD": os.environ.get(variable + "PASSWORD", ""),
    }


SECRET_KEY = "for tests only"
ALLOWED_HOSTS = ["*"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"
STATIC_URL = "static/"
ROOT_URLCONF = "tests.urls"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django_celery_beat",
    *STORIES,
    "tests.stories.apps.ShopWithoutFlows",
    "tests.library",
    "durable_flows",
]

MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]

TEMPLATES = [
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

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
EMAIL_BACKEND = "django.core.mail.backends.locmem.EmailBackend"
EMAIL_FILE_PATH = str(
    Path(tempfile.gettempdir()) / "mails"
)  # of the demo, which is not played here

LOGIN_URL = "shop:log-in"
LOGIN_REDIRECT_URL = LOGOUT_REDIRECT_URL = "shop:catalogue"
EXAMPLE_BASE_URL = "http://shop.example"

DATABASES = {"default": database()}

CELERY_BROKER_URL = "memory://"

DURABLE_FLOWS = {"RING": "off"}
