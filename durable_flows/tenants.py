"""Tenants: for which one an event is sent is captured there, and restored where its runs execute."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Self

from django.utils.module_loading import import_string

from durable_flows import conf
from durable_flows.errors import InvalidEvent, InvalidSetting
from durable_flows.middleware import Middleware, RunContext, StepContext
from durable_flows.rules.events import Event

KEY = "tenant"  # of an event's context
LENGTH = 255


class Tenants(Middleware):
    """Captures the tenant for which an event is sent, and lets its runs execute for it.

    Built from the settings ``TENANT`` and ``TENANT_SCOPE``.

    Args:
        capture: the tenant for which the calling code works, as text of 1 to 255 characters; None for
            none. What a run sends is for the run's own tenant then.
        scope: makes code work for a tenant, inside a context manager; None: nothing needs to be done.
    """

    def __init__(
        self,
        capture: Callable[[], Any],
        scope: Callable[[str], AbstractContextManager[Any]] | None = None,
    ) -> None:
        self._capture = capture
        self._scope = scope

    @classmethod
    def of(cls, capture: Any, scope: Any) -> Self | None:
        """What the settings say; None if there are no tenants.

        Raises:
            InvalidSetting: they name what cannot be called.
        """
        if not capture:
            if scope:
                raise InvalidSetting(
                    f"{conf.shown('TENANT_SCOPE')} restores what {conf.shown('TENANT')} captures: set "
                    "that, too"
                )
            return None
        return cls(_called("TENANT", capture), _called("TENANT_SCOPE", scope) if scope else None)

    def event_sent(self, event: Event) -> Event:
        """Note for which tenant it is sent."""
        tenant = self._capture()
        if tenant is None:
            return event
        if not isinstance(tenant, str) or not 1 <= len(tenant) <= LENGTH:
            raise InvalidEvent(
                f"{conf.shown('TENANT')} returns text of 1 to {LENGTH} characters or None, not "
                f"{tenant!r}",
                pointer=f"/context/{KEY}",
            )
        return replace(event, context={**event.context, KEY: tenant})

    def around_run(self, run: RunContext) -> AbstractContextManager[Any]:
        """The handler works for the tenant."""
        tenant = run.context.get(KEY)
        return nullcontext() if tenant is None or self._scope is None else self._scope(tenant)

    def around_step(self, step: StepContext) -> AbstractContextManager[Any]:
        """So does the step's function, which may be called in another thread."""
        return self.around_run(step.run)


def _called(name: str, given: Any) -> Callable[..., Any]:
    found = given
    if isinstance(given, str):
        try:
            found = import_string(given)
        except ImportError as error:
            raise InvalidSetting(
                f"{conf.shown(name)}: {given!r} cannot be imported: {error}"
            ) from error
    if not callable(found):
        raise InvalidSetting(f"{conf.shown(name)} is a callable, or its path, not {given!r}")
    called: Callable[..., Any] = found
    return called
