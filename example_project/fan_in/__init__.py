"""A parcel leaves once it is paid, packed and addressed, in whatever order that happens.

Shows a flow with three triggers. Each event starts a run, and when the three come together each of
the runs may find everything ready: three parcels. So a run does not ask whether all is ready, it
*claims* the parcel, by one UPDATE that succeeds once, in an atomic step that commits claim and record
together. A worker that dies in between has claimed nothing.
"""
