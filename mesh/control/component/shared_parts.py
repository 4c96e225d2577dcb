"""Shared parts of a sidecar and the edge: telemetry, identity, certificates, outbound chain, verifier of users."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable
from importlib.metadata import version

from mesh import telemetry
from mesh.auth import EDGE, CallDeclarations, Signer, identify, key_files
from mesh.call import Call, Handler, Layer, chain
from mesh.config.manifest import Manifest
from mesh.contract.model import Contract
from mesh.control import file_rights
from mesh.control.component import component_certificates
from mesh.control.component.component_tls import ComponentTls
from mesh.control.component.user_verification import UserVerification
from mesh.control.readiness import TRACES_ENDPOINT_VARIABLE, TRACES_SECRET_VARIABLE
from mesh.errors import Unimplemented
from mesh.events.hops import carry
from mesh.rpc.client.channel import Channel
from mesh.rpc.client.retry import retry
from mesh.rpc.client.target import Target
from mesh.telemetry import logs
from mesh.telemetry.propagation import CallerTrace

__all__ = ["SharedParts"]

log = logging.getLogger("mesh.control")


class Outbound:
    """Last handler of every outbound chain: sends each call to the target that serves its gRPC service.

    Args:
        manifest: The services and their addresses.
        tls: Certificates of this component.
    """

    def __init__(self, manifest: Manifest, tls: ComponentTls) -> None:
        self._targets: dict[str, Target] = {}
        self._all_targets: list[Target] = []
        for name, service in manifest.services.items():
            target = Target(
                service.addresses,
                transport=manifest.channel,
                max_message=int(service.max_message),
                tls=tls.to(name),
                name=name,
            )
            self._all_targets.append(target)
            self._targets.update(dict.fromkeys(service.serves, target))

    def __call__(self, call: Call) -> Awaitable[None]:
        """Send the call to its target.

        Raises:
            StatusError: The status of the call; UNIMPLEMENTED when mesh.toml has no service that serves it.
        """
        target = self._targets.get(call.method.service)
        if target is None:
            raise Unimplemented(f"no service of mesh.toml serves {call.method.service}")
        return target(call)

    async def close(self) -> None:
        """Close every connection."""
        await asyncio.gather(*(target.close() for target in self._all_targets))


class SharedParts:
    """Parts that a sidecar and the edge have in common. Make them on the running loop.

    Args:
        manifest: The manifest.
        contract: The contract.
        name: The service, or ``edge``.

    Attributes:
        telemetry: Traces, metrics and logs.
        serves: Service → full names of the gRPC services that it hosts.
        identity: Folder of the identity keys.
        signer: Signer of this component's service tokens.
        credentials: Current certificates, or None where no connection needs one.
        tls: TLS of the listener and to each service.
        outbound: Last handler of the outbound chain.
        onward: The outbound chain of functions.
        users: Verification of user tokens and API keys.

    Raises:
        Faults: A key or a certificate is missing or not valid.
    """

    def __init__(self, manifest: Manifest, contract: Contract, name: str) -> None:
        logs.install(name)
        for text in file_rights.component_warnings(manifest, name):
            log.warning("%s", text)
        self.telemetry = telemetry.configure(
            name,
            version=version("function-mesh"),
            default_endpoint=os.environ.get(TRACES_ENDPOINT_VARIABLE),
            default_secret=os.environ.get(TRACES_SECRET_VARIABLE, ""),
            callers=_callers(manifest, name),
        )
        self.serves = {other: service.serves for other, service in manifest.services.items()}
        self.identity = manifest.state / "identity"
        key = key_files.load(self.identity, name)
        self.signer = Signer(name, key)
        self._watching = asyncio.ensure_future(key_files.watch_private(self.identity, name, key, self.signer.use))
        self.credentials = component_certificates.load(manifest, name)
        self._renewing = (
            None
            if self.credentials is None
            else asyncio.ensure_future(component_certificates.keep_current(self.credentials, manifest))
        )
        self.tls = ComponentTls(manifest, name, self.credentials)
        self.outbound = Outbound(manifest, self.tls)
        declared = None if name == EDGE else CallDeclarations(contract, self.serves)
        self.onward = self._chain(identify(self.signer, declared))
        own = Channel(self._chain(identify(self.signer)), contract)
        self.users = UserVerification(manifest, contract, own)

    def _chain(self, identified: Layer) -> Handler:
        return chain(self.telemetry.outbound, identified, carry, retry(), self.outbound)

    async def stop(self) -> None:
        """Stop watching keys and revocations and renewing certificates, close every connection, flush telemetry."""
        self._watching.cancel()
        await self.users.stop()
        if self._renewing is not None:
            self._renewing.cancel()
        await self.outbound.close()
        await self.telemetry.shutdown()


def _callers(manifest: Manifest, name: str) -> CallerTrace:
    """Return the meaning of the callers' trace context: services are trusted, clients of the edge by mesh.toml."""
    if name != EDGE or manifest.edge is None:
        return CallerTrace.TRUST
    return CallerTrace(manifest.edge.client_trace)
