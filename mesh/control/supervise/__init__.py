"""Supervision: starts, restarts, reloads and stops the processes of a mesh on one machine.

- Each component has a ``Child`` of its own, so a component that hangs delays no other one.
- Signals are queued, and the event loop acts on them. A signal handler does nothing else.
- A process whose event loop answers no probe is restarted. Load and a drain are no reason: liveness is not readiness.
- A restart is delayed, with a limit, and never given up: the reason may be a dependency that comes back.
- A component that fails at the first start ends the start of the mesh: a fault that stays is seen at once.
- A reload starts the new process before it ends the old one. A process that does not start replaces nothing.

It refuses to run on several machines; that is the task of an orchestrator, which runs one component per container.
"""
