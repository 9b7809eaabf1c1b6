"""Results that are more than JSON text: what is kept of one that is elsewhere, or that names rows.

JSON never begins with an at sign, so such a text cannot be taken for a result, nor be forged by one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
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
#: Version 128 and a time before the year 2106; of nothing it has 100 characters.
_SEALED: Final = rf"{SEALED}gAAAA[A-Za-z0-9_-]{{90,}}={{0,2}}"
_IS_SEALED: Final = re.compile(_SEALED)
#: Inside of a JSON string each quote has a backslash before it: so this is a whole one, and no key.
_SEALED_IN_JSON: Final = re.compile(rf'(?<!\\)"{_SEALED}"(?!\s*:)')


def is_sealed(value: Any) -> bool:
    """Whether this stands in the place of an encrypted value: it is such a text, and nothing else."""
    return (
        isinstance(value, str)
        and value.startswith(SEALED)
        and _IS_SEALED.fullmatch(value) is not None
    )


def has_sealed(text: str) -> bool:
    """Whether JSON text has an encrypted value in it."""
    return SEALED in text and _SEALED_IN_JSON.search(text) is not None


def each_sealed(text: str, change: Callable[[str], str]) -> str:
    """JSON text, of which each encrypted value is another one. What only mentions a token stays as it is.

    Args:
        text: as it is stored.
        change: an encrypted value, as JSON text, in place of this one.
    """
    return _SEALED_IN_JSON.sub(lambda found: change(found[0]), text)


def resealed(text: str, renewed: Callable[[str], str]) -> str:
    """The same with another token for each token."""
    return each_sealed(text, lambda value: f'"{SEALED}{renewed(value[len(SEALED) + 1 : -1])}"')
