"""An e-mail server's own account of who asked it for what: outside the database, append-only.

A line is written before and after each delivery, by one write each. Deliveries to the address named
in the file ``hold`` do not return while the file is there: whoever asked is in the middle of a step.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend

PLACE = "DURABLE_FLOWS_TEST_LEDGER"


@dataclass(frozen=True)
class Line:
    what: str  # begin or end
    pid: int
    to: str
    subject: str


class EmailBackend(BaseEmailBackend):
    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        for message in email_messages:
            line = {"pid": os.getpid(), "to": message.to[0], "subject": message.subject}
            self._write({"what": "begin", **line})
            while self._held(message.to[0]):
                time.sleep(0.02)
            self._write({"what": "end", **line})
        return len(email_messages)

    def _write(self, line: dict[str, Any]) -> None:
        with (place() / "ledger").open("ab", buffering=0) as file:
            file.write(json.dumps(line).encode() + b"\n")

    def _held(self, address: str) -> bool:
        try:
            return (place() / "hold").read_text() == address
        except FileNotFoundError:
            return False


def place() -> Path:
    return Path(os.environ[PLACE])


def lines(directory: Path) -> list[Line]:
    try:
        text = (directory / "ledger").read_text()
    except FileNotFoundError:
        return []
    return [Line(**json.loads(line)) for line in text.splitlines()]
