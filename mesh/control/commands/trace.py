"""``mesh trace``: the last traces, or one trace as a tree, from the trace store of the running ``mesh up``."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from mesh.config.manifest import load
from mesh.control import run_state
from mesh.control.supervise.trace_collector import ENDPOINTS, EXPORTER
from mesh.control.text_table import table
from mesh.faults import Fault, Faults

__all__ = ["show"]

_HTTP_TIMEOUT = 15.0
TRACE_WAIT_SECONDS = 3
"""Seconds to wait at most for the rest of a trace. Components export twice a second; a busy machine is slower."""
LIST_WAIT_SECONDS = 1
"""Seconds to wait at most for the traces of calls that have just ended."""
_NOT_FOUND = 404


def show(file: Path, trace_id: str | None) -> int:
    """Print the last traces, or one trace as a tree.

    Raises:
        Faults: The mesh does not run, keeps no traces, or has no such trace.
    """
    manifest = load(file)
    mesh = run_state.running(manifest.state)
    if mesh is None:
        raise Faults([Fault(str(manifest.file), "the mesh does not run; start it with `mesh up`")])
    if not mesh.traces:
        raise Faults([Fault(f"{EXPORTER} or {ENDPOINTS[-1]}", "is set: the traces are in that collector, not here")])
    if trace_id is None:
        print(_list(_get(mesh, f"/traces?wait={LIST_WAIT_SECONDS}", "")["traces"]))
        return 0
    from mesh.telemetry import trace_tree  # noqa: PLC0415 - only a single trace needs it

    found = _get(mesh, f"/traces/{quote(trace_id, safe='')}?wait={TRACE_WAIT_SECONDS}", trace_id)
    print(trace_tree.render(found, shutil.get_terminal_size((100, 24)).columns))
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


def _get(mesh: run_state.RunState, path: str, trace_id: str) -> Any:
    url = mesh.traces + path
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {mesh.traces_secret}"})  # noqa: S310 - of `mesh up`
    # A proxy of the environment must not be used: the store is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_HTTP_TIMEOUT) as response:
            return cast("Any", json.load(response))
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode("utf-8", "replace")
        try:
            message = json.loads(text)["message"]
        except (ValueError, KeyError, TypeError, RecursionError):
            message = "there is no such trace; `mesh trace` lists what there is" if error.code == _NOT_FOUND else text
        raise Faults([Fault(trace_id or url, message)]) from None
    except OSError as error:
        raise Faults([Fault(url, f"the trace store cannot be reached: {error}")]) from None
