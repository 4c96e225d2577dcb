"""HTTP in, gRPC out."""
