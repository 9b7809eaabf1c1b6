"""Reports that somebody has asked for."""

from __future__ import annotations

from django.db import models


class Report(models.Model):
    """A report, empty until it has been written."""

    subject = models.CharField(max_length=80)
    text = models.TextField(blank=True)
    late = models.BooleanField(default=False)

    def __str__(self) -> str:
        return self.subject
