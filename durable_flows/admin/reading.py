"""What all pages share: they can be read and not written, however many rows there are."""

from __future__ import annotations

import uuid
from functools import cached_property
from typing import Any

from django.contrib import admin
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.html import escape

from durable_flows import conf
from durable_flows.admin import showing

MOST_COUNTED = 5_000


class CappedPaginator(Paginator):  # type: ignore[type-arg]
    """Counts at most `MOST_COUNTED` rows: counting a million takes longer than the page itself.

    What lies beyond is found by searching and filtering, not by turning pages.
    """

    @cached_property
    def count(self) -> int:
        """How many rows there are, up to the cap."""
        rows: Any = self.object_list
        return int(rows.order_by()[:MOST_COUNTED].count())

    @property
    def is_capped(self) -> bool:
        """Whether there may be more rows than were counted."""
        return self.count == MOST_COUNTED


class ReadOnly(admin.ModelAdmin):  # type: ignore[type-arg]
    """A list and a page to look at.

    Subclasses say in ``no_rows_yet`` how the first row comes to be, and in ``left_out_if_empty`` which
    of a page's computed fields are not shown where they have nothing to say.
    """

    paginator = CappedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    sortable_by = ()  # most columns have no index to sort by
    no_rows_yet = ""
    left_out_if_empty: tuple[str, ...] = ()

    class Media:
        css = {"all": ["durable_flows/admin.css"]}  # noqa: RUF012

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Only the engine writes."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Only the engine writes."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Only the engine deletes."""
        return False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """The rows, from the database that holds the app's tables."""
        return super().get_queryset(request).using(conf.settings().DATABASE)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """The fields that have something to say, under the zone in which their times are told."""
        fieldsets = []
        for title, options in super().get_fieldsets(request, obj):
            fields = [name for name in options["fields"] if not self._is_empty(name, obj)]
            if fields:
                fieldsets.append((title, {**options, "fields": fields}))
        zone = escape(timezone.get_current_timezone_name())
        fieldsets[0][1]["description"] = f"Times are in {zone}."
        return fieldsets

    def _is_empty(self, name: Any, row: Any) -> bool:
        return name in self.left_out_if_empty and getattr(self, name)(row) == showing.NOTHING

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The list, with a sentence for the time when it is empty."""
        context = {"no_rows_yet": self.no_rows_yet, **(extra_context or {})}
        return super().changelist_view(request, context)


def as_uuid(text: str) -> uuid.UUID | None:
    """The id that somebody typed, in any spelling of a UUID; None if it is none."""
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
