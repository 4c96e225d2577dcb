"""HTTP in, gRPC out.

A request passes ``trace → recover → concurrency_limit → authenticate → transcode``, with the layers that mesh.toml asks
for between them (``mesh.edge.layers.stack``), and becomes one gRPC call. The routes are compiled when the edge starts:
a trie of path templates, and for each how path, query and body become a message.

Decisions: only what the contract gives a route is reachable; ``INTERNAL`` methods never are. Of the request headers
only those of an explicit list become metadata of the call (the user's ``authorization`` is forwarded by the outbound
layer that knows identities), and of a function's response metadata only a named few become HTTP headers.

A streaming method answers as a JSON array, lines or Server-Sent Events, or over a WebSocket; nothing of a stream is
held here but the message on its way. A failure before the first message is an HTTP status, so a response begins no
earlier, unless the stream stays silent. A stream has the timeout of its method, or none: the edge's default is for one
answer.
docs/streams.md tells it to users.
"""

from mesh.edge.app import EdgeApp
from mesh.edge.component import Edge
from mesh.edge.layers.stack import Door

__all__ = ["Door", "Edge", "EdgeApp"]
