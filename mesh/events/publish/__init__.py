"""Publishing: events that the contract allows, the outbox table, and the relay from it to the broker."""
