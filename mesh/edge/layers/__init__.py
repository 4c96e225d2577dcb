"""Layers of the edge's chain. They know no protocol of the edge: a call is an ``HttpCall``."""
