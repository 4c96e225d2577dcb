"""HTTP edge: each HTTP request becomes one gRPC call to a sidecar.

A request passes ``trace → recover → concurrency limit → authenticate → route``, with the optional layers of ``[edge]``
between them (``mesh.edge.layers.stack``). Routes are compiled when the edge starts: into a trie of path templates, and
for each route into functions that make a message from path, query and body.

Decisions:

- Only methods with a route are reachable as resources of HTTP, because the contract decides their paths. By gRPC,
  gRPC-Web and Connect all are, except for ``INTERNAL`` methods, which clients never reach.
- Only request headers of an allowlist become metadata of the call. ``authorization`` is passed on by the outbound layer
  that knows identities.
- A function sets a few named response headers and those that begin with ``x-``. It sets none of the mesh's own
  (``mesh.headers``).
- A stream is a JSON array, lines, Server-Sent Events or a WebSocket (docs/streams.md). The edge holds only the message
  on its way, so a slow client slows the function down. A failure before the first message is an HTTP status.
  Therefore the response starts with the first message, unless the stream stays silent.
- A stream has the timeout of its method or none. The edge's default timeout is for unary calls.
- Protocols are packages that do not import each other: ``http`` (transcoding), ``grpc``, ``openapi``, ``lambda_http``.
"""

from mesh.edge.app import EdgeApp
from mesh.edge.component import Edge
from mesh.edge.layers.stack import OptionalLayers

__all__ = ["Edge", "EdgeApp", "OptionalLayers"]
