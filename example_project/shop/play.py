"""Plays the day of `shoppers` by the running clock, and reads what came of it."""

from __future__ import annotations

import email
import email.policy
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from django.conf import settings

from durable_flows.models import Run
from durable_flows.rules import clock
from example_project.shop.shoppers import (
    DAY,
    DAY_ENDS,
    EXPECTED,
    Act,
    Ended,
    PageRefused,
    Shopper,
    cast,
    differences,
    mail_differences,
    perform,
)
from example_project.stories import Told, steps_of

PATIENCE = 15.0  # real seconds that the last runs get after the end of the day


@dataclass(frozen=True, kw_only=True)
class PlayedRun:
    """A run that a shopper, or a story, started.

    Attributes:
        story: the app whose story it belongs to; ``shop`` for a shopper's.
        shopper: who; empty in the other stories.
        flow: the flow's id.
        state: queued, started, completed, failed or cancelled.
        steps: keys of the recorded steps, in order.
        run: its id.
        reason: why it failed or was cancelled.
    """

    story: str
    shopper: str
    flow: str
    state: str
    steps: tuple[str, ...]
    run: str
    reason: str

    @classmethod
    def of(cls, run: Run, story: str, shopper: str = "") -> PlayedRun:
        """The run as it stands."""
        return cls(
            story=story,
            shopper=shopper,
            flow=run.flow,
            state=run.state,
            steps=steps_of(run),
            run=str(run.pk),
            reason=run.reason,
        )


@dataclass(kw_only=True)
class Played:
    """A day that was played.

    Attributes:
        speed: how much faster than real time.
        seconds: real seconds that it took.
        late: by how much an act was late, at worst, in the day's own time.
        runs: those of the stories; then by shopper, in the order in which they began.
        mails: how many were sent to the shoppers.
        wrong: what did not come as the script says, a sentence each; empty if all is well.
    """

    speed: float
    seconds: float
    late: timedelta
    runs: list[PlayedRun] = field(default_factory=list)
    mails: int = 0
    wrong: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        facts = asdict(self)
        return {"ok": not self.wrong, **facts, "late": self.late.total_seconds()}


def play(
    shoppers: Mapping[str, Shopper],
    told: Iterable[Told] = (),
    *,
    say: Callable[[str], None],
    stop: threading.Event,
) -> Played:
    """Let the shoppers act by the clock, wait for their runs, and compare.

    Args:
        shoppers: as `cast` makes them.
        told: the stories that were told before the day, which belong to what was played.
        say: told of each act as it happens.
        stop: set it to break the day off.
    """
    began, speed = clock.now(), clock.real(1).total_seconds()
    started = time.monotonic()
    played = Played(speed=speed, seconds=0, late=timedelta(0))
    for one in told:
        played.runs += [PlayedRun.of(run, one.story.app) for run in one.runs]
        played.wrong += one.wrong
    for act in DAY:
        if _wait_until(began + act.at, stop):
            break
        played.late = max(played.late, clock.now() - began - act.at)
        say(_sentence(act))
        try:
            perform(act, shoppers[act.who])
        except PageRefused as error:
            played.wrong.append(str(error))
    _wait_until(began + DAY_ENDS, stop)
    _wait_for_runs(shoppers, stop)
    played.seconds = round(time.monotonic() - started, 1)
    _compare(played, shoppers)
    return played


def fresh_cast() -> dict[str, Shopper]:
    """Shoppers whom this database has not seen yet."""
    plays = Run.objects.filter(event__user__contains='"ada').count() // len(EXPECTED["Ada"])
    return cast(str(plays + 1) if plays else "")


def _wait_until(moment: datetime, stop: threading.Event) -> bool:
    """True if told to stop."""
    return stop.wait(max(0.0, clock.real_seconds_until(moment)))


def _wait_for_runs(shoppers: Mapping[str, Shopper], stop: threading.Event) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and not stop.wait(0.05):
        if all(run.state not in ("queued", "started") for run in runs_of(shoppers)):
            return


def runs_of(shoppers: Mapping[str, Shopper]) -> list[PlayedRun]:
    """Their runs as they stand: by shopper, then in the order in which they began."""
    names = {shopper.email: who for who, shopper in shoppers.items()}
    found = []
    for run in Run.objects.select_related("event").order_by("event__arrival"):
        address = json.loads(run.event.user or "{}").get("email")
        if address in names:
            found.append(PlayedRun.of(run, "shop", names[address]))
    return sorted(found, key=lambda run: run.shopper)


def _compare(played: Played, shoppers: Mapping[str, Shopper]) -> None:
    of_shoppers = runs_of(shoppers)
    played.runs += of_shoppers
    mails = mails_by_address(Path(settings.EMAIL_FILE_PATH))
    for who, shopper in shoppers.items():
        ended = [
            Ended(flow=run.flow, state=run.state, steps=run.steps)
            for run in of_shoppers
            if run.shopper == who
        ]
        played.mails += len(mails[shopper.email])
        played.wrong += differences(who, ended) + mail_differences(who, mails[shopper.email])


def mails_by_address(directory: Path) -> dict[str, list[str]]:
    """The subjects of the mails in a folder of Django's file backend, by recipient."""
    found: dict[str, list[str]] = defaultdict(list)
    for file in sorted(directory.glob("*.log")):
        for text in file.read_text().split("-" * 79 + "\n"):
            message = email.message_from_string(text, policy=email.policy.default)
            if message["To"]:
                found[message["To"]].append(message["Subject"])
    return found


def _sentence(act: Act) -> str:
    hours, seconds = divmod(act.at.total_seconds(), 3600)
    what = {
        "add_to_cart": f"puts the {act.what.replace('-', ' ')} in the cart",
        "check_out": "buys",
        "sign_up": "opens an account",
        "write_post": f"writes “{act.what}”",
    }[act.does]
    return f"{int(hours):2d}:{int(seconds / 60):02d}  {act.who} {what}"
