"""Whatever fails for good, in any flow of the project, is kept until somebody has looked at it.

Shows a flow on ``flows/function.failed``, which carries the event that could not be handled and the
error; and a review that asks for the next one by an event of the future, a week ahead.
"""
