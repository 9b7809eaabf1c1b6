"""One sign-up, four flows that know nothing of each other.

Shows that an event starts every flow that listens to it. Each has its own retries, so that a mail
server that is down holds up nobody's defaults.
"""
