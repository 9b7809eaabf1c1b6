"""What the documents say is executed, or compared with the code."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from celery.app.defaults import NAMESPACES, flatten
from celery.bin.celery import celery as celery_command
from cryptography.fernet import Fernet
from django.conf import global_settings
from django.core.management import get_commands, load_command_class
from django.core.management.base import DjangoHelpFormatter

import durable_flows
from durable_flows import Event, Step, conf, errors, testing
from durable_flows.checks import check_settings
from durable_flows.engine import arguments
from durable_flows.flows import Flow
from durable_flows.management.commands import flows as flows_command
from durable_flows.rules import (
    backoff,
    causality,
    durations,
    events,
    expressions,
    names,
    options,
    outcomes,
)
from tests.documents import DOCS, ROOT, Block, Section, forget, pages, play, sections, slug

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TUTORIAL = DOCS / "tutorial" / "first-flow.md"
REFERENCE = DOCS / "reference"

#: Each is checked by some test below; text is a picture.
LANGUAGES = {"python", "sql", "sh", "html", "text", "{toctree}"}

SECTIONS = [section for page in pages() for section in sections(page)]
BLOCKS = [block for section in SECTIONS for block in section.blocks]


def page(name: str) -> str:
    return (REFERENCE / f"{name}.md").read_text()


def blocks(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def place(thing: Any) -> str:
    return str(thing.place)


# -- what is shown works ---------------------------------------------------------------------


def plays(section: Section) -> bool:
    # The tutorial builds a project, which has a test of its own.
    return section.path != TUTORIAL and any(block.is_executed for block in section.blocks)


@pytest.mark.django_db
@pytest.mark.parametrize(
    "section", [section for section in SECTIONS if plays(section)], ids=lambda section: section.id
)
def test_a_section_does_what_it_says(section: Section, request: pytest.FixtureRequest) -> None:
    forget()
    play(section, request.getfixturevalue)


def test_the_tutorial_makes_a_project_that_works(tmp_path: Path) -> None:
    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={"PATH": "", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    python("-m", "django", "startproject", "proj", ".")
    python("manage.py", "startapp", "club")
    for block in (block for section in sections(TUTORIAL) for block in section.blocks):
        if block.language == "sh":
            continue
        assert block.file, f"{block.place} does not say which file it is"
        file = tmp_path / block.file
        file.parent.mkdir(parents=True, exist_ok=True)
        before = file.read_text() if block.is_settings else ""
        file.write_text(before + block.text)
    python("manage.py", "makemigrations", "club")
    python("manage.py", "migrate", "--verbosity", "0")
    assert "no issues" in python("manage.py", "check", "--database", "default")
    tests = TUTORIAL.read_text().count("def test_")
    assert f"Ran {tests} tests" in python("manage.py", "test")
    assert tests


@pytest.mark.parametrize("block", [b for b in BLOCKS if "from" in b.directives], ids=place)
def test_what_a_page_quotes_stands_in_its_file(block: Block) -> None:
    assert block.misquoted() == []


def test_no_block_is_overlooked() -> None:
    fences = sum(len(re.findall("^```", path.read_text(), re.MULTILINE)) for path in pages())
    assert 2 * len(BLOCKS) == fences


def test_every_block_is_in_a_language_that_is_checked() -> None:
    assert [block.place for block in BLOCKS if block.language not in LANGUAGES] == []


# -- settings --------------------------------------------------------------------------------

CELERY_SETTINGS = {f"CELERY_{name.upper()}" for name in dict(flatten(NAMESPACES))} | {
    "CELERY_DB_REUSE_MAX",  # of Celery's Django fixup
    "CELERY_BEAT_SCHEDULER",
}
EVERYBODYS = {"INSTALLED_APPS", "DATABASES", *vars(global_settings), *CELERY_SETTINGS}


@pytest.mark.parametrize("block", [b for b in blocks("python") if b.is_settings], ids=place)
def test_settings_are_known_to_whoever_reads_them(
    block: Block, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLOWS_KEY", Fernet.generate_key().decode())
    given: dict[str, Any] = {"INSTALLED_APPS": [], "DATABASES": {"default": {}}}
    exec(block.text, given)
    names = {name for name in given if name.isupper()}
    assert names - EVERYBODYS == {"DURABLE_FLOWS"} & names
    settings.DURABLE_FLOWS = given.get("DURABLE_FLOWS", {})
    assert check_settings(None) == []
    for app in set(given["INSTALLED_APPS"]) - {"club"}:  # the tutorial's own
        importlib.import_module(app)
    for database in given["DATABASES"].values():
        importlib.import_module(f"{database.get('ENGINE', 'django.db.backends.sqlite3')}.base")
        assert database.keys() <= {
            "ENGINE",
            "NAME",
            "CONN_MAX_AGE",
            "CONN_HEALTH_CHECKS",
            "OPTIONS",
        }


def test_settings_md_names_every_setting_with_its_default() -> None:
    rows = {cells[0]: cells[1] for cells in table(page("settings"), "setting", "default")}
    documented = {
        name.strip("`"): ast.literal_eval(value.strip("`")) for name, value in rows.items()
    }
    assert documented == {name: getattr(conf.DEFAULTS, name) for name in conf.NAMES}


# -- commands --------------------------------------------------------------------------------

#: Commands that are not ours; what else stands on their lines is not checked.
FOREIGN = {"cd", "mkdir", "python3", "."}
DOCUMENTED_EXTRAS = PROJECT["project"]["optional-dependencies"]


def commands() -> Iterator[Any]:
    for block in blocks("sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            for command in re.split(r"&&|\|\|?|;", line.partition(" #")[0]):
                if command.strip():
                    yield pytest.param(shlex.split(command), id=f"{block.place} {command.strip()}")


@pytest.mark.parametrize("words", list(commands()))
def test_a_command_exists_and_takes_its_options(words: list[str]) -> None:
    program, *arguments = words
    program = program.rpartition("/")[2]
    if program == "python" and arguments[0] == "manage.py":
        _check_manage(*arguments[1:])
    elif program == "python" and arguments[0] == "-c":
        exec(arguments[1], {})
    elif program == "django-admin":
        assert arguments[0] == "startproject"
    elif program == "celery":
        _check_celery(arguments)
    elif program == "pip":
        _check_pip(arguments)
    elif program == "tox":
        assert not arguments, "say how its arguments are checked"
    else:
        assert program in FOREIGN, f"nobody checks {program}"


def _check_manage(name: str, *arguments: str) -> None:
    known = get_commands()
    assert name in known, f"Django knows no command {name}"
    parser = load_command_class(known[name], name).create_parser("manage.py", name)
    parser.called_from_command_line = True
    try:
        parser.parse_args(list(arguments))
    except SystemExit as refused:
        raise AssertionError(f"manage.py {name} refuses {arguments}") from refused


def _check_celery(arguments: list[str]) -> None:
    assert arguments[:2] == ["-A", "proj"]
    command = celery_command.commands.get(arguments[2])
    assert command is not None, f"celery knows no command {arguments[2]}"
    known = {option for parameter in command.params for option in parameter.opts}
    given = {word.partition("=")[0] for word in arguments[3:] if word.startswith("-")}
    assert given <= known


def _check_pip(arguments: list[str]) -> None:
    assert arguments[0] == "install"
    for wanted in (word for word in arguments[1:] if not word.startswith("-")):
        found = re.fullmatch(r"(durable-flows|\.|tox)(?:\[([\w,]+)\])?", wanted)
        assert found, f"{wanted} is not ours"
        assert set((found[2] or "").split(",")) - {""} <= DOCUMENTED_EXTRAS.keys()


def test_commands_md_names_every_option_of_our_commands() -> None:
    text = page("commands")
    flows = flows_command.Command().create_parser("manage.py", "flows")
    subparsers = next(action for action in flows._actions if action.dest == "subcommand")
    demo = load_command_class("example_project.shop", "demo").create_parser("manage.py", "demo")
    known = {
        "## manage.py flows tick": subparsers.choices["tick"],  # type: ignore[index]
        "## manage.py flows dev": subparsers.choices["dev"],  # type: ignore[index]
        "## manage.py flows cancel": subparsers.choices["cancel"],  # type: ignore[index]
        "## manage.py flows replay": subparsers.choices["replay"],  # type: ignore[index]
        "## manage.py demo": demo,
    }
    common = {"-h", "--version", "--verbosity", "--skip-checks"} | DjangoHelpFormatter.show_last
    for heading, parser in known.items():
        section = text.partition(heading + "\n")[2].partition("\n## ")[0]
        documented = {cells[0].strip("`") for cells in table(section, "option")}
        own = {
            action.option_strings[-1] if action.option_strings else "ADDRPORT"
            for action in parser._actions
            if not set(action.option_strings) & common
        }
        assert documented == own, heading


# -- compared by name ------------------------------------------------------------------------


def table(text: str, *heads: str) -> list[list[str]]:
    """The rows of the tables whose first columns have these heads."""
    found: list[list[str]] = []
    for lines in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [
            [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines.splitlines()
        ]
        rows = [[cell.strip("| ") for cell in row] for row in rows]
        if rows[0][: len(heads)] == list(heads):
            found += rows[2:]
    assert found, f"no table has the columns {heads}"
    return found


def test_checks_md_names_every_check() -> None:
    tree = ast.parse((ROOT / "durable_flows" / "checks.py").read_text())
    in_code = {
        (str(keyword.value.value), call.func.id)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        for keyword in call.keywords
        if keyword.arg == "id" and isinstance(keyword.value, ast.Constant)
    }
    documented = [cells[0].strip("`") for cells in table(page("checks"), "id", "cause", "remedy")]
    assert sorted(documented) == sorted(id for id, _ in in_code)
    assert {
        (id, {"E": "Error", "W": "Warning"}[id[len("durable_flows.")]]) for id in documented
    } == in_code
    assert all(all(cells) for cells in table(page("checks"), "id", "cause", "remedy"))


def test_errors_md_names_every_error_with_what_else_it_is() -> None:
    defined = {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    documented: dict[str, tuple[str, bool]] = {}
    for kind in ("error", "signal"):
        for cells in table(page("errors"), kind, "is also a", "raised when"):
            assert all(cells), cells
            documented[re.sub(r"[` •]", "", cells[0])] = (cells[1].strip("`"), "•" in cells[0])
    assert documented.keys() == defined.keys()
    for name, (base, at_the_front_door) in documented.items():
        known = getattr(errors, base, None) or getattr(builtins, base)
        assert issubclass(defined[name], known), name
        assert at_the_front_door == (name in durable_flows.__all__), name


def test_limits_md_says_what_the_code_says() -> None:
    fixed = {
        "characters of an event's name": names.NAME_LENGTH,
        "characters of an event's `id`": names.ID_LENGTH,
        "characters of an event's `v`": names.V_LENGTH,
        "characters of a flow's id": importlib.import_module("durable_flows.declare").ID_LENGTH,
        "characters of a step's id": arguments.ID_LENGTH,
        "triggers of a flow": options.MOST_TRIGGERS,
        "`cancel_on` rules of a flow": options.MOST_CANCELS,
        "characters of a condition": expressions.LENGTH,
        "retries": backoff.MOST_RETRIES,
        "runs that bring each other about, less than a minute apart": causality.DEEPEST,
        "days of a sleep, a wait, a rule, a delay or a timeout": durations.LONGEST.days,
        "characters of an error's recorded message": outcomes.MESSAGE_CHARACTERS,
        "characters of an error's recorded stack": outcomes.STACK_CHARACTERS,
    }
    documented = table(page("limits"), "limit", "value", "setting")
    assert {row[0]: int(row[1]) for row in documented if not row[2]} == fixed
    by_setting = {row[2].strip("`"): int(row[1]) for row in documented if row[2]}
    limits = {name for name in conf.NAMES if name.startswith("MAX_")}
    assert by_setting == {name: getattr(conf.DEFAULTS, name) for name in limits}
    assert (events.EARLIEST.year, events.LATEST.year - 1) == (1980, 2099)


def words(text: str) -> set[str]:
    """What a page sets in code font, cut into names."""
    outside_fences = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return {
        name
        for code in re.findall(r"`([^`]+)`", outside_fences)
        for name in re.findall(r"\w+", code)
    }


def test_every_name_at_the_front_door_is_in_the_reference() -> None:
    reference = set[str]().union(*(words(path.read_text()) for path in REFERENCE.glob("*.md")))
    assert set(durable_flows.__all__) <= reference


SIGNATURES = [
    ("events", "send", durable_flows.send),
    ("model-events", "model_event", durable_flows.model_event),
    ("flows", "On", durable_flows.On),
    ("flows", "CancelOn", durable_flows.CancelOn),
    ("flows", "Timeouts", durable_flows.Timeouts),
    ("flows", "flow.start", Flow.start),
    ("commands", "flow.start", Flow.start),
    ("commands", "cancel", durable_flows.cancel),
    ("commands", "retry", durable_flows.retry),
    ("commands", "rerun", durable_flows.rerun),
    ("commands", "skip", durable_flows.skip),
    ("commands", "withdraw", durable_flows.withdraw),
    ("retries", "Exponential", durable_flows.Exponential),
    ("retries", "Fixed", durable_flows.Fixed),
    ("retries", "Delays", durable_flows.Delays),
    ("retries", "RetryAfterError", durable_flows.RetryAfterError),
    *[
        ("steps", f"step.{name}", getattr(Step, name))
        for name in ("run", "sleep", "sleep_until", "wait_for_event", "send_event")
    ],
    ("waits-and-look-back", "step.wait_for_event", Step.wait_for_event),
    *[
        ("testing", name, getattr(testing, name))
        for name in testing.__all__
        if not inspect.isclass(getattr(testing, name))
    ],
]


@pytest.mark.parametrize(("where", "name", "function"), SIGNATURES)
def test_a_signature_in_the_reference_is_that_of_the_code(
    where: str, name: str, function: Any
) -> None:
    found = re.search(rf"`{re.escape(name)}\(([^`]*)\)`", page(where))
    assert found, f"{where}.md does not show the signature of {name}"
    shown: dict[str, Any] = {}
    exec(f"def signature({found[1]}): ...", shown)
    assert _parameters(shown["signature"]) == _parameters(function)


def _parameters(function: Any) -> list[tuple[str, bool, Any]]:
    """Name, whether by keyword only, and default of each parameter."""
    return [
        (p.name, p.kind is p.KEYWORD_ONLY, _default(p))
        for p in inspect.signature(function).parameters.values()
        if p.name != "self"
    ]


def _default(parameter: inspect.Parameter) -> Any:
    if parameter.name == "fn":  # left out by the decorator only
        return None
    if parameter.name == "timeout" and parameter.default is not parameter.empty:
        return durations.parse(parameter.default)
    return parameter.default


@pytest.mark.parametrize(
    ("where", "head", "function", "elsewhere"),
    [
        ("flows", "option", durable_flows.flow, set()),
        ("retries", "argument", durable_flows.Retries, set()),
        ("waits-and-look-back", "argument", Step.wait_for_event, {"self", "id"}),
        ("events", "field", Event, {"public_id"}),
    ],
)
def test_a_table_of_the_reference_has_every_parameter(
    where: str, head: str, function: Any, elsewhere: set[str]
) -> None:
    documented = {cells[0].strip("`") for cells in table(page(where), head)}
    assert documented == inspect.signature(function).parameters.keys() - elsewhere


def test_every_tool_is_in_the_reference() -> None:
    public = {name for name in dir(Step) if not name.startswith("_")}
    assert public <= words(page("steps"))
    assert {f.name for f in fields(durable_flows.Run)} <= words(page("flows"))
    assert {f.name for f in fields(Event)} <= words(page("events"))


@pytest.mark.parametrize(
    "view", [testing.RunView, testing.StepView], ids=lambda view: view.__name__
)
def test_testing_md_names_every_attribute_of_a_view(view: type) -> None:
    section = page("testing").partition(f"\n## {view.__name__}\n")[2].partition("\n## ")[0]
    documented = [re.sub(r"[`]|\(.*\)", "", cells[0]) for cells in table(section, "attribute")]
    public = {name for name in dir(view) if not name.startswith("_")}
    assert sorted(documented) == sorted(public)


def test_the_picture_of_the_flow_is_that_of_the_engine() -> None:
    picture = durable_flows.engine.__doc__.split("\n\n")[1]
    (shown,) = [block for block in BLOCKS if block.language == "text"]
    assert shown.text.rstrip() == picture.rstrip()


def test_the_path_of_an_event_goes_through_files_that_are_there() -> None:
    text = (DOCS / "explanation" / "how-it-works.md").read_text()
    path = text.partition("\n## The path of an event\n")[2].partition("\n## ")[0]
    files = re.findall(r"`([\w/]+\.py)`", path)
    assert len(files) > 20
    assert [file for file in files if not (ROOT / "durable_flows" / file).is_file()] == []


# -- links -----------------------------------------------------------------------------------


def links() -> Iterator[Any]:
    for path in [*pages(), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
            if not target.startswith(("http://", "https://")):
                yield pytest.param(path, target, id=f"{path.relative_to(ROOT)} {target}")


@pytest.mark.parametrize(("path", "target"), list(links()))
def test_a_link_leads_somewhere(path: Path, target: str) -> None:
    name, _, anchor = target.partition("#")
    wanted = (path.parent / name).resolve() if name else path
    assert wanted.exists()
    if anchor:
        headings = re.findall(r"^#+ (.+)$", wanted.read_text(), re.MULTILINE)
        assert anchor in {slug(heading) for heading in headings}


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "index.md").read_text()
    trees = {
        name
        for tree in re.findall(r"```\{toctree\}(.*?)```", index, re.DOTALL)
        for name in re.findall(r"^[\w-]+/[\w-]+$", tree, re.MULTILINE)
    }
    shown = {str(path.relative_to(DOCS)) for path in pages()[1:]} - {"index.md"}
    assert {f"{name}.md" for name in trees} == shown
    assert all(f"]({name})" in index for name in shown)
