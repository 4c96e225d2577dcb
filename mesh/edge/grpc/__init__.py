"""gRPC and gRPC-Web through the edge: calls are forwarded to the sidecars with their messages untouched."""
