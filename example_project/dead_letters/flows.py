"""Who fails, who keeps what failed, and who looks at it each Monday."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.core.mail import send_mail

from durable_flows import Event, NonRetriableError, Step, flow
from example_project.dead_letters.models import DeadLetter

TEAM = "team@letters.example"


@flow("read-meter", on="meter/read")
def read_meter(event: Event, step: Step) -> int:
    """Knows nothing of dead letters: that is the point."""
    return step.run("check", check, event.data["reading"])


def check(reading: str) -> int:
    if not reading.isdigit():
        raise NonRetriableError(f"{reading!r} is no reading")
    return int(reading)


@flow("keep-dead-letter", on="flows/function.failed")
def keep_dead_letter(event: Event, step: Step) -> None:
    """Keep what failed, whichever flow it was: the letter and the step's record are one commit."""
    step.run("keep", keep, event.data, atomic=True)


def keep(told: dict[str, Any]) -> int:
    error = told["error"]
    letter = DeadLetter.objects.create(
        flow=told["function_id"],
        run=told["run_id"],
        event=told["event"],
        step=error["step"],
        error=f"{error['name']}: {error['message']}",
    )
    return letter.pk


@flow("review-dead-letters", on="dead-letters/review.due")
def review_dead_letters(event: Event, step: Step) -> int:
    """Tell the team what there is, and ask for the same in a week."""
    letters = step.run("fetch", fetch)
    if letters:
        step.run("tell-team", tell_team, letters)
        step.run("note-reviewed", note_reviewed, [letter["id"] for letter in letters])
    assert isinstance(event.ts, datetime)
    step.send_event("next-week", review_due(event.ts + timedelta(days=7)))
    return len(letters)


def review_due(when: datetime) -> Event:
    """The wish for a review; however often it is sent, it comes once."""
    return Event("dead-letters/review.due", ts=when, id=f"review {when:%Y-%m-%d}")


def fetch() -> list[dict[str, Any]]:
    letters = DeadLetter.objects.filter(reviewed=False).order_by("pk")
    return [
        {"id": letter.pk, "flow": letter.flow, "step": letter.step, "error": letter.error}
        for letter in letters
    ]


def tell_team(letters: list[dict[str, Any]]) -> int:
    lines = (f"{letter['flow']}, step {letter['step']}: {letter['error']}" for letter in letters)
    return send_mail(f"Dead letters: {len(letters)}", "\n".join(lines), None, [TEAM])


def note_reviewed(ids: list[int]) -> int:
    return DeadLetter.objects.filter(pk__in=ids).update(reviewed=True)
