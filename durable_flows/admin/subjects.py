"""The runs that are about a row, on that row's own page in the admin."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.contrib.admin.utils import quote
from django.contrib.contenttypes.models import ContentType
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from durable_flows import conf
from durable_flows.admin import showing, states
from durable_flows.engine import subjects
from durable_flows.engine.subjects import Subject
from durable_flows.models import Event, Run

MOST_SHOWN = 20
SECTION = "flow_runs_section"


class FlowRunsMixin(admin.ModelAdmin):  # type: ignore[type-arg]
    """For a `ModelAdmin` of any model: its page of a row lists the newest runs that are about the row.

    Only those see them who may view runs. The site must have the pages of durable_flows as well.
    """

    class Media:
        css = {"all": ["durable_flows/admin.css"]}  # noqa: RUF012

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Those of the `ModelAdmin`, and the list of runs."""
        fields = super().get_readonly_fields(request, obj)
        return [*fields, SECTION] if self._shows_runs(request, obj) else fields

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """Those of the `ModelAdmin`, and the list of runs below them."""
        fieldsets = super().get_fieldsets(request, obj)
        if not self._shows_runs(request, obj):
            return fieldsets
        others = [
            (title, {**options, "fields": [name for name in options["fields"] if name != SECTION]})
            for title, options in fieldsets
        ]
        return [*others, ("Runs", {"fields": [SECTION], "classes": ["df-part", "df-subject"]})]

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """What would be deleted with these rows, and what protects them.

        Runs are never deleted, so that nobody needs the permission to: they only protect.
        """
        deleted, counts, lacking, protected = super().get_deleted_objects(objs, request)
        return deleted, counts, set(lacking) - {Run._meta.verbose_name}, protected

    @admin.display(description="Runs")
    def flow_runs_section(self, row: Any) -> SafeString:
        """The newest runs, by one statement."""
        kind = ContentType.objects.db_manager(conf.settings().DATABASE).get_for_model(row)
        about = {"subject_type": kind.pk, "subject_id": str(row.pk)}
        runs = Run.objects.using(conf.settings().DATABASE).filter(**about).defer("result", "error")
        found = list(states.with_activity(runs).order_by("-pk")[: MOST_SHOWN + 1])
        pages = f"{self.admin_site.name}:durable_flows_run"
        context = {
            "rows": [_shown(run, f"{pages}_change") for run in found[:MOST_SHOWN]],
            "more": len(found) > MOST_SHOWN,
            "what": self.opts.verbose_name,
            "all_url": f"{reverse(f'{pages}_changelist')}?{urlencode(about)}",
        }
        return render_to_string("admin/durable_flows/subject/runs.html", context)

    def _shows_runs(self, request: HttpRequest, row: Any) -> bool:
        if row is None or not self.admin_site.is_registered(Run):
            return False
        return bool(self.admin_site.get_model_admin(Run).has_view_permission(request))


def _shown(run: Any, page: str) -> dict[str, Any]:
    return {
        "url": reverse(page, args=[run.pk]),
        "flow": run.flow,
        "state": states.activity(run).html,
        "started": showing.moment(run.started_at),
        "took": showing.duration(run.started_at, run.ended_at),
    }


def about_row(one: Run | Event, site: admin.AdminSite) -> SafeString | str:
    """The row that a run or an event is about, by model and key: who may see more, sees it on its page."""
    kind, key = one.subject_type, one.subject_id
    if kind is None or key is None:
        return showing.NOTHING
    model = kind.model_class()
    if model is None:
        return format_html("{} {}, of a model that is no longer there", kind.model, key)
    what = f"{model._meta.verbose_name} {showing.cut(key, showing.ONE_LINE)}"
    if subjects.fetch(Subject(kind.pk, key)) is None:
        return format_html("{}, which is no longer there", what)
    if not site.is_registered(model):
        return format_html("{}", what)
    page = f"{site.name}:{model._meta.app_label}_{model._meta.model_name}_change"
    return format_html('<a href="{}">{}</a>', reverse(page, args=[quote(key)]), what)
