"""``manage.py flows``: what a project without Celery around it needs."""

from __future__ import annotations

import sys
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from durable_flows.management import (
    bulk,
    checking,
    dev,
    embedded,
    purging,
    rerouting,
    rotation,
    turns,
)
from durable_flows.management.arguments import an_id, at_least_one, positive
from durable_flows.rules import clock
from durable_flows.rules.states import BulkKind

TICK = """Route the events that were sent and execute the runs that are due, here and now. Needs no
broker and no worker. Without --loop it does so once and ends, for a cron job for instance; with
--loop it goes on until SIGINT or SIGTERM, and can carry every run to its end by itself. Any number
of them, and of Celery workers, may run side by side."""

DEV = """Web server, worker threads and tick in one process, for development: the broker is the memory
of this process, whatever the project's settings say, so that nothing else needs to be installed or
started. Refuses to run unless DEBUG is on."""


REROUTE = """Have events routed again that were set aside because their routing failed twice: once the
cause is gone. They keep their place in the order of delivery. Workers, or `flows tick`, do the rest."""

CHECK = """Replay every unfinished run with the code at hand, and name those that it does not fit: a step
that is no more, or is of another kind, a new step before recorded ones, a flow or version that is gone, an
error between recorded steps. Steps are answered from their records, none of their functions is called, and
what the code between them writes is rolled back. Ends with 1 if there are any, for a pipeline."""


ROTATE_KEYS = """Encrypt with the newest key whatever was encrypted with an older one: in events, steps,
attempts, runs, and files of results. Workers may go on meanwhile, and it may be stopped and said again.
When it has come to its end, the older keys can be removed from the settings."""


class Command(BaseCommand):
    """Runs flows by hand, or everything at once for development."""

    help = (
        "Runs durable flows without Celery: by hand (tick), or with a web server (dev); has events that "
        "were set aside routed again (reroute); cancels or does again all runs that fit (cancel, replay); "
        "removes what has been kept for long enough (purge); "
        "tells which runs new code does not fit (check); encrypts everything with the newest key "
        "(rotate-keys)."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the subcommands."""
        commands = parser.add_subparsers(
            dest="subcommand",
            required=True,
            metavar="{tick,dev,reroute,cancel,replay,purge,check,rotate-keys}",
        )
        _add_tick(commands)
        _add_dev(commands)
        _add_reroute(commands)
        _add_bulk(commands, BulkKind.CANCEL, "cancel all runs that fit", bulk.CANCEL)
        _add_bulk(commands, BulkKind.REPLAY, "do all runs that fit again", bulk.REPLAY)
        _add_purge(commands)
        _add_check(commands)
        _add_rotate_keys(commands)

    def get_check_kwargs(self, options: dict[str, Any]) -> Any:
        """For ``dev`` the web server checks, in each of its processes."""
        if options["subcommand"] == "dev":
            return {"tags": set()}
        return super().get_check_kwargs(options)

    def handle(self, *args: Any, subcommand: str, **options: Any) -> None:
        """Run a subcommand."""
        if subcommand == "tick":
            self.tick(loop=options["loop"], interval=options["interval"])
        elif subcommand == "check":
            self.check_runs(options["flow"], options["limit"], as_json=options["as_json"])
        elif subcommand == "rotate-keys":
            self._require_tables()
            rotation.rotate(dry_run=options["dry_run"], out=self.stdout)
        elif subcommand == "purge":
            self._require_tables()
            purging.run(
                self.stdout,
                dry_run=options["dry_run"],
                left_over_files=options["left_over_files"],
            )
        elif subcommand == "reroute":
            self.reroute(options["events"], everything=options["everything"])
        elif subcommand in (BulkKind.CANCEL, BulkKind.REPLAY):
            self._require_tables()
            bulk.run(BulkKind(subcommand), options, self.stdout)
        else:
            self.dev(
                options["addrport"],
                speed=options["speed"],
                threads=options["threads"],
                reload=options["use_reloader"],
            )

    def tick(self, *, loop: bool, interval: float) -> None:
        """Route and execute by hand.

        Raises:
            CommandError: the tables are missing.
        """
        if loop:
            turns.turn_until_told(interval)
        else:
            self._require_tables()
            count = turns.turn_once()
            self.stdout.write(f"{count} event{'s'[: count != 1]} routed and slices executed")

    def dev(self, addrport: str, *, speed: float | None, threads: int, reload: bool) -> None:
        """Run everything, until a signal ends it.

        Raises:
            CommandError: DEBUG is off, or ``addrport`` cannot be read.
        """
        if not settings.DEBUG:
            raise CommandError(
                "flows dev is for development only, and DEBUG is off. Set DEBUG = True; in production "
                "run a web server, `celery -A <project> worker` and `celery -A <project> beat`."
            )
        dev.base_url(addrport)
        if speed is not None and not dev.is_child():  # which inherits the clock
            clock.run_at(speed)
        if reload and not dev.is_child():
            sys.exit(dev.keep_running())
        self.stdout.write(dev.describe(addrport, threads=threads))
        dev.serve(addrport, threads=threads, reload=reload, out=self.stdout)

    def reroute(self, events: list[UUID], *, everything: bool) -> None:
        """Have events that were set aside routed again.

        Raises:
            CommandError: the tables are missing, no event is named, or one that is not set aside.
        """
        self._require_tables()
        if bool(events) == everything:
            raise CommandError("Name the events by their ids, or say --all, and not both.")
        count = rerouting.reroute_all() if everything else rerouting.reroute(events)
        self.stdout.write(f"{count} event{'s'[: count != 1]} to be routed again")

    def check_runs(self, flow_id: str | None, limit: int | None, *, as_json: bool) -> None:
        """Tell which unfinished runs the code does not fit; the process ends with 1 if there are any.

        Raises:
            CommandError: the tables are missing.
        """
        self._require_tables()
        if not checking.check(flow_id, limit, as_json=as_json, out=self.stdout, err=self.stderr):
            sys.exit(1)

    def _require_tables(self) -> None:
        if not embedded.tables_exist():
            raise CommandError("The tables of durable_flows are missing: run manage.py migrate.")


def _add_tick(commands: Any) -> None:
    tick = commands.add_parser("tick", help="route and execute what is due", description=TICK)
    tick.add_argument("--loop", action="store_true", help="go on until SIGINT or SIGTERM")
    tick.add_argument(
        "--interval",
        type=positive,
        default=0.5,
        metavar="SECONDS",
        help="with --loop: look again after so many seconds at the latest, and before that when a "
        "timer falls due (default %(default)s)",
    )


def _add_reroute(commands: Any) -> None:
    reroute = commands.add_parser(
        "reroute", help="have events that were set aside routed again", description=REROUTE
    )
    reroute.add_argument(
        "events",
        nargs="*",
        type=an_id,
        metavar="EVENT",
        help="the id of an event that was set aside",
    )
    reroute.add_argument(
        "--all", action="store_true", dest="everything", help="all that were set aside"
    )


def _add_bulk(commands: Any, kind: BulkKind, help: str, description: str) -> None:
    bulk.add_arguments(commands.add_parser(kind.value, help=help, description=description), kind)


def _add_purge(commands: Any) -> None:
    purge = commands.add_parser(
        "purge", help="remove what has been kept for long enough", description=purging.PURGE
    )
    purge.add_argument(
        "--dry-run", action="store_true", help="only count what would go, and what is kept"
    )
    purge.add_argument(
        "--left-over-files",
        action="store_true",
        help="instead, remove files of results whose runs are gone; the storage must be that of this "
        "database alone",
    )


def _add_check(commands: Any) -> None:
    check = commands.add_parser(
        "check", help="tell which runs this code does not fit", description=CHECK
    )
    check.add_argument("--flow", metavar="ID", help="of this flow only")
    check.add_argument(
        "--limit",
        type=at_least_one,
        metavar="N",
        help="so many runs, the oldest first (default: all)",
    )
    check.add_argument("--json", action="store_true", dest="as_json", help="one JSON object")


def _add_rotate_keys(commands: Any) -> None:
    rotate = commands.add_parser(
        "rotate-keys", help="encrypt everything with the newest key", description=ROTATE_KEYS
    )
    rotate.add_argument("--dry-run", action="store_true", help="only tell how much there is to do")


def _add_dev(commands: Any) -> None:
    dev = commands.add_parser("dev", help="web server, worker and tick", description=DEV)
    dev.add_argument(
        "addrport",
        nargs="?",
        default="",
        metavar="ADDRPORT",
        help="PORT, or ADDRESS:PORT (default 127.0.0.1:8000)",
    )
    dev.add_argument(
        "--speed",
        type=positive,
        metavar="N",
        help="let the engine's clock run N times as fast: with 3600 an hour passes in a second",
    )
    dev.add_argument(
        "--threads",
        type=at_least_one,
        default=4,
        metavar="N",
        help="threads of the worker (default %(default)s)",
    )
    dev.add_argument(
        "--noreload",
        action="store_false",
        dest="use_reloader",
        help="do not start anew when the code changes",
    )
