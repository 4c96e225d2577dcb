"""Layers that every call passes, at the edge and at the sidecar: deadline, recover, concurrency."""
