"""Client of the NATS broker: connections, streams, stored messages, pull subscriptions, and the server of ``mesh up``.

Decisions:

- *The only importer of ``nats``.* The other packages see ``NatsConnection``, ``Message``, ``StreamMessage`` and
  ``BROKER_ERRORS``.
- *A broken connection is replaced, not repaired.* nats-py's own reconnection is off: it would keep unsent publications
  whose callers have given up. ``Broker`` opens a new connection and checks the streams each time.
- *Knows neither publishing nor consuming.*
"""
