"""The logger of a run: silent while code is replayed that has logged before."""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from typing import Any

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
