"""gRPC client: channels for generated stubs, on libnghttp2 or on grpcio.

- A ``Channel`` gives stubs a handler; a ``Target`` is the handler that calls a service. Layers stand between the two,
  among them ``retry``. A test can therefore put any handler behind a stub.
- Two transports have one behaviour and one suite of tests: ``Http2Transport`` (libnghttp2), and ``GrpcioTransport``
  (``channel = "grpcio"`` in mesh.toml). libnghttp2 is the default because a unary call takes less than a third of the
  CPU (docs/performance.md).
- Unary calls share a connection for each endpoint. Streaming calls have connections of their own, because a stream
  that is not read can block the others on its connection.
- Only calls that no server has processed are sent again here. Everything else is retried by ``retry``, if its method
  declares retry safety.
- An endpoint is judged by comparison with the others (``endpoint_health``), and a target by whether it answers anything
  (``circuit_breaker``). Errors of functions count as answers in both. The health check of a silent server takes the
  place of an HTTP/2 PING, because HTTP/2 stacks acknowledge PINGs for event loops that are blocked.
- TLS: ``ServiceTls`` gives a target contexts that follow renewals, and checks the name of each server. Connections are
  replaced after a renewal, and closed when a certificate on them expires.
- It refuses call credentials, because the outbound layers identify the caller, and metadata that belong to the
  transport.
"""
