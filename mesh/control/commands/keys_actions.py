"""``mesh keys``: makes keys and certificates, issues them to other machines, shows them, and replaces the root."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mesh import private_files
from mesh.certificates import leaf_files
from mesh.certificates.authority_store import AuthorityStatus, AuthorityStore
from mesh.certificates.rotation import RotationState, Step, next_change, waiting_for
from mesh.config import manifest as manifests
from mesh.config.manifest import Manifest, TlsFiles
from mesh.control import identity_keys, mesh_certificates, project
from mesh.control.component import broker_users, process
from mesh.control.text_table import table
from mesh.events.broker import authorization
from mesh.faults import Fault, Faults

__all__ = ["make", "retire", "rotate_root", "serve", "status"]

BROKER = "broker"
"""Folder of the file for the broker."""
POLL_INTERVAL = 1.0
"""Seconds between two looks of ``rotate-root --wait``."""
_DONE = {
    Step.ADDED: "the root {new} is trusted now; {old} goes on signing",
    Step.SIGNING: "the root {new} signs now; {old} is still trusted",
    Step.STEADY: "the rotation is done: only the root {new} is trusted",
}
_AGAIN = "run this command again for that step; with --wait it does all steps"


def make(file: Path, each: Path | None, lifetime: timedelta | None) -> int:
    """Make the keys and certificates that are missing or due.

    Args:
        file: mesh.toml.
        each: Folder in which each component gets a folder of its own; None: one folder for all.
        lifetime: Validity of new certificates; None: that of mesh.toml.

    Raises:
        Faults: The manifest is not valid, or a file cannot be read or written.
    """
    manifest = manifests.load(file)
    if each is None:
        folder = identity_keys.ensure(manifest)
        folders = dict.fromkeys(mesh_certificates.names(manifest), folder)
    else:
        folder = identity_keys.ensure_each(manifest, each)
        folders = {name: folder / name for name in mesh_certificates.names(manifest)}
    if not isinstance(manifest.tls, TlsFiles):
        mesh_certificates.issue_each(manifest, folders, lifetime or mesh_certificates.lifetime(manifest))
    if each is not None:
        _write_broker_users(file, each)
    print(folder)
    return 0


def _write_broker_users(file: Path, each: Path) -> None:
    """Write the users and rights for the broker's configuration, which holds no secret, beside the components' keys.

    Raises:
        Faults: The contract is not valid, or the file cannot be written.
    """
    manifest, contract = project.load(file)
    folder = each / BROKER
    try:
        folder.mkdir(exist_ok=True)
        users = broker_users.users(manifest, contract, {name: each / name for name in identity_keys.names(manifest)})
        (folder / "authorization.conf").write_text(authorization.block(users), encoding="utf-8")
    except OSError as error:
        raise Faults([Fault(str(folder), f"cannot be written: {error.strerror}")]) from None


def retire(file: Path, each: Path | None, name: str) -> int:
    """Give a service a new identity key, and keep the old public key for the events that it has signed.

    Args:
        file: mesh.toml.
        each: Folder with one folder for each component; None: one folder for all.
        name: The service.

    Raises:
        Faults: There is no such key, or a file cannot be read or written.
    """
    print(identity_keys.retire(manifests.load(file), each, name, datetime.now(UTC)))
    return 0


def serve(file: Path, each: Path | None) -> int:
    """Issue certificates to components until SIGTERM or SIGINT; return the exit code.

    Args:
        file: mesh.toml.
        each: Folder with the folders of broker and operator, which are kept current; None: they are elsewhere.

    Raises:
        Faults: The manifest is not valid.
    """
    private_files.disable_core_dumps()
    manifest = manifests.load(file)
    return process.run_signer(manifest, each)


def status(file: Path) -> int:
    """Print the roots, the step of a rotation, and the certificates of the components.

    Raises:
        Faults: The manifest is not valid, or there is no authority.
    """
    manifest = manifests.load(file)
    now = datetime.now(UTC)
    found = _authority(manifest).status()
    rows = [
        (identifier, _use(found.state, identifier), _day(root.not_valid_after_utc))
        for identifier, root in found.roots.items()
    ]
    print(table(("root", "use", "valid until (UTC)"), rows), end="\n\n")
    leaves = sorted(found.state.leaves.values(), key=lambda leaf: (leaf.name, leaf.expires))
    held = [
        (leaf.name, leaf.root, _minute(leaf.issued), _left(leaf.expires, now)) for leaf in leaves if leaf.expires > now
    ]
    print(table(("certificate", "root", "issued (UTC)", "expires in"), held), end="\n\n")
    print(_next(found, now))
    return 0


def rotate_root(file: Path, *, wait: bool, force: bool) -> int:
    """Do the steps of a rotation of the root that are safe.

    Args:
        file: mesh.toml.
        wait: Wait until all steps are done.
        force: Do one step without waiting.

    Returns:
        0.

    Raises:
        Faults: The manifest is not valid, or there is no authority.
    """
    manifest = manifests.load(file)
    store = _authority(manifest)
    told = ""
    while True:
        now = datetime.now(UTC)
        before = store.status()
        after = store.advance(now, force=force)
        if after is not None:
            old, new = before.state.trusted[0], after.trusted[-1]
            print(_DONE[after.step].format(old=old, new=new), flush=True)
            _issue_here(manifest, now)
            if after.step is Step.STEADY or force:
                return 0
            continue
        text = _next(before, now)
        if not wait:
            print(f"{text}\n{_AGAIN}")
            return 0
        if _names(before.state, now) != told:
            told = _names(before.state, now)
            print(text, flush=True)
        time.sleep(POLL_INTERVAL)


def _issue_here(manifest: Manifest, now: datetime) -> None:
    """Renew the certificates of the identity folder, if this machine has them. No other process may do it."""
    folder = manifest.state / "identity"
    held = [
        name
        for name in mesh_certificates.names(manifest)
        if leaf_files.current_leaf(folder, name, manifest.name) is not None
    ]
    if mesh_certificates.signs_here(manifest) and held:
        mesh_certificates.issue_each(manifest, dict.fromkeys(held, folder), mesh_certificates.lifetime(manifest), now)


def _authority(manifest: Manifest) -> AuthorityStore:
    store = mesh_certificates.authority(manifest)
    if not store.exists:
        hint = "run the command where certificates are issued, or make an authority: mesh keys"
        raise Faults([Fault(str(store.folder), f"there is no authority of the mesh; {hint}")])
    return store


def _use(state: RotationState, identifier: str) -> str:
    if state.step is Step.STEADY or identifier == state.signing:
        return "signs, trusted"
    return "trusted, signs next" if state.step is Step.ADDED else "trusted until no certificate of it is in use"


def _next(found: AuthorityStatus, now: datetime) -> str:
    """Return the step of the rotation and what it waits for, one line."""
    state = found.state
    change = next_change(state, now)
    if change is None:
        expiry = min(root.not_valid_after_utc for root in found.roots.values())
        return f"no rotation is in progress; replace the root before {_day(expiry)}: mesh keys rotate-root"
    what = "the new root will sign" if state.step is Step.ADDED else "the old root will not be trusted any more"
    if change <= now:
        return f"{what} with the next `mesh keys rotate-root`"
    names = _names(state, now)
    if names:
        return f"{what} when these have renewed their certificates, at the latest in {_left(change, now)}: {names}"
    return f"{what} in {_left(change, now)}: components take their new files"


def _names(state: RotationState, now: datetime) -> str:
    return ", ".join(sorted({leaf.name for leaf in waiting_for(state, now)}))


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"


def _minute(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}"


def _left(moment: datetime, now: datetime) -> str:
    seconds = (moment - now).total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
