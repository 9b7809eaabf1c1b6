"""Which version of its flow a run executes: the one that has started it, whatever is there besides."""

from __future__ import annotations

from durable_flows.engine import leases, sql
from durable_flows.engine.history import Claim
from durable_flows.engine.persist import until_answered
from durable_flows.errors import VersionGone
from durable_flows.flows import Flow, labelled
from durable_flows.registry import registry


def flow_of(claimed: Claim) -> Flow | None:
    """The code that executes this run; None if this process does not have it.

    A run that was admitted by a process that did not know its flow takes the newest version there is
    when it is first executed, and keeps it.
    """
    if claimed.version is not None:
        return registry.find(claimed.flow_id, claimed.version)
    newest = registry.find(claimed.flow_id)
    decided = None if newest is None else _decide(claimed, newest)
    return None if decided is None else registry.find(claimed.flow_id, decided)


def gone(claimed: Claim, known: set[tuple[str, int]]) -> VersionGone | None:
    """Why no process can execute a run whose flow has other versions now; None if it has none at all.

    Args:
        claimed: the run.
        known: the flows and versions that some live process knows.
    """
    versions = sorted(version for flow_id, version in known if flow_id == claimed.flow_id)
    if not versions or claimed.version is None:
        return None
    there = ", ".join(str(version or "one without a number") for version in versions)
    return VersionGone(
        f"the run was started by flow {labelled(claimed.flow_id, claimed.version)}"
        f"{'' if claimed.version else ' before it had versions'}, and no worker that is alive has that "
        f"in its code; of this flow there is: {there}. Deploy code that has it beside the newer ones, "
        "or cancel the run and rerun it"
    )


def _decide(claimed: Claim, newest: Flow) -> int | None:
    """Note which version executes this run, unless another slice has. None if there is no such run."""
    rows = until_answered(
        lambda again: sql.execute(
            "UPDATE durable_flows_run SET version = coalesce(version, %(version)s) "
            "WHERE id = %(run)s RETURNING version",
            {"run": claimed.run_id, "version": newest.version},
        ),
        seconds=lambda: leases.left(claimed.run_id, claimed.lease),
    )
    return rows[0][0] if rows else None
