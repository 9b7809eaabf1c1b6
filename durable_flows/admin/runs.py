"""Runs: the list with its filters and commands, and the page that tells what a run has done."""

from __future__ import annotations

import uuid
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.auth import get_permission_codename
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from durable_flows import conf
from durable_flows.admin import commands, history, showing, states
from durable_flows.admin.reading import ReadOnly, as_uuid
from durable_flows.admin.subjects import about_row
from durable_flows.models import Event, Run
from durable_flows.registry import registry
from durable_flows.rules import endings


class FlowFilter(admin.SimpleListFilter):
    """By flow. The choices are the flows of this code: the table's own may take a scan to find."""

    title = "flow"
    parameter_name = "flow"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The registered flows, and the one that is asked for, which may have been removed."""
        names = {flow.id: flow.role for flow in registry}
        if asked := request.GET.get(self.parameter_name):
            names.setdefault(asked, "")
        return [
            (name, f"{name} ({role})" if role else name) for name, role in sorted(names.items())
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Run]) -> QuerySet[Run]:
        """The runs of the flow."""
        flow = self.value()
        if flow is None:
            return queryset
        return queryset.none() if "\0" in flow else queryset.filter(flow=flow)


class StateFilter(admin.SimpleListFilter):
    """By state, as it is shown."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The states."""
        return list(states.CHOICES)

    def queryset(self, request: HttpRequest, queryset: QuerySet[Run]) -> QuerySet[Run]:
        """The runs in it."""
        state = self.value()
        return queryset if state is None else states.in_state(queryset, state)


@admin.register(Run)
class RunAdmin(ReadOnly):
    """What runs, what waits, what failed."""

    list_display = ("flow", "activity", "started", "took", "short_reason")
    list_filter = (StateFilter, FlowFilter)
    ordering = ("-pk",)  # ids begin with the time
    search_fields = ("pk",)
    search_help_text = "The id of a run or of its event, or a flow’s whole id."
    actions = (commands.cancel_runs, commands.retry_runs, commands.rerun_runs)
    no_rows_yet = (
        "No runs yet. Send an event that a flow listens to, with durable_flows.send(…), and have a "
        "worker running: the run appears here."
    )
    left_out_if_empty = (
        *("version_text", "reason_text", "told_of", "invoked_by", "does_again"),
        *("about", "failure", "outcome"),
    )
    fieldsets = (
        (
            None,
            {
                "fields": (
                    "activity",
                    "flow",
                    "version_text",
                    "about",
                    "trigger",
                    "told_of",
                    "invoked_by",
                    "does_again",
                    "reason_text",
                    "created",
                    "started",
                    "ended",
                    "took",
                    "retried",
                    "queue",
                    "run_id",
                )
            },
        ),
        ("Outcome", {"fields": ("failure", "outcome")}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """The runs, each with what it does."""
        return states.with_activity(super().get_queryset(request))

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """By id, by event id, by flow: each has an index."""
        term = search_term.strip()
        if not term:
            return queryset, False
        if found := as_uuid(term):
            return queryset.filter(Q(pk=found) | Q(event_id=found)), False
        return queryset.filter(flow=term), False

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[Any]:
        """A list that leaves the payloads in the database."""

        class LightList(super().get_changelist(request, **kwargs)):  # type: ignore[misc]
            def get_queryset(self, *args: Any, **kwargs: Any) -> QuerySet[Any]:
                found: QuerySet[Any] = super().get_queryset(*args, **kwargs)
                return found.defer("result", "error")

        return LightList

    def response_action(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Carry an action out, unless what is selected are no runs."""
        if all(as_uuid(chosen) for chosen in request.POST.getlist(ACTION_CHECKBOX_NAME)):
            return super().response_action(request, *args, **kwargs)
        self.message_user(request, "What was selected are no ids of runs.", messages.ERROR)
        return None

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        """Whether this user may cancel runs."""
        return _may(request, "cancel")

    def has_retry_permission(self, request: HttpRequest) -> bool:
        """Whether this user may retry runs."""
        return _may(request, "retry")

    def has_rerun_permission(self, request: HttpRequest) -> bool:
        """Whether this user may start runs anew."""
        return _may(request, "rerun")

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """The page of a run, with its history and what can be asked of it."""
        run = context["original"]
        permitted = {
            commands.CANCEL: self.has_cancel_permission(request),
            commands.RETRY: self.has_retry_permission(request),
            commands.RERUN: self.has_rerun_permission(request),
        }
        context.update(
            title=f"Run of {run.flow}",
            subtitle=None,
            steps=history.steps(run),
            attempts=history.attempts(run),
            waits=history.waits(run),
            children=history.children(run),
            warnings=history.warnings(run),
            commands=[
                command for command, may in permitted.items() if may and command.applies_to(run)
            ],
        )
        return super().render_change_form(request, context, *args, **kwargs)

    @admin.display(description="state")
    def activity(self, run: Any) -> SafeString:
        """What it does."""
        return states.activity(run).html

    @admin.display(description="started")
    def started(self, run: Run) -> str:
        """When its first slice began."""
        return showing.moment(run.started_at)

    @admin.display(description="took")
    def took(self, run: Run) -> str:
        """How long, from its start to its end or to now."""
        return showing.duration(run.started_at, run.ended_at)

    @admin.display(description="reason")
    def short_reason(self, run: Run) -> str:
        """Why it failed or was cancelled, on one line."""
        return showing.one_line(run.reason) or showing.NOTHING

    @admin.display(description="ID")
    def run_id(self, run: Run) -> SafeString:
        """Its id."""
        return showing.identifier(run.pk)

    @admin.display(description="version")
    def version_text(self, run: Run) -> str:
        """The version of its flow, if that has any."""
        return str(run.version or showing.NOTHING)

    @admin.display(description="triggered by")
    def trigger(self, run: Run) -> SafeString:
        """Its event; without a link once that was purged."""
        events = Event.objects.using(conf.settings().DATABASE)
        name = events.filter(pk=run.event_id).values_list("name", flat=True).first()
        if name is None:
            return format_html("event {}, which is no longer kept", run.event_id)
        return showing.event_link(run.event_id, name)

    @admin.display(description="subject")
    def about(self, run: Run) -> SafeString | str:
        """The row that it is about."""
        return about_row(run, self.admin_site)

    @admin.display(description="told of")
    def told_of(self, run: Run) -> SafeString | str:
        """The run whose end has started it, and what it is to that run's flow."""
        told = Event.objects.using(conf.settings().DATABASE).filter(
            pk=run.event_id, name__in=endings.NAMES
        )
        ended = told.values_list("sender", flat=True).first()
        flow = registry.find(run.flow)
        if ended is None or flow is None or not flow.role:
            return _link(ended)
        return format_html("{}: this flow handles {}", _link(ended), flow.role)

    @admin.display(description="invoked by")
    def invoked_by(self, run: Run) -> SafeString | str:
        """The run that waits for it."""
        return _link(run.parent_id)

    @admin.display(description="does again")
    def does_again(self, run: Run) -> SafeString | str:
        """The run of which it is a rerun."""
        return _link(run.origin)

    @admin.display(description="reason")
    def reason_text(self, run: Run) -> str:
        """Why it failed or was cancelled."""
        return showing.cut(run.reason, showing.ROW_CHARACTERS) or showing.NOTHING

    @admin.display(description="created")
    def created(self, run: Run) -> str:
        """When it was admitted."""
        return showing.moment(run.created_at)

    @admin.display(description="ended")
    def ended(self, run: Run) -> str:
        """When it ended."""
        return showing.moment(run.ended_at)

    @admin.display(description="retried")
    def retried(self, run: Run) -> str:
        """How often somebody has retried it."""
        return {0: "never", 1: "once"}.get(run.generation, f"{run.generation:,} times")

    @admin.display(description="error")
    def failure(self, run: Run) -> str | SafeString:
        """What went wrong, where, and the stack."""
        error = showing.failure(run.error)
        if error is None:
            return showing.NOTHING
        where = f" in step {error.step}" if error.step else ""
        return format_html(
            '<p class="df-error">{}{}</p>{}',
            error.summary,
            where,
            showing.block(error.stack) if error.stack else "",
        )

    @admin.display(description="result")
    def outcome(self, run: Run) -> str | SafeString:
        """What the handler returned."""
        return showing.block(showing.pretty(run.result))

    readonly_fields = (
        *("activity", "trigger", "reason_text", "created", "started", "ended", "took"),
        *("retried", "run_id", "failure", "outcome", "told_of", "invoked_by", "does_again"),
        *("version_text", "about"),
    )


def _link(run_id: uuid.UUID | None) -> SafeString | str:
    """Another run, by its flow; without a link once that was purged."""
    if run_id is None:
        return showing.NOTHING
    runs = Run.objects.using(conf.settings().DATABASE)
    flow = runs.filter(pk=run_id).values_list("flow", flat=True).first()
    if flow is None:
        return format_html("run {}, which is no longer kept", run_id)
    return showing.run_link(run_id, flow)


def _may(request: HttpRequest, action: str) -> bool:
    codename = get_permission_codename(action, Run._meta)
    user: Any = request.user
    return bool(user.has_perm(f"{Run._meta.app_label}.{codename}"))
