"""Encryption: what is secret is nowhere but in the handler, and no key is missed silently."""

from __future__ import annotations

import io
import json
import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery
from cryptography.fernet import Fernet
from django.apps import apps
from django.contrib.auth.models import User
from django.core.checks import run_checks
from django.core.files.storage import InMemoryStorage
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse

from durable_flows import (
    CancelOn,
    Event,
    InvalidEvent,
    On,
    StepError,
    cancel,
    decide,
    flow,
    rerun,
    retry,
    send_signal,
)
from durable_flows.encryption import Encryption
from durable_flows.engine import files
from durable_flows.errors import InvalidSetting
from durable_flows.middleware import About, Middleware
from durable_flows.models import Approval, Run, Step
from durable_flows.models import Event as StoredEvent
from durable_flows.rules.envelopes import file_of
from durable_flows.testing import advance, drain, run_of, send
from tests.engine.test_ring import app_with
from tests.promises.staging import again, played

pytestmark = pytest.mark.django_db

OLD, NEW = Fernet.generate_key().decode(), Fernet.generate_key().decode()
CANARY = "canary-4111-1111"


@pytest.fixture
def encrypt(settings):
    """Encrypt with these keys."""

    def encrypt(*keys: str, fields: Any = ("data.card", "user.email"), **options: Any) -> None:
        sealed = Encryption(list(keys) or [NEW], fields=fields, **options)
        settings.DURABLE_FLOWS = {"RING": "off", "MIDDLEWARE": [sealed]}

    return encrypt


def everything() -> str:
    """A dump of all that the app has stored."""
    parts = []
    for model in apps.get_app_config("durable_flows").get_models():
        names = [field.attname for field in model._meta.concrete_fields]
        parts += [f"{model.__name__} {row}" for row in model._default_manager.values(*names)]
    return "\n".join(parts)


# -- the canary ------------------------------------------------------------------------------


class Memory(InMemoryStorage):
    """A storage that a test can look into."""


def files_together() -> str:
    storage = files._storage()
    return "".join(
        storage.open(name).read().decode() for _, names in files.of_runs() for name in names
    )


def test_a_secret_is_found_in_no_dump_no_message_no_log_and_no_page(settings, caplog):
    """It is sent, matched beside, returned, raised, undone, invoked, signalled, decided and told of."""
    caplog.set_level(logging.DEBUG)
    settings.DURABLE_FLOWS = {
        "RING": "inline",
        "STORE_OVER_BYTES": 1000,
        "MIDDLEWARE": [Encryption([NEW], fields=["data.card", "user"])],
    }
    settings.STORAGES = {
        **settings.STORAGES,
        "durable_flows": {"BACKEND": "tests.promises.test_encryption.Memory"},
    }
    seen = set()

    @flow("child", retries=0)
    def child(event):
        seen.add(("invoked", event.data["card"]))
        if event.data.get("fails"):
            raise ValueError(f"no such card: {event.data['card']}")
        return event.data["card"]

    @flow("buys", on="bought", retries=1, cancel_on=CancelOn("returned", match="data.order"))
    def buys(event, step):
        card = event.data["card"]
        step.saga().run(
            "book", lambda: {"card": card}, undo=lambda result: seen.add(("undone", result["card"]))
        )
        step.run("large", lambda: card * 100)
        step.run("atomic", lambda: [card], atomic=True)
        step.send_event("tell", Event("told", {"card": card}))
        found = step.wait_for_event("told", event="told", timeout="1h")
        seen.add(("awaited", found.data["card"]))
        step.invoke("child", child, {"card": card})
        step.map("children", child, [{"card": card}])
        told = step.wait_for_signal("signal", "door", timeout="1h")
        seen.add(("signalled", told.data["card"]))
        try:
            step.invoke("failing", child, {"card": card, "fails": True})
        except StepError as error:
            seen.add(("in a stack", CANARY * (CANARY in error.stack)))
        try:
            step.run("falters", int, card, retries=0)
        except StepError as error:
            seen.add(("in a message", CANARY * (CANARY in error.message)))
        step.wait_for_approval("ask", timeout="1h")
        raise ValueError(f"{card} was refused by {event.user['name']}")

    @buys.on_failure
    def refused(event):
        seen.add(("told of", event.data["error"]["message"][: len(CANARY)]))
        return event.data["event"]["data"]["card"]

    with app_with("memory://") as broker:
        event_id = send("bought", {"order": 7, "card": CANARY}, user={"name": CANARY})
        send_signal("door", {"card": CANARY})
        drain()
        decide(Approval.objects.get().pk, True, by="ada")
        drain()
        for _ in range(3):
            advance("1h")
            drain()
        messages = everything_sent(broker)
    run = run_of(event_id, "buys")
    assert run.state == "failed"
    how = ("invoked", "awaited", "signalled", "in a stack", "in a message", "undone", "told of")
    assert seen == {(one, CANARY) for one in how}
    assert CANARY in run.error["message"]
    assert Run.objects.get(flow="buys/on-failure").state == "completed"

    dump = everything()
    assert "encrypted:gAAAA" in dump
    assert '"order":7' in dump
    assert CANARY not in dump
    dumped = io.StringIO()
    call_command("dumpdata", "durable_flows", exclude=COMPOSITE, stdout=dumped)
    assert CANARY not in dumped.getvalue()
    assert files_together()
    assert CANARY not in files_together()
    assert messages
    assert CANARY not in messages
    assert CANARY not in caplog.text
    assert CANARY not in pages()


COMPOSITE = [  # Django serialises no such primary keys
    f"durable_flows.{model.__name__}"
    for model in apps.get_app_config("durable_flows").get_models()
    if len(model._meta.pk_fields) > 1
]


def everything_sent(broker: Celery) -> str:
    """All messages that are in the broker's queues."""
    with broker.connection_for_read() as connection, connection.channel() as channel:
        return repr([list(queue.queue) for queue in channel.queues.values()])  # type: ignore[attr-defined]


def pages() -> str:
    """Every page of the admin, and every row's."""
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    texts = []
    for model in (StoredEvent, Run):
        name = model._meta.model_name
        urls = [reverse(f"admin:durable_flows_{name}_changelist")]
        urls += [
            reverse(f"admin:durable_flows_{name}_change", args=[one.pk])
            for one in model.objects.all()
        ]
        for url in urls:
            response = client.get(url)
            assert response.status_code == 200
            texts.append(response.content.decode())
    texts.append(client.get(reverse("admin:durable_flows_wait_changelist")).content.decode())
    return "".join(texts)


# -- fields ----------------------------------------------------------------------------------


def kept(name: str = "go") -> str:
    return StoredEvent.objects.get(name=name).data


def test_a_field_is_encrypted_and_the_others_are_not(encrypt):
    encrypt()
    send("go", {"card": "4242", "order": 7}, user={"email": "a@b", "id": 1})
    assert '"order":7' in kept()
    assert "4242" not in kept()
    assert '"id":1' in (StoredEvent.objects.get().user or "")
    assert "a@b" not in (StoredEvent.objects.get().user or "")


def test_of_data_as_a_whole_every_value_is_encrypted_but_what_is_to_be_readable(encrypt):
    encrypt(fields=["data"], readable=["data.order", "data.cart.id"])
    send("go", {"order": 7, "cart": {"id": 8, "by": "ada@x"}, "card": "4242"})
    assert '"order":7' in kept()
    assert '"id":8' in kept()
    assert "4242" not in kept()
    assert "ada@x" not in kept()


def test_a_list_on_the_way_is_walked_through(encrypt):
    encrypt(fields=["data.cards.number"])
    send("go", {"cards": [{"number": "4242", "kind": "visa"}, {"number": "4343", "kind": "amex"}]})
    assert kept().count("encrypted:") == 2
    assert kept().count("visa") == kept().count("amex") == 1


@pytest.mark.parametrize("value", [None, 0, True, "x", ["a", {"b": 1}], {"a": [1.5]}])
def test_a_handler_gets_any_value_as_it_was(encrypt, value):
    encrypt()

    @flow("asks", on="go")
    def asks(event, step):
        return [event.data["card"], step.run("one", lambda: value)]

    assert played("go", {"card": value}).result == [value, value]


def test_an_event_without_the_field_is_as_it_was(encrypt):
    encrypt()
    send("go", {"order": 7})
    assert kept() == '{"order":7}'


def test_results_stay_readable_where_that_is_asked_for(encrypt):
    encrypt(results=False)

    @flow("asks", on="go")
    def asks(step):
        return step.run("one", lambda: "plain")

    played("go")
    assert Step.objects.get().output == '"plain"'


def test_what_only_looks_encrypted_comes_back_as_it_was(encrypt):
    encrypt()
    forged = "encrypted:gAAAAAforged"

    @flow("asks", on="go")
    def asks(event, step):
        return [event.data["note"], step.run("one", lambda: {"x": forged})]

    assert played("go", {"note": forged}).result == [forged, {"x": forged}]


def test_an_edited_input_or_output_is_encrypted_too(encrypt):
    encrypt()

    @flow("asks", on="go")
    def asks(step):
        return step.run("one", str, "a") + step.run("two", str, "b")

    run = played("go")
    first = rerun(run.id, from_step="one", output="edited-a")
    second = rerun(run.id, from_step="two", input=["edited-b"])
    third = rerun(run.id, data={"card": "edited-c"})
    drain()
    assert run_of(first).result == "edited-ab"
    assert run_of(second).result == "aedited-b"
    assert run_of(third).result == "ab"
    assert "edited" not in everything()


def test_the_limit_of_an_event_is_one_of_what_was_sent_not_of_what_is_stored(encrypt, settings):
    encrypt()
    settings.DURABLE_FLOWS |= {"MAX_EVENT_BYTES": 10_000, "MAX_RESULT_BYTES": 5_000}
    send("go", {"card": "x" * 9_900})
    assert len(kept()) > 13_000
    with pytest.raises(InvalidEvent, match="10,000"):
        send("go", {"card": "x" * 10_001})


def test_an_event_that_is_much_too_large_once_it_is_encrypted_is_refused_by_its_name(
    encrypt, settings
):
    encrypt(fields=["data.cards.number"])
    settings.DURABLE_FLOWS |= {"MAX_EVENT_BYTES": 10_000}
    with pytest.raises(InvalidEvent, match="as it is stored, takes") as caught:
        send("go", {"cards": [{"number": 1}] * 500})
    assert caught.value.pointer == "/data"
    assert not StoredEvent.objects.exists()


# -- what is matched -------------------------------------------------------------------------


def test_readable_paths_match(encrypt):
    encrypt(fields=["data"], readable=["data.order"])

    @flow("asks", on=On("go", if_="event.data.order == 7"))
    def asks(step):
        found = step.wait_for_event("paid", event="paid", match="data.order", timeout="1h")
        return found and found.data["by"]

    run = played("go", {"order": 7, "card": "4242"})
    send("paid", {"order": 8, "by": "bob"})
    send("paid", {"order": 7, "by": "ada"})
    drain()
    assert again(run).result == "ada"


def test_a_wait_that_matches_what_is_encrypted_fails_and_says_why(encrypt):
    encrypt()

    @flow("asks", on="go", retries=0)
    def asks(step):
        step.wait_for_event("paid", event="paid", match="data.card", timeout="1h")

    run = played("go", {"card": "4242"})
    assert run.state == "failed"
    assert run.error["name"] == "MissingMatch"
    assert "that can be read" in run.error["message"]


def test_a_cancel_rule_that_matches_what_is_encrypted_leaves_a_warning(encrypt):
    encrypt()

    @flow("asks", on="go", cancel_on=CancelOn("stop", match="data.card"))
    def asks(step):
        step.sleep("rest", "1h")

    run = played("go", {"card": "4242"})
    assert "no event can ever match" in run.warnings["cancel_on[0]"]
    said = [message for message in run_checks() if message.id == "durable_flows.W006"]
    assert "CancelOn('stop') never holds" in said[0].msg


# -- keys ------------------------------------------------------------------------------------


@pytest.fixture
def asks():
    @flow("asks", on="go", retries=0)
    def asks(event, step):
        return [event.data["card"], step.run("one", lambda: event.data["card"])]

    return asks


def test_a_lost_key_is_a_named_error_and_nothing_is_changed(encrypt, asks):
    encrypt(OLD)
    event_id = send("go", {"card": "4242"})
    before = kept()
    encrypt(NEW)
    drain()
    run = run_of(event_id)
    assert run.reason == "DecryptionFailed"
    assert "with none of the 1 keys" in run.error["message"]
    assert kept() == before
    encrypt(NEW, OLD)
    retry(run.id)
    drain()
    assert again(run).result == ["4242", "4242"]


def test_runs_that_cannot_be_read_are_named_by_flows_check(encrypt):
    @flow("asks", on="go")
    def asks(step):
        step.run("one", str, "a")
        step.sleep("rest", "1h")

    encrypt(OLD)
    run = played("go")
    encrypt(NEW)
    out = io.StringIO()
    with pytest.raises(SystemExit):
        call_command("flows", "check", stdout=out)
    assert run.id in out.getvalue()
    assert "DecryptionFailed" in out.getvalue()


def test_a_key_that_is_lost_for_a_while_only_costs_attempts(encrypt):
    @flow("asks", on="go")
    def asks(event, step):
        return event.data["card"]

    encrypt(OLD)
    event_id = send("go", {"card": "4242"})
    encrypt(NEW)
    drain()
    assert run_of(event_id).state == "started"
    encrypt(NEW, OLD)
    advance("1m")
    drain()
    assert run_of(event_id).result == "4242"


@pytest.mark.parametrize("keys", [[], "x", ["short"], [NEW, "short"], [5]])
def test_what_is_no_key_is_refused_and_not_shown(keys):
    with pytest.raises(InvalidSetting, match="key") as said:
        Encryption(keys)
    assert "short" not in str(said.value)


@pytest.mark.parametrize("fields", ["data.card", ["card"], ["data."], [""]])
def test_what_is_no_path_is_refused(fields):
    with pytest.raises(InvalidSetting, match=r"Encryption\(fields=…\) takes a list of paths"):
        Encryption([NEW], fields=fields)


# -- rotation --------------------------------------------------------------------------------


def rotated(*arguments: str) -> str:
    out = io.StringIO()
    call_command("flows", "rotate-keys", *arguments, stdout=out)
    return out.getvalue()


@pytest.fixture
def encrypted(encrypt, settings):
    """A run that has come to its end, one that goes on, and one that failed, all under the old key."""
    settings.STORAGES = {
        **settings.STORAGES,
        "durable_flows": {"BACKEND": "tests.promises.test_encryption.Memory"},
    }

    @flow("asks", on="go", retries=1)
    def asks(event, step):
        large = step.run("large", lambda: event.data["card"] * 20_000)
        if event.data["how"] == "fails":
            raise ValueError(event.data["card"])
        if event.data["how"] == "rests":
            step.sleep("rest", "1h")
        return [large[:4], event.user]

    encrypt(OLD, fields=["data.card", "user"])
    ids = [
        send("go", {"card": "4242", "how": how}, user={"id": 1})
        for how in ("ends", "fails", "rests")
    ]
    drain()
    advance("1m")
    drain()
    return ids


def test_rotation_encrypts_everything_with_the_newest_key(encrypted, encrypt):
    ends, fails, rests = encrypted
    encrypt(NEW, OLD, fields=["data.card", "user"])
    assert rotated().splitlines() == [
        "events: 6 renewed of 6 that are encrypted",
        "steps: 0 renewed of 0 that are encrypted",
        "attempts: 1 renewed of 1 that are encrypted",
        "runs: 2 renewed of 2 that are encrypted",
        "files: 3 renewed of 3 that are encrypted",
    ]
    encrypt(NEW, fields=["data.card", "user"])  # and the old one is away
    assert run_of(ends).result == ["4242", {"id": 1}]
    assert run_of(fails).error["message"] == "4242"
    advance("1h")
    drain()
    assert run_of(rests).result == ["4242", {"id": 1}]
    assert len([name for _, names in files.of_runs() for name in names]) == 3


def test_rotation_again_finds_nothing_to_do(encrypted, encrypt):
    encrypt(NEW, OLD)
    rotated()
    before = everything()
    said = rotated()
    assert "events: 0 renewed of 6 that are encrypted" in said
    assert "files: 0 renewed of 3 that are encrypted" in said
    assert everything() == before


def test_a_dry_run_of_rotation_counts_and_changes_nothing(encrypted, encrypt):
    encrypt(NEW, OLD)
    before = everything()
    said = rotated("--dry-run")
    assert "files: 3 to be renewed of 3 that are encrypted" in said
    assert everything() == before


def test_rotation_without_the_old_key_says_so_and_changes_nothing(encrypted, encrypt):
    encrypt(NEW)
    before = everything()
    with pytest.raises(CommandError, match="with none of the 1 keys"):
        rotated()
    assert everything() == before


def test_a_value_that_cannot_be_renewed_is_named_and_the_others_are_renewed(encrypt):
    lost = Fernet.generate_key().decode()
    encrypt(lost)
    event_id = send("go", {"card": "4242"})
    encrypt(OLD)
    send("go", {"card": "4343"})
    encrypt(NEW, OLD)
    with pytest.raises(CommandError, match=f"data of event {event_id}: .* none of the 2 keys"):
        rotated()
    encrypt(NEW, lost)  # and the others were renewed
    assert "events: 1 renewed of 2" in rotated()
    assert "events: 0 renewed of 2" in rotated()


@pytest.fixture
def shared(encrypt, settings):
    """A run with a large result, and one that has taken it over: both rest for a day."""
    settings.STORAGES = {
        **settings.STORAGES,
        "durable_flows": {"BACKEND": "tests.promises.test_encryption.Memory"},
    }

    @flow("asks", on="go", retries=0)
    def asks(step):
        large = step.run("large", lambda: "x" * 100_000)
        step.sleep("rest", "1 day")
        return len(large)

    encrypt(OLD)
    first = played("go")
    second = rerun(first.id, from_step="rest")
    drain()
    return first.id, second


def envelope() -> str:
    """What names the first of the files with large results."""
    return min(
        text for text in Step.objects.filter(key="large").values_list("output", flat=True) if text
    )


def test_a_file_that_two_runs_share_is_renewed_for_both(encrypt, shared):
    encrypt(NEW, OLD)
    assert "files: 1 renewed of 1 that are encrypted" in rotated()
    assert "files: 0 renewed of 1 that are encrypted" in rotated()
    encrypt(NEW)
    advance("1 day")
    drain()
    assert [run_of(run).result for run in shared] == [100_000, 100_000]
    assert len([name for _, names in files.of_runs() for name in names]) == 1


def test_whoever_has_read_a_row_before_finds_the_file_that_was_renewed_after(encrypt, shared):
    before = envelope()
    encrypt(NEW, OLD)
    rotated()
    assert envelope() != before
    assert "encrypted:" in files.fetch(before)
    Step.objects.filter(run=shared[1], key="large").update(
        output=before
    )  # was taken over meanwhile
    assert "files: 0 renewed of 2 that are encrypted" in rotated()
    advance("1 day")
    drain()
    assert [run_of(run).result for run in shared] == [100_000, 100_000]


def test_a_file_that_is_gone_is_told_and_the_others_are_renewed(encrypt, encrypted):
    gone = envelope()
    files.forget([gone])
    encrypt(NEW, OLD, fields=["data.card", "user"])
    said = rotated()
    assert "files: 2 renewed of 2 that are encrypted" in said
    assert f"not there: file {file_of(gone)!r}" in said


def test_text_that_only_looks_encrypted_is_left_alone_by_rotation(encrypt, encrypted):
    """A token of ours stands in the middle of texts, in JSON text, in a key, and in a reason."""
    stolen = json.loads(StoredEvent.objects.filter(name="go")[0].data)["card"]
    texts = {
        "plain": "the disk is encrypted:yes",
        "middle": f"see {stolen}, please",
        "quoted": f'"{stolen}"',
        "json": json.dumps({"x": stolen}),
        "begins": f"{stolen} it is",
        "short": "encrypted:gAAAAA",
        stolen: "a key",
        "list": [stolen, {"x": [f"{stolen} "]}],
    }

    @flow("says", on="said")
    def says(event, step):
        same = [event.data["said"], step.run("one", lambda: texts)]
        step.sleep("rest", "1 day")
        return same

    run = played("said", {"said": texts})
    cancelled = played("said", {"said": texts})
    cancel(cancelled.id, reason=stolen)
    drain()
    for keys in ([NEW, OLD], [NEW]):
        encrypt(*keys, fields=["data.card", "user"])
        rotated()
    advance("1 day")
    drain()
    assert again(run).result == [texts, texts]
    assert stolen in StoredEvent.objects.get(name="flows/run.cancel").data


def test_what_a_rerun_was_given_is_renewed_though_it_is_text_inside_of_text(encrypt):
    @flow("asks", on="go", retries=0)
    def asks(step):
        return step.run("one", str, "a") + step.run("two", str, "b")

    encrypt(OLD)
    run = played("go")
    first = rerun(run.id, from_step="one", output="edited-a")
    second = rerun(run.id, from_step="two", input=["edited-b"])
    encrypt(NEW, OLD)
    assert "events: 2 renewed of 2" in rotated()
    assert "events: 0 renewed of 2" in rotated()
    encrypt(NEW)
    drain()
    assert run_of(first).result == "edited-ab"
    assert run_of(second).result == "aedited-b"


def test_each_encryption_of_the_settings_has_its_keys_rotated(settings):
    other, newer = Fernet.generate_key().decode(), Fernet.generate_key().decode()

    def encrypt(cards: list[str], names: list[str]) -> None:
        both = [Encryption(cards, fields=["data.card"]), Encryption(names, fields=["data.name"])]
        settings.DURABLE_FLOWS = {"RING": "off", "MIDDLEWARE": both}

    @flow("asks", on="go", retries=0)
    def asks(event, step):
        step.sleep("rest", "1h")
        return event.data

    settings.DURABLE_FLOWS = {
        "RING": "off",
        "MIDDLEWARE": [Encryption([OLD], fields=["data.card"])],
    }
    before = StoredEvent.objects.get(id=send("other", {"card": "4242"}))
    encrypt([OLD], [other])
    run = played("go", {"card": "4242", "name": "ada"})
    encrypt([NEW, OLD], [newer, other])
    assert "events: 2 renewed of 2" in rotated()
    assert "events: 0 renewed of 2" in rotated()
    encrypt([NEW], [newer])
    assert StoredEvent.objects.get(pk=before.pk).data != before.data
    advance("1h")
    drain()
    assert again(run).result == {"card": "4242", "name": "ada"}


def test_encryption_that_encrypts_nothing_more_still_reads_and_rotates(encrypt):
    @flow("asks", on="go", retries=0)
    def asks(event, step):
        found = step.run("one", lambda: event.data["card"])
        step.sleep("rest", "1h")
        return [found, event.data["card"]]

    encrypt(OLD)
    run = played("go", {"card": "4242"})
    encrypt(NEW, OLD, fields=(), results=False)
    rotated()
    encrypt(NEW, fields=(), results=False)
    advance("1h")
    drain()
    assert Run.objects.get(pk=run.id).result == '["4242","4242"]'


def test_rotation_where_nothing_is_encrypted_says_so():
    with pytest.raises(CommandError, match="nothing is encrypted"):
        rotated()


# -- values that JSON does not have ------------------------------------------------------------


@dataclass
class Payment:
    card: str
    cents: int = 0


def test_a_secret_inside_a_dataclass_or_a_tuple_is_found_by_its_path(encrypt):
    encrypt(fields=["data.payment.card", "data.all.card"])

    def cards(data: Any) -> list[str]:
        return [data["payment"]["card"], data["all"][0]["card"]]

    @flow("pays", on="pays")
    def pays(event, step):
        signal = step.wait_for_signal("wait", "told", timeout="1h")
        return [*cards(event.data), *cards(signal.data)] == [CANARY] * 4

    data = {"payment": Payment(CANARY), "all": (Payment(CANARY),)}
    run = played("pays", data)
    send_signal("told", data)
    drain()
    assert again(run).result is True
    assert CANARY not in everything()


def test_what_looks_encrypted_inside_a_dataclass_is_given_back_as_it_was(encrypt):
    encrypt()
    sealed = Encryption([OLD], results=True).value_in("x", About("step", "other"))

    @flow("returns", on="go")
    def returns(step):
        found = step.run("work", lambda: Payment(sealed))
        return found["card"] == sealed

    assert played().result is True


def test_middleware_gets_values_as_json(settings):
    got: list[Any] = []

    class Looks(Middleware):
        def value_in(self, value: Any, about: About) -> Any:
            got.append((about.kind, value))
            return value

    settings.DURABLE_FLOWS = {"RING": "off", "MIDDLEWARE": [Looks()]}

    @flow("returns", on="go")
    def returns(event, step):
        step.run("work", lambda: Payment("a"))
        return (Payment("b"),)

    run = played("go", Payment("c"))
    plain = {name: {"card": name, "cents": 0} for name in "abcde"}
    assert got == [("data", plain["c"]), ("step", plain["a"]), ("result", [plain["b"]])]
    got.clear()
    rerun(run.id, from_step="work", output=Payment("d"))
    rerun(run.id, from_step="work", input=[Payment("e")])
    assert got == [("step", plain["d"]), ("input", [plain["e"]])]


@pytest.mark.parametrize("value", [{1}, timedelta(1)])
def test_what_has_no_rule_is_refused_where_it_is_with_middleware_too(encrypt, value):
    encrypt(fields=["data.card"])
    with pytest.raises(InvalidEvent) as caught:
        send_signal("told", {"card": {"n": value}})
    assert caught.value.pointer == "/data/card/n"
    with pytest.raises(InvalidEvent) as caught:
        send("go", {"card": {"n": value}})
    assert caught.value.pointer == "/data/card/n"
