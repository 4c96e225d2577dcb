"""``mesh health``: is it serving? The exit code answers, for the health checks of containers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mesh.faults import Fault, Faults

__all__ = ["run"]

_OK = 200
_SERVING = "SERVING"


def run(file: Callable[[], Path], address: str | None, timeout: float) -> int:
    """Ask the server and print its answer.

    Args:
        file: Returns mesh.toml; asked only when ``address`` is a name.
        address: ``host:port`` (gRPC health), ``http://host:port`` (``GET /healthz``), the name of an entry, ``edge``,
            or None for every one of mesh.toml.
        timeout: Seconds to wait for each answer.

    Returns:
        0 if everything asked is serving, else 1.
    """
    literal = address is not None and ":" in address
    found = {str(address): str(address)} if literal else _addresses(file(), address)
    answers = {name: _ask(where, timeout) for name, where in found.items()}
    for name, answer in answers.items():
        print(f"{name}: {answer}")
    return 0 if all(answer == _SERVING for answer in answers.values()) else 1


def _addresses(file: Path, name: str | None) -> dict[str, str]:
    from mesh.address import reachable  # noqa: PLC0415 - a container's health check needs none of it
    from mesh.config.manifest import load  # noqa: PLC0415 - as above
    from mesh.control import run_state  # noqa: PLC0415 - as above

    manifest = load(file)
    known = {entry: service.addresses[0] for entry, service in manifest.services.items()}
    if manifest.edge is not None:
        known["edge"] = manifest.edge.listen
    mesh = run_state.running(manifest.state)
    known |= mesh.addresses if mesh is not None else {}
    known = {entry: reachable(where) for entry, where in known.items()}
    if "edge" in known:
        known["edge"] = f"http://{known['edge']}"
    if name is None:
        return known
    if name not in known:
        raise Faults([Fault(str(manifest.file), f"there is no {name!r} (known: {', '.join(known)})")])
    return {name: known[name]}


def _ask(address: str, timeout: float) -> str:
    if "://" not in address:
        from mesh.rpc.client import health_check  # noqa: PLC0415 - as above

        return health_check.check(address, timeout)
    import http.client  # noqa: PLC0415 - as above
    from urllib.parse import urlsplit  # noqa: PLC0415 - as above

    url = urlsplit(address)
    connection = http.client.HTTPConnection(url.hostname or "", url.port or 80, timeout=timeout)
    try:
        connection.request("GET", url.path or "/healthz")
        status = connection.getresponse().status
    except OSError as error:
        return f"UNAVAILABLE: {error.strerror or error}"
    finally:
        connection.close()
    return _SERVING if status == _OK else f"NOT_SERVING: HTTP {status}"
