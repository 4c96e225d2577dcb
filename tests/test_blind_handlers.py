"""Blind exception handlers in ``mesh``: each has an entry in ``ALLOWED`` with its reason.

``except Exception`` around user code misses a ``SystemExit`` and the panic of a Rust extension. A handler of
``CancelledError`` that takes each one for a disconnect misses the cancellations of the function itself. Only
``mesh.boundary`` handles both. Every other handler of these kinds needs a reason:

- ``except Exception`` and ``suppress(Exception)``: no user code runs in it, or only inside of ``contain``;
- ``except BaseException`` without a bare ``raise``: nothing may pass;
- a handler of ``CancelledError`` without a bare ``raise``: it knows the origin of the cancellation.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BOUNDARY = "mesh/boundary.py"
BLIND = frozenset({"Exception", "BaseException", "CancelledError"})

ALLOWED = {
    "mesh/auth/jwks.py": {
        "KeySet._load: Exception": "fetches keys; no user code",
    },
    "mesh/auth/revocation_watch.py": {
        "RevocationWatch.run: Exception": "calls a service and reads its messages; no user code",
    },
    "mesh/certificates/credentials.py": {
        "Credentials.reload: Exception": "subscribers are the mesh's own listeners and channels",
    },
    "mesh/chaos/endings/source/functions.py": {
        "_steps: Exception": "a function of a mesh, not of the framework",
    },
    "mesh/chaos/endings/ways.py": {
        "end_on_the_loop: CancelledError": "a function of a mesh, not of the framework",
    },
    "mesh/control/component/process.py": {
        "serve: Exception": "imports are Faults, hooks and migrations are contained",
    },
    "mesh/control/component/service_events.py": {
        "_prune: Exception": "the mesh's own statements",
    },
    "mesh/control/commands/events_actions.py": {
        "_json: Exception": "decodes an event for the command line",
    },
    "mesh/control/commands/stored_events.py": {
        "_opened: Exception": "the mesh's own statements",
    },
    "mesh/control/supervise/child.py": {
        "Child._cancel_restarts: CancelledError": "awaits the task that it has just cancelled",
    },
    "mesh/control/supervise/reload.py": {
        "reload_on_change: Exception": "loads manifest, contract and versions as text; no user code",
    },
    "mesh/database/database.py": {
        "Database._transaction: Exception": "connects; no user code",
        "Database.start: Exception": "migrations are contained",
    },
    "mesh/database/migrations.py": {
        "_scripts: Exception": "inside of ``contain``, which ``Database.start`` puts around it",
    },
    "mesh/database/leader_lock.py": {
        "PostgresLeaderLock._heartbeat: Exception": "the mesh's own statement",
        "PostgresLeaderLock.acquire: Exception": "the mesh's own statement",
        "PostgresLeaderLock.release: Exception": "gives up a connection",
    },
    "mesh/database/transaction.py": {
        "DatabaseTransaction.commit: BaseException": "raises it again, as a status where it is one",
        "DatabaseTransaction.execute: BaseException": "raises it again, as a status where it is one",
    },
    "mesh/function_annotations.py": {
        "_evaluate: Exception": "annotations, in `mesh check`, where an exit of user code ends the command only",
    },
    "mesh/layers/deadline.py": {
        "_cancel: CancelledError": "checks its own timeout",
        "_cancel: Exception": "outside of ``boundary``, which is around each function",
    },
    "mesh/edge/app.py": {
        "EdgeApp._answer: BaseException": "the edge runs no user code: a cancellation is the server's, or the stop's",
        "_unless_disconnected: CancelledError": "asks whether the client has disconnected",
    },
    "mesh/rpc/server/clients/client_stream.py": {
        "ClientStream._wait_for_request: CancelledError": "checks its own timeout",
        "ClientStream._write: CancelledError": "checks its own timeout",
        "_disconnected: CancelledError": "waits for it: the server cancels the task whose connection was closed",
        "_rest: BaseException": "throws it into the awaitable, as ``yield from`` does",
    },
    "mesh/edge/http/websocket.py": {
        "_WebSocketSession.run: CancelledError": "asks whether the edge stops",
        "_WebSocketSession.run: Exception": "the edge runs no user code; ``recover`` is around it",
    },
    "mesh/edge/http/streaming.py": {
        "MessageStream.stop: CancelledError": "awaits the task that it has just cancelled",
        "Streams._invoke: CancelledError": "asks whether the response is complete, or the edge stops",
        "Streams._invoke: Exception": "the edge runs no user code; ``recover`` is around it",
    },
    "mesh/events/consume/delivery_call.py": {
        "once: Exception": "outside of ``boundary``, which is around each function",
    },
    "mesh/events/broker/broker.py": {
        "Broker._reconnect: Exception": "the connection to the broker; no user code",
        "Broker._send: Exception": "sends to the broker; no user code",
    },
    "mesh/events/consume/delivery.py": {
        "Delivery._run: Exception": "reads from the broker; each delivery is a task of its own",
    },
    "mesh/events/consume/processing.py": {
        "Processor._attempt: BaseException": "``as_exception`` says what passes",
    },
    "mesh/events/consume/pull.py": {
        "ConsumerReader._decide: BaseException": "``as_exception`` says what passes",
    },
    "mesh/events/publish/relay.py": {
        "Relay._run: Exception": "the outbox; no user code",
        "Relay._send: Exception": "decodes a row; no user code",
        "Relay.stop: CancelledError": "awaits the task that it has just cancelled",
    },
    "mesh/function.py": {
        "load_module: BaseException": "a module that cannot be imported is a fault, whatever it raises",
        "module_spec: BaseException": "the same of the packages that it is in",
    },
    "mesh/lambdas/handlers.py": {
        "LambdaFunctions._run.awaited: Exception": "inside of it is ``contain``",
        "LambdaFunctions._run.call: BaseException": "in a thread, where no cancellation of the mesh comes",
        "_run_until: CancelledError": "checks its own timeout",
    },
    "mesh/lambdas/json_text.py": {
        "marshal: BaseException": "objects of the handler are written, without a turn of the loop",
    },
    "mesh/lambdas/json_value.py": {
        "encode: BaseException": "objects of the handler are written, without a turn of the loop",
    },
    "mesh/main_thread.py": {
        "MainThread._complete: Exception": "restores the process's signals after a function, which has ended",
        "MainThread._serve: BaseException": "a signal handler of a function raised, which ends the function that runs",
        "MainThread.run_with_loop.loop: BaseException": "raised in the main thread",
        "MainThread.run_with_loop: BaseException": "a signal handler of a function raised between two turns",
        "MainThread.call.done: BaseException": "raised where the work was asked for",
    },
    "mesh/layers/recover.py": {
        "recover: BaseException": "``as_exception`` says what passes",
    },
    "mesh/rpc/client/blocking_channel.py": {
        "_from_thread.take: BaseException": "raised in the loop, inside of ``contain``",
    },
    "mesh/rpc/client/unary_call.py": {
        "UnaryUnaryCall._run: Exception": "protobuf's deserializer; no user code",
        "UnaryUnaryCall._run_in_task: CancelledError": "kept for the task that awaits the call",
        "UnaryUnaryCall._run_in_task: Exception": "kept for the task that awaits the call",
    },
    "mesh/rpc/client/grpcio_transport.py": {
        "GrpcioTransport.__call__: CancelledError": "raises what the function's requests ended with, if they did",
        "GrpcioTransport._send_requests: Exception": "what the function streams is contained in ``receive``",
    },
    "mesh/rpc/server/inbound_call.py": {
        "InboundCall.abort: Exception": "tells the server of an end that could not be told",
    },
    "mesh/rpc/server/connect/connect_call.py": {
        "_ConnectCall.abort: Exception": "tells the server of an end that could not be told",
    },
    "mesh/rpc/client/connection_pool.py": {
        "ConnectionPool._connect_endpoint: Exception": "connects; no user code",
    },
    "mesh/rpc/server/grpc_app.py": {
        "GrpcApp.__call__: CancelledError": "asks whether the call was dropped because of its caller",
        "GrpcApp.__call__: BaseException": "``as_exception`` says what passes",
        "GrpcApp.__call__: Exception": "sends the answer; no user code",
        "GrpcApp._failed: CancelledError": "comes from ``as_exception``: the mesh has asked for it",
    },
    "mesh/rpc/client/streaming_call.py": {
        "_StreamingCore.decode: Exception": "protobuf's deserializer; no user code",
        "_StreamingCore.run: BaseException": "raised where the call is awaited",
    },
    "mesh/sidecar/sidecar.py": {
        "Sidecar.asgi: Exception": "hooks are contained",
    },
    "mesh/sidecar/workers/lifecycle.py": {
        "WorkerLifecycle._load: BaseException": "raises it again, or says that a worker did not load in time",
    },
    "mesh/sidecar/workers/spawner.py": {
        "Spawner._start: BaseException": "raises it again, or says that the fork server did not start",
    },
    "mesh/sidecar/workers/forkserver.py": {
        "_ForkServer._run_worker: BaseException": "the process ends",
        "_ForkServer._preload: BaseException": "a worker imports it again, and says why it cannot",
    },
    "mesh/sidecar/workers/frames.py": {
        "parse_open: Exception": "decodes a frame",
        "parse_status: Exception": "decodes a frame",
    },
    "mesh/sidecar/workers/worker_process.py": {
        "_WorkerProcess.leave: Exception": "hooks are contained",
        "_WorkerProcess.load: Exception": "imports are Faults; ``start`` raises it",
        "_WorkerProcess.start: Exception": "imports are Faults, hooks are contained",
    },
    "mesh/sidecar/workers/import_probe.py": {
        "probe: BaseException": "a scratch process that says why the import failed",
    },
    "mesh/sidecar/workers/worker_connection.py": {
        "WorkerConnection._forward_requests: Exception": "what the function streams is contained in ``receive``",
        "WorkerConnection._run: BaseException": "the other end waits for a STATUS",
        "WorkerConnection._run: CancelledError": "``recover`` has made a status of those that are the function's",
        "WorkerConnection._run: Exception": "encodes a frame",
        "WorkerConnection.data_received: Exception": "decodes frames",
        "_fallback_status: Exception": "encodes a frame",
    },
    "mesh/telemetry/exporter_queue.py": {
        "ExporterQueue._export: Exception": "the exporter's",
        "ExporterLog.emit: Exception": "formats what the exporter logs",
        "run_bounded.quietly: Exception": "the exporter's",
    },
    "mesh/telemetry/otlp_encoder.py": {
        "Encoder.encode: Exception": "spans hold plain values by then",
        "_encode_each: Exception": "the same",
    },
    "mesh/telemetry/logs.py": {
        "_exception: BaseException": "a broken ``__str__``",
        "_json: BaseException": "a broken ``__str__``",
        "_message: BaseException": "a broken ``__str__``",
    },
    "mesh/telemetry/worker_metrics.py": {
        "MeasurementRecorder.__call__: Exception": "decoded values of a worker",
        "_SendingInstrument._odd: BaseException": "odd values of a function",
        "_SendingInstrument.measured: BaseException": "odd values of a function",
    },
    "mesh/telemetry/attribute_values.py": {
        "plain: BaseException": "odd values of a function",
    },
    "mesh/telemetry/worker_spans.py": {
        "pack: BaseException": "odd values of a function",
    },
    "mesh/telemetry/configuration.py": {
        "Telemetry.export_worker_span: Exception": "decoded values of a worker",
        "_exporters: Exception": "exporters of installed packages; the component starts without one that fails",
    },
    "mesh/text.py": {
        "text_of: BaseException": "a broken ``__str__``",
    },
    "mesh/threads.py": {
        "Job.run: BaseException": "``resolve`` raises it in the loop, contained",
        "Job.wait: CancelledError": "asks whether the call has ended",
        "ThreadEventLoop.restore: Exception": "an event loop policy of a function's; it gets no loop then",
        "wait: CancelledError": "raises it as asyncio's",
    },
}
"""Module → function and what it catches → why it may."""


def blind(source: str) -> Iterator[str]:
    """Yield ``FUNCTION: WHAT`` for each blind handler of a module."""

    def visit(node: ast.AST, where: str) -> Iterator[str]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            where = f"{where}.{node.name}" if where else node.name
        if isinstance(node, ast.ExceptHandler):
            yield from (f"{where}: {name}" for name in caught(node))
        elif isinstance(node, ast.Call) and name_of(node.func) == "suppress":
            yield from (f"{where}: {name}" for name in sorted(BLIND.intersection(map(name_of, node.args))))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, where)

    return visit(ast.parse(source), "")


def caught(handler: ast.ExceptHandler) -> list[str]:
    """Return which of the blind ones a handler catches and does not hand on as it is."""
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    names = BLIND.intersection("BaseException" if kind is None else name_of(kind) for kind in kinds)
    if again(handler.body[-1]) and not any(ends(node) for node in ast.walk(handler)):
        names &= {"Exception"}
    return sorted(names)


def again(node: ast.AST) -> bool:
    """Whether it is a bare ``raise``."""
    return isinstance(node, ast.Raise) and node.exc is None


def ends(node: ast.AST) -> bool:
    """Whether it leaves the handler in another way."""
    return isinstance(node, ast.Return | ast.Continue | ast.Break | ast.Raise) and not again(node)


def name_of(node: ast.AST | None) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("file", sorted((ROOT / "mesh").rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_what_is_caught_blindly_has_a_reason(file: Path) -> None:
    name = str(file.relative_to(ROOT))
    if name != BOUNDARY:
        assert set(blind(file.read_text())) == ALLOWED.get(name, {}).keys()


def test_every_reason_is_of_a_module_that_is_there() -> None:
    assert [name for name in ALLOWED if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    ("handler", "found"),
    [
        ("except Exception:\n log()", ["f: Exception"]),
        ("except Exception:\n log()\n raise", ["f: Exception"]),  # what it does is not done for the others
        ("except (OSError, builtins.Exception) as error:\n log()", ["f: Exception"]),
        ("except:\n log()", ["f: BaseException"]),
        ("except BaseException:\n log()\n raise", []),
        ("except BaseException as error:\n raise Other from error", ["f: BaseException"]),
        ("except asyncio.CancelledError:\n give_back()\n raise", []),
        ("except CancelledError:\n if gone:\n  return\n raise", ["f: CancelledError"]),
        ("except CancelledError:\n if late:\n  raise Other\n raise", ["f: CancelledError"]),
        ("except (Exception, asyncio.CancelledError):\n log()", ["f: CancelledError", "f: Exception"]),
        ("except ValueError:\n log()", []),
        ("finally:\n with contextlib.suppress(Exception):\n  log()", ["f: Exception"]),
    ],
)
def test_the_rule_finds_what_somebody_may_add(handler: str, found: list[str]) -> None:
    lines = "\n".join(f" {line}" for line in f"try:\n await function()\n{handler}".splitlines())
    assert list(blind(f"async def f():\n{lines}\n")) == found
