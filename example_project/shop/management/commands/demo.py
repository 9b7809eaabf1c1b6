"""``manage.py demo``: a story of each small app, a day of shoppers at speed, and the shop to look at."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

from django.conf import settings
from django.contrib.auth.models import User
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connection

from durable_flows import conf
from durable_flows.management import dev, embedded
from durable_flows.management.arguments import positive
from durable_flows.management.overrides import flows_settings
from durable_flows.rules import clock
from example_project.shop.play import Played, fresh_cast, play
from example_project.stories import Told, tell_all

SPEED, SPEED_ONCE = 3600.0, 7200.0
THREADS = 4
ADMIN = "admin"


class Command(BaseCommand):
    """Shows what durable_flows does, with nothing else installed."""

    help = (
        "Tells the story of each small app and plays a day of shoppers at speed, shows what their "
        "runs did, and keeps the shop and its admin open until Ctrl-C. With --once it plays all that "
        "and ends, with code 1 if a run did not do what it should have."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "addrport", nargs="?", default="", help="PORT, or ADDRESS:PORT (default 127.0.0.1:8000)"
        )
        parser.add_argument(
            "--once", action="store_true", help="play the day, print what came of it, and end"
        )
        parser.add_argument(
            "--json", action="store_true", help="with --once: print JSON and nothing else"
        )
        parser.add_argument(
            "--here",
            action="store_true",
            help="with --once: play on the project's own database and mail folder, not on a scratch "
            "database that is removed afterwards",
        )
        parser.add_argument(
            "--speed",
            type=positive,
            help=f"how much faster than real time (default {SPEED:g}, an hour a second; "
            f"{SPEED_ONCE:g} with --once)",
        )

    def handle(self, *args: Any, once: bool, addrport: str, **options: Any) -> None:
        speed = options["speed"] or (SPEED_ONCE if once else SPEED)
        # Weeks pass in minutes: what has been told stays to be looked at.
        with flows_settings(**dict.fromkeys(conf.KEEPING)):
            if once:
                self._play_once(speed, here=options["here"], as_json=options["json"])
            elif options["json"] or options["here"]:
                raise CommandError("--json and --here go with --once")
            else:
                self._show(addrport, speed)

    # -- once --------------------------------------------------------------------------------

    def _play_once(self, speed: float, *, here: bool, as_json: bool) -> None:
        with nullcontext() if here else scratch():
            call_command("migrate", verbosity=0, interactive=False)
            say = _nothing if as_json else self._say
            told = self._tell(say)
            clock.run_at(speed)
            with embedded.worker(THREADS) as worker:
                _wait_for(worker)
                played = play(fresh_cast(), told, say=say, stop=threading.Event())
        if as_json:
            self._say(json.dumps(played.as_dict(), indent=2))
        else:
            self._report(played)
        if played.wrong:
            raise CommandError(_complaint(played))

    # -- and stay ----------------------------------------------------------------------------

    def _show(self, addrport: str, speed: float) -> NoReturn:
        if not settings.DEBUG:
            raise CommandError(
                "The demo shows its pages by Django's development server: set DEBUG=1."
            )
        url = dev.base_url(addrport)
        settings.EXAMPLE_BASE_URL = url
        call_command("migrate", verbosity=0, interactive=False)
        self._say(f"shop    {url}/")
        self._say(f"admin   {url}/admin/   {self._login()}")
        self._say(f"mails   {settings.EMAIL_FILE_PATH}")
        self._say(f"clock   {speed:.12g} times as fast: a day passes in {86_400 / speed:.3g} s\n")
        told = self._tell(self._say)
        clock.run_at(speed)
        dev.serve(
            addrport,
            threads=THREADS,
            reload=False,
            out=self.stdout,
            meanwhile=lambda worker: self._play_meanwhile(worker, told),
        )

    def _login(self) -> str:
        if User.objects.filter(username=ADMIN).exists():
            return f"log in as {ADMIN}, with the password it was given"
        User.objects.create_superuser(ADMIN, "admin@example.com", ADMIN)
        return f"log in as {ADMIN} with the password {ADMIN}"

    def _play_meanwhile(self, worker: embedded.Worker, told: list[Told]) -> None:
        _wait_for(worker)
        played = play(fresh_cast(), told, say=self._say, stop=worker.told)
        if worker.told.is_set():
            return
        self._report(played)
        if played.wrong:
            self.stderr.write(_complaint(played))
        self._say("The shop stays open, and so does the admin. Ctrl-C ends.")

    # -- telling -----------------------------------------------------------------------------

    def _say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()

    def _tell(self, say: Callable[[str], None]) -> list[Told]:
        say("The stories of the small apps, with the clock moved by hand:\n")
        told = tell_all(say)
        say("\nAnd a day in the shop, by the running clock:\n")
        return told

    def _report(self, played: Played) -> None:
        rows = [("STORY", "SHOPPER", "FLOW", "STATE", "STEPS")]
        rows += [
            (run.story, run.shopper, run.flow, run.state, ", ".join(run.steps) or "-")
            for run in played.runs
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        table = ["  ".join([*(row[i].ljust(widths[i]) for i in range(4)), row[4]]) for row in rows]
        self._say("\n" + "\n".join(table))
        verdict = "not all as they should be" if played.wrong else "all as they should be"
        self._say(
            f"\n{len(played.runs)} runs and {played.mails} mails in {played.seconds:g} s, {verdict}.\n"
        )


@contextmanager
def scratch() -> Iterator[None]:
    """A database and a mail folder of their own, removed at the end of the block.

    Raises:
        CommandError: the project is not on SQLite.
    """
    if connection.vendor != "sqlite":
        raise CommandError(
            "A scratch database is made on SQLite only. Add --here to play on the project's own."
        )
    connection.close()
    before = connection.settings_dict["NAME"], settings.EMAIL_FILE_PATH
    with tempfile.TemporaryDirectory(prefix="durable-flows-demo-") as directory:
        connection.settings_dict["NAME"] = str(Path(directory) / "demo.sqlite3")
        settings.EMAIL_FILE_PATH = str(Path(directory) / "mails")
        try:
            yield
        finally:
            connection.close()
            connection.settings_dict["NAME"], settings.EMAIL_FILE_PATH = before


def _wait_for(worker: embedded.Worker) -> None:
    if not worker.ready.wait(30):
        raise CommandError("The worker did not start within 30 s.")


def _complaint(played: Played) -> str:
    lines = ["It did not go as the script says:", *(f"  {line}" for line in played.wrong)]
    if (hours := played.late.total_seconds() / 3600) > 1:
        lines.append(
            f"  (shoppers were up to {hours:.1f} hours late: this machine may be too slow for "
            f"--speed {played.speed:.12g})"
        )
    return "\n".join(lines)


def _nothing(line: str) -> None: ...
