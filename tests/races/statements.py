"""Which statements the engine has that write or lock, read from its sources; and which were sent."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import durable_flows.engine

ENGINE = Path(durable_flows.engine.__file__).parent
#: How statements are sent, whoever sends them: it has none of its own but for SQLite.
THE_WAY = "sql.py"

_WRITES = re.compile(
    r"\b(INSERT INTO|UPDATE|DELETE FROM) durable_flows_\w+|\bFOR (UPDATE|SHARE|KEY SHARE)\b|\bUPDATE \0"
)
_HOLE = re.compile(r"\{\w*\}")
_BY_THE_ORM = {"update", "delete", "create", "bulk_create", "save", "select_for_update"}


@dataclass(frozen=True, slots=True)
class Site:
    """A place in the engine's sources that has a writing statement.

    Attributes:
        file, line, function: where.
        pattern: what its text looks like; None if the text is made elsewhere, from a model.
    """

    file: str
    line: int
    function: str
    pattern: re.Pattern[str] | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function or 'the module'}"


@dataclass(slots=True)
class Sent:
    """What actors have sent: the texts, and from which functions."""

    texts: set[str] = field(default_factory=set)
    functions: set[tuple[str, str]] = field(default_factory=set)

    def see(self, text: str) -> None:
        """Called by an actor that is about to send this."""
        self.texts.add(text)
        frame = sys._getframe()
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(ENGINE) and path.name != THE_WAY:
                self.functions.add((_file(path), frame.f_code.co_name))
                return
            frame = frame.f_back  # type: ignore[assignment]

    def has(self, site: Site) -> bool:
        """Whether the statement of this place was sent."""
        if site.pattern is None:
            return (site.file, site.function) in self.functions
        return any(site.pattern.search(text) for text in self.texts)


def writing() -> list[Site]:
    """All places of the engine that have a statement which writes or locks."""
    return [
        site
        for path in sorted(ENGINE.rglob("*.py"))
        if path.name != THE_WAY
        for site in _sites(_file(path), ast.parse(path.read_text()), "")
    ]


def _file(path: Path) -> str:
    """As sites are named: with the folder, below the engine's own."""
    return path.relative_to(ENGINE).as_posix()


def _sites(file: str, node: ast.AST, function: str) -> Iterator[Site]:
    if isinstance(node, ast.FunctionDef):
        function = node.name
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return  # a docstring
    if isinstance(node, ast.Call) and _makes_a_statement(node):
        yield Site(file, node.lineno, function)
    text = _text(node)
    if text is None:
        for child in ast.iter_child_nodes(node):
            yield from _sites(file, child, function)
    elif _WRITES.search(text):
        yield Site(file, node.lineno, function, _pattern(text))  # type: ignore[attr-defined]


def _text(node: ast.AST) -> str | None:
    """A string, with a NUL in place of what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _HOLE.sub("\0", node.value)
    if isinstance(node, ast.JoinedStr):
        parts = [_text(part) if isinstance(part, ast.Constant) else "\0" for part in node.values]
        return "".join(part or "" for part in parts)
    return None


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in text.strip().split("\0")), re.DOTALL)


def _makes_a_statement(call: ast.Call) -> bool:
    """Whether it writes without a text of its own: `sql.insert(Model, …)`, or Django's way."""
    if not isinstance(call.func, ast.Attribute):
        return False
    name, on = call.func.attr, call.func.value
    if name == "insert":
        return isinstance(on, ast.Name) and on.id == "sql"
    return name in _BY_THE_ORM and not call.args and not _is_local(on)


def _is_local(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in {"hashlib", "threading", "self"}
