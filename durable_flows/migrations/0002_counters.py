"""The two counters that give events their places: sequences on PostgreSQL.

Both start at 2, so that a fresh one reads 1, before its first use, and every number drawn is above.
SQLite counts in the table of ``Counter`` instead.
"""

from django.db import migrations

SEQUENCES = ("durable_flows_arrival", "durable_flows_routed")


def create(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        for name in SEQUENCES:
            schema_editor.execute(f"CREATE SEQUENCE {name}")
            schema_editor.execute(f"SELECT setval('{name}', 1, true)")


def drop(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        for name in SEQUENCES:
            schema_editor.execute(f"DROP SEQUENCE {name}")


class Migration(migrations.Migration):
    dependencies = [("durable_flows", "0001_tables")]
    operations = [migrations.RunPython(create, drop)]
