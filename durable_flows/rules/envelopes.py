"""Results that are more than JSON text: what is kept of one that is elsewhere, or that names rows.

JSON never begins with an at sign, so such a text cannot be taken for a result, nor be forged by one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from durable_flows.rules import payload

MARK: Final = "@"
FILE: Final = f"{MARK}file "
ROWS: Final = f"{MARK}rows "
ITEMS: Final = f"{MARK}items "


def is_plain(text: str) -> bool:
    """Whether this is the JSON text of a result itself."""
    return not text.startswith(MARK)


def filed(name: str, size: int) -> str:
    """What is kept of a text that is in a file.

    Args:
        name: the file's.
        size: its bytes.
    """
    return FILE + json.dumps({"name": name, "bytes": size}, ensure_ascii=False)


def file_of(text: str) -> str | None:
    """The name of the file that holds the text; None if it is here."""
    if not text.startswith(FILE):
        return None
    name: str = json.loads(text.removeprefix(FILE))["name"]
    return name


def size_of_file(text: str) -> int:
    """The bytes of the file that holds the text."""
    size: int = json.loads(text.removeprefix(FILE))["bytes"]
    return size


def with_rows(text: str) -> str:
    """A text in which rows are named."""
    return ROWS + text


def without_rows(text: str) -> tuple[str, bool]:
    """The JSON text, and whether rows are named in it."""
    return text.removeprefix(ROWS), text.startswith(ROWS)


def joined(results: Sequence[tuple[str, bool]]) -> str:
    """The results of several runs as one: of each its JSON text, and whether rows are named in it."""
    if not any(names_rows for _, names_rows in results):
        return f"[{', '.join(text for text, _ in results)}]"
    pairs = (f"[{text}, {json.dumps(names_rows)}]" for text, names_rows in results)
    return f"{ITEMS}[{', '.join(pairs)}]"


def items(text: str) -> list[tuple[Any, bool]]:
    """The inverse of `joined`: each result, and whether rows are named in it."""
    if text.startswith(ITEMS):
        return [(item, names_rows) for item, names_rows in payload.loads(text.removeprefix(ITEMS))]
    return [(item, False) for item in payload.loads(text)]


def plain(text: str) -> Any:
    """What is stored, with references in place of rows."""
    if text.startswith(ITEMS):
        return [item for item, _ in items(text)]
    return payload.loads(without_rows(text)[0])


#: What stands in the place of an encrypted value begins so, and goes on with a Fernet token.
SEALED: Final = "encrypted:"
_TOKEN_BEGINS: Final = "gAAAA"  # version 128, and a time before the year 2106


def is_sealed(value: Any) -> bool:
    """Whether this stands in the place of an encrypted value."""
    return isinstance(value, str) and value.startswith(SEALED + _TOKEN_BEGINS)
