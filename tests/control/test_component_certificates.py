"""Certificates of a component: when they are needed, and the faults when they are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh import cli
from mesh.config import manifest
from mesh.control import mesh_certificates
from mesh.control.component import component_certificates
from mesh.faults import Faults

TEXT = """
[services.login]
module = "login"
serves = ["login.v1.Login"]
"""


def read(folder: Path, tls: str) -> manifest.Manifest:
    (folder / "mesh.toml").write_text(f"tls = {tls}\n{TEXT}")
    return manifest.load(folder / "mesh.toml", {})


def test_a_mesh_on_loopback_needs_none(tmp_path: Path) -> None:
    assert component_certificates.load(read(tmp_path, '"auto"'), "login") is None


def test_a_certificate_that_is_missing_is_a_fault_with_the_command(tmp_path: Path) -> None:
    found = read(tmp_path, '"on"')
    with pytest.raises(Faults, match=r"there is no certificate of login, which tls = 'on' needs; `mesh keys`"):
        component_certificates.load(found, "login")
    assert cli.main(["keys", "--file", str(tmp_path)]) == 0
    credentials = component_certificates.load(found, "login")
    assert credentials is not None
    assert 86_000 < credentials.seconds_to_expiry() <= 86_400


def test_own_files_are_read_and_none_are_made(tmp_path: Path) -> None:
    assert cli.main(["keys", "--file", str(_project(tmp_path / "ca"))]) == 0
    source = tmp_path / "ca" / ".mesh" / "identity"
    table = f'{{ certificate = "{source}/login.pem", private_key = "{source}/login.pem", ca = "{source}/roots.pem" }}'
    found = read(tmp_path, table)
    assert not mesh_certificates.signs_here(found)
    credentials = component_certificates.load(found, "login")
    assert credentials is not None
    assert credentials.spiffe_id("login") == "spiffe://mesh/login"
    with pytest.raises(Faults, match="for login, not for edge"):
        component_certificates.load(found, "edge")
    missing = read(tmp_path, table.replace("roots.pem", "none.pem"))
    with pytest.raises(Faults, match=r"none\.pem: no such file"):
        component_certificates.load(missing, "login")


def _project(folder: Path) -> Path:
    folder.mkdir()
    read(folder, '"on"')
    return folder
