"""The small apps: the story of each, as the demo tells it, and what they have in common."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import call_command

from durable_flows.models import Run
from example_project import stories
from example_project.stories import Story
from tests.stories.project import ROOT

STORIES = list(stories.stories())
MOST_LINES = 260

a_story = pytest.mark.parametrize("story", STORIES, ids=lambda story: story.app)


def folder(story: Story) -> Path:
    return ROOT / "example_project" / story.app


@pytest.mark.django_db
@pytest.mark.usefixtures("example_flows", "own_clock")
@a_story
def test_every_run_of_a_story_ends_as_it_says(story: Story) -> None:
    assert stories.tell(story).wrong == []
    assert not Run.objects.unfinished().exists()


@pytest.mark.django_db
@pytest.mark.usefixtures("example_flows", "own_clock")
def test_stories_are_told_again_and_beside_each_other_on_one_database() -> None:
    said: list[str] = []
    for _ in range(2):
        told = stories.tell_all(said.append)
        assert [line for one in told for line in one.wrong] == []
    assert len(said) == 2 * len(STORIES)


@pytest.mark.django_db
@pytest.mark.usefixtures("example_flows", "own_clock")
@a_story
def test_every_flow_of_an_app_appears_in_its_story(story: Story) -> None:
    declared = {flow.id for flow in stories.flows_of(f"example_project.{story.app}")}
    assert declared
    assert {line.split()[0] for line in story.ended} == declared


@pytest.mark.django_db
@pytest.mark.usefixtures("example_flows", "own_clock")
def test_a_run_that_ends_otherwise_is_named() -> None:
    promised = replace(STORIES[0], ended=("provision-account failed (create-account)",))
    wrong = stories.tell(replace(promised, play=lambda: None)).wrong
    assert wrong == [f"{promised.app}: run missing: provision-account failed (create-account)"]
    more = stories.tell(promised).wrong
    assert wrong[0] in more
    assert any(f"{promised.app}: run not expected: " in line for line in more)


@a_story
def test_an_app_is_small_and_shares_nothing(story: Story) -> None:
    files = [path for path in folder(story).rglob("*.py") if "migrations" not in path.parts]
    text = "\n".join(path.read_text() for path in files)
    assert '"""' in (folder(story) / "__init__.py").read_text()
    assert len(text.splitlines()) < MOST_LINES
    imported = {line.split()[1] for line in text.splitlines() if line.startswith("from example_")}
    assert all(name.startswith(f"example_project.{story.app}") for name in imported)


@pytest.mark.django_db
def test_the_models_of_every_app_have_their_migrations() -> None:
    call_command("makemigrations", *[story.app for story in STORIES], check=True, verbosity=0)


def test_settings_install_every_small_app() -> None:
    assert set(settings.STORIES) <= set(settings.INSTALLED_APPS)
