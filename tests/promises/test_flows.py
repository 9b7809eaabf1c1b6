"""What a flow is: its triggers, its handler's parameters, its identity, what it returns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from durable_flows import Event, Run, Step, cancel, flow, send
from durable_flows.engine import failpoints
from durable_flows.engine.route import route
from durable_flows.models import Due
from durable_flows.models import Run as StoredRun
from durable_flows.testing import drain, run_of, runs_of
from tests.promises.staging import again, execute_due, forget, listener, now, played

pytestmark = pytest.mark.django_db

ROOT = Path(__file__).resolve().parents[2]


# -- triggers --------------------------------------------------------------------------------


def test_a_flow_listens_to_one_event():
    started = listener("order/placed")
    played("order/placed")
    send("order/paid")
    drain()
    assert len(started) == 1


def test_a_flow_listens_to_a_list_of_events():
    seen: list[str] = []

    @flow("reader", on=["order/placed", "order/paid"])
    def reader(event):
        seen.append(event.name)

    send([Event("order/placed"), Event("order/shipped"), Event("order/paid")])
    drain()
    assert seen == ["order/placed", "order/paid"]


def test_a_flow_without_a_trigger_runs_when_it_is_started():
    @flow("by-hand")
    def by_hand(event):
        return event.data

    send("by-hand")
    run_id = by_hand.start({"n": 1})
    drain()
    assert run_of(run_id).result == {"n": 1}
    assert StoredRun.objects.count() == 1


def test_event_names_are_compared_to_the_letter():
    started = listener("Order/Placed")
    send([Event("order/placed"), Event("Order/Placed ".strip())])
    drain()
    assert len(started) == 1


# -- parameters ------------------------------------------------------------------------------


def test_a_handler_takes_no_parameter_at_all():
    @flow("none", on="go")
    def handler():
        return "ran"

    assert played().result == "ran"


def test_a_handler_takes_any_of_the_four_in_any_order():
    seen: list[object] = []

    @flow("all", on="go")
    def handler(run, step, events, event):
        seen.extend([run, step, events, event])

    begun = now()
    run = played("go", {"n": 1})
    its_run, step, events, event = seen
    assert isinstance(its_run, Run)
    assert (its_run.id, its_run.flow, its_run.generation) == (run.id, "all", 0)
    assert begun <= its_run.created_at <= now()
    assert isinstance(step, Step)
    assert isinstance(event, Event)
    assert events == [event]
    assert event.data == {"n": 1}


def test_a_handler_takes_parameters_by_keyword_only():
    @flow("keywords", on="go")
    def handler(*, event):
        return event.name

    assert played().result == "go"


def test_a_callable_object_is_a_handler():
    class Handler:
        __name__ = "Handler"
        __qualname__ = "Handler"

        def __call__(self, event: Event) -> str:
            return event.name

    flow("object", on="go")(Handler())
    assert played().result == "go"


# -- results ---------------------------------------------------------------------------------


@pytest.mark.parametrize("result", [None, 1, "text", [1, {"a": None}], {"x": -0.0}, True, ""])
def test_what_the_handler_returns_is_the_runs_result(result):
    @flow("returns", on="go")
    def returns():
        return result

    run = played()
    assert run.state == "completed"
    assert json.dumps(run.result) == json.dumps(result)


def test_a_result_that_cannot_be_stored_fails_the_run_without_a_retry():
    calls: list[int] = []

    @flow("returns", on="go")
    def returns():
        calls.append(1)
        return {"found": [{1, 2}]}

    run = played()
    assert run.state == "failed"
    assert calls == [1]
    assert "/found/0" in run.error["message"]
    assert "set" in run.error["message"]


def test_a_result_that_is_too_large_fails_the_run_and_names_the_limit(settings):
    settings.DURABLE_FLOWS = {"RING": "off", "MAX_RESULT_BYTES": 100}

    @flow("returns", on="go")
    def returns():
        return "x" * 200

    run = played()
    assert run.state == "failed"
    assert "100" in run.error["message"]
    assert "MAX_RESULT_BYTES" in run.error["message"]


# -- identity --------------------------------------------------------------------------------


def test_a_run_goes_on_after_its_function_was_renamed_and_moved():
    def before(step):
        step.run("first", lambda: 1)
        step.sleep("night", "12h")

    def renamed(step):
        one = step.run("first", lambda: "never called")
        step.sleep("night", "12h")
        return one

    old = flow("stable", on="go")(before)
    run = played()
    forget(old)
    flow("stable", on="go")(renamed)
    from durable_flows.testing import advance

    advance("12h")
    assert again(run).result == 1


def test_a_run_whose_flow_nobody_knows_waits_until_somebody_does():
    @flow("known", on="go")
    def known():
        return "done"

    (event_id,) = send("go")
    route()
    forget(known)
    drain()
    assert run_of(event_id).activity == "parked"
    assert run_of(event_id).wake_at is None
    drain()
    assert run_of(event_id).activity == "parked"
    flow("known", on="go")(known.handler)
    drain()
    assert run_of(event_id).result == "done"


def test_a_start_of_a_flow_that_the_router_does_not_know_is_kept():
    @flow("known")
    def known():
        return "done"

    run_id = known.start()
    forget(known)
    drain()
    assert run_of(run_id).activity == "parked"
    flow("known")(known.handler)
    drain()
    assert run_of(run_id).result == "done"


def test_a_parked_run_can_be_cancelled():
    known = flow("known", on="go")(lambda: None)
    (event_id,) = send("go")
    route()
    forget(known)
    drain()
    cancel(run_of(event_id).id)
    drain()
    assert run_of(event_id).state == "cancelled"


def test_a_run_of_an_unknown_flow_that_is_cancelled_while_it_is_claimed_ends_at_once():
    known = flow("known", on="go")(lambda: None)
    (event_id,) = send("go")
    route()
    forget(known)

    def ask(place: str, detail: str) -> None:
        if place == "claim_read":
            failpoints.trap = None
            cancel(run_of(event_id).id)
            route()

    failpoints.trap = ask
    execute_due()
    assert run_of(event_id).state == "cancelled"


def test_a_flow_that_came_later_does_not_start_on_what_was_routed_before():
    (event_id,) = send("go")
    drain()
    started = listener("go")
    drain()
    assert started == []
    assert runs_of(event_id) == []


def test_a_run_carries_the_queue_of_its_flow():
    @flow("elsewhere", on="go", queue="mails")
    def elsewhere():
        return None

    (event_id,) = send("go")
    route()
    assert Due.objects.get().queue == "mails"
    drain()
    assert run_of(event_id).state == "completed"
    assert StoredRun.objects.get().queue == "mails"


def test_the_default_queue_is_the_projects():
    from celery import current_app

    listener("go")
    send("go")
    route()
    assert Due.objects.get().queue == current_app.conf.task_default_queue


def test_a_setting_chooses_the_default_queue(settings):
    settings.DURABLE_FLOWS = {"RING": "off", "QUEUE": "flows"}
    listener("go")
    (event_id,) = send("go")
    route()
    assert Due.objects.get().queue == "flows"
    drain()
    assert run_of(event_id).state == "completed"


# -- autodiscovery ---------------------------------------------------------------------------

_SHOW = (
    "import django; django.setup()\n"
    "from durable_flows.registry import registry\n"
    "print(sorted(flow.id for flow in registry))\n"
)


CONTENT_TYPES = "django.contrib.contenttypes"


def start_up(
    directory: Path, *, beside: tuple[str, ...] = (CONTENT_TYPES,), **apps: str
) -> subprocess.CompletedProcess[str]:
    """Start a project with these apps; each is the text of its flows.py."""
    for name, flows in apps.items():
        (directory / name).mkdir()
        (directory / name / "__init__.py").touch()
        (directory / name / "flows.py").write_text(flows)
    (directory / "project_settings.py").write_text(
        f"INSTALLED_APPS = {[*beside, 'durable_flows', *apps]!r}\n"
        "DATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}}\n"
        "SECRET_KEY = 'x'\nUSE_TZ = True\n"
    )
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},
        "DJANGO_SETTINGS_MODULE": "project_settings",
        "PYTHONPATH": os.pathsep.join([str(directory), str(ROOT)]),
    }
    return subprocess.run(
        [sys.executable, "-c", _SHOW],
        env=environment,
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )


_A_FLOW = (
    "from durable_flows import flow\n\n@flow({id!r}, on='go')\ndef {name}({takes}):\n    pass\n"
)


def test_flows_py_of_every_app_is_found(tmp_path):
    done = start_up(
        tmp_path,
        shop=_A_FLOW.format(id="shop-flow", name="one", takes="event, step"),
        blog=_A_FLOW.format(id="blog-flow", name="other", takes=""),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['blog-flow', 'shop-flow']"


def test_one_id_in_two_apps_is_an_error_at_start_up(tmp_path):
    done = start_up(
        tmp_path,
        shop=_A_FLOW.format(id="mine", name="one", takes=""),
        blog=_A_FLOW.format(id="mine", name="one", takes=""),
    )
    assert done.returncode != 0
    assert "DuplicateFlow" in done.stderr
    assert "shop.flows.one" in done.stderr
    assert "blog.flows.one" in done.stderr


def test_a_wrong_handler_is_an_error_at_start_up(tmp_path):
    done = start_up(tmp_path, shop=_A_FLOW.format(id="mine", name="one", takes="event, request"))
    assert done.returncode != 0
    assert "InvalidHandler" in done.stderr
    assert "'request'" in done.stderr


def test_a_project_without_content_types_is_told_at_start_up_what_to_add(tmp_path):
    done = start_up(tmp_path, beside=())
    assert done.returncode != 0
    assert "add 'django.contrib.contenttypes' to INSTALLED_APPS" in done.stderr
