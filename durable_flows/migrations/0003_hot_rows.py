"""Storage of what is updated: room for updates in place, and for the hot table frequent vacuuming.

A due row is updated at every claim and suspension. Half-filled pages keep most of these updates off
the indexes; without eager vacuuming the claim would walk over dead entries. A run is updated at its
start and at its end, soon after it was written: a little room is enough.
"""

from django.db import migrations

HOT = """
ALTER TABLE durable_flows_due SET (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_cost_delay = 0
);
ALTER TABLE durable_flows_run SET (fillfactor = 70)
"""
PLAIN = """
ALTER TABLE durable_flows_due RESET (
    fillfactor,
    autovacuum_vacuum_scale_factor,
    autovacuum_vacuum_threshold,
    autovacuum_vacuum_cost_delay
);
ALTER TABLE durable_flows_run RESET (fillfactor)
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
