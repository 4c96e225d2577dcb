"""Fault injection (``mesh chaos``): calls a mesh, kills its processes, and compares expected with found effects.

``rig`` gives the mesh ports, state, databases and a broker of its own. ``experiment`` is one run. ``plan`` decides the
faults, ``kills`` and ``postgresql_server`` inject them, ``requests`` makes the calls. ``evidence`` reads databases and
broker, ``ledger`` compares, ``recovery`` measures.

- **It never touches a mesh that runs**, nor its data. Ports, state, databases and broker belong to the run.
- **It trusts no component.** The client counts the calls, a trigger in the database the commits, the broker's storage
  the events, and rows the effects.
- **Most faults wait until the mesh works**, that is until a call that was started after the last fault has been
  accepted. A fault in a mesh that does not work yet can lose nothing. One fault in four comes at any time, so starts
  are hit too. The rate of faults therefore depends on the machine; the recovery time is measured on the way.
- **All chance follows from one seed.** The plan can be repeated, but which call a fault meets depends on the machine.

It refuses to run against a PostgreSQL database of mesh.toml, and against a mesh in which nothing can be counted.
"""
