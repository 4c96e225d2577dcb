"""The trace store of ``mesh up``, when there is no collector, and ``mesh trace``, which reads it."""

from __future__ import annotations

import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from mesh.config.manifest import load
from mesh.control import state
from mesh.control.table import table
from mesh.faults import Fault, Faults
from mesh.rpc.server.listener import Listener
from mesh.telemetry import variables

__all__ = ["ENDPOINT", "Traces", "collector", "show"]

ENDPOINT = "MESH_INTERNAL_OTLP_ENDPOINT"
"""The environment variable that tells components where the trace store is."""
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_EXPORTER = "OTEL_TRACES_EXPORTER"
_TIMEOUT = 15.0
WAIT = 3
"""Seconds, at most, for the rest of a trace: components export twice a second, a busy machine takes longer."""
SETTLE = 1
"""Seconds for the traces of what has just been answered."""
_NOT_FOUND = 404


def collector(environ: Mapping[str, str] | None = None) -> str:
    """Return where the standard ``OTEL_*`` variables send traces, or "" if they say nothing of it."""
    found = os.environ if environ is None else environ
    names = variables.exporters(found, "traces")
    if names is None:
        return ""
    endpoint = next((found[name] for name in _ENDPOINTS if found.get(name)), "")
    if endpoint and "otlp" in names:
        return endpoint
    return f"{', '.join(names) or 'no exporter'} ({_EXPORTER})"


class Traces:
    """The store, served on a free port of this machine by this process."""

    def __init__(self) -> None:
        # The receiver loads OpenTelemetry's protobuf classes: only a mesh without a collector pays for that.
        from mesh.telemetry.receiver import Receiver  # noqa: PLC0415 - see above
        from mesh.telemetry.store import Store  # noqa: PLC0415 - see above

        self._listener = Listener(Receiver(Store()), "127.0.0.1:0", grpc=False, drain=1.0)

    async def start(self) -> str:
        """Start; return its URL."""
        return f"http://{await self._listener.start()}"

    async def stop(self) -> None:
        """Stop; the traces are gone."""
        await self._listener.stop()


# -- mesh trace --


def show(file: Path, trace_id: str | None) -> int:
    """Print the last traces, or one as a tree.

    Raises:
        Faults: The mesh does not run, keeps no traces, or has no such trace.
    """
    manifest = load(file)
    mesh = state.running(manifest.state)
    if mesh is None:
        raise Faults([Fault(str(manifest.file), "the mesh does not run; start it with `mesh up`")])
    if not mesh.traces:
        raise Faults([Fault(f"{_EXPORTER} or {_ENDPOINTS[-1]}", "is set, so the traces are there, and not kept here")])
    if trace_id is None:
        print(_list(_get(f"{mesh.traces}/traces?wait={SETTLE}", "")["traces"]))
        return 0
    from mesh.telemetry import tree  # noqa: PLC0415 - beside its only use

    found = _get(f"{mesh.traces}/traces/{quote(trace_id, safe='')}?wait={WAIT}", trace_id)
    print(tree.render(found, shutil.get_terminal_size((100, 24)).columns))
    return 0


def _list(traces: list[dict[str, Any]]) -> str:
    rows = [
        (
            trace["trace_id"],
            datetime.fromtimestamp(trace["start"] / 1e9, UTC).astimezone().strftime("%H:%M:%S.%f")[:-3],
            f"{trace['duration'] / 1e6:.1f} ms",
            str(trace["spans"]),
            "error" if trace["error"] else "",
            trace["service"],
            trace["name"],
        )
        for trace in traces
    ]
    return table(("trace", "start", "took", "spans", "", "service", "what"), rows) if rows else "no traces yet"


def _get(url: str, trace_id: str) -> Any:
    # Not through a proxy of the environment: the store is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_TIMEOUT) as answer:
            return cast("Any", json.load(answer))
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode("utf-8", "replace")
        try:
            message = json.loads(text)["message"]
        except (ValueError, KeyError, TypeError):
            message = "there is no such trace; `mesh trace` lists what there is" if error.code == _NOT_FOUND else text
        raise Faults([Fault(trace_id or url, message)]) from None
    except OSError as error:
        raise Faults([Fault(url, f"the trace store does not answer: {error}")]) from None
