"""``flows dev``: web server, worker and tick in one process, started anew when the code changes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, NoReturn

from django.core.management import call_command
from django.core.management.base import CommandError
from django.core.management.commands.runserver import naiveip_re
from django.urls import NoReverseMatch, reverse
from django.utils import autoreload

from durable_flows import conf
from durable_flows.management import embedded
from durable_flows.models import Event
from durable_flows.registry import registry
from durable_flows.rules import clock

CHANGED = 3  # the exit code of Django's reloader when a file has changed
HOST, PORT = "127.0.0.1", "8000"


def is_child() -> bool:
    """Whether this is the process that `keep_running` started."""
    return os.environ.get(autoreload.DJANGO_AUTORELOAD_ENV) == "true"


def base_url(addrport: str) -> str:
    """Where the server answers.

    Args:
        addrport: as runserver takes it: empty, ``PORT``, or ``ADDRESS:PORT``.

    Raises:
        CommandError: it is neither.
    """
    found = re.match(naiveip_re, addrport or PORT)
    if found is None:
        raise CommandError(f"{addrport!r} is neither PORT nor ADDRESS:PORT, as in 0.0.0.0:8000")
    return f"http://{found['addr'] or HOST}:{found['port']}"


def serve(
    addrport: str,
    *,
    threads: int,
    reload: bool,
    out: Any,
    meanwhile: Callable[[embedded.Worker], None] | None = None,
) -> NoReturn:
    """Run everything in this process until it is told to end, then exit.

    Args:
        addrport: where the web server listens, as runserver takes it.
        threads: of the worker.
        reload: whether to exit, with a code that `keep_running` knows, when a file has changed.
        out: a stream for what to tell people.
        meanwhile: called in a thread, with the worker.
    """
    code: Any = 0
    _end_on_signals(reload)
    os.environ.setdefault("DJANGO_RUNSERVER_HIDE_WARNING", "true")  # whoever runs this knows
    out.write(warning())
    # A second Ctrl-C waits for nothing.
    with suppress(KeyboardInterrupt), embedded.worker(threads) as worker:
        if meanwhile is not None:
            threading.Thread(target=meanwhile, args=[worker], daemon=True).start()
        try:
            call_command("runserver", addrport, use_reloader=reload, skip_checks=False)
        except SystemExit as end:
            code = end.code or 0
    leave(code, worker, out)


def warning() -> str:
    """What the state of the database means for this session, for people; empty if nothing."""
    if not embedded.tables_exist():
        return "The tables of durable_flows are missing: flows begin after manage.py migrate.\n"
    events = Event.objects.using(conf.settings().DATABASE).order_by("-id")
    newest = events.values_list("received_at", flat=True).first()
    if newest is None or newest <= clock.now() + timedelta(minutes=1):
        return ""
    return (
        f"The newest event here is of {newest:%d %B %Y, %H:%M} UTC: the clock ran faster then. What was "
        "set then for a later time waits until this clock gets there.\n"
    )


def leave(code: Any, worker: embedded.Worker, out: Any) -> NoReturn:
    """Exit, also while a step is still at work: its run is taken over when its lease ends."""
    if not worker.is_alive():
        sys.exit(code)
    out.write(f"A step did not end within {embedded.PATIENCE:g} s; its run goes on another time.\n")
    out.flush()
    os._exit(code)  # Python itself would wait for the step


def describe(addrport: str, *, threads: int) -> str:
    """What runs where, for people."""
    lines = [f"web     {base_url(addrport)}/"]
    with suppress(NoReverseMatch):
        lines.append(f"admin   {base_url(addrport)}{reverse('admin:index')}")
    queues = ", ".join(embedded.queues())
    lines.append(f"worker  {threads} threads here, broker {embedded.MEMORY}, queues: {queues}")
    lines.append(f"tick    every {embedded.TICK_SECONDS:g} s")
    if (speed := clock.real(1).total_seconds()) != 1:
        lines.append(f"clock   {speed:.12g} times as fast: {_for_people(speed)}")
    flows = [
        f"{flow.name} ({flow.role or ', '.join(flow.triggers) or 'no trigger'})"
        for flow in registry
    ]
    lines.append("flows   " + ("\n        ".join(sorted(flows)) or "none: write one in a flows.py"))
    return "\n".join(lines) + "\n"


def _for_people(speed: float) -> str:
    for name, seconds in (("a day", 86_400), ("an hour", 3_600), ("a minute", 60)):
        if speed >= seconds:
            return f"{name} passes in {seconds / speed:.3g} s"
    return f"a minute passes in {60 / speed:.3g} s"


def _end_on_signals(reload: bool) -> None:
    """Both signals end the process through its ``finally:`` blocks."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # With a parent Ctrl-C reaches both, and the parent ends both, by SIGTERM. Without, it is set too:
    # a shell starts what runs in its background with SIGINT ignored.
    signal.signal(signal.SIGINT, (lambda *_: None) if reload else signal.default_int_handler)


# -- the parent ------------------------------------------------------------------------------


def keep_running() -> int:
    """Run this command in a child, again whenever the code has changed, until a signal ends it.

    Django's own parent would kill the child a quarter of a second after Ctrl-C, and would end when a
    file with a syntax error is saved.

    Returns:
        The exit code.
    """
    code = _run_child()
    while code == CHANGED:
        code = _run_child()
        if code not in (0, CHANGED):  # it ran, so that the change is what broke it
            print("Waiting for a change that mends it; Ctrl-C ends.", file=sys.stderr, flush=True)
            code = CHANGED if _wait_for_change() else 0
    return code


def _run_child() -> int:
    environment = {**os.environ, autoreload.DJANGO_AUTORELOAD_ENV: "true"}
    child = subprocess.Popen(autoreload.get_child_arguments(), env=environment, close_fds=False)
    before = {
        number: signal.signal(number, lambda *_: child.terminate())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _wait_for_change() -> bool:
    """Wait until a file of the project changes. False: told to end by a signal."""
    reloader = autoreload.StatReloader()
    before = dict(reloader.snapshot_files())
    try:
        while dict(reloader.snapshot_files()) == before:
            time.sleep(reloader.SLEEP_TIME)
    except KeyboardInterrupt:
        return False
    return True
