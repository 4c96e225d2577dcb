"""Store of a mesh's authority: a folder with its roots, their private keys, and the state of a rotation.

The folder is 0700 and its files are 0600. Only processes that issue certificates open it: ``mesh up``, ``mesh keys``
and ``mesh keys serve``. Each operation holds a lock on the folder, so they may run at once.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from mesh import private_files
from mesh.certificates.authority import LEAF_LIFETIME, Root
from mesh.certificates.rotation import IssuedLeaf, RotationState, Step, advance, next_change
from mesh.certificates.spiffe import CertificateError
from mesh.faults import Fault, Faults

__all__ = ["AuthorityStatus", "AuthorityStore", "IssuedCredentials"]


@dataclass(frozen=True, slots=True)
class IssuedCredentials:
    """A new leaf and what its holder is to know.

    Attributes:
        leaf: The certificate, PEM.
        roots: The roots to trust, PEM.
        round: The authority's round. The leaf is due for renewal when the authority has another one.
    """

    leaf: bytes
    roots: bytes
    round: int


@dataclass(frozen=True, slots=True)
class AuthorityStatus:
    """State of the authority and its roots.

    Attributes:
        state: Step of the rotation and the issued leaves.
        roots: The trusted roots by identifier.
    """

    state: RotationState
    roots: dict[str, x509.Certificate]


class AuthorityStore:
    """The authority of one mesh.

    Args:
        folder: Its folder.
        mesh: Name of the mesh.
    """

    def __init__(self, folder: Path, mesh: str) -> None:
        self.folder = folder
        self.mesh = mesh

    @property
    def exists(self) -> bool:
        """Whether there is an authority in the folder."""
        return self._state_file.is_file()

    def ensure(self, now: datetime) -> None:
        """Make the authority if there is none.

        Raises:
            Faults: The folder cannot be written.
        """
        if self.exists:
            return
        with self._locked(make=True):
            if not self.exists:
                root = Root.make(self.mesh, now)
                private_files.replace_file(self._root_file(root.id), root.pem)
                self._write(RotationState(root.id, (root.id,)))

    def issue(
        self,
        name: str,
        public_key: ec.EllipticCurvePublicKey,
        *,
        now: datetime,
        hosts: Iterable[str] = (),
        lifetime: timedelta = LEAF_LIFETIME,
        replaced: int | None = None,
    ) -> IssuedCredentials:
        """Issue a leaf.

        Args:
            name: Name of the component.
            public_key: Its key.
            now: The time.
            hosts: Further host names and addresses in the leaf.
            lifetime: Validity from now on.
            replaced: Serial number of the leaf that the component holds and will not use any more.

        Raises:
            Faults: The authority cannot be read or written, or its root has expired.
        """
        with self._locked():
            state = self._read()
            root = self._root(state.signing)
            try:
                pem = root.issue(self.mesh, name, public_key, now=now, hosts=hosts, lifetime=lifetime)
            except CertificateError as error:
                raise self._fault(error) from None
            leaf = x509.load_pem_x509_certificate(pem)
            issued = IssuedLeaf(name, root.id, state.round, now, leaf.not_valid_after_utc)
            self._write(state.with_leaf(leaf.serial_number, issued, replaced))
            return IssuedCredentials(pem, self._bundle(state), state.round)

    @contextmanager
    def issuing(self) -> Iterator[None]:
        """Hold the right to write leaf files until the block ends.

        Two processes that renew one file at once would leave a leaf that no component has, and no step of a rotation
        would be safe until it expires.

        Raises:
            Faults: The authority's folder cannot be written.
        """
        with self._locked("issuing"):
            yield

    def roots(self) -> bytes:
        """Return the trusted roots, PEM.

        Raises:
            Faults: The authority cannot be read.
        """
        with self._locked():
            return self._bundle(self._read())

    def status(self) -> AuthorityStatus:
        """Return the state.

        Raises:
            Faults: The authority cannot be read.
        """
        with self._locked():
            state = self._read()
            roots = {identifier: self._root(identifier).certificate for identifier in state.trusted}
            return AuthorityStatus(state, roots)

    def advance(self, now: datetime, *, force: bool = False) -> RotationState | None:
        """Do the next step of a rotation, the first one too, if it is safe. A crash leaves the step done or not begun.

        Args:
            now: The time.
            force: Do the step although leaves in use would not be accepted by, or would not accept, renewed ones.

        Returns:
            The new state, or None if the step has to wait.

        Raises:
            Faults: The authority cannot be read or written.
        """
        with self._locked():
            state = self._read()
            change = next_change(state, now)
            if change is not None and change > now and not force:
                return None
            fresh = ""
            if state.step is Step.STEADY:
                root = Root.make(self.mesh, now)
                private_files.replace_file(self._root_file(root.id), root.pem)
                fresh = root.id
            after = advance(state, fresh, now)
            self._write(after)
            for path in self.folder.glob("root-*.pem"):  # also one of a first step that was cut off
                if path not in [self._root_file(identifier) for identifier in after.trusted]:
                    path.unlink()
            return after

    # -- files --

    @property
    def _state_file(self) -> Path:
        return self.folder / "state.json"

    def _root_file(self, identifier: str) -> Path:
        return self.folder / f"root-{identifier}.pem"

    def _root(self, identifier: str) -> Root:
        path = self._root_file(identifier)
        try:
            return Root.parse(path.read_bytes())
        except FileNotFoundError:
            text = "the root with its key is missing: restore it, or remove the folder to make a new authority"
            raise Faults([Fault(str(path), text)]) from None
        except OSError as error:
            raise self._fault(error) from None
        except (ValueError, TypeError) as error:
            raise Faults([Fault(str(path), f"expected a root certificate and its key in PEM: {error}")]) from None

    def _bundle(self, state: RotationState) -> bytes:
        return b"".join(self._root(identifier).certificate_pem for identifier in state.trusted)

    def _read(self) -> RotationState:
        try:
            return RotationState.from_json(self._state_file.read_text())
        except (CertificateError, OSError, UnicodeDecodeError) as error:
            raise self._fault(error) from None

    def _write(self, state: RotationState) -> None:
        private_files.replace_file(self._state_file, state.to_json().encode())

    @contextmanager
    def _locked(self, name: str = "lock", *, make: bool = False) -> Iterator[None]:
        """Hold a lock of the folder."""
        try:
            if make:
                private_files.make_folder(self.folder)
            with open(self.folder / name, "a", opener=private_files.opener) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise self._fault(error) from None

    def _fault(self, error: OSError | CertificateError | UnicodeDecodeError) -> Faults:
        if isinstance(error, FileNotFoundError):
            return Faults([Fault(str(self.folder), "there is no authority of the mesh; `mesh keys` makes one")])
        reason = (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)
        return Faults([Fault(str(self.folder), reason)])
