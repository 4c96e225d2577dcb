"""Delivery of events, changes and ticks to the methods of a service.

``delivery`` runs a ``pull`` reader for each of the ``consumers``. ``ordering`` decides which event may be delivered,
``processing`` calls the function, ``outcome`` decides what follows.

Decisions:

- *One replica reads a partition at a time.* The broker pins each consumer to one client. ``assignment`` spreads the
  partitions over the replicas; two replicas that disagree do no harm.
- *An attempt is a call of the function that failed.* A delivery that was returned or refused is none. So the mesh
counts
  attempts itself (``attempts``), and JetStream's ``max_deliver`` is off.
- *A failing event holds its key only*, until it succeeds or becomes a dead letter.
- *A delivery is a call* (``delivery_call``) that passes the sidecar's layers like any other.
"""
