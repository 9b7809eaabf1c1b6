"""Storage of the one hot table: room for updates in place, and a vacuum that comes often.

A due row is updated at every claim and suspension. Half-filled pages keep most of these updates off
the indexes; without eager vacuuming the claim would walk over dead entries.
"""

from django.db import migrations

HOT = """
ALTER TABLE durable_flows_due SET (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_cost_delay = 0
)
"""
PLAIN = """
ALTER TABLE durable_flows_due RESET (
    fillfactor,
    autovacuum_vacuum_scale_factor,
    autovacuum_vacuum_threshold,
    autovacuum_vacuum_cost_delay
)
"""


def heat(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(HOT)


def cool(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(PLAIN)


class Migration(migrations.Migration):
    dependencies = [("durable_flows", "0002_counters")]
    operations = [migrations.RunPython(heat, cool)]
