"""Project of ``mesh chaos --endings``: functions that end in every way that is no plain exception.

``ways`` has the ways. ``choice`` decides by the word of a call or event in which way a function ends, how often, and
whether it ever succeeds. The ledger therefore knows the dead letters to expect. ``source`` is called through the edge,
writes and publishes. ``sink`` is called for its events, row changes and a schedule, and writes for each event and
change. ``steps`` has no database: its ``def`` functions run in threads, stream, and are called by ``source``.

- **Attempts are counted in files**, one for each method and event, because a process that is killed forgets.
- **Most keys have one event**, so retries of an event delay no other one. Some keys have many events, so there is an
  order to keep.
"""
