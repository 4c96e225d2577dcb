"""Layers that every call passes: deadline, recover and concurrency limit.

Decisions:

- A layer is ``async def layer(call, next)`` (``mesh.call.Layer``) and has no other shape. Unary calls and streams pass
  the same code.
- The concurrency limit refuses with RESOURCE_EXHAUSTED as soon as its queue is full. No queue is unbounded.
- Its permits are shared fairly between connections, clients, users and targets (``fair_queue``). The shares bind only
  near the limit, and the assembler of a chain names them by a function from a call to their keys.
- ``recover`` logs a bug with its traceback and returns INTERNAL without its text.
- A method is limited while its calls wait too long in queues of the process (``queue_delay``). Their latency is no
  measure: it grows as well when a dependency is slow, or when other programs use the machine.
- Timeouts run on one timer wheel for each event loop, because a loop timer for each call costs 2 to 3 µs.

Layers of the edge alone are in ``mesh.edge.layers``; authentication is in ``mesh.auth``.
"""
