"""The only room that knows gRPC's wire."""
