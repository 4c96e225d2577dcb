"""Component: one process of a mesh, a sidecar or the edge.

- ``process`` is its life: load, wait for the start signal, start, report, wait for a signal, stop. It is the same in a
  container and under ``mesh up``.
- ``assembly`` builds a sidecar and the edge from their parts and decides nothing, so each chain is one visible list.
- A Lambda handler without workers gets the main thread, as on AWS; the event loop then runs in another thread, and
  ``signals`` carries signals to it.
"""
