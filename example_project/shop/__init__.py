"""The shop: a catalogue, a cart, an order, an account, a post; and two flows that follow up."""
