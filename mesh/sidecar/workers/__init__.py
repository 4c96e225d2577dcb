"""Worker processes: functions run outside of the sidecar, in zero to ``workers.max`` processes.

Path of a call: inbound chain → ``worker_pool`` (waits in its ``FairQueue`` while no worker has a permit) →
``worker_connection`` ⇄ ``worker_connection`` in ``worker_process`` → function. Life of a worker: ``spawner`` commands
``forkserver``, which forks a ``worker_process``; ``lifecycle`` drains, replaces and kills it; ``scaling`` computes the
number of workers.

Decisions:

- **The fork server is a program of its own.** The threads, the event loop and the connections of a sidecar must not be
  copied into a worker. The fork server preloads the framework and slow libraries, but not the service's own module. New
  code therefore needs only new forks, and module-level code runs once in each worker, as in the sidecar's process.
- **Frames over a socket pair replace gRPC.** A unary call is one frame each way, and the frames of one turn of the
  event loop are written at once. Calls that functions make (*onward calls*) go to the sidecar over the same connection,
  and the sidecar makes them. So workers hold no keys and no connections to other services.
- **The watermark is shared memory.** It tells after the death of a worker which functions had started. Calls whose
  function had not started are sent to another worker, whatever their method. Calls whose function had started fail,
  unless their method declares ``idempotency_level``.
- **One queue stands before the workers.** ``mesh.layers.concurrency`` bounds the calls that the service has, running
  and waiting, and queues none of them. They wait in the pool for a worker, in a ``FairQueue`` of the pool's permits:
  one slow method must not hold all workers, and a call may need a worker of a certain health.
- **Methods that kill workers are kept apart** (``method_health``, ``worker_choice``). A worker's death cannot be
  attributed to one call, so blame is statistical and a healthy method is cleared by its own responses.
- **Each process dies with its parent.** No process outlives the sidecar, whichever process is killed.

Refused: no call in progress is preempted for another one. A worker listens on no port, reads no key and resolves no
address; it does not know the gRPC wire.
"""
