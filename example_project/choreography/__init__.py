"""A chain without a conductor: each flow reacts to what the one before has said.

Shows ``send_event`` as the last step of a link: the event and the step's record are one commit, so a
link that is done has passed on exactly one event. And the weakness of chains: where a link fails, all
is quiet after it. So the link says so itself, before it fails.
"""
