"""Measurements of the mesh beside its peers; see ``python -m benchmarks --help``."""
