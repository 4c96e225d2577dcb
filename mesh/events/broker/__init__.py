"""Client of the NATS broker: connections, streams, stored messages, pull subscriptions, and the server of ``mesh up``.

Decisions:

- *The only importer of ``nats``.* The other packages see ``NatsConnection``, ``Message``, ``StreamMessage`` and
  ``BROKER_ERRORS``.
- *A broken connection is replaced, not repaired.* nats-py's own reconnection is off. Whatever waits on a broken
connection
  fails at once. ``Broker`` opens a new one and checks the streams each time, because the broker may have lost its disk.
- *Knows neither publishing nor consuming.*
"""
