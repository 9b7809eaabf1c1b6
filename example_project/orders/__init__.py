"""An order is reserved, charged and packed; if a part of it fails, what was done is undone.

Shows a saga: steps, and for each the step that takes it back, in reverse order. An undo does not ask
what it was told, it looks at what there is: a charge whose answer was lost is refunded too.
"""
