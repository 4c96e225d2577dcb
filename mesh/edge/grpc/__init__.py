"""gRPC and gRPC-Web at the edge: calls are forwarded to the sidecars, and reflection shows the exposed contract.

Decisions:

- One port serves HTTP/JSON and gRPC; the content type decides. A client that reaches the edge needs no other address.
- gRPC calls pass the same chain as HTTP requests, refused ones too, so that limits, authentication and traces are the
  same for both.
- Messages are forwarded as bytes: the edge does not decode them, so that unknown fields and types pass.
- INTERNAL methods are PERMISSION_DENIED, and reflection does not show them.
- Malformed requests are INVALID_ARGUMENT, where a sidecar says INTERNAL: at the edge they are the client's fault.
"""
