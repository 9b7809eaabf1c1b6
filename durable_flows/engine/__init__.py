"""The engine: one file a verb.

    send · start · invoke · cancel · retry · rerun · skip · withdraw
      │ ingest: validate, dedupe, INSERT events (in the caller's transaction, and nothing else)
      ▼ on commit: ring
    events ── route (bulk): who starts? who resumes? who is cancelled?
      │
      ├─► admit: runs, due rows, cancel waits
      └─► settle, children: waits resolved, runs woken; cancel: runs told to stop
                                              │ ring
    due ── claim: due runs ► execute: replay the handler ► journal each step ► suspend, or finish
      ▲                                                                          │
      └─────────── wake_at: sleeps, retries, timeouts, leases ◄──────────────────┘

Data loops; imports never do. Each verb writes a row and rings; `ring` is the only file that talks to
Celery, and a bell that is lost, doubled or late changes latency and nothing else: `tick` finds the row.

Lock order: event keys · key rows (sorted) · due rows (sorted by run id) · waits. Whoever needs two of
these takes them in this order; whoever settles reads candidates without locks, locks the due rows
sorted, then updates the waits.
"""
