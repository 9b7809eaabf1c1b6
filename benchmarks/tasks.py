"""The Celery task against which latencies are measured."""

from __future__ import annotations

from celery import shared_task

from benchmarks.stamps import stamp


@shared_task(ignore_result=True)
def bare() -> None:
    """Say when it began: what a task costs that does nothing."""
    stamp()
