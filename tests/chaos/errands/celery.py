from __future__ import annotations

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.chaos.errands.settings")

app = Celery("errands")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
