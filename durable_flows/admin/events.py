"""Events and commands: what came in, what it started, and what was refused."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.auth import get_permission_codename
from django.db.models import Count, IntegerField, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString

from durable_flows import conf
from durable_flows.admin import reroute, showing, states
from durable_flows.admin.reading import ReadOnly, as_uuid
from durable_flows.admin.subjects import about_row
from durable_flows.engine.insert import NEVER
from durable_flows.models import Admission, Event, Run
from durable_flows.rules import clock, events

MOST_RUNS = 100
MOST_ADMISSIONS = 100


class RoutingFilter(admin.SimpleListFilter):
    """Those that still ask for something, and those that were set aside: both have an index."""

    title = "routing"
    parameter_name = "routing"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """The choices beside all."""
        return [("open", "not routed yet"), ("quarantined", "set aside")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Event]) -> QuerySet[Event]:
        """The events in this state."""
        if self.value() == "open":
            return queryset.filter(routed_at__isnull=True)
        return queryset.filter(quarantined=True) if self.value() == "quarantined" else queryset


@admin.register(Event)
class EventAdmin(ReadOnly):
    """What came in."""

    list_display = ("name", "routing", "received", "delivered", "started_runs")
    list_filter = (RoutingFilter,)
    actions = (reroute.reroute_events,)
    ordering = ("-pk",)  # ids begin with the time
    search_fields = ("name",)
    search_help_text = "The beginning of an event’s name, or an event’s id."
    no_rows_yet = (
        "No events yet. Send one from a view or a shell: "
        'durable_flows.send("shop/order.placed", {"order_id": 1}).'
    )
    left_out_if_empty = (
        *("refusal", "routed_when", "sender_run", "command_target", "own_id", "version"),
        *("about", "user_text"),
    )
    fieldsets = (
        (
            None,
            {
                "fields": (
                    "name",
                    "routing",
                    "refusal",
                    "happened",
                    "received",
                    "delivered",
                    "routed_when",
                    "sender_run",
                    "about",
                    "command_target",
                    "own_id",
                    "version",
                    "event_id",
                )
            },
        ),
        ("Payload", {"fields": ("data_text", "user_text")}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """The events, each with the number of runs that it started."""
        runs = Run.objects.filter(event=OuterRef("pk")).order_by().values("event")
        counted = Subquery(runs.annotate(n=Count("pk")).values("n"), output_field=IntegerField())
        events: QuerySet[Any] = super().get_queryset(request)
        found: QuerySet[Any] = events.annotate(run_count=Coalesce(counted, 0))
        return found

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """By id, or by the beginning of the name."""
        term = search_term.strip()
        if not term:
            return queryset, False
        asked = Q(name__startswith=term)
        if found := as_uuid(term):
            asked |= Q(pk=found)
        return queryset.filter(asked), False

    def has_reroute_permission(self, request: HttpRequest) -> bool:
        """Whether this user may have events routed again."""
        codename = get_permission_codename("reroute", Event._meta)
        user: Any = request.user
        return bool(user.has_perm(f"{Event._meta.app_label}.{codename}"))

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[Any]:
        """A list that leaves the payloads in the database."""

        class LightList(super().get_changelist(request, **kwargs)):  # type: ignore[misc]
            def get_queryset(self, *args: Any, **kwargs: Any) -> QuerySet[Any]:
                found: QuerySet[Any] = super().get_queryset(*args, **kwargs)
                return found.defer("data", "user")

        return LightList

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """The page of an event, with the runs that it started."""
        event = context["original"]
        runs = Run.objects.using(conf.settings().DATABASE).filter(event_id=event.pk)
        shown = states.with_activity(runs.defer("result", "error").order_by("flow"))
        context.update(
            title=f"Event {event.name}",
            subtitle=None,
            runs=[
                (showing.run_link(run.pk, run.flow), states.activity(run).html, run)
                for run in shown[:MOST_RUNS]
            ],
            more_runs=max(0, event.run_count - MOST_RUNS),
            may_reroute=event.quarantined and self.has_reroute_permission(request),
            admissions=_admissions(event),
        )
        return super().render_change_form(request, context, *args, **kwargs)

    @admin.display(description="state")
    def routing(self, event: Event) -> SafeString:
        """Routed, refused, set aside, or what it waits for."""
        if event.quarantined:
            return showing.badge("failed", "set aside")
        if event.withdrawn:
            return showing.badge("cancelled", "withdrawn")
        if event.routed == NEVER:
            return showing.badge("done", "for one run")
        if event.error and event.routed_at is not None:
            return showing.badge("failed", "refused")
        if event.routed_at is not None:
            return showing.badge("done", "routed")
        if _is_in_line(event):
            return format_html("{} for its turn", showing.badge("waiting"))
        if event.deliver_at > clock.now():
            until = showing.moment(event.deliver_at)
            return format_html("{} until {}", showing.badge("waiting"), until)
        return showing.badge("queued", "to be routed")

    @admin.display(description="error")
    def refusal(self, event: Event) -> str | SafeString:
        """Why a command was refused, or an event could not be routed."""
        return showing.block(showing.cut(event.error, showing.PAGE_CHARACTERS))

    @admin.display(description="happened")
    def happened(self, event: Event) -> str:
        """Its own time."""
        return showing.NOTHING if _is_in_line(event) else showing.moment(event.ts)

    @admin.display(description="received")
    def received(self, event: Event) -> str:
        """When it was stored."""
        return showing.moment(event.received_at)

    @admin.display(description="deliver at")
    def delivered(self, event: Event) -> str:
        """From when on it is routed, if that is known."""
        return showing.NOTHING if _is_in_line(event) else showing.moment(event.deliver_at)

    @admin.display(description="routed")
    def routed_when(self, event: Event) -> str:
        """When everything that it asked for was done; of what was set aside or taken back, never."""
        if event.quarantined or event.withdrawn:
            return showing.NOTHING
        return showing.moment(event.routed_at)

    @admin.display(description="runs")
    def started_runs(self, event: Any) -> int:
        """How many runs it started."""
        return int(event.run_count)

    @admin.display(description="ID")
    def event_id(self, event: Event) -> SafeString:
        """Its id."""
        return showing.identifier(event.pk)

    @admin.display(description="sent by")
    def sender_run(self, event: Event) -> str | SafeString:
        """The run that sent it."""
        if event.sender is None:
            return showing.NOTHING
        return format_html("run {}", showing.run_link(event.sender))

    @admin.display(description="subject")
    def about(self, event: Event) -> SafeString | str:
        """The row that it is about."""
        return about_row(event, self.admin_site)

    @admin.display(description="about")
    def command_target(self, event: Event) -> str | SafeString:
        """What a command is about: a run, or a flow."""
        if not event.target:
            return showing.NOTHING
        if event.name == events.WITHDRAW:
            return showing.event_link(event.target, "the event")
        if event.name == events.BEGIN_BULK:
            return f"many runs, to {event.target} them"
        if as_uuid(event.target):
            return format_html("run {}", showing.run_link(event.target))
        url = reverse("admin:durable_flows_run_changelist")
        query = urlencode({"flow": event.target})
        return format_html('flow <a href="{}?{}">{}</a>', url, query, event.target)

    @admin.display(description="sender’s id")
    def own_id(self, event: Event) -> str:
        """The sender's own id."""
        return event.key or showing.NOTHING

    @admin.display(description="version")
    def version(self, event: Event) -> str:
        """The version of its shape."""
        return event.v or showing.NOTHING

    @admin.display(description="data")
    def data_text(self, event: Event) -> str | SafeString:
        """Its data."""
        return showing.block(showing.pretty(event.data))

    @admin.display(description="user")
    def user_text(self, event: Event) -> str | SafeString:
        """The person concerned."""
        return showing.block(showing.pretty(event.user))

    readonly_fields = (
        *("routing", "refusal", "happened", "received", "delivered", "routed_when", "sender_run"),
        *("about", "command_target", "own_id", "version", "event_id", "data_text", "user_text"),
    )


def _is_in_line(event: Event) -> bool:
    """Whether it asks for the run of an item that is mapped, for which there is no room yet."""
    return event.name == events.INVOKE and event.deliver_at == events.LATEST


def _admissions(event: Event) -> list[dict[str, Any]]:
    """Why it did not start flows that listen to it, by flow."""
    found = (
        Admission.objects.using(conf.settings().DATABASE)
        .filter(event=event)
        .order_by("flow")
        .values("flow", "verdict", "reason", "decided_at")
    )
    return [
        {
            **row,
            "reason": showing.cut(row["reason"], showing.ROW_CHARACTERS),
            "when": showing.moment(row["decided_at"]),
        }
        for row in found[:MOST_ADMISSIONS]
    ]
