"""JSON over HTTP: routes, transcoding, negotiation, streams and WebSockets."""
