"""What a run's steps come to, on its way into the tables and out of them again.

On the way in: middleware, then references in place of rows, then JSON, then a file if it is long. On the
way out, the same backwards. Where a project has none of that, it is JSON text and nothing else.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Self

from durable_flows import conf, installed
from durable_flows.engine import files, rows
from durable_flows.engine.history import Child, Claim, Recorded, size_of
from durable_flows.errors import InvalidEvent, InvalidPayload, StepError, UnserialisableResult
from durable_flows.flows import Flow
from durable_flows.middleware import About, Chain, Opener, RunContext, StepContext
from durable_flows.registry import registry
from durable_flows.rules import endings, envelopes, outcomes, payload, replays
from durable_flows.rules.events import DECIDED, SIGNALLED, Event, Seal
from durable_flows.rules.payload import Limits
from durable_flows.rules.states import StepKind

logger = logging.getLogger(__name__)

#: Events of the engine's own in which somebody says something to a run.
_SAID_IN = (SIGNALLED, DECIDED)


class Values:
    """The values of one run.

    Args:
        run: whose.
        chain: the middleware.
        names_rows: whether rows in results are stored as references.
    """

    def __init__(self, run: RunContext, chain: Chain, *, names_rows: bool = False) -> None:
        self._run = run
        self._chain = chain
        self._names_rows = names_rows
        self._longest = files.longest()
        self._limits = self._room = conf.settings().result_limits
        if chain.changes_values:  # what it makes of a value may be longer: encrypted, by a third
            self._room = replace(self._limits, max_bytes=2 * self._limits.max_bytes)
        #: Whether values are JSON text and nothing else, whatever they are.
        self.are_bare = not (chain.changes_values or names_rows or self._longest is not None)
        #: Whether there is something around the functions of steps.
        self.surround_steps = chain.surrounds_steps

    @classmethod
    def of(cls, claimed: Claim, flow: Flow) -> Self:
        """The values of a claimed run."""
        run = RunContext(
            run_id=str(claimed.run_id),
            flow=flow.id,
            version=flow.version,
            generation=claimed.generation,
            context=claimed.event.context,
        )
        return cls(run, installed.chain(flow.middleware), names_rows=flow.references)

    # -- results -----------------------------------------------------------------------------

    def encode(self, result: Any, key: str = "") -> str:
        """What is kept of a result.

        Args:
            result: as a function has returned it.
            key: of its step; empty: it is the run's.

        Raises:
            UnserialisableResult: it cannot be stored, or is too long.
            StorageUnavailable: it was to go to a file, and could not.
        """
        try:
            if self.are_bare:
                return payload.dumps(result, limits=self._limits)
            text = self._dumped(result, self._about("step" if key else "result", key))
        except InvalidPayload as error:
            what = f"the result of step {key!r}" if key else "what the handler returned"
            raise UnserialisableResult(f"{what}, {error}") from error
        return self.kept(text, key)

    def _dumped(self, result: Any, about: About) -> str:
        try:
            stored = through(self._chain, result, about, self._limits)
            return payload.dumps(stored, limits=self._room)
        except InvalidPayload:
            if not self._names_rows:
                raise
            named, has_rows = rows.named(result)
            if not has_rows:
                raise
        stored = through(self._chain, named, about, self._limits)
        return envelopes.with_rows(payload.dumps(stored, limits=self._room))

    def kept(self, text: str, key: str) -> str:
        """What is kept of a result in its row: itself, or where it is.

        What comes of undoing stays in its row: it must not be undone twice because a storage is down.
        """
        if self._longest is None or size_of(text) <= self._longest or key.endswith(replays.UNDO):
            return text
        return files.put(text, uuid.UUID(self._run.run_id), key)

    def decode(self, recorded: Recorded) -> Any:
        """A step's result, as the handler gets it.

        Raises:
            StorageUnavailable, ResultGone, RowGone: it is elsewhere, and cannot be had.
        """
        text = recorded.output
        if text is None:
            return None
        if self.are_bare and envelopes.is_plain(text):
            return payload.loads(text)
        about, text = self._about("step", recorded.key), files.fetch(text)
        if recorded.kind == StepKind.MAP:
            return [self._handed(item, about, names) for item, names in envelopes.items(text)]
        plain, names = envelopes.without_rows(text)
        return self._handed(payload.loads(plain), about, names)

    def _handed(self, value: Any, about: About, names_rows: bool) -> Any:
        value = self._chain.out_of(value, about)
        return rows.fetched(value) if names_rows else value

    def is_at_hand(self, recorded: Recorded) -> bool:
        """Whether a step's result can be read anywhere, without waiting for anybody."""
        return self.are_bare and (recorded.output or "")[:1] != envelopes.MARK

    # -- what children have come to ------------------------------------------------------------

    @staticmethod
    def whole(text: str) -> str:
        """A child's result, wherever it is."""
        return files.fetch(text)

    @staticmethod
    def joined(texts: Sequence[str]) -> str:
        """The results of children as one list."""
        if all(map(envelopes.is_plain, texts)):
            return f"[{', '.join(texts)}]"
        return envelopes.joined([envelopes.without_rows(files.fetch(text)) for text in texts])

    # -- errors --------------------------------------------------------------------------------

    def described(self, error: BaseException, key: str = "") -> dict[str, Any]:
        """An error as it is recorded."""
        return self._recorded(outcomes.describe(error, step=key), key)

    def failed(self, error: BaseException) -> tuple[dict[str, Any], str]:
        """The error of which a run fails, as it is recorded, and in a line."""
        described = outcomes.describe(error)
        recorded = self._recorded(described, "")
        return recorded, self._line(described, recorded)

    def told(self, error: StepError, key: str) -> str:
        """A step's failure in a line, for a note."""
        described = outcomes.describe(error)
        return self._line(described, self._recorded(described, key))

    def failure(self, recorded: Recorded) -> StepError:
        """The error of a step that has failed."""
        about = self._about("error", recorded.key)
        return outcomes.recall(self._chain.out_of(recorded.failure, about))

    def of_child(self, child: Child) -> dict[str, Any] | None:
        """What is recorded of a child that has not completed, for its parent."""
        if child.error is not None and not self.are_bare:
            about = About("error", child.flow_id)
            error = self._chain.out_of(payload.loads(child.error), about)
            child = replace(child, error=json.dumps(error))
        failure = child.failure
        return None if failure is None else self._recorded(failure, child.key)

    def _recorded(self, described: dict[str, Any], key: str) -> dict[str, Any]:
        """An error as it is stored: middleware that fails, or makes something else of it, hides it."""
        try:
            recorded = self._chain.into(dict(described), self._about("error", key))
            if isinstance(recorded, dict) and recorded.keys() >= described.keys():
                return recorded
            why = f"it is to be a dict with {', '.join(described)}"
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        logger.error("value_in made nothing of the error of %s %r: %s", self._run.flow, key, why)
        hidden = dict.fromkeys(("message", "stack"), "(hidden: middleware has failed)")
        return {**described, **hidden, "code": ""}

    @staticmethod
    def _line(described: Mapping[str, Any], recorded: Mapping[str, Any]) -> str:
        """Of a message that middleware has changed nothing is said: it may be a secret."""
        if recorded["message"] != described["message"]:
            return str(described["name"])
        return f"{described['name']}: {described['message']}"[:1000]

    # -- events and inputs -----------------------------------------------------------------------

    def event(self, event: Event[Any]) -> Event[Any]:
        """An event as handlers get it."""
        shared = installed.chain()
        return opened(event, shared) if shared.changes_values else event

    def input(self, value: Any, key: str) -> Any:
        """What a step is given, in a run that is done again."""
        return self._chain.out_of(value, self._about("input", key))

    # -- surroundings ----------------------------------------------------------------------------

    def around_run(self) -> list[Opener]:
        """What is to be entered around the handler."""
        return self._chain.around_run(self._run)

    def around_step(self, key: str, attempt: int) -> list[Opener]:
        """What is to be entered around a step's function."""
        return self._chain.around_step(StepContext(run=self._run, key=key, attempt=attempt))

    def _about(self, kind: Any, key: str) -> About:
        return About(kind, self._run.flow, key)


def sealing() -> Seal | None:
    """What makes of an event's data, and user, what is stored; None: they are stored as they are."""
    chain = installed.chain()
    if not chain.changes_values:
        return None
    return lambda name, kind, value: chain.into(value, About(kind, name))


def shown(text: str | None, about: About) -> Any:
    """A result or an error as people may see it: with references in place of rows.

    What cannot be read is shown as it is stored.
    """
    if text is None:
        return None
    flow = registry.find(about.name)
    chain = installed.chain(flow.middleware if flow else ())
    value: Any = text
    with suppress(Exception):
        value = envelopes.plain(files.fetch(text))
        value = chain.out_of(value, about)
    return value


def seen(event: Event[Any]) -> Event[Any]:
    """A stored event as people may see it. What cannot be read is as it is stored."""
    with suppress(Exception):
        return opened(event, installed.chain())
    return event


def said(data: Any, name: str, *, pointer: str = "/data") -> Any:
    """What a person or a system says to one run, as it is stored. Raises `InvalidEvent`."""
    limits = conf.settings().event_limits
    try:
        return through(installed.chain(), data, About("data", name), limits, pointer)
    except InvalidPayload as error:
        raise InvalidEvent(error.problem, pointer=error.pointer) from error


def through(chain: Chain, value: Any, about: About, limits: Limits, pointer: str = "") -> Any:
    """What middleware makes of a value: it gets it as JSON, so that nothing hides in a type of its own.

    Raises:
        InvalidPayload: it cannot be stored; ``pointer`` says where it stands.
    """
    if chain.changes_values:
        value = payload.loads(payload.dumps(value, limits=limits, pointer=pointer))
    return chain.into(value, about)


def opened(event: Event[Any], chain: Chain) -> Event[Any]:
    """The inverse of `sealing`; of a signal and a decision what is said in them."""
    if event.name in _SAID_IN:
        said = event.data["data"]
        about = About("data", str(event.data.get("signal", event.name)))
        return replace(event, data={**event.data, "data": chain.out_of(said, about)})
    if event.name in endings.NAMES:
        return replace(event, data=_end_opened(event.data, chain))
    user = event.user
    if user is not None:
        user = chain.out_of(user, About("user", event.name))
    return replace(event, data=chain.out_of(event.data, About("data", event.name)), user=user)


def _end_opened(data: Mapping[str, Any], chain: Chain) -> dict[str, Any]:
    """What tells of an end: of its parts each as it was stored."""
    flow, told = data["function_id"], dict(data)
    told["event"] = _document_opened(data["event"], chain)
    if data["events"] is not None:
        told["events"] = [_document_opened(event, chain) for event in data["events"]]
    for kind in ("result", "error"):
        if data.get(kind) is not None:
            told[kind] = chain.out_of(data[kind], About(kind, flow))
    return told


def _document_opened(document: Mapping[str, Any], chain: Chain) -> dict[str, Any]:
    return opened(Event.from_dict(document), chain).as_dict()
