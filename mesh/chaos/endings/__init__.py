"""The project that ``mesh chaos --endings`` runs: functions that end in every way that is no plain exception.

``ways`` has the ways. ``choice`` says which call and which event ends in which, how often, and whether it ever ends
well; so the ledger knows which dead letters there have to be. ``source`` is called through the edge, writes and
publishes. ``sink`` is called for its events, row changes and a schedule, and writes for each event and change.
``steps`` has no database: its ``def`` functions run in threads, stream, and are called by ``source``.

Decided here:

- **Tries are counted in files**, one for each method and event, because a process that is killed forgets.
- **Most keys have one event**, so that a key that is held by tries holds only itself; some have many, so that there is
  an order to keep.
"""
