"""``mesh health``: health check of a component, with an exit code for containers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mesh.faults import Fault, Faults

__all__ = ["run"]

_OK = 200
_SERVING = "SERVING"
_SIGNER = "keys"
"""Name of the signer, which is no component of a mesh that ``mesh up`` runs."""
_LIVENESS = "liveness"
"""Service name of liveness (``mesh.rpc.server.health_service``, which imports protobuf)."""


def run(file: Callable[[], Path], address: str | None, timeout: float, *, live: bool = False) -> int:
    """Check health and print the result.

    Args:
        file: Returns mesh.toml; called only when ``address`` is a name or None.
        address: ``host:port`` (gRPC health), ``http://host:port`` (``GET /healthz``), the name of a service, ``edge``,
            ``keys`` (the signer), or None for all components of mesh.toml.
        timeout: Seconds to wait for each response.
        live: Check liveness: whether the event loop turns, also while the component drains (``GET /livez``).

    Returns:
        0 if every checked component is serving, else 1.
    """
    if address == _SIGNER:
        return _signer(file(), timeout)
    literal = address is not None and ":" in address
    found = {str(address): str(address)} if literal else _addresses(file(), address)
    states = {name: _check(target, timeout, live=live) for name, target in found.items()}
    for name, state in states.items():
        print(f"{name}: {state}")
    return 0 if all(state == _SERVING for state in states.values()) else 1


def _addresses(file: Path, name: str | None) -> dict[str, str]:
    from mesh.address import reachable  # noqa: PLC0415 - a container's health check needs none of it
    from mesh.config.manifest import load  # noqa: PLC0415 - as above
    from mesh.control import run_state  # noqa: PLC0415 - as above

    manifest = load(file)
    known = {service: config.addresses[0] for service, config in manifest.services.items()}
    if manifest.edge is not None:
        known["edge"] = manifest.edge.listen
    mesh = run_state.running(manifest.state)
    known |= mesh.addresses if mesh is not None else {}
    known = {component: reachable(listen) for component, listen in known.items()}
    if "edge" in known:
        known["edge"] = f"http://{known['edge']}"
    if name is None:
        return known
    if name not in known:
        raise Faults([Fault(str(manifest.file), f"there is no {name!r} (known: {', '.join(known)})")])
    return {name: known[name]}


def _signer(file: Path, timeout: float) -> int:
    from mesh.certificates import CertificateError  # noqa: PLC0415 - as above
    from mesh.config.manifest import load  # noqa: PLC0415 - as above
    from mesh.control.component.signer_client import SignerConnection  # noqa: PLC0415 - as above

    try:
        SignerConnection(load(file), timeout).round()
    except CertificateError as error:
        print(f"{_SIGNER}: UNAVAILABLE: {error}")
        return 1
    print(f"{_SIGNER}: {_SERVING}")
    return 0


def _check(address: str, timeout: float, *, live: bool) -> str:
    if "://" not in address:
        from mesh.rpc.client import health_check  # noqa: PLC0415 - as above

        return health_check.check(address, timeout, _LIVENESS if live else "")
    import http.client  # noqa: PLC0415 - as above
    from urllib.parse import urlsplit  # noqa: PLC0415 - as above

    url = urlsplit(address)
    connection = http.client.HTTPConnection(url.hostname or "", url.port or 80, timeout=timeout)
    try:
        connection.request("GET", url.path or ("/livez" if live else "/healthz"))
        status = connection.getresponse().status
    except OSError as error:
        return f"UNAVAILABLE: {error.strerror or error}"
    finally:
        connection.close()
    return _SERVING if status == _OK else f"NOT_SERVING: HTTP {status}"
