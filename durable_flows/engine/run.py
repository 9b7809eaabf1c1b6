"""What a handler may know of its run, and the logger of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from asgiref.sync import sync_to_async

from durable_flows import tenants
from durable_flows.engine import subjects
from durable_flows.engine.history import Claim
from durable_flows.engine.subjects import Subject
from durable_flows.flows import Flow

_Base = logging.LoggerAdapter[logging.Logger]


class RunLogger(_Base):
    """Logs under the name of the handler's module, and says which run it is about.

    Records have the attributes ``run_id`` and ``flow``.

    Args:
        name: of the logger.
        run_id: which run.
        flow: of which flow.
        is_replayed: whether the calling code has been executed by an earlier slice.
    """

    def __init__(
        self, name: str, *, run_id: str, flow: str, is_replayed: Callable[[], bool]
    ) -> None:
        super().__init__(logging.getLogger(name), {"run_id": run_id, "flow": flow})
        self._about = f"{flow} {run_id}"  # ids have no percent sign: it is no format
        self._is_replayed = is_replayed

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802
        """Whether a message of this level is logged now."""
        return super().isEnabledFor(level) and not self._is_replayed()

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        """Put the run before the message, and its facts beside it."""
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return f"{self._about}: {msg}", kwargs


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a handler may know of its run.

    Attributes:
        id: the run's id.
        flow: its flow's id.
        version: of its flow; 0 if that has none.
        created_at: when it was created.
        generation: how often it was retried.
        tenant: for which its event was sent, where ``DURABLE_FLOWS["TENANT"]`` says that; None for none.
        logger: logs under the name of the handler's module, and says which run it is about; silent
            while code is replayed.
        about: what the run is about, as it is stored; see `subject`.
    """

    id: str
    flow: str
    version: int
    created_at: datetime
    generation: int
    tenant: str | None
    logger: RunLogger = field(compare=False, repr=False)
    about: Subject | None = None

    @property
    def subject(self) -> Any:
        """The row that the run is about, read now; None if there is none, or none any more.

        Each time anew, since a run may have slept meanwhile. Coroutines use `asubject`.
        """
        return subjects.fetch(self.about)

    async def asubject(self) -> Any:
        """`subject` for coroutines."""
        return await sync_to_async(subjects.fetch)(self.about)

    @classmethod
    def of(cls, claim: Claim, flow: Flow, *, is_replayed: Callable[[], bool]) -> Run:
        """The run behind a claim; told whether the calling code was executed before."""
        return cls(
            id=str(claim.run_id),
            flow=claim.flow_id,
            version=flow.version,
            created_at=claim.created_at,
            generation=claim.generation,
            about=claim.subject,
            tenant=claim.event.context.get(tenants.KEY),
            logger=RunLogger(
                flow.handler.__module__,
                run_id=str(claim.run_id),
                flow=claim.flow_id,
                is_replayed=is_replayed,
            ),
        )
