"""gRPC on the wire: client, server and the wire format that both share.

The only package that knows this wire. Decisions:

- ``framing`` (length-prefixed messages, compression, timeouts) and ``status`` (status, details, ``grpc-message``) are
  pure and shared. Beside them ``client`` and ``server`` share nothing and do not import each other.
- The client is our own channel on libnghttp2 (``ngh2``), because it costs a fraction of the CPU of grpcio's asyncio
  channel. grpcio's channel stays the second implementation behind the same interface.
- The server is an ASGI application, because the server that runs it stays replaceable: h2corn by default, pyvoy as the
  alternative (docs/servers.md).

It refuses messages that are not protobuf, and encodings other than ``identity`` and ``gzip``.
"""
