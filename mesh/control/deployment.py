"""Checks of contract and mesh.toml together, for ``mesh check`` and ``mesh up``."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import urlsplit

from mesh.address import is_loopback
from mesh.auth import RevocationWatch
from mesh.config.auth import IssuerConfig
from mesh.config.manifest import Manifest
from mesh.contract.model import Access, ChangeTrigger, Contract
from mesh.control import topology
from mesh.database_url import database_faults, file_faults, parse
from mesh.faults import Fault, Faults
from mesh.function import Functions
from mesh.function_uses import uses
from mesh.lambdas.handlers import functions_of
from mesh.rules.buf_lint import lint_faults
from mesh.rules.contract_faults import rule_faults

__all__ = ["all_faults", "combined_faults", "warnings"]


def all_faults(manifest: Manifest, contract: Contract, *, partial: bool = False) -> list[Fault]:
    """Return every fault that can be found without starting a process; imports every module.

    Args:
        manifest: The deployment.
        contract: The contract.
        partial: Whether the contract lacks files that were refused. Services that it lacks are no faults then.
    """
    found = [
        *combined_faults(manifest, contract, partial=partial),
        *_database_files(manifest),
        *_functions(manifest, contract),
    ]
    return [*found, *lint_faults(contract.files, {fault.place for fault in found})]


def warnings(manifest: Manifest, contract: Contract) -> list[Fault]:
    """Return what is valid and probably not meant."""
    return [
        *_without_rate_limit(manifest, contract),
        *_without_auth(manifest, contract),
        *_keys_in_plain_text(manifest),
        *_users_of_two_issuers(manifest),
    ]


def _without_rate_limit(manifest: Manifest, contract: Contract) -> Iterator[Fault]:
    """Find methods that anybody may call as often as they like."""
    if manifest.edge is None or manifest.edge.rate_limit.per_client is not None:
        return
    public = sorted(
        method.path[1:]
        for method in contract.methods.values()
        if method.access is Access.PUBLIC and manifest.host_of(method.service) is not None
    )
    if public:
        text = f'anybody may call {_listed(public)} at any rate; set per_client, such as "20/s burst 100"'
        yield Fault(f"{manifest.file.name} [edge] rate_limit", text)


def _without_auth(manifest: Manifest, contract: Contract) -> Iterator[Fault]:
    """Find methods for users of a mesh that accepts no user tokens."""
    if manifest.auth is not None:
        return
    methods = [
        method
        for method in contract.methods.values()
        if method.access is Access.AUTHENTICATED and manifest.host_of(method.service) is not None
    ]
    if methods:
        named = _listed([method.path[1:] for method in methods])
        text = f"every user is refused by {named}; add [auth] to {manifest.file.name}, or declare another access"
        yield Fault(methods[0].place or manifest.file.name, text)


def _listed(names: Sequence[str]) -> str:
    """Return the first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")  # noqa: PLR2004 - as many as are named


def _keys_in_plain_text(manifest: Manifest) -> Iterator[Fault]:
    """Find verification keys that are fetched over the network without TLS: who changes them can make tokens."""
    for table, issuer in _issuers(manifest):
        url = urlsplit(issuer.url)
        if url.scheme == "http" and not is_loopback(url.hostname or ""):
            text = "the keys of users' tokens come without TLS, so whoever is on the way can replace them; use https"
            yield Fault(f"{manifest.file.name} {table} {'jwks' if issuer.jwks else 'issuer'}", text)


def _users_of_two_issuers(manifest: Manifest) -> Iterator[Fault]:
    """Find issuers whose users may be taken for each other: a subject is unique at its issuer only."""
    first: dict[str, str] = {}
    for table, issuer in _issuers(manifest):
        other = first.setdefault(issuer.subject_prefix, table)
        if other != table:
            text = f"the same subject is the same user as of {other}; set another one unless that is meant"
            yield Fault(f"{manifest.file.name} {table} subject_prefix", text)


def _issuers(manifest: Manifest) -> Iterator[tuple[str, IssuerConfig]]:
    return manifest.auth.places() if manifest.auth is not None else iter(())


def combined_faults(manifest: Manifest, contract: Contract, *, partial: bool = False) -> list[Fault]:
    """Return every fault of contract and manifest together. ``partial`` is that of ``all_faults``."""
    faults = [
        *_served(manifest, contract, partial=partial),
        *_unserved(manifest, contract),
        *_addresses(manifest),
        *_changes(manifest, contract),
        *_migrations(manifest),
        *(() if partial else (*_jwks(manifest, contract), *_revocations(manifest, contract))),
        *rule_faults(contract),
    ]
    try:
        topology.start_order(manifest, contract)  # raises for a cycle
    except Faults as found:
        faults.extend(found.faults)
    return faults


def _database_files(manifest: Manifest) -> Iterator[Fault]:
    """Find certificates of database URLs that cannot be read.

    ``mesh up`` does not check them: a file may exist only on the machine that runs the service.
    """
    for name, service in manifest.services.items():
        place = f"{manifest.file.name} [services.{name}] database"
        if service.database and not any(database_faults(service.database, place)):  # mesh.config reports these
            for text in file_faults(parse(service.database), os.environ):
                yield Fault(place, text)


def _served(manifest: Manifest, contract: Contract, *, partial: bool) -> Iterator[Fault]:
    """Find names in ``serves`` that the contract does not have, or that two services of mesh.toml serve."""
    owner: dict[str, str] = {}
    for name, service in manifest.services.items():
        place = f"{manifest.file.name} [services.{name}] serves"
        for full in service.serves:
            if full not in contract.services:
                if partial:
                    continue
                yield Fault(place, f"{full!r} is no service of the contract{_hint(full, contract)}")
            elif owner.setdefault(full, name) != name:
                yield Fault(place, f"{full!r} is served by [services.{owner[full]}] already")


def _hint(full: str, contract: Contract) -> str:
    close = difflib.get_close_matches(full, contract.services, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f" ({', '.join(contract.services) or 'it has none'})"


def _unserved(manifest: Manifest, contract: Contract) -> Iterator[Fault]:
    """Find gRPC services that are called or have routes, and that no service of mesh.toml serves."""
    served = {full for service in manifest.services.values() for full in service.serves}
    callers: dict[str, str] = {}
    for service in contract.services.values():
        if service.name in served:
            for called in service.calls:
                callers.setdefault(called, service.name)
    for service in contract.services.values():
        if service.name in served:
            continue
        routed = next((method for method in service.methods.values() if method.routes), None)
        reason = f"{callers[service.name]} calls it" if service.name in callers else ""
        if not reason and routed is not None and manifest.edge is not None:
            reason = f"it has the route {routed.routes[0]}"
        if reason:
            mend = f"add {service.name!r} to the `serves` of one"
            yield Fault(service.place, f"{reason}, and no service of {manifest.file.name} serves it: {mend}")


def _addresses(manifest: Manifest) -> Iterator[Fault]:
    """Find addresses at which two components listen."""
    listens = {f"services.{name}": service.listen for name, service in manifest.services.items()}
    if manifest.edge is not None:
        listens["edge"] = manifest.edge.listen
    owner: dict[str, str] = {}
    for table, listen in listens.items():
        if not listen.endswith(":0") and owner.setdefault(listen, table) != table:
            yield Fault(
                f"{manifest.file.name} [{table}] listen", f"{listen} is the address of [{owner[listen]}] already"
            )


def _changes(manifest: Manifest, contract: Contract) -> Iterator[Fault]:
    """Find change triggers whose service mesh.toml does not have, or has without a database."""
    for method in contract.methods.values():
        for trigger in method.triggers:
            if not isinstance(trigger, ChangeTrigger):
                continue
            owner = manifest.services.get(trigger.service)
            text = f"{method.service}.{method.name}: on.change names {trigger.service!r}"
            if owner is None:
                known = ", ".join(manifest.services)
                yield Fault(method.place, f"{text}, which is no service of {manifest.file.name} ({known})")
            elif not owner.database:
                yield Fault(method.place, f"{text}, which has no database in {manifest.file.name}")


def _functions(manifest: Manifest, contract: Contract) -> Iterator[Fault]:
    """Find modules that cannot be imported, and functions that do not fit the contract or the deployment."""
    for name, service in manifest.services.items():
        served = topology.served(manifest, contract, name)
        function = manifest.lambdas.get(name)
        if function is not None:
            try:
                functions_of(service.module, function, served)
            except Faults as found:
                yield from _placed(found.faults, function.module, f"{manifest.file.name} [services.{name}] lambda")
            continue
        functions, faults = Functions.check(service.module, served)
        yield from _placed(faults, service.module, f"{manifest.file.name} [services.{name}] module")
        table = f"[services.{name}] of {manifest.file.name}"
        publishes = any(one.publishes for one in served)
        used = {(use.what, use.place): use for use in uses(functions, manifest.root)}
        for use in used.values():
            if use.what == "transaction" and not service.database:
                mend = f'set database = "sqlite:///.mesh/{name}.db" or a PostgreSQL URL'
                yield Fault(use.place, f"{use.function} begins a transaction, and {table} has no database; {mend}")
            if use.what == "publish" and not publishes:
                text = "no service of the contract that it serves declares the event in `publishes`"
                yield Fault(use.place, f"{use.function} publishes an event for {table}, and {text}")


def _placed(faults: Iterable[Fault], module: str, key: str) -> Iterator[Fault]:
    """Yield the faults; those whose place is a module without a file are at the key of mesh.toml that names it."""
    for fault in faults:
        yield Fault(key, fault.text) if fault.place == module else fault


def _migrations(manifest: Manifest) -> Iterator[Fault]:
    """Find migrations of services that have no database."""
    for name, service in manifest.services.items():
        if service.database or name in manifest.lambdas:
            continue
        place, folder = f"{manifest.file.name} [services.{name}]", manifest.migrations_folder(name)
        if service.migrations or any(folder.glob("*.py")):
            text = f"there are migrations in {folder}, and no database; set database, or remove them"
            yield Fault(f"{place} migrations" if service.migrations else place, text)


def _jwks(manifest: Manifest, contract: Contract) -> Iterator[Fault]:
    """Find ``jwks`` that are neither a URL nor a unary method whose request has no fields."""
    for table, issuer in _issuers(manifest):
        if issuer.jwks and not issuer.url:
            yield from _jwks_method(manifest, contract, f"{manifest.file.name} {table} jwks", issuer.jwks)


def _jwks_method(manifest: Manifest, contract: Contract, place: str, name: str) -> Iterator[Fault]:
    method = contract.method("/" + name.lstrip("/"))
    if method is None:
        yield Fault(place, f"{name!r} is neither a URL nor a method of the contract{_close_method(name, contract)}")
    elif method.client_streaming or method.server_streaming or method.input.DESCRIPTOR.fields:
        yield Fault(place, f"{name} must be a unary method whose request has no fields, and return a JWK set")
    elif manifest.host_of(method.service) is None:
        yield Fault(place, f"no service of {manifest.file.name} serves {method.service}")


def _revocations(manifest: Manifest, contract: Contract) -> Iterator[Fault]:
    """Find ``revocations`` that are no INTERNAL method which streams ``meshapi.v1.RevocationUpdate``."""
    for table, issuer in _issuers(manifest):
        if not issuer.revocations:
            continue
        place, name = f"{manifest.file.name} {table} revocations", issuer.revocations
        method = contract.method(issuer.revocation_path)
        if method is None:
            yield Fault(place, f"{name!r} is no method of the contract{_close_method(name, contract)}")
            continue
        shape = (method.client_streaming, method.server_streaming, method.output.DESCRIPTOR.full_name)
        if shape != (False, True, RevocationWatch.MESSAGE) or method.input.DESCRIPTOR.fields:
            text = f"{name} must return (stream {RevocationWatch.MESSAGE}), and its request must have no fields"
            yield Fault(place, text)
        if method.access is not Access.INTERNAL:
            yield Fault(place, f"{name} must have access: INTERNAL: it names sessions and users")
        host = manifest.host_of(method.service)
        if host is None:
            yield Fault(place, f"no service of {manifest.file.name} serves {method.service}")
        elif (workers := manifest.services[host].workers) is not None:
            streams, calls = len(manifest.services) + (manifest.edge is not None), workers.max * workers.concurrency
            if calls <= streams:
                text = (
                    f"{streams} components keep a call of {name} open, and the workers of {host} take {calls} calls; "
                    "raise workers.max or workers.concurrency, or host it without workers"
                )
                yield Fault(place, text)


def _close_method(name: str, contract: Contract) -> str:
    known = difflib.get_close_matches(name, [path[1:] for path in contract.methods], n=1)
    return f"; did you mean {known[0]!r}?" if known else ""
