"""gRPC's wire formats: client, server, and the two modules that both use.

- ``client`` and ``server`` do not import each other, so a process that only calls loads no server.
- ``framing`` has messages, compression and ``grpc-timeout``; ``status`` has status, details and ``grpc-message``. Both
  are pure, and neither imports the other.
- Only this package and the entry points of processes import ``grpc``, ``ngh2`` and ``h2corn``.
- It refuses what gRPC's specification refuses, and reports that as a status.
"""
