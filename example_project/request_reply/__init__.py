"""A report is asked for, and the answer waited for, for half an hour at most.

Shows ``send_event``, then ``wait_for_event`` with ``match``: the answer to this very question. It is
not missed, however fast it comes. Asker and replier share two event names and nothing else; where
both are flows of one project, ``step.invoke`` says the same in one line.
"""
