"""How values are shown to people. What a payload holds is never trusted: all of it is escaped."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.urls import reverse
from django.utils import dateformat, timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from durable_flows.errors import InvalidPayload
from durable_flows.rules import clock, durations, envelopes, payload

NOTHING = "–"
PAGE_CHARACTERS = 20_000  # of a payload that has the page for itself
ROW_CHARACTERS = 4_000  # of one that shares it with many
ONE_LINE = 80  # a shorter value needs no unfolding


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as it was recorded, made ready for a page."""

    summary: str
    stack: str = ""
    step: str = ""


def moment(value: datetime | None) -> str | SafeString:
    """A point in time in the reader's zone, to the second, in digits that sort."""
    if value is None:
        return NOTHING
    local = timezone.localtime(value) if timezone.is_aware(value) else value
    return format_html(
        '<time datetime="{}"><span>{}</span> <span>{}</span></time>',
        value.isoformat(),
        dateformat.format(local, "Y-m-d"),
        dateformat.format(local, "H:i:s"),
    )


def duration(begin: datetime | None, end: datetime | None) -> SafeString | str:
    """How long it took, or how long it has taken until now; from a second on without fractions."""
    if begin is None:
        return NOTHING
    took = max((end or clock.now()) - begin, timedelta())
    if took >= timedelta(seconds=1):
        took -= timedelta(microseconds=took.microseconds)
    return format_html('<span class="df-took">{}</span>', durations.humanize(took))


def pretty(text: str | None, most: int = PAGE_CHARACTERS, *, left_out: int = 0) -> str:
    """JSON text, indented and cut to ``most`` characters; what is not JSON, as it stands.

    Args:
        text: the text, or its beginning.
        most: characters.
        left_out: characters that ``text`` was already cut by; it is shown as it stands then.
    """
    if text is None:
        return ""
    if name := envelopes.file_of(text):
        return f"{envelopes.size_of_file(text):,} bytes, in file {name}"
    text = envelopes.without_rows(text)[0].removeprefix(envelopes.ITEMS)
    shown = text if left_out or len(text) > 4 * most else _indented(text)
    return cut(shown, most, left_out=left_out)


def cut(text: str, most: int, *, left_out: int = 0) -> str:
    """Printable text of at most ``most`` characters, and a word about what is missing."""
    clean = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    clean = clean.encode(errors="backslashreplace").decode()  # lone surrogates
    missing = max(0, len(clean) - most) + left_out
    return f"{clean[:most]}\n… {missing:,} more characters" if missing else clean


def one_line(text: str) -> str:
    """The beginning of a text, for a cell of a list."""
    line = cut(" ".join(text[:1000].split()), 1000)
    return line if len(line) <= ONE_LINE else f"{line[: ONE_LINE - 1]}…"


def block(text: str) -> str | SafeString:
    """Text in a box of its own, line breaks kept."""
    return format_html('<pre class="df-text" tabindex="0">{}</pre>', text) if text else NOTHING


def failure(text: str | None, most: int = PAGE_CHARACTERS) -> Failure | None:
    """An error's JSON text taken apart; what is not such a text is its own summary."""
    if not text:
        return None
    try:
        found = payload.loads(text)
    except InvalidPayload:
        found = None
    if not isinstance(found, dict):
        return Failure(summary=cut(text, most))
    name, message, stack, step = (
        _text(found.get(key)) for key in ("name", "message", "stack", "step")
    )
    summary = f"{name}: {message}" if name and message else name or message or text
    return Failure(summary=cut(summary, most), stack=cut(stack, most), step=cut(step, ONE_LINE))


def run_link(run_id: uuid.UUID | str, text: str = "") -> SafeString:
    """A link to a run's page."""
    url = reverse("admin:durable_flows_run_change", args=[run_id])
    return format_html('<a href="{}">{}</a>', url, text or run_id)


def event_link(event_id: uuid.UUID | str, text: str = "") -> SafeString:
    """A link to an event's page."""
    url = reverse("admin:durable_flows_event_change", args=[event_id])
    return format_html('<a href="{}">{}</a>', url, text or event_id)


def identifier(value: uuid.UUID | str) -> SafeString:
    """An id, in letters that can be told apart."""
    return format_html('<span class="df-id">{}</span>', value)


def badge(name: str, text: str = "") -> SafeString:
    """A state, in its colour."""
    return format_html('<span class="df-state df-{}">{}</span>', name, text or name)


def _indented(text: str) -> str:
    try:
        return json.dumps(payload.loads(text), indent=2, ensure_ascii=False)
    except (InvalidPayload, RecursionError):
        return text


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)
