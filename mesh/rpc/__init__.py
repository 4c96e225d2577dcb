"""gRPC's wire formats: client, server, and the two modules that both use.

- ``client`` and ``server`` do not import each other, so a process that only calls loads no server.
- ``framing`` has messages, compression and ``grpc-timeout``; ``status`` has status, details and ``grpc-message``. Both
  are pure, and neither imports the other.
- Only this package and the entry points of processes import ``grpc``, ``ngh2`` and ``h2corn``.
- The client is our own channel on libnghttp2 (``ngh2``), which takes less CPU time for a call than grpcio's asyncio
  channel. grpcio's channel is the second implementation behind the same interface.
- The server is an ASGI application, so that the server that runs it stays replaceable: h2corn by default, pyvoy as the
  alternative (docs/servers.md).
- It refuses what gRPC's specification refuses, and reports that as a status. It also refuses messages that are not
  protobuf, and encodings other than ``identity`` and ``gzip``.
"""
