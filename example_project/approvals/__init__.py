"""An expense is handed to a person, and goes on when that person has decided, or nobody has.

Shows a wait for an approval: people are asked by mail, others are after three days, and after seven
nobody is waited for. They decide in the admin; of two who decide at once the first one has decided.
"""
