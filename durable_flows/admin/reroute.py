"""The action on events that were set aside: have them routed again."""

from __future__ import annotations

from typing import Any, TypeAlias

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse

from durable_flows.engine import quarantine, sql
from durable_flows.models import Event

MOST_AT_ONCE = 500  # events

Page: TypeAlias = "admin.ModelAdmin[Event]"


@admin.action(permissions=["reroute"], description="Route selected events again")
def reroute_events(
    page: Page, request: HttpRequest, chosen: QuerySet[Event]
) -> HttpResponse | None:
    """Have those that were set aside routed again: harmless, and so done without another question."""
    events = list(chosen.defer("data", "user", "error").order_by("pk")[: MOST_AT_ONCE + 1])
    if len(events) > MOST_AT_ONCE:
        problem = (
            f"More than {MOST_AT_ONCE} events are selected. Select fewer: filter or search first."
        )
        page.message_user(request, problem, messages.ERROR)
        return None
    rerouted = _reroute(request, events)
    _tell(page, request, rerouted, len(events) - len(rerouted))
    if "from_event" in request.POST and len(events) == 1:
        return HttpResponseRedirect(
            reverse("admin:durable_flows_event_change", args=[events[0].pk])
        )
    return None


def _reroute(request: HttpRequest, events: list[Event]) -> list[Event]:
    """Ask, and log that it was asked, in one transaction."""
    user: Any = request.user
    with sql.atomic():
        asked = set(quarantine.reroute([event.pk for event in events]))
        rerouted = [event for event in events if event.pk in asked]
        if rerouted:
            LogEntry.objects.log_actions(
                user.pk, rerouted, CHANGE, "Asked for it to be routed again."
            )
    return rerouted


def _tell(page: Page, request: HttpRequest, rerouted: list[Event], others: int) -> None:
    if rerouted:
        what = str(rerouted[0]) if len(rerouted) == 1 else f"{len(rerouted):,} events"
        page.message_user(
            request,
            f"Asked for {what} to be routed again; the next tick sees to it.",
            messages.SUCCESS,
        )
    if others:
        what = "One event was" if others == 1 else f"{others:,} events were"
        page.message_user(
            request,
            f"{what} not set aside, and stay{'s' * (others == 1)} as before.",
            messages.WARNING,
        )
