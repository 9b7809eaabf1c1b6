"""The flows of this process: where the engine finds them, by id and by what they listen to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from durable_flows.errors import DuplicateFlow
from durable_flows.flows import Flow, provide
from durable_flows.handlers import fingerprint, is_same
from durable_flows.rules.event_types import catalogue
from durable_flows.rules.options import On

NAMES_KEPT = 10_000  # event names of which the listening flows are remembered


@dataclass(frozen=True, slots=True)
class Listener:
    """A flow that listens to an event's name, by one or more of its triggers.

    Attributes:
        conditional: the triggers, unless one of them is met by every event of the name.
    """

    flow: Flow
    conditional: tuple[On, ...]


class Registry:
    """The flows of this process, by id and by trigger.

    Of several versions of a flow the highest is the newest: it alone is started by events.
    """

    def __init__(self) -> None:
        self._flows: dict[tuple[str, int], Flow] = {}
        self._newest: dict[str, Flow] = {}
        self._named: dict[str, list[Flow]] = {}
        self._prefixed: list[Flow] = []
        self._found: dict[str, tuple[Listener, ...]] = {}
        self._places: dict[str, int] = {}
        self._cancelling: set[str] = set()
        self._digest = ""

    def add(self, flow: Flow) -> None:
        """Register a flow.

        Raises:
            DuplicateFlow: another function has this id and this version.
        """
        known = self._flows.get((flow.id, flow.version))
        if known is not None and not is_same(known.handler, flow.handler):
            if flow.of and known.of:
                raise DuplicateFlow(
                    f"flow {flow.of!r} has two functions for one thing, {known.place} and {flow.place}: "
                    f"both are to be {flow.label}; keep one, and call the other from it"
                )
            raise DuplicateFlow(
                f"flow {flow.label} is declared twice, by {known.place} and by {flow.place}; "
                "an id is the identity of a flow's runs: give one of them another id, or, if it is "
                "the same flow written anew, another version"
            )
        self._flows[flow.id, flow.version] = flow
        self._index()

    def remove(self, flow: Flow) -> None:
        """Forget a flow; for tests."""
        del self._flows[flow.id, flow.version]
        self._index()

    def find(self, flow_id: str, version: int | None = None) -> Flow | None:
        """The flow of this id and version, or None if this process knows none.

        Args:
            flow_id: its id.
            version: 0 is the flow that was given none; None: the newest.
        """
        if version is None:
            return self._newest.get(flow_id)
        return self._flows.get((flow_id, version))

    def versions(self, flow_id: str) -> list[int]:
        """The versions of the flow that this process knows, the newest last."""
        return sorted(version for id_, version in self._flows if id_ == flow_id)

    def listening(self, event_name: str) -> Sequence[Flow]:
        """The flows that an event of this name may start, each once."""
        return [listener.flow for listener in self.listeners(event_name)]

    def listeners(self, event_name: str) -> Sequence[Listener]:
        """The same, each with the conditions under which it does."""
        found = self._found.get(event_name)
        if found is None:
            found = tuple(self._look_up(event_name))
            if len(self._found) >= NAMES_KEPT:  # names come from senders: do not keep them all
                self._found = {}
            self._found[event_name] = found
        return found

    def _look_up(self, event_name: str) -> Iterator[Listener]:
        """In the order of declaration, looking only at flows that may listen to the name."""
        candidates = [*self._named.get(event_name, ()), *self._prefixed]
        for flow in sorted({flow.id: flow for flow in candidates}.values(), key=self._place):
            met = [trigger for trigger in flow.on if trigger.listens_to(event_name)]
            always = any(trigger.if_ is None for trigger in met)
            if met:
                yield Listener(flow, () if always else tuple(met))

    def _place(self, flow: Flow) -> int:
        return self._places[flow.id]

    def hears(self, event_name: str) -> bool:
        """Whether an event of this name starts a flow, or may cancel runs of one."""
        return event_name in self._cancelling or bool(self.listeners(event_name))

    @property
    def described(self) -> dict[str, dict[str, list[str]]]:
        """What this process can do, ready for JSON: flow id → version → its triggers.

        After those of a strict flow comes what tells its handler's code from others.
        """
        found: dict[str, dict[str, list[str]]] = {}
        for flow in self:
            triggers = sorted(str(trigger) for trigger in flow.on)
            code = [f"code {fingerprint(flow.handler)}"] if flow.strict else []
            found.setdefault(flow.id, {})[str(flow.version)] = triggers + code
        return found

    @property
    def digest(self) -> str:
        """The same, in 64 characters: equal wherever the same flows have the same versions and triggers."""
        if not self._digest:
            text = json.dumps(self.described, sort_keys=True)
            self._digest = hashlib.sha256(text.encode()).hexdigest()
        return self._digest

    def __iter__(self) -> Iterator[Flow]:
        return iter(self._flows.values())

    def __len__(self) -> int:
        return len(self._flows)

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Forget, at the end of the block, what was registered inside it; for tests."""
        flows = dict(self._flows)
        try:
            with catalogue.isolated():
                yield
        finally:
            self._flows = flows
            self._index()

    def _index(self) -> None:
        self._named, self._prefixed, self._found = {}, [], {}
        self._digest = ""
        self._newest = {}
        self._cancelling = {rule.event for flow in self for rule in flow.cancel_on}
        for flow in self._flows.values():
            if flow.version >= self._newest.get(flow.id, flow).version:
                self._newest[flow.id] = flow
        self._places = {flow_id: place for place, flow_id in enumerate(self._newest)}
        for flow in self._newest.values():
            for trigger in flow.on:
                if trigger.prefix is None:
                    self._named.setdefault(trigger.event, []).append(flow)
                else:
                    self._prefixed.append(flow)


registry = Registry()

provide(add=registry.add)
