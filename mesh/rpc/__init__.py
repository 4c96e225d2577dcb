"""gRPC's wire: the only package that knows it.

Both halves share ``framing`` (length-prefixed messages, compression) and ``status`` (status, details,
``grpc-message``), and nothing else: ``client`` and ``server`` do not see each other.
"""
