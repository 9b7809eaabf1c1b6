"""Reads the documents, and plays what they show.

A page is cut into sections (``##``). The blocks of a section are executed in order in one namespace,
in a registry and with tables of their own. Comments above a block, which no reader sees, may add:

==============================  ===============================================================
``<!-- continues -->``          goes on in the namespace of the section before
``<!-- setup: code -->``        executed before it; what it defines, the block may use
``<!-- raises: InvalidKey -->``  the block raises this error
``<!-- then: code -->``         below it: executed after it, to see that the claim holds
``<!-- from: a/file.py -->``    the block is not executed: it quotes this file
==============================  ===============================================================

A ``setup`` may define ``FIXTURES``, a dict, for the tests of its block, and a ``then`` finds in ``results``
the rows of each statement of an SQL block.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import dis
import inspect
import re
import textwrap
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from celery import current_app
from django.core import mail
from django.db import connection

from durable_flows import errors
from durable_flows.models import Counter
from durable_flows.registry import registry
from durable_flows.rules import clock
from durable_flows.testing import RunView, advance, crash_after, drain, run_of, runs_of, send

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"

DIRECTIVES = ("continues", "setup", "then", "raises", "from")
#: Comments of the README that mean something to somebody else.
FOREIGN = ("demo command", "test command")

_TOKEN = re.compile(
    r"^(?P<fence>```+)(?P<language>[\w{}-]*)\n(?P<text>.*?)^(?P=fence)[ ]*$"
    r"|^<!--(?P<comment>.*?)-->[ ]*$"
    r"|^##[ ]+(?P<heading>[^\n]+)$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block, with what the comments above it say."""

    path: Path
    line: int
    language: str
    text: str
    directives: dict[str, str]

    @property
    def place(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"

    @property
    def file(self) -> str:
        """The file that the block's first line names: ``# club/flows.py``."""
        found = re.match(r"(?:#|<!--) ([\w/]+\.(?:py|html))\b", self.text)
        return found[1] if found else ""

    @property
    def is_executed(self) -> bool:
        """Whether `play` executes it: not what belongs to settings, to a package, or to another file."""
        executed = self.language in ("python", "sql") and "from" not in self.directives
        return executed and not self.is_settings and not self.is_package

    def misquoted(self) -> list[str]:
        """The definitions that the file it quotes does not have, or not in these words."""
        quoted = (ROOT / self.directives["from"]).read_text()
        definitions = re.split(r"\n\n+(?=\S)", self.text.strip("\n"))
        return [part for part in definitions if f"\n{part}\n" not in quoted]

    @property
    def is_package(self) -> bool:
        """Whether it is the start of a package, which imports from beside itself."""
        return self.file.endswith("__init__.py")

    @property
    def is_settings(self) -> bool:
        """Whether it holds nothing but imports and assignments to names in capitals."""
        if self.language != "python":
            return False
        statements = [
            statement
            for statement in ast.parse(self.text).body
            if not isinstance(statement, ast.Import | ast.ImportFrom)
        ]
        return bool(statements) and all(_sets_capitals(statement) for statement in statements)


@dataclass(slots=True, kw_only=True)
class Section:
    """What stands between two headings."""

    path: Path
    title: str
    blocks: list[Block] = field(default_factory=list)

    @property
    def id(self) -> str:
        return f"{self.path.relative_to(ROOT)}#{slug(self.title)}"


def pages() -> list[Path]:
    """README.md and everything under docs/."""
    built = DOCS / "_build"
    return [ROOT / "README.md", *sorted(p for p in DOCS.rglob("*.md") if built not in p.parents)]


def sections(path: Path) -> list[Section]:
    """The sections of a page; one that continues belongs to the one before."""
    text = path.read_text()
    found = [Section(path=path, title=path.stem)]
    directives: dict[str, str] = {}
    for token in _TOKEN.finditer(text):
        line = text.count("\n", 0, token.start()) + 1
        if token["heading"]:
            found.append(Section(path=path, title=token["heading"]))
        elif token["comment"] is not None:
            name, value = _directive(token["comment"], f"{path.relative_to(ROOT)}:{line}")
            if name == "then":
                found[-1].blocks[-1].directives[name] = value
            elif name:
                directives[name] = value
        else:
            block = Block(
                path=path,
                line=line + 1,
                language=token["language"],
                text=token["text"],
                directives=directives,
            )
            if "continues" in directives:
                empty = found.pop()
                assert not empty.blocks, f"{block.place}: it continues its own section anyway"
            found[-1].blocks.append(block)
            directives = {}
    assert not directives, f"{path.relative_to(ROOT)}: a comment with no block after it"
    return found


def slug(title: str) -> str:
    """What GitHub and MyST make of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _directive(comment: str, place: str) -> tuple[str, str]:
    name, _, value = comment.strip().partition(":")
    if comment.strip().startswith(FOREIGN):
        return "", ""
    assert name in DIRECTIVES, f"{place}: no such directive: {name!r}"
    return name, textwrap.dedent(value.strip("\n")).strip()


def _sets_capitals(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Assign | ast.AugAssign):
        return False
    target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
    while isinstance(target, ast.Subscript):
        target = target.value
    return isinstance(target, ast.Name) and target.id.isupper()


# -- playing ---------------------------------------------------------------------------------


def send_email(to: str, template: str) -> None:
    mail.send_mail(template, f"This is {template}.", None, [to])


def send_reminder(to: str, cart_id: str) -> None:
    mail.send_mail("reminder", f"Your cart {cart_id} waits.", None, [to])


def create_user(request: Any) -> Any:
    return types.SimpleNamespace(pk=1, email="ada@example.com")


#: What the documents may use without saying where it comes from.
STAND_INS = {
    "send_email": send_email,
    "send_reminder": send_reminder,
    "create_user": create_user,
}


def played(name: str, data: dict[str, Any] | None = None, **fields: Any) -> RunView:
    """Send an event, do what is due, and look at the run that it started."""
    event_id = send(name, data, **fields)
    drain()
    return run_of(event_id)


def again(run: RunView) -> RunView:
    """The same run as it stands now."""
    return run_of(run.id)


#: What the comments may use.
TOOLS: dict[str, Any] = {
    function.__name__: function
    for function in (advance, again, crash_after, drain, played, run_of, runs_of, send)
} | {"mail": mail, "errors": errors, "pytest": pytest}


def play(section: Section, fixture: Callable[[str], Any]) -> None:
    """Execute the Python and SQL blocks of a section, with the tests that they define."""
    namespace: dict[str, Any] = {"__name__": f"docs.{section.path.stem}", **STAND_INS}
    with registry.isolated(), celery_as_it_was():
        for block in section.blocks:
            if block.is_executed:
                _play(block, namespace, fixture)


def _play(block: Block, namespace: dict[str, Any], fixture: Callable[[str], Any]) -> None:
    _aside(block, "setup", namespace)
    if block.language == "sql":
        namespace["results"] = [_rows(sql) for sql in block.text.split(";") if sql.strip()]
    else:
        _run(block, namespace, fixture)
    _aside(block, "then", namespace)


def _rows(sql: str) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall())


def _run(block: Block, namespace: dict[str, Any], fixture: Callable[[str], Any]) -> None:
    before = dict(namespace)
    code = _compiled(block)
    with expected(block):
        exec(code, namespace)
    unknown = names(code) - namespace.keys() - vars(builtins).keys() - {"__annotations__"}
    assert not unknown, f"{block.place} uses names that nobody has defined: {sorted(unknown)}"
    for name, value in namespace.items():
        if before.get(name) is not value:
            _test(
                name,
                value,
                lambda wanted: namespace.get("FIXTURES", {}).get(wanted) or fixture(wanted),
            )


def _aside(block: Block, name: str, namespace: dict[str, Any]) -> None:
    """Execute a comment: with the tools at hand, which the blocks themselves do not see."""
    together = {**TOOLS, **namespace}
    exec(compile(block.directives.get(name, ""), f"{block.place} ({name})", "exec"), together)
    namespace.update({k: v for k, v in together.items() if TOOLS.get(k) is not v})


def _compiled(block: Block) -> types.CodeType:
    text = "\n" * (block.line - 1) + block.text
    return compile(text, str(block.path), "exec", dont_inherit=True)  # as a reader would


@contextlib.contextmanager
def expected(block: Block) -> Iterator[None]:
    """The error that the block is to raise, if it is to raise one."""
    if "raises" not in block.directives:
        yield
        return
    name = block.directives["raises"]
    with pytest.raises(getattr(errors, name, None) or getattr(builtins, name)):
        yield


def names(code: types.CodeType) -> set[str]:
    """The global names that code reads, that of its functions included."""
    read, stored = set[str](), set[str]()
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            read.add(str(instruction.argval))
        elif instruction.opname == "STORE_NAME":  # of a class: its own
            stored.add(str(instruction.argval))
    inner = [names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return (read - stored).union(*inner)


def _test(name: str, value: Any, fixture: Callable[[str], Any]) -> None:
    """Run what is a test."""
    if name.startswith("test_") and isinstance(value, types.FunctionType):
        forget()
        value(*[fixture(wanted) for wanted in inspect.signature(value).parameters])
        forget()


def forget() -> None:
    """Let nothing of what was played so far be there: rows, mails, moved clocks."""
    from django.apps import apps

    with connection.cursor() as cursor:
        for model in apps.get_app_config("durable_flows").get_models():
            if model is not Counter:
                cursor.execute(f"DELETE FROM {model._meta.db_table}")
    mail.outbox.clear()
    clock.reset()


@contextlib.contextmanager
def celery_as_it_was() -> Iterator[None]:
    """A block may make a Celery application, which then is the current one."""
    app: Any = current_app._get_current_object()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        app.set_current()
