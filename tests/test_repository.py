"""The repository keeps what it promises to whoever clones it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_ci_runs_the_test_command_that_the_readme_prints() -> None:
    readme = (ROOT / "README.md").read_text()
    commands = re.findall(r"^.*\bvenv\b.*\btox$", readme, re.MULTILINE)
    assert len(commands) == 1
    printed = run(".ci/run", "--command")
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout == commands[0] + "\n"


def test_contributing_names_the_same_command() -> None:
    command = run(".ci/run", "--command").stdout.strip()
    assert command
    assert f"\n{command}\n" in (ROOT / "CONTRIBUTING.md").read_text()


def test_plain_tox_runs_the_suite_on_both_databases() -> None:
    tox = (ROOT / "tox.ini").read_text()
    assert re.search(r"^env_list = .*\bpy-\{sqlite,postgres\}", tox, re.MULTILINE)
    for database in ("sqlite", "postgres"):
        assert f"{database}: DURABLE_FLOWS_TEST_DATABASE={database}\n" in tox


def test_the_matrix_has_every_python_that_the_classifiers_name() -> None:
    matrix = re.search(r"^\s+matrix = (.*)$", (ROOT / "tox.ini").read_text(), re.MULTILINE)
    assert matrix
    tested = {f"3.{minor}" for minor in re.findall(r"\bpy3(\d+)-", matrix[1])}
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"]))
    assert tested == set(named)


def test_changelog_has_an_unreleased_section_with_something_in_it() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    unreleased = re.search(
        r"^## \[Unreleased\]\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL
    )
    assert unreleased
    assert re.search(r"^- \S", unreleased[1], re.MULTILINE)


def test_license_is_the_one_that_the_package_declares() -> None:
    assert PROJECT["project"]["license"] == "BSD-3-Clause"
    text = (ROOT / "LICENSE").read_text()
    assert text.startswith("BSD 3-Clause License")
    assert "durable_flows contributors" in text


def test_types_are_shipped() -> None:
    assert (ROOT / "durable_flows" / "py.typed").exists()
    assert PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["durable_flows"]


def test_what_users_write_is_read_by_two_type_checkers():
    tox = (ROOT / "tox.ini").read_text()
    assert re.search(
        r"\[testenv:types\][^\[]*\n    mypy [^\[]*\n    basedpyright --pythonpath {env_python}\n",
        tox,
    )
    tools = PROJECT["tool"]
    assert "typing_tests" in tools["mypy"]["files"]
    assert tools["basedpyright"]["include"] == ["typing_tests"]
    assert "/typing_tests" in tools["hatch"]["build"]["targets"]["sdist"]["include"]


def test_rooms_import_only_lower_rooms() -> None:
    lint = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    result = run(sys.executable, "-c", lint, "--no-cache")
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"Contracts: [4-9] kept, 0 broken", result.stdout), result.stdout
