"""Encryption of fields of events, and of results: in the tables, in files and in dumps nobody reads them.

Values are encrypted by Fernet (AES-128-CBC with HMAC-SHA256, https://github.com/fernet/spec) of the package
``cryptography``. In place of a value stands the text ``encrypted:`` and its token.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from durable_flows.errors import DecryptionFailed, InvalidSetting
from durable_flows.middleware import About, Sealing
from durable_flows.rules import payload
from durable_flows.rules.envelopes import SEALED, is_sealed, resealed

try:
    from cryptography.fernet import Fernet, InvalidToken, MultiFernet
except ImportError as error:
    raise ImportError(
        "durable_flows.encryption needs the package cryptography: pip install durable-flows[encryption]"
    ) from error

Path = tuple[str, ...]

_AS_LARGE_AS_IT_IS: Final = payload.Limits(
    max_bytes=sys.maxsize, max_depth=1000, max_keys=sys.maxsize, max_key_length=sys.maxsize
)


class Encryption(Sealing):
    """Encrypts fields of events, and what steps and runs come to.

    Put it into the settings: what a flow invokes, and who is told of its end, must be able to read.

    Args:
        keys: of Fernet, as `cryptography.fernet.Fernet.generate_key` makes them: the first encrypts, all
            decrypt.
        fields: paths into events: ``"data.card"``, ``"user.email"``; of ``"data"`` or ``"user"`` each
            value is encrypted. A list on the way is walked through.
        readable: paths below these that stay as they are, for what is matched: ``"data.order_id"``.
        results: whether results of steps and runs are encrypted as a whole, and the messages and
            tracebacks of errors, too.

    Raises:
        InvalidSetting: a key is none, or a path does not begin with data or user.
    """

    def __init__(
        self,
        keys: Sequence[str | bytes],
        *,
        fields: Sequence[str] = (),
        readable: Sequence[str] = (),
        results: bool = True,
    ) -> None:
        self._newest, self._all = _read_keys(keys)
        self._count = len(keys)
        self._fields = _paths("fields", fields)
        self._readable = _paths("readable", readable)
        self._results = results

    def seals(self, path: str) -> bool:
        """Whether an event's value at this dotted path is encrypted."""
        above = [tuple(path.split(".")[:length]) for length in range(1, path.count(".") + 2)]
        return any(one in self._fields for one in above) and not any(
            one in self._readable for one in above
        )

    def value_in(self, value: Any, about: About) -> Any:
        """Encrypt what is to be encrypted of a value."""
        if about.kind in ("data", "user"):
            return self._field(value, (about.kind,), is_inside=False)
        if not self._results:
            return self._escaped(value)
        return self._error(value) if about.kind == "error" else self._seal(value)

    def value_out(self, value: Any, about: About) -> Any:
        """Decrypt whatever is encrypted in a value.

        Raises:
            DecryptionFailed: with none of the keys.
        """
        return _each_text(value, lambda text: self._open(text, about))

    def renewed(self, text: str, within: Callable[[str], str] | None = None) -> str:
        """Stored JSON text, in which each value that is encrypted is so with the first key.

        Args:
            text: what is stored. A token inside of a longer text is no encrypted value, and stays.
            within: what to do with a value's own JSON text, in which another may have encrypted something.

        Raises:
            DecryptionFailed: one of the values was encrypted with none of the keys.
        """
        return resealed(text, lambda token: self._renewed(token.encode(), within).decode())

    # -- on the way in -------------------------------------------------------------------------

    def _field(self, value: Any, path: Path, *, is_inside: bool) -> Any:
        if path in self._readable:
            return self._escaped(value)
        is_inside = is_inside or path in self._fields
        below = self._readable if is_inside else self._fields
        goes_on = len(path) == 1 or any(one[: len(path)] == path for one in below)
        if goes_on and isinstance(value, list):
            return [self._field(item, path, is_inside=is_inside) for item in value]
        if goes_on and isinstance(value, dict):
            return {
                key: self._field(item, (*path, key), is_inside=is_inside)
                for key, item in value.items()
            }
        return self._seal(value) if is_inside else self._escaped(value)

    def _error(self, described: dict[str, Any]) -> dict[str, Any]:
        """The kind of an error and its step stay readable."""
        told = {
            key: self._seal(described[key])
            for key in ("message", "stack", "code")
            if described[key]
        }
        return {**described, **told}

    def _seal(self, value: Any) -> str:
        text = payload.dumps(value, limits=_AS_LARGE_AS_IT_IS)  # what was said was looked at before
        return SEALED + self._newest.encrypt(text.encode()).decode()

    def _escaped(self, value: Any) -> Any:
        """What only looks encrypted is encrypted: nobody gives us a token that we did not make."""
        return _each_text(value, lambda text: self._seal(text) if is_sealed(text) else text)

    # -- on the way out ------------------------------------------------------------------------

    def _open(self, text: str, about: About) -> Any:
        if not is_sealed(text):
            return text
        try:
            return payload.loads(self._all.decrypt(text.removeprefix(SEALED).encode()).decode())
        except InvalidToken as error:
            raise DecryptionFailed(self._lost(_what(about))) from error

    def _renewed(self, token: bytes, within: Callable[[str], str] | None) -> bytes:
        try:
            found = self._all.decrypt(token)
        except InvalidToken as error:
            raise DecryptionFailed(self._lost("a value")) from error
        inside = found if within is None else within(found.decode()).encode()
        if inside != found:
            return self._newest.encrypt(inside)
        return token if self._is_newest(token) else self._all.rotate(token)

    def _is_newest(self, token: bytes) -> bool:
        try:
            self._newest.decrypt(token)
        except InvalidToken:
            return False
        return True

    def _lost(self, what: str) -> str:
        return (
            f"{what} was encrypted with none of the {self._count} keys that Encryption has: it is stored "
            "as it was; put the key that is missing back into keys=, after the newest"
        )


def _read_keys(keys: Sequence[str | bytes]) -> tuple[Fernet, MultiFernet]:
    if isinstance(keys, str | bytes) or not keys:
        raise InvalidSetting("Encryption(keys=…) takes a list of keys, the newest first")
    try:
        made = [Fernet(key) for key in keys]
    except (ValueError, TypeError) as error:
        raise InvalidSetting(
            "Encryption(keys=…): one of the keys is none of Fernet's, which are 32 bytes in URL-safe "
            'base64; make one with python -c "from cryptography.fernet import Fernet; '
            'print(Fernet.generate_key().decode())"'
        ) from error
    return made[0], MultiFernet(made)


def _paths(option: str, given: Sequence[str]) -> frozenset[Path]:
    listed = [tuple(path.split(".")) for path in given] if not isinstance(given, str) else []
    if isinstance(given, str) or not all(
        path[0] in ("data", "user") and all(path) for path in listed
    ):
        raise InvalidSetting(
            f"Encryption({option}=…) takes a list of paths like 'data.card' or 'user.email', not {given!r}"
        )
    return frozenset(listed)


def _each_text(value: Any, change: Callable[[str], Any]) -> Any:
    """A copy of the value with each of its texts changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: _each_text(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_each_text(item, change) for item in value]
    return value


def _what(about: About) -> str:
    step = f", step {about.key!r}" if about.key else ""
    return f"{about.kind} of {about.name!r}{step}"
