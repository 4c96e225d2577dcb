"""gRPC server: ASGI applications for gRPC and gRPC-Web, their listener, health and reflection services."""
