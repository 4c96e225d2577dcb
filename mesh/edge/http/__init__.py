"""JSON over HTTP: routing, transcoding, content negotiation, streams and WebSockets.

``router`` finds the route. ``request_body`` and ``transcoder`` make the request message. ``response`` and ``streaming``
write the response. ``websocket`` does both over frames.

Decisions:

- Routes are compiled when the edge starts, so that a request costs no look at descriptors.
- Parsers, negotiation, transcoder and ``status_json`` are pure. Only ``HttpCall`` (``mesh.edge.calls``) touches ASGI.
- The head of every response and every error body is made in ``response``, so that a header rule holds on each way out.
- Nothing is buffered but one message: a slow client slows the function down.
"""
