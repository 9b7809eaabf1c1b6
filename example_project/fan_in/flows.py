"""Three events, three runs, one shipment."""

from __future__ import annotations

from durable_flows import Event, Step, flow
from example_project.fan_in.models import Parcel, Shipment


@flow("ship-parcel", on=["parcel/paid", "parcel/packed", "parcel/addressed"])
def ship_parcel(event: Event, step: Step) -> str:
    """The run that claims the parcel ships it, the others leave."""
    parcel_id = event.data["parcel_id"]
    # Every column is committed before its event is routed. So of the runs that are started, the last
    # one at the latest sees all three.
    if not step.run("claim", claim, parcel_id, atomic=True):
        return "not yet, or not by me"
    step.run("create-shipment", create_shipment, parcel_id, atomic=True)
    step.send_event("tell", Event("parcel/shipped", {"parcel_id": parcel_id}))
    return "shipped"


def claim(parcel_id: int) -> bool:
    """One statement asks and takes: of runs that come together, the database lets one through."""
    ready = Parcel.objects.filter(
        pk=parcel_id, paid=True, packed=True, addressed=True, claimed=False
    )
    return ready.update(claimed=True) == 1


def create_shipment(parcel_id: int) -> int:
    return Shipment.objects.create(parcel_id=parcel_id).pk
