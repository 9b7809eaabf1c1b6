"""The small apps, each with flows of one kind, and the story that each of them tells.

An app's ``story.py`` plays it with the test kit, which moves the clock by hand:

* its docstring says in one line what happens;
* ``play()`` sends the events, and lets time pass;
* ``ENDED`` lists how its runs must have ended, as `Ended` prints them, in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from django.conf import settings

from durable_flows.flows import Flow
from durable_flows.management.overrides import flows_settings
from durable_flows.models import Run
from durable_flows.registry import registry
from example_project.shop.shoppers import Ended, compare


@dataclass(frozen=True, kw_only=True)
class Story:
    """What a small app has to tell.

    Attributes:
        app: the app's label.
        title: what happens, in a line.
        play: lets it happen.
        ended: how its runs must end.
    """

    app: str
    title: str
    play: Callable[[], None]
    ended: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Told:
    """A story that was played.

    Attributes:
        story: which.
        runs: those of the app's flows that it started, the oldest first.
        wrong: what did not come as it should have, a sentence each; empty if all is well.
    """

    story: Story
    runs: list[Run] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def stories() -> Iterator[Story]:
    """Those of the apps in ``settings.STORIES``."""
    for package in settings.STORIES:
        module: Any = import_module(f"{package}.story")
        yield Story(
            app=package.rpartition(".")[2],
            title=(module.__doc__ or "").strip().splitlines()[0],
            play=module.play,
            ended=tuple(module.ENDED),
        )


def flows_of(package: str) -> list[Flow]:
    """The flows that an app declares, whether or not they listen."""
    found = vars(import_module(f"{package}.flows")).values()
    return [one for one in found if isinstance(one, Flow)]


def tell(story: Story) -> Told:
    """Play a story, and compare what came of it."""
    its_flows = [flow.id for flow in registry if f".{story.app}." in flow.handler.__module__]
    runs = Run.objects.filter(flow__in=its_flows)
    before = set(runs.values_list("pk", flat=True))
    with flows_settings(RING="off"):  # nobody is to hear: the test kit executes them itself
        story.play()
    new = [run for run in runs.order_by("created_at", "pk") if run.pk not in before]
    wrong = compare(f"{story.app}: run", story.ended, (str(ended(run)) for run in new))
    return Told(story=story, runs=new, wrong=wrong)


def ended(run: Run) -> Ended:
    """How a run has ended, or how far it has come."""
    return Ended(flow=run.flow, state=run.state, steps=steps_of(run))


def steps_of(run: Run) -> tuple[str, ...]:
    """The keys of its recorded steps, in order."""
    return tuple(run.steps.order_by("seq").values_list("key", flat=True))


def tell_all(say: Callable[[str], None]) -> list[Told]:
    """Tell one story after the other."""
    return list(_tell_all(stories(), say))


def _tell_all(of: Iterable[Story], say: Callable[[str], None]) -> Iterator[Told]:
    for story in of:
        say(f"{story.app:>15}  {story.title}")
        yield tell(story)
