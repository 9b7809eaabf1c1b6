"""Waits: which events somebody waits for. One that has ended is found on its run's page."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString

from durable_flows import conf
from durable_flows.admin import history, showing
from durable_flows.admin.reading import ReadOnly, as_uuid
from durable_flows.models import Signature, Wait

MOST_NAMES = 50


class EventNameFilter(admin.SimpleListFilter):
    """By the awaited event. The names come from the signatures, of which there are few."""

    title = "event"
    parameter_name = "event"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The names that anything has ever waited for."""
        names = Signature.objects.using(conf.settings().DATABASE).values_list(
            "event_name", flat=True
        )
        found = names.distinct().order_by("event_name")[:MOST_NAMES]
        return [(name, name) for name in found]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Wait]) -> QuerySet[Wait]:
        """The waits for it."""
        name = self.value()
        if name is None:
            return queryset
        return queryset.none() if "\0" in name else queryset.filter(event_name=name)


@admin.register(Wait)
class WaitAdmin(ReadOnly):
    """What is waited for now."""

    list_display = ("event_name", "matches", "purpose", "run_page", "until")
    list_display_links = None
    list_filter = (EventNameFilter,)
    ordering = ("-run_id",)  # a run's id begins with the time, a wait's does not
    search_fields = ("event_name",)
    search_help_text = "The beginning of the name of the awaited event, or a run’s id."
    no_rows_yet = (
        "Nothing is waited for. A flow that calls step.wait_for_event(…), or that has cancel_on=, "
        "has its waits here while they last."
    )
    fields = ("event_name", "matches", "purpose", "run_page", "since", "until")
    readonly_fields = ("matches", "purpose", "run_page", "since", "until")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """The pending waits, each with its run."""
        waits: Any = super().get_queryset(request)
        found: QuerySet[Any] = waits.pending().select_related("run")
        return found.defer("run__result", "run__error")

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """By run, or by the beginning of the event's name."""
        term = search_term.strip()
        if not term:
            return queryset, False
        if found := as_uuid(term):
            return queryset.filter(run_id=found), False
        return queryset.filter(event_name__startswith=term), False

    @admin.display(description="matches")
    def matches(self, wait: Wait) -> str:
        """What the event must have."""
        return wait.criteria or "every one"

    @admin.display(description="purpose")
    def purpose(self, wait: Wait) -> str:
        """What happens then."""
        return history.purpose(wait.kind, wait.key, cancels="cancels the run")

    @admin.display(description="run")
    def run_page(self, wait: Wait) -> SafeString:
        """The run that waits."""
        return showing.run_link(wait.run_id, wait.run.flow)

    @admin.display(description="since")
    def since(self, wait: Wait) -> str:
        """When it began."""
        return showing.moment(wait.created_at)

    @admin.display(description="until")
    def until(self, wait: Wait) -> str:
        """When it ends by itself."""
        return showing.moment(wait.expires_at)
