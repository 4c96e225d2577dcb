"""``mesh chaos``: runs a mesh of its own, calls it, kills what it can, and counts what became of every call.

``arrangement`` gives the mesh ports, state, databases and a broker of its own; ``trial`` is one run; ``plan`` says what
is struck when, ``strike`` and ``postgresql`` do it; ``calls`` are made meanwhile; ``count`` reads databases and broker,
and ``ledger`` compares.

Decided here:

- **It never touches a mesh that runs**, nor its data.
- **The framework's word is not taken**: the client counts calls, a trigger in the database commits, the broker's disk
  events, rows effects.
- **A strike is worth something only to a mesh that works.** Most wait until a call that was begun after the last one
  has been accepted; the others come at any time, so starts are struck too. How fast strikes follow each other is so
  the machine's to say, and how long the mesh took to work again is measured on the way.
"""
