"""Connect protocol on the port of the gRPC server: unary calls as plain HTTP, streams as enveloped messages.

Decisions:

- A Connect call is an ``InboundCall`` with another form on the wire. It has the handler of the gRPC call: the layers,
  the access rules and the limits are those of gRPC, and no layer knows the protocol.
- JSON is translated here, so everything behind this package sees serialized messages. The codec is ``mesh.protojson``.
- A request is a Connect call if its media type fits the kind of the method (``request.takes``). The gRPC server refuses
  all other requests, and the edge looks for a route.
- The size limit of a message holds for its bytes as sent, decompressed, and as JSON text.
- A unary response is sent when the call has ended, as in gRPC. So a failure after ``send`` is still an error, with its
  HTTP status.

Source: https://connectrpc.com/docs/protocol/.
"""
