"""Events, schedules and change capture over NATS JetStream, the only package that knows the broker.

Decisions:

- *The broker stores, the database decides.* An event that belongs to a write is a row of the outbox, committed with it.
  The relay publishes rows to JetStream and deletes those that were acknowledged. A crash anywhere publishes again, and
  never loses an event.
- *Delivered at least once, effective once.* Every event has an id. JetStream drops duplicates within its duplicate
  window; the inbox of the receiving service drops the others.
- *The key is in the subject.* ``events.<type>.<partition>.<key>``: a consumer reads one partition, so the stream keeps
  the order of a key, without an agreement between replicas. There are eight partitions, for ever: another number would
  move keys that have undelivered events.
- *Limits retention, discard new.* A stream keeps events until they are too old, so they can be replayed. A full broker
  refuses events, and the outbox holds them.
- *Five streams, with subjects that only this mesh uses.* Several meshes on one broker need an account each.
- *Errors leave the package as statuses.* ``nats`` is imported in ``broker`` only. No error of the client library
reaches
  a function.
- *Publishing and consuming do not import each other.* ``unpublishable`` stands above both.

``subjects``, ``cloudevents`` and ``hops`` are the shared core. ``broker`` holds the connection, the streams and the
stored messages. ``publish`` holds the outbox and its relay, ``consume`` the delivery of events, ``changes`` the
triggers on tables.
"""
