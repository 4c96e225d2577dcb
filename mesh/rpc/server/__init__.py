"""gRPC server: ASGI applications for gRPC and gRPC-Web, their listener, the health and reflection services.

Decisions:

- The gRPC server routes calls and speaks the protocol. Authentication, deadlines, concurrency limits and traces are
  layers around the handlers that it is given.
- gRPC-Web is a translation around the gRPC server and not a second server, so both have one implementation of a call.
- Only ``listener`` imports h2corn. Everything else runs under any ASGI server with HTTP/2 trailers.
- A unary response is sent when the call has ended, so that a failure after ``send`` is still a plain error status.
- The end of the caller is ``asyncio.CancelledError`` in the handler, whichever way the ASGI server reports it.
"""
