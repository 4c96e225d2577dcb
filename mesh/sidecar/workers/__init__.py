"""Functions in worker processes, from zero to as many as there is work for.

The way of a call: inbound chain → ``pool`` (waits in ``queue`` if it must) → ``link`` ⇄ ``link`` in ``host`` →
function. The life of a worker: ``nursery`` tells ``forkserver``, which forks a ``host``; ``crew`` watches it;
``scaling`` says how many there should be.

Decided here:

- **A fork server of our own**, a fresh program: what a sidecar has (threads, a loop, connections) must not be copied.
  It preloads the framework and slow libraries, and not the service's own module: so new code needs only new forks,
  and module-level code runs once in each worker, as it does in a process of its own.
- **Frames over a socket pair, not gRPC**: a unary call is one frame each way, written once a turn of the loop. The same
  protocol carries what functions call onward, so workers hold no keys and no connections to other services.
- **What had begun is shared memory**: when a worker dies, calls that it had not touched go to another one, whatever
  they do. Those that it had touched fail, unless their method declares that it may be tried again.
- **Nothing outlives the sidecar**: each process dies with its parent, whoever is killed.
"""
