"""Somebody signs up: provisioned, welcomed and verified, then on trial for 14 days.

Shows three flows on one event, sleeps of days, a wait of a day for a click in a mail, and a run that
an event cancels in the middle of its sleep: whoever subscribes is not asked to.
"""
