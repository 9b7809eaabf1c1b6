"""Events find their flows: by their type, and by what they say.

Shows one flow for three types of events that looks at ``event.name``, a wildcard, triggers with a
condition, and a flow that decides in Python and passes on. Conditions that are equalities need
nothing else; ``event.data.total > 1000`` would need the extra ``cel``.
"""
