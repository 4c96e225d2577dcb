"""Publishing: events that the contract allows, directly to the broker or through the outbox and its relay.

Decisions:

- *The outbox is a table of the service's own database*, so an event and the rows that it tells of commit together.
- *One relay at a time empties it*, under the leader lock of the database. Two at once do no harm: the broker takes
  the first copy of each row.
- *A row that no broker takes is set aside*, with a dead letter for each method that would have received it. It does not
  hold the rows behind it.
"""
