"""What ``import durable_flows`` promises."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import durable_flows

ROOT = Path(__file__).resolve().parent.parent


def python(code: str) -> str:
    """Run code in a process of its own, without Django's settings."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST", "DJANGO", "DURABLE"))
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_everything_it_names_can_be_imported():
    for name in durable_flows.__all__:
        assert getattr(durable_flows, name) is not None, name


def test_everything_that_can_be_imported_is_named():
    assert durable_flows._HOME.keys() == set(durable_flows.__all__)
    assert len(durable_flows.__all__) == len(set(durable_flows.__all__))
    assert dir(durable_flows) == sorted(durable_flows.__all__)


def test_a_star_takes_all_of_it():
    taken: dict[str, object] = {}
    exec("from durable_flows import *", taken)
    taken.pop("__builtins__")
    assert taken.keys() == set(durable_flows.__all__)


@pytest.mark.parametrize("home", sorted(durable_flows._HOMES))
def test_each_name_is_the_one_of_its_home(home):
    for name in durable_flows._HOMES[home]:
        assert getattr(durable_flows, name) is getattr(import_module(home), name)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"'durable_flows'.*'sned'"):
        durable_flows.sned  # noqa: B018
    with pytest.raises(ImportError):
        exec("from durable_flows import sned")


def test_importing_it_imports_neither_django_nor_celery():
    assert (
        python("import sys, durable_flows; print({'django', 'celery'} & set(sys.modules))")
        == "set()"
    )


def test_settings_may_import_it():
    assert python("from durable_flows import __version__; print(__version__)")


def test_declarations_can_be_written_before_django_is_set_up():
    """As flows.py is imported while apps are loading."""
    code = (
        "from durable_flows import (flow, CancelOn, Retries, Exponential, Fixed, Delays, Event,"
        " NonRetriableError, RetryAfterError, StepError, DurableFlowsError, InvalidInput,"
        " InvalidEvent)\n"
        "@flow('mine', on='go', cancel_on=CancelOn('stop'), retries=Retries(2, backoff=Fixed(1)))\n"
        "def mine(event, step): pass\n"
        "print(mine.id)"
    )
    assert python(code) == "mine"


def test_starting_a_flow_before_django_is_set_up_says_what_is_missing():
    code = (
        "from durable_flows import flow\n"
        "@flow('mine')\n"
        "def mine(): pass\n"
        "try:\n    mine.start()\n"
        "except Exception as error:\n    print(type(error).__name__, error)"
    )
    assert "INSTALLED_APPS" in python(code)


def test_every_error_is_one_of_ours_and_says_something_by_itself():
    from durable_flows import errors

    classes = [
        value
        for value in vars(errors).values()
        if isinstance(value, type)
        and issubclass(value, Exception)
        and value.__module__ == errors.__name__
    ]
    assert len(classes) > 15
    for error in classes:
        assert issubclass(error, errors.DurableFlowsError)
        assert error.__doc__
    assert (
        str(errors.NonRetriableError())
        == "The step or the run fails at once, without another attempt."
    )


def test_what_ends_a_slice_is_no_exception():
    from durable_flows.errors import CancelAsked, LeaseLost, Suspend

    for signal in (Suspend, LeaseLost, CancelAsked):
        assert issubclass(signal, BaseException)
        assert not issubclass(signal, Exception)


def test_bad_input_is_a_value_error_and_a_bad_handler_a_type_error():
    from durable_flows.errors import InvalidHandler, InvalidOption, UnknownRun

    assert issubclass(durable_flows.InvalidEvent, ValueError)
    assert issubclass(InvalidOption, durable_flows.InvalidInput)
    assert issubclass(InvalidHandler, TypeError)
    assert issubclass(UnknownRun, LookupError)
