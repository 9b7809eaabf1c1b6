"""Results that are more than JSON text in a row: large ones in files, and rows of models."""

from __future__ import annotations

import io
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.core.files.base import ContentFile
from django.core.files.storage import InMemoryStorage, storages
from django.core.management import CommandError, call_command

from durable_flows import StepError, cancel, flow, rerun, retry
from durable_flows.admin.showing import pretty
from durable_flows.engine import files
from durable_flows.models import Run, Step
from durable_flows.testing import advance, crash_at, drain, purge, run_of, send
from tests.promises.staging import again, played

pytestmark = pytest.mark.django_db

LONG = "x" * 200


class Breakable(InMemoryStorage):
    """A storage that may be down."""

    is_down = False

    def save(self, *args: Any, **kwargs: Any) -> str:
        self._check()
        return super().save(*args, **kwargs)

    def open(self, *args: Any, **kwargs: Any) -> Any:
        self._check()
        return super().open(*args, **kwargs)

    def delete(self, name: str) -> None:
        self._check()
        super().delete(name)

    def listdir(self, path: str) -> tuple[list[str], list[str]]:
        self._check()
        return super().listdir(path)

    def _check(self) -> None:
        if Breakable.is_down:
            raise ConnectionError("no route to the storage")


@pytest.fixture(autouse=True)
def storage(settings):
    """Results above a hundred bytes go to a storage that may be down."""
    settings.STORAGES = {
        **settings.STORAGES,
        "durable_flows": {"BACKEND": "tests.promises.test_results.Breakable"},
    }
    settings.DURABLE_FLOWS = {"RING": "off", "STORE_OVER_BYTES": 100}
    Breakable.is_down = False
    yield
    Breakable.is_down = False


def stored_files() -> list[str]:
    return sorted(name for _, names in files.of_runs() for name in names)


def text_of(key: str) -> str:
    """What is kept of a step's result in its row."""
    return Step.objects.get(key=key).output or ""


def rest(step) -> None:
    step.sleep("rest", "1h")


# -- large results ---------------------------------------------------------------------------


def test_a_large_result_goes_to_a_file_and_is_the_same_first_and_later():
    seen = []

    @flow("asks", on="go")
    def asks(step):
        seen.append(step.run("one", lambda: {"text": LONG}))
        rest(step)
        seen.append(step.run("two", lambda: "small"))

    run = played("go")
    advance("1h")
    drain()
    assert again(run).state == "completed"
    assert seen == [{"text": LONG}, {"text": LONG}, "small"]
    assert text_of("one").startswith("@file ")
    assert LONG not in text_of("one")
    assert text_of("two") == '"small"'
    (name,) = stored_files()
    assert name.startswith(f"runs/{run.id}/")


def test_a_result_of_just_the_threshold_stays_in_its_row():
    @flow("asks", on="go")
    def asks(step):
        return len(step.run("one", str, "x" * 98))

    assert played("go").result == 98
    assert stored_files() == []


def test_a_run_may_come_to_a_large_result():
    @flow("asks", on="go")
    def asks():
        return LONG

    run = played("go")
    assert run.result == LONG
    assert (Run.objects.get().result or "").startswith("@file ")


def test_results_of_children_that_are_large_together_go_to_one_file():
    @flow("child")
    def child(event):
        return "y" * 60

    @flow("asks", on="go")
    def asks(step):
        return sum(map(len, step.map("all", child, [{}, {}, {}])))

    assert played("go").result == 180
    assert len(stored_files()) == 1


def test_without_a_storage_of_that_name_results_stay_in_their_rows(settings):
    settings.STORAGES = {
        name: one for name, one in settings.STORAGES.items() if name != "durable_flows"
    }

    @flow("asks", on="go")
    def asks(step):
        return step.run("one", lambda: LONG)

    assert played("go").result == LONG
    assert LONG in text_of("one")


@pytest.mark.parametrize("atomic", [False, True])
def test_while_the_storage_is_down_the_step_is_tried_again_and_nothing_is_half_stored(atomic):
    @flow("asks", on="go")
    def asks(step):
        return step.run("one", lambda: LONG, atomic=atomic)

    Breakable.is_down = True
    run = played("go")
    assert run.state == "started"
    assert run.attempts == {"one": 1}
    assert not Step.objects.exists()
    Breakable.is_down = False
    assert stored_files() == []
    advance("1m")
    drain()
    assert again(run).result == LONG


def test_a_step_whose_storage_stays_down_fails_with_an_error_that_names_it():
    caught = []

    @flow("asks", on="go", retries=0)
    def asks(step):
        try:
            step.run("one", lambda: LONG)
        except StepError as error:
            caught.append(error)

    Breakable.is_down = True
    assert played("go").state == "completed"
    (error,) = caught
    assert error.name == "StorageUnavailable"
    assert (
        "the result of step 'one' could not be written to storage 'durable_flows'" in error.message
    )
    assert "no route to the storage" in error.message


def test_a_result_that_cannot_be_read_now_is_read_later_whatever_the_handler_catches():
    @flow("asks", on="go")
    def asks(step):
        try:
            found = step.run("one", lambda: LONG)
        except Exception:
            return "caught"
        rest(step)
        return len(found)

    run = played("go")
    Breakable.is_down = True
    advance("1h")
    drain()
    assert again(run).state == "started"
    Breakable.is_down = False
    advance("1m")
    drain()
    assert again(run).result == 200


def test_a_file_that_is_gone_fails_the_run_and_says_so():
    @flow("asks", on="go")
    def asks(step):
        found = step.run("one", lambda: LONG)
        rest(step)
        return len(found)

    run = played("go")
    for name in stored_files():
        storages["durable_flows"].delete(name)
    advance("1h")
    drain()
    assert again(run).state == "failed"
    assert again(run).reason.startswith("ResultGone: file 'runs/")


def test_an_async_handler_may_have_large_results_too():
    @flow("asks", on="go")
    async def asks(step):
        return len(await step.run("one", lambda: LONG))

    assert played("go").result == 200
    assert len(stored_files()) == 1


def test_what_a_child_comes_to_is_kept_by_its_parent_too():
    @flow("child")
    def child(event):
        return f"{LONG}{event.data['n']}"

    @flow("asks", on="go")
    def asks(step):
        one = step.invoke("one", child, {"n": 1})
        two, three = step.map("more", child, [{"n": 2}, {"n": 3}])
        return [text[-1] for text in (one, two, three)]

    run = played("go")
    assert run.result == ["1", "2", "3"]
    own = [name for name in stored_files() if run.id in name]
    assert len(own) == 2
    for name in set(stored_files()) - set(own):
        storages["durable_flows"].delete(name)
    again_id = rerun(run.id, from_step="more", output=["x4", "x5"])
    drain()
    assert run_of(again_id).result == ["1", "4", "5"]


def test_the_end_of_a_run_with_a_large_result_is_told_without_it():
    @flow("asks", on="go")
    def asks():
        return LONG

    @flow("listens", on="flows/function.finished")
    def listens(event):
        return [event.data["result"], event.data["left_out"]]

    send("go")
    drain()
    assert Run.objects.get(flow="listens").result == '[null,["result"]]'


def test_a_death_between_the_file_and_its_row_repeats_the_step():
    calls = []

    def make_long() -> str:
        calls.append(1)
        return LONG

    @flow("asks", on="go")
    def asks(step):
        return len(step.run("one", make_long, atomic=True))

    with crash_at("before_atomic_commit") as crash:
        run = played("go")
        advance("1m")
    assert crash.happened
    assert again(run).result == 200
    assert len(calls) == 2
    assert len(stored_files()) == 2  # one of them is left over, in the folder of the run


def swept(*arguments: str) -> str:
    out = io.StringIO()
    call_command("flows", "purge", "--left-over-files", *arguments, stdout=out)
    return out.getvalue()


def test_files_of_runs_that_are_gone_are_removed_when_that_is_asked_for():
    @flow("asks", on="go")
    def asks(step):
        step.run("one", lambda: LONG)

    run = played("go")
    storages["durable_flows"].save("runs/README.txt", ContentFile("of somebody else's"))
    storages["durable_flows"].save(f"runs/{uuid.uuid4()}/left.json", ContentFile("1"))
    assert swept("--dry-run") == "Would remove 1 file of runs that are gone.\n"
    assert swept() == "Removed 1 file of runs that are gone.\n"
    assert all(run.id in name for name in stored_files())
    Breakable.is_down = True
    with pytest.raises(CommandError, match="no route to the storage"):
        swept()


def test_a_purged_run_takes_its_files_along():
    @flow("asks", on="go")
    def asks(step):
        step.run("one", lambda: LONG)
        return LONG

    played("go")
    assert len(stored_files()) == 2
    advance("31 days")
    Breakable.is_down = True
    purge()
    assert Run.objects.exists()
    Breakable.is_down = False
    purge()
    assert not Run.objects.exists()
    assert stored_files() == []


def test_a_purged_rerun_leaves_the_files_that_it_has_taken_over_to_the_run_before():
    @flow("asks", on="go")
    def asks(step):
        large = step.run("one", lambda: LONG)
        step.run("two", lambda: LONG)
        step.sleep("rest", "60 days")
        return len(large)

    first = played("go")
    second = rerun(first.id, from_step="two")
    drain()
    assert len(stored_files()) == 3
    cancel(second)
    drain()
    advance("40 days", play=False)
    purge()
    assert not Run.objects.filter(pk=second).exists()
    assert len(stored_files()) == 2
    advance("20 days")
    drain()
    assert again(first).result == 200
    advance("31 days", play=False)
    purge()
    assert stored_files() == []


def test_the_admin_shows_where_a_large_result_is():
    @flow("asks", on="go")
    def asks():
        return LONG

    played("go")
    shown = pretty(Run.objects.get().result)
    assert shown.startswith("202 bytes, in file runs/")


# -- rows of models --------------------------------------------------------------------------


def make(name: str) -> Group:
    return Group.objects.create(name=name)


def test_a_model_instance_is_refused_with_the_remedy():
    @flow("asks", on="go", retries=0)
    def asks(step):
        step.run("make", make, "a")

    run = played("go")
    assert "Group is not a JSON type; use value.pk and load the row again" in run.reason


def test_with_references_a_row_is_fetched_anew_each_time():
    names = []

    @flow("asks", on="go", references=True)
    def asks(step):
        group = step.run("make", make, "a")
        names.append((type(group), group.name))
        rest(step)

    run = played("go")
    Group.objects.update(name="b")
    advance("1h")
    drain()
    assert again(run).state == "completed"
    assert names == [(Group, "a"), (Group, "b")]
    assert '"model":"auth.group"' in text_of("make")


def test_rows_may_stand_in_lists_and_dicts_and_in_what_a_run_returns():
    @flow("asks", on="go", references=True)
    def asks(step):
        made = step.run("make", lambda: {"groups": [make("a"), make("b")], "n": 2})
        return {"names": [group.name for group in made["groups"]], "first": made["groups"][0]}

    result = played("go").result
    assert result["names"] == ["a", "b"]
    assert result["first"]["$row"]["model"] == "auth.group"


def test_a_row_that_is_gone_fails_the_run_and_says_which():
    @flow("asks", on="go", references=True)
    def asks(step):
        step.run("make", make, "a")
        rest(step)

    run = played("go")
    pk = Group.objects.get().pk
    Group.objects.all().delete()
    advance("1h")
    drain()
    assert again(run).state == "failed"
    assert again(run).reason.startswith(f"RowGone: a result names auth.group {pk}")


def test_a_run_that_failed_of_a_row_that_was_gone_can_be_retried():
    @flow("asks", on="go", references=True)
    def asks(step):
        group = step.run("make", make, "a")
        rest(step)
        return group.name

    run = played("go")
    (group,) = Group.objects.all()
    Group.objects.all().delete()
    advance("1h")
    drain()
    Group.objects.create(pk=group.pk, name="c")
    retry(run.id)
    drain()
    assert again(run).result == "c"


def test_an_unsaved_row_is_refused():
    @flow("asks", on="go", references=True, retries=0)
    def asks(step):
        step.run("make", lambda: Group(name="a"))

    assert "is not saved, so it cannot be fetched again" in played("go").reason


@pytest.mark.parametrize("references", [False, True])
def test_data_that_only_looks_like_a_reference_names_no_row(references):
    make("a")
    looks = {"$row": {"model": "auth.group", "pk": "1", "using": "default"}, "$data": 1}

    @flow("asks", on="go", references=references)
    def asks(step):
        mixed = step.run("mixed", lambda: [looks, make("b")] if references else [looks])
        return [step.run("plain", lambda: looks), mixed[0]]

    assert played("go").result == [looks, looks]


def test_an_async_handler_gets_rows_too():
    @flow("asks", on="go", references=True)
    async def asks(step):
        return (await step.run("make", make, "a")).name

    assert played("go").result == "a"


def test_a_parent_gets_the_rows_of_its_children():
    @flow("child", references=True)
    def child(event):
        return make(event.data["name"])

    @flow("plain")
    def plain(event):
        return {"$row": event.data["name"]}

    @flow("asks", on="go", references=True)
    def asks(step):
        one = step.invoke("one", child, {"name": "a"})
        more = step.map("more", child, [{"name": "b"}])
        return [one.name, more[0].name, step.map("plain", plain, [{"name": "c"}])]

    assert played("go").result == ["a", "b", [{"$row": "c"}]]


def test_a_large_result_with_rows_is_in_a_file_and_has_them():
    @flow("asks", on="go", references=True)
    def asks(step):
        return step.run("make", lambda: [LONG, make("a")])[1].name

    assert played("go").result == "a"
    assert text_of("make").startswith("@file ")


def test_files_are_where_the_storage_keeps_them(settings, tmp_path: Path):
    settings.STORAGES = {
        **settings.STORAGES,
        "durable_flows": {
            "BACKEND": "django.core.files.storage.FileSystemStorage",
            "OPTIONS": {"location": str(tmp_path)},
        },
    }

    @flow("asks", on="go")
    def asks(step):
        return len(step.run("one", lambda: LONG))

    run = played("go")
    assert run.result == 200
    (file,) = (tmp_path / "runs" / run.id).iterdir()
    assert json.loads(file.read_text()) == LONG
