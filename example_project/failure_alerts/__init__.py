"""Failures are logged, the critical ones raise an alarm, and what was too fast is retried later.

Shows what a flow on ``flows/function.failed`` can do with the run that failed: tell by its ``code`` what
is to be done, and go on with it five minutes later from the step that failed, with ``retry`` in a step.
"""
