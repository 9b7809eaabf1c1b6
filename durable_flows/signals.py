"""Django's signals: one that sends events, and those by which code observes what the engine does.

For code that must not import the engine. ``emit`` asks for something, and what goes wrong reaches the
caller; with the others the engine tells what has happened, after it was committed.
"""

from __future__ import annotations

from django.dispatch import Signal

#: Sends an event in the caller's transaction: ``emit.send(sender, name=…, data=…)`` takes the fields of
#: `durable_flows.send`, and raises what that raises. The receiver's answer is the list of public ids.
emit = Signal()

#: An event is stored. Its sender is the model `Event`; ``event_id``, ``name``, ``run_id`` (of the run that
#: has sent it, or ""), ``received_at`` and ``deliver_at``.
event_received = Signal()

#: A worker has taken a run to execute its first slice, or its first after a retry. The sender is the model
#: `Run`; ``run_id``, ``flow``, ``version``, ``generation``, ``queue``, ``event_id``, ``created_at``.
run_started = Signal()

#: A step is recorded for good. The sender is the model `Step`; ``run_id``, ``flow``, ``generation``,
#: ``step`` (its key), ``kind``, ``state`` ("done" or "failed") and ``attempt``.
step_finished = Signal()

#: A run has ended. The sender is the model `Run`; ``run_id``, ``flow``, ``version``, ``generation``,
#: ``state``, ``event_id``, ``created_at``, ``started_at`` (None: it never began) and ``ended_at``.
run_ended = Signal()
