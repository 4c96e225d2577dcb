"""``mesh health``: health check of a component, with an exit code for containers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mesh.faults import Fault, Faults

if TYPE_CHECKING:
    from mesh.config.manifest import Manifest
    from mesh.rpc.client.service_tls import ServiceTls

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
        file: Returns mesh.toml; called only when ``address`` is a name or None, or the server there speaks TLS.
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
    found = {str(address): CheckedServer(str(address))} if literal else _targets(file(), address)
    states = {name: _check(target, timeout, partial(_find_tls, file), live=live) for name, target in found.items()}
    for name, state in states.items():
        print(f"{name}: {state}")
    return 0 if all(state == _SERVING for state in states.values()) else 1


class CheckedServer(NamedTuple):
    """Server that is checked.

    Attributes:
        address: ``host:port`` (gRPC health) or a URL.
        tls: TLS to the service, or None.
    """

    address: str
    tls: ServiceTls | None = None


def _find_tls(file: Callable[[], Path], address: str) -> ServiceTls | None:
    from mesh.control.operator_tls import tls_at  # noqa: PLC0415 - only with TLS

    return tls_at(file, address)


def _targets(file: Path, name: str | None) -> dict[str, CheckedServer]:
    """Return the components of mesh.toml, or the one with this name.

    Raises:
        Faults: There is no such component, or no certificate to call it with.
    """
    from mesh.address import reachable  # noqa: PLC0415 - a container's health check needs none of it
    from mesh.config.manifest import load  # noqa: PLC0415 - as above
    from mesh.control import run_state  # noqa: PLC0415 - as above

    manifest = load(file)
    known = {service: config.addresses[0] for service, config in manifest.services.items()}
    if manifest.edge is not None:
        known["edge"] = manifest.edge.listen
    mesh = run_state.running(manifest.state)
    known |= mesh.addresses if mesh is not None else {}
    if name is not None and name not in known:
        raise Faults([Fault(str(manifest.file), f"there is no {name!r} (known: {', '.join(known)})")])
    names = known if name is None else [name]
    return {one: _target(manifest, one, reachable(known[one])) for one in names}


def _target(manifest: Manifest, name: str, address: str) -> CheckedServer:
    if name == "edge":
        return CheckedServer(_edge_url(manifest, address))
    if not manifest.secures(name):
        return CheckedServer(address)
    from mesh.control.operator_tls import operator_tls  # noqa: PLC0415 - only with TLS

    return CheckedServer(address, operator_tls(manifest, name))


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


def _edge_url(manifest: Manifest, address: str) -> str:
    """Return the URL of the edge. The plain listener beside HTTPS serves probes too, and asks for no certificate."""
    from mesh.address import reachable  # noqa: PLC0415 - as above

    tls = manifest.edge.tls if manifest.edge is not None else None
    if tls is None:
        return f"http://{address}"
    return f"http://{reachable(tls.redirect)}" if tls.redirect else f"https://{address}"


def _check(target: CheckedServer, timeout: float, find_tls: Callable[[str], ServiceTls | None], *, live: bool) -> str:
    if "://" not in target.address:
        from mesh.rpc.client import health_check  # noqa: PLC0415 - as above

        service, find = _LIVENESS if live else "", partial(find_tls, target.address)
        return health_check.check(target.address, timeout, service, target.tls, find_tls=find)
    import http.client  # noqa: PLC0415 - as above
    from urllib.parse import urlsplit  # noqa: PLC0415 - as above

    url = urlsplit(target.address)
    connection: http.client.HTTPConnection
    if url.scheme == "https":
        import ssl  # noqa: PLC0415 - as above

        # The check asks whether the edge serves, not who it is: its certificate is for another name than this address.
        tls = ssl._create_unverified_context()  # noqa: S323, SLF001 - as above
        connection = http.client.HTTPSConnection(url.hostname or "", url.port or 443, timeout=timeout, context=tls)
    else:
        connection = http.client.HTTPConnection(url.hostname or "", url.port or 80, timeout=timeout)
    try:
        connection.request("GET", url.path or ("/livez" if live else "/healthz"))
        status = connection.getresponse().status
    except OSError as error:
        return f"UNAVAILABLE: {error.strerror or error}"
    finally:
        connection.close()
    return _SERVING if status == _OK else f"NOT_SERVING: HTTP {status}"
