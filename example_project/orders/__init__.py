"""An order is reserved, charged and packed; if it fails or is withdrawn, what was done is undone.

Shows a saga: that a step is going to be tried is recorded before it is, and whatever was tried is
undone, in reverse order, before the run ends. An undo looks at what there is: a charge whose answer was
lost is refunded too. The handlers for failed and cancelled runs begin when that is done.
"""
