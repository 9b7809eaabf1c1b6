"""``manage.py demo``: what somebody who has just cloned the repository sees first."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.mail import EmailMessage, get_connection
from django.core.management import CommandError, call_command

from example_project.shop.play import mails_by_address
from example_project.shop.shoppers import EXPECTED, Ended
from example_project.stories import stories
from tests.servers import free_port
from tests.stories.project import ROOT, Browser, Project, scratch_project


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with scratch_project(tmp_path) as project:
        yield project


@pytest.fixture
def as_cloned(tmp_path: Path) -> Project:
    """The example project as it is, but for where temporary files go."""
    project = Project(tmp_path, {"TMPDIR": str(tmp_path)})
    del project.environment["EXAMPLE_MAIL_DIR"]
    return project


def traces() -> list[tuple[str, int]]:
    """What a demo leaves in the project's own folder, and when it did."""
    found = [*ROOT.glob("demo.sqlite3*"), *ROOT.glob("mails")]
    return sorted((path.name, path.stat().st_mtime_ns) for path in found)


def test_json_and_here_go_with_once() -> None:
    for option in ("--json", "--here"):
        with pytest.raises(CommandError, match="go with --once"):
            call_command("demo", option)


@pytest.mark.parametrize("speed", ["0", "-1", "nan", "inf", "fast"])
def test_a_speed_that_is_none_is_refused(speed: str) -> None:
    with pytest.raises(CommandError, match="is not a positive number"):
        call_command("demo", "--speed", speed)


def test_it_shows_its_pages_with_debug_only(settings: Any) -> None:
    settings.DEBUG = False
    with pytest.raises(CommandError, match="set DEBUG=1"):
        call_command("demo")


def test_mails_are_read_from_the_folder_they_were_written_to(tmp_path: Path) -> None:
    backend = "django.core.mail.backends.filebased.EmailBackend"
    for number in (1, 2):
        with get_connection(backend, file_path=str(tmp_path)) as connection:
            for to in ("ada@example.com", "bob@example.com"):
                subject = f"{number}. Grüße"
                message = EmailMessage(subject, f"{'-' * 80}\nHello", None, [to])
                connection.send_messages([message])
    subjects = ["1. Grüße", "2. Grüße"]
    assert {to: sorted(found) for to, found in mails_by_address(tmp_path).items()} == {
        "ada@example.com": subjects,
        "bob@example.com": subjects,
    }


@pytest.mark.processes
def test_the_demo_played_once_tells_what_every_run_did_and_leaves_nothing(
    as_cloned: Project, tmp_path: Path
) -> None:
    before, began = traces(), time.monotonic()
    done = as_cloned.run("demo", "--once", "--json")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 60
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert told["ok"] is True
    assert told["wrong"] == []
    assert told["mails"] == 10
    by_shopper, by_story = defaultdict(list), defaultdict(list)
    for run in told["runs"]:
        ended = Ended(flow=run["flow"], state=run["state"], steps=tuple(run["steps"]))
        by_story[run["story"]].append(str(ended))
        if run["shopper"]:
            by_shopper[run["shopper"]].append(ended)
    assert {who: tuple(runs) for who, runs in by_shopper.items()} == EXPECTED
    del by_story["shop"]
    assert {app: sorted(runs) for app, runs in by_story.items()} == {
        story.app: sorted(story.ended) for story in stories()
    }
    assert list(tmp_path.iterdir()) == []
    assert traces() == before


@pytest.mark.processes
def test_a_day_that_goes_wrong_ends_with_code_1_and_says_whose(as_cloned: Project) -> None:
    # At this speed a day is over before a shopper has thought of buying.
    done = as_cloned.run("demo", "--once", "--speed", "2000000")
    assert done.returncode == 1
    assert "not all as they should be" in done.stdout
    assert "It did not go as the script says" in done.stderr
    assert "Ada: run missing: cart-abandonment completed (purchased)" in done.stderr
    assert "too slow for --speed 2000000" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.processes
def test_the_demo_played_here_plays_on_the_project_s_own_database(project: Project) -> None:
    # Dead letters come from the stories of other apps, too, and are reviewed each week.
    ended = [line for story in stories() for line in story.ended]
    of_stories = sum("-dead-letter" not in line for line in ended)
    count = "SELECT count(*) FROM durable_flows_run WHERE flow NOT LIKE '%-dead-letter%'"
    first = project.run("demo", "--once", "--here", "--speed", "2000000")
    assert "SHOPPER" in first.stdout
    assert project.rows(count) == [(16 + of_stories,)]
    assert list(project.mails.glob("*.log"))
    project.run("demo", "--once", "--here", "--speed", "2000000")
    assert project.rows(count) == [(32 + 2 * of_stories,)]
    assert project.rows("SELECT count(*) FROM auth_user") == [(8,)]


@pytest.mark.processes
def test_the_demo_opens_shop_and_admin_and_ctrl_c_ends_it_in_mid_day(project: Project) -> None:
    port = free_port()
    browser = Browser(f"http://127.0.0.1:{port}")
    with project.running("demo", str(port)) as demo:
        demo.wait_until(browser.answers, "answer over HTTP")
        demo.wait_until(lambda: "Ada puts the stoneware mug in the cart" in demo.said, "shopper")
        assert f"http://127.0.0.1:{port}/admin/" in demo.said
        assert "log in as admin with the password admin" in demo.said
        assert "Few things, kept long." in browser.get("/")
        assert ".shelf" in browser.get("/static/shop/shop.css")
        browser.get("/admin/login/")
        page = browser.post("/admin/login/?next=/admin/", username="admin", password="admin")
        assert "Site administration" in page
        began = time.monotonic()
        assert demo.press_ctrl_c() == 0
        assert time.monotonic() - began < 5
        assert "Traceback" not in demo.said
