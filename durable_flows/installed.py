"""The middleware of this project, as the settings list it, and that of single flows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from django.utils.module_loading import import_string

from durable_flows import conf
from durable_flows.errors import InvalidSetting
from durable_flows.middleware import Chain, Middleware
from durable_flows.tenants import Tenants


@dataclass(slots=True)
class _Read:
    """What the settings said when they were read last, and the chains of flows since then."""

    of: Any = None
    chain: Chain = field(default_factory=lambda: Chain(()))
    of_flows: dict[tuple[int, ...], tuple[tuple[Middleware, ...], Chain]] = field(
        default_factory=dict
    )


_read = _Read()


def chain(further: tuple[Middleware, ...] = ()) -> Chain:
    """The middleware of the settings, and after it those of a flow.

    Raises:
        InvalidSetting: the settings name what is no middleware.
    """
    global _read
    settings = conf.settings()
    if _read.of is not settings:
        _read = _Read(settings, Chain(_listed(settings)))
    if not further:
        return _read.chain
    who = tuple(map(id, further))  # they need not be hashable; kept here, they keep their ids
    known = _read.of_flows.get(who)
    if known is None:
        known = _read.of_flows[who] = further, Chain((*_read.chain.members, *further))
    return known[1]


def _listed(settings: conf.Settings) -> list[Middleware]:
    tenants = Tenants.of(settings.TENANT, settings.TENANT_SCOPE)
    listed = [made(one) for one in settings.MIDDLEWARE]
    return listed if tenants is None else [tenants, *listed]


def made(given: Any) -> Middleware:
    """A middleware that was given as itself, as its class, or as the dotted path of either.

    Raises:
        InvalidSetting: it is none of these.
    """
    found = given
    if isinstance(given, str):
        try:
            found = import_string(given)
        except ImportError as error:
            raise InvalidSetting(f"middleware {given!r} cannot be imported: {error}") from error
    if isinstance(found, type) and issubclass(found, Middleware):
        found = found()
    if not isinstance(found, Middleware):
        raise InvalidSetting(
            "a list of middleware holds instances of durable_flows.Middleware, their classes, or the "
            f"dotted paths of these, not {given!r}"
        )
    return found
