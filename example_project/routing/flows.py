"""Who is told of what."""

from __future__ import annotations

from durable_flows import Event, On, Step, flow
from example_project.routing.models import Contact, Entry

# -- by type ---------------------------------------------------------------------------------


@flow("sync-contact", on=["people/created", "people/renamed", "people/deleted"])
def sync_contact(event: Event, step: Step) -> None:
    """One flow for a thing's whole life."""
    match event.name:
        case "people/created":
            step.run("add", add, event.data, atomic=True)
        case "people/renamed":
            step.run("rename", rename, event.data, atomic=True)
        case "people/deleted":
            step.run("remove", remove, event.data["id"], atomic=True)


def add(person: dict[str, str]) -> None:
    Contact.objects.create(person_id=person["id"], name=person["name"])


def rename(person: dict[str, str]) -> None:
    Contact.objects.filter(person_id=person["id"]).update(name=person["name"])


def remove(person_id: str) -> None:
    Contact.objects.filter(person_id=person_id).delete()


@flow("keep-journal", on="people/*")
def keep_journal(event: Event, step: Step) -> None:
    """Whatever happens to people, types that nobody has thought of yet too."""
    step.run("write", write, "journal", f"{event.name} {event.data['id']}", atomic=True)


# -- by what they say ------------------------------------------------------------------------


@flow("route-order", on="desk/order.placed")
def route_order(event: Event, step: Step) -> str:
    """Decides in Python, and passes on: the rule stands in one place, and is shown on the run."""
    if event.data["total"] > 10_000:
        desk = "approval"
    elif event.data["first_order"]:
        desk = "verification"
    else:
        desk = "standard"
    step.send_event("pass-on", Event(f"desk/{desk}.wanted", event.data))
    return desk


@flow(
    "handle-order", on=["desk/approval.wanted", "desk/verification.wanted", "desk/standard.wanted"]
)
def handle_order(event: Event, step: Step) -> None:
    """The three desks."""
    desk = event.name.removeprefix("desk/").removesuffix(".wanted")
    step.run("write", write, desk, f"order {event.data['order']}", atomic=True)


@flow("wrap-gift", on=On("desk/order.placed", if_="event.data.gift == true"))
def wrap_gift(event: Event, step: Step) -> None:
    """Decides by its trigger: for other orders there is no run at all."""
    step.run("write", write, "wrapping", f"order {event.data['order']}", atomic=True)


def write(desk: str, about: str) -> None:
    Entry.objects.create(desk=desk, about=about)
