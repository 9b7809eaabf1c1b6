"""The actions on runs: each asks, says what was asked for and what was refused, and is logged."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import CHANGE, LogEntry
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse

from durable_flows.admin import states
from durable_flows.engine import commands, sql
from durable_flows.errors import DurableFlowsError
from durable_flows.models import Run
from durable_flows.rules.states import TERMINAL, DueState, RunState

MOST_AT_ONCE = 500  # runs; their ids must fit into one form
MOST_TOLD = 5  # refusals told one by one

Page: TypeAlias = "admin.ModelAdmin[Run]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What a person can ask of a run.

    Attributes:
        action: the name of the list's action.
        verb: what is done: "cancel".
        done: what then has been done: "cancelled".
        means: what it does, told before it is confirmed.
        refusal: why this run cannot be asked, or nothing.
        ask: asks it of a run for a user of this name.
    """

    action: str
    verb: str
    done: str
    means: str
    refusal: Callable[[Run], str]
    ask: Callable[[Run, str], object]

    def applies_to(self, run: Run) -> bool:
        """Whether a run in this state can be asked."""
        return not self.refusal(run)


def _not_cancellable(run: Run) -> str:
    if run.state in TERMINAL:
        return f"it has ended ({run.state})"
    due = states.due_of(run)
    if due is not None and due.state == DueState.CANCELLING:
        return "it is being cancelled already"
    return ""


def _not_retriable(run: Run) -> str:
    return "" if run.state == RunState.FAILED else f"it is {run.state}, and only failed runs can be"


CANCEL = Command(
    action="cancel_runs",
    verb="cancel",
    done="cancelled",
    means=(
        "Code that is executing is not interrupted: its result is recorded, no new step starts, and "
        "then the run ends cancelled. This cannot be undone."
    ),
    refusal=_not_cancellable,
    ask=lambda run, user: commands.cancel(run.pk, reason=f"cancelled by {user} in the admin"),
)
RETRY = Command(
    action="retry_runs",
    verb="retry",
    done="retried",
    means=(
        "A failed run goes on from the step that failed, with new attempts. The steps that are "
        "recorded are not executed again."
    ),
    refusal=_not_retriable,
    ask=lambda run, user: commands.retry(run.pk),
)
RERUN = Command(
    action="rerun_runs",
    verb="rerun",
    done="rerun",
    means=(
        "A new run of the same flow begins with the same event, and executes every step anew. The run "
        "that is there stays as it is."
    ),
    refusal=lambda run: "",
    ask=lambda run, user: commands.rerun(run.pk),
)


@admin.action(permissions=["cancel"], description="Cancel selected runs")
def cancel_runs(page: Page, request: HttpRequest, chosen: QuerySet[Run]) -> HttpResponse | None:
    """Ask for runs to be cancelled."""
    return _command(CANCEL, page, request, chosen)


@admin.action(permissions=["retry"], description="Retry selected runs")
def retry_runs(page: Page, request: HttpRequest, chosen: QuerySet[Run]) -> HttpResponse | None:
    """Ask for failed runs to go on."""
    return _command(RETRY, page, request, chosen)


@admin.action(permissions=["rerun"], description="Rerun selected runs")
def rerun_runs(page: Page, request: HttpRequest, chosen: QuerySet[Run]) -> HttpResponse | None:
    """Ask for new runs with the same events."""
    return _command(RERUN, page, request, chosen)


def _command(
    command: Command, page: Page, request: HttpRequest, chosen: QuerySet[Run]
) -> HttpResponse | None:
    runs = _runs(page, request, chosen)
    if len(runs) > MOST_AT_ONCE:
        problem = (
            f"More than {MOST_AT_ONCE} runs are selected. Select fewer: filter or search first."
        )
        page.message_user(request, problem, messages.ERROR)
        return None
    willing = [run for run in runs if command.applies_to(run)]
    refused = [(run, command.refusal(run)) for run in runs if not command.applies_to(run)]
    if willing and not _is_confirmed(request):
        return _confirmation(command, page, request, willing, refused)
    asked, failed = _ask(command, request, willing)
    _tell(command, page, request, asked, refused + failed)
    return HttpResponseRedirect(_way_back(request, runs))


def _runs(page: Page, request: HttpRequest, chosen: QuerySet[Run]) -> list[Run]:
    """The runs to command: once confirmed, those that were shown, though the list may have changed."""
    if _is_confirmed(request):
        ids = request.POST.getlist(ACTION_CHECKBOX_NAME)
        chosen = page.get_queryset(request).filter(pk__in=ids)
    return list(chosen.order_by("pk")[: MOST_AT_ONCE + 1])


def _is_confirmed(request: HttpRequest) -> bool:
    return request.POST.get("confirmed") == "yes"


def _confirmation(
    command: Command,
    page: Page,
    request: HttpRequest,
    willing: Sequence[Run],
    refused: Sequence[tuple[Run, str]],
) -> TemplateResponse:
    plural = "run" if len(willing) == 1 else "runs"
    context: dict[str, Any] = {
        **page.admin_site.each_context(request),
        "title": f"{command.verb.capitalize()} {len(willing):,} {plural}?",
        "command": command,
        "willing": [(run, states.activity(run).html) for run in willing],
        "refused": refused,
        "opts": page.opts,
        "media": page.media,
        "checkbox_name": ACTION_CHECKBOX_NAME,
        "from_run": "from_run" in request.POST,
        "back": _way_back(request, willing),
    }
    return TemplateResponse(request, "admin/durable_flows/run/confirm.html", context)


def _ask(
    command: Command, request: HttpRequest, runs: Sequence[Run]
) -> tuple[list[Run], list[tuple[Run, str]]]:
    """Ask, and log that it was asked, in one transaction."""
    user: Any = request.user
    asked, failed = [], []
    with sql.atomic():
        for run in runs:
            try:
                command.ask(run, user.get_username())
                asked.append(run)
            except DurableFlowsError as error:
                failed.append((run, str(error)))
        if asked:
            LogEntry.objects.log_actions(
                user.pk, asked, CHANGE, f"Asked for it to be {command.done}."
            )
    return asked, failed


def _tell(
    command: Command,
    page: Page,
    request: HttpRequest,
    asked: Sequence[Run],
    refused: Sequence[tuple[Run, str]],
) -> None:
    if asked:
        whom = str(asked[0]) if len(asked) == 1 else f"{len(asked):,} runs"
        done = f"Asked for {whom} to be {command.done}; the next worker that is free sees to it."
        page.message_user(request, done, messages.SUCCESS)
    for run, why in refused[:MOST_TOLD]:
        page.message_user(request, f"{run} cannot be {command.done}: {why}.", messages.WARNING)
    if len(refused) > MOST_TOLD:
        more = f"{len(refused) - MOST_TOLD:,} more runs cannot be {command.done}."
        page.message_user(request, more, messages.WARNING)


def _way_back(request: HttpRequest, runs: Sequence[Run]) -> str:
    """The run's page, if that is where the button was; otherwise the list as it was filtered."""
    if "from_run" in request.POST and len(runs) == 1:
        run_id: uuid.UUID = runs[0].pk
        return reverse("admin:durable_flows_run_change", args=[run_id])
    return request.get_full_path()
