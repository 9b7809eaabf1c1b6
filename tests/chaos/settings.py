"""The example project as a team would run it, but with short leases and a ledger for e-mails."""

from example_project.settings import *  # noqa: F403

DEBUG = False
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
EMAIL_BACKEND = "tests.chaos.ledger.EmailBackend"
DURABLE_FLOWS = {"TICK_SECONDS": 1.0, "LEASE_SECONDS": 6.0, "HEARTBEAT_SECONDS": 2.0}
