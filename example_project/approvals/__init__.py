"""An expense is handed to a person, and goes on when that person has decided, or nobody has.

Shows a wait for a human being: asked by mail, reminded after three days, not waited for after seven.
They decide in the admin, which writes the decision and sends the event in one transaction.
"""
