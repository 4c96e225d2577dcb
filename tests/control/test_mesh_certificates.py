"""The certificate of the broker of ``mesh up``: where it needs one, and how it is reached with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.config import manifest
from mesh.control import mesh_certificates
from mesh.faults import Faults

FILES = '{ certificate = "a", private_key = "b", ca = "c" }'


def read(folder: Path, tls: str) -> manifest.Manifest:
    (folder / "mesh.toml").write_text(f"tls = {tls}\nservices = {{}}\n")
    return manifest.load(folder / "mesh.toml", {})


@pytest.mark.parametrize(
    ("tls", "listen", "encrypted"),
    [
        ('"auto"', "127.0.0.1:0", False),
        ('"auto"', "0.0.0.0:4222", True),
        ('"on"', "127.0.0.1:0", True),
        ('"off"', "0.0.0.0:4222", False),
        (FILES, "127.0.0.1:0", False),  # they are those of services, and plain text stays on this machine
    ],
)
def test_it_speaks_tls_where_a_service_would(tmp_path: Path, tls: str, listen: str, *, encrypted: bool) -> None:
    found = read(tmp_path, tls)
    certificate = mesh_certificates.identity_files(found, "broker").certificate
    certificate.parent.mkdir(parents=True)
    certificate.touch()
    files = mesh_certificates.broker_files(found, listen)
    assert (files is not None) is encrypted
    assert files is None or files.certificate == certificate


@pytest.mark.parametrize("tls", ['"on"', '"auto"', FILES])
def test_other_machines_do_not_reach_it_in_plain_text(tmp_path: Path, tls: str) -> None:
    with pytest.raises(Faults, match=r"mesh.toml \[events\] listen: there is no certificate .*broker.pem"):
        mesh_certificates.broker_files(read(tmp_path, tls), "0.0.0.0:4222")


def test_its_certificate_is_verified_by_the_roots_of_the_mesh(tmp_path: Path) -> None:
    found = read(tmp_path, '"on"')
    named = mesh_certificates.with_broker(found, "tls://127.0.0.1:1")
    assert named.events.ca == str(tmp_path / ".mesh" / "identity" / "roots.pem")
    assert mesh_certificates.with_broker(found, "nats://127.0.0.1:1").events.ca == ""
