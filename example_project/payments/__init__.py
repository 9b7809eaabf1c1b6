"""A card is charged and the payment entered; if that fails, the money goes back, once.

Shows a saga that tells others how it ended: an event for either end. The refund has a key of its own,
so that a worker that dies in the middle of it refunds nothing twice.
"""
