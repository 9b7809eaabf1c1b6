"""The values of an enum, as Django wants them."""

from __future__ import annotations

from enum import StrEnum


def choices(enum: type[StrEnum]) -> list[tuple[str, str]]:
    """What a field may hold: each value stands for itself."""
    return [(member.value, member.value) for member in enum]
