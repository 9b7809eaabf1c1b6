"""The tools that handlers call. They speak to a journal and know nothing of tables or brokers.

Each is written once, as a generator that yields what it wants done: something at the journal, a call of
user code, branches. A driver does it, in threads for handlers written with ``def``, in tasks for those
written with ``async def``. A step has its place, and so its key, when it is called, not when it is awaited.

    step        what handlers get: `Step`, all of these together
    functions   run
    saga        run, with how it is undone
    waits       sleep, wait for events, for approvals
    sends       send events, invoke, map
    branches    parallel, race
    entry       how each of them begins and ends
"""
