"""Events, schedules and table changes: the only room that knows the broker (NATS JetStream).

Decisions:

- *The broker keeps, the database decides.* An event that belongs to a write is a row of the outbox, committed with it;
  the relay moves rows to JetStream and deletes what was acknowledged. A crash anywhere sends again, never loses.
- *Twice on the wire, once in effect.* Every event has an id; JetStream drops what it has seen within its duplicate
  window, the inbox of the receiving service drops the rest.
- *The key is in the subject.* ``events.<type>.<partition>.<key>``: a consumer reads one partition, so the order of a
  key is kept by the stream and not by agreement between replicas. There are eight partitions, for ever: another number
  would move keys that have events on the way.
- *Limits retention, discard new.* A stream keeps what was published until it is too old, so it can be replayed; a full
  broker refuses, and the outbox holds.
- *Five streams, and the subjects of each are ours alone.* Several meshes on one broker: an account for each.
- *What leaves the room is a status.* No error of the client library passes.

``subjects`` and ``cloudevents`` are the pure core: what an event is called and looks like. ``broker`` is the
connection, ``streams`` makes what the contract needs, ``outbox`` and ``relay`` are the way out.
"""
