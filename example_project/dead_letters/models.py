"""What nobody could deliver."""

from __future__ import annotations

from django.db import models


class DeadLetter(models.Model):
    """An event whose run failed for good, and of what."""

    flow = models.CharField(max_length=255)
    run = models.UUIDField(help_text="The run that failed.")
    event = models.JSONField(help_text="The event that started it.")
    step = models.CharField(max_length=255, blank=True)
    error = models.TextField()
    reviewed = models.BooleanField(default=False)

    def __str__(self) -> str:
        return f"{self.flow}: {self.error}"
