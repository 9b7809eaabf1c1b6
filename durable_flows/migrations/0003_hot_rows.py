"""Storage of what is updated: room for updates in place, and for the hot table frequent vacuuming.

A due row is updated at every claim and suspension. Half-filled pages keep most of these updates off
the indexes; without eager vacuuming the claim would walk over dead entries. A run is updated at its
start and at its end, soon after it was written: a little room is enough.

Which runs have ended since some moment is asked seldom, but not by reading all that are kept. A block
range index answers it, which from PostgreSQL 16 on leaves updates in place; before it would not, and a
scan is cheaper than that.
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
ENDED = """
CREATE INDEX durable_flows_run_ended ON durable_flows_run USING brin (ended_at)
WITH (pages_per_range = 16, autosummarize = on)
"""
IN_PLACE = 160000  # from this version on updates of its column stay in place
PLAIN = """
ALTER TABLE durable_flows_due RESET (
    fillfactor,
    autovacuum_vacuum_scale_factor,
    autovacuum_vacuum_threshold,
    autovacuum_vacuum_cost_delay
);
ALTER TABLE durable_flows_run RESET (fillfactor);
DROP INDEX IF EXISTS durable_flows_run_ended
"""


def heat(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(HOT)
        if schema_editor.connection.pg_version >= IN_PLACE:
            schema_editor.execute(ENDED)


def cool(apps, schema_editor):
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(PLAIN)


class Migration(migrations.Migration):
    dependencies = [("durable_flows", "0002_counters")]
    operations = [migrations.RunPython(heat, cool)]
