from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import connections


@pytest.fixture
def other_database() -> Iterator[str]:
    """A second alias, which holds none of the app's tables."""
    connections.databases["other"] = {
        **connections.databases["default"],
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": ":memory:",
        "OPTIONS": {},
    }
    connections["other"].connect()  # the test kit of Django lets open connections be
    yield "other"
    connections["other"].close()
    del connections["other"]
    del connections.databases["other"]
