"""Control: the commands that run and show a mesh, the supervisor of its processes, and the component in each of them.

- ``commands`` prints, and starts a supervisor. ``supervise`` runs processes. ``component`` is what one process runs.
  The imports go in this direction only.
- The supervisor and a component share no code but ``readiness``: one socket pair carries the start signal, the
  readiness report and, by its end, the death of the parent. A component in a container has no supervisor.
- The supervisor owns the listening sockets. A component that is restarted or replaced keeps its address, and
  connections made meanwhile wait in the kernel's backlog.
- Modules that every command needs load nothing heavy: ``mesh health`` runs every few seconds in a container.

Control refuses to decide about a single call. That is the task of ``mesh.sidecar`` and ``mesh.edge``.
"""
