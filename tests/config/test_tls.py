"""Keys ``name`` and ``tls`` and table ``[keys]``: values, faults, and the services that are reached by TLS."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.config import manifest
from mesh.config.manifest import KeysConfig, Manifest, TlsFiles
from mesh.config.tls import local
from mesh.faults import Faults


def read(folder: Path, text: str, environ: dict[str, str] | None = None) -> Manifest:
    (folder / "mesh.toml").write_text(text + '\n[services.a]\nmodule = "a"\nserves = ["a.A"]\n')
    return manifest.load(folder / "mesh.toml", environ or {})


def test_the_defaults_are_a_mesh_that_encrypts_between_machines(tmp_path: Path) -> None:
    found = read(tmp_path, "")
    assert (found.name, found.tls, found.keys) == ("mesh", "auto", KeysConfig())
    assert not found.secures("a")
    assert not found.plain_text()


@pytest.mark.parametrize(
    ("tls", "listen", "address", "secured", "plain"),
    [
        ("auto", "127.0.0.1:9101", "", False, False),
        ("auto", "127.8.9.1:9101", "", False, False),
        ("auto", "[::1]:9101", "", False, False),
        ("auto", "[::ffff:127.0.0.1]:9101", "", False, False),
        ("auto", "localhost:9101", "a.localhost:9101", False, False),
        ("auto", "*:9101", "", True, False),
        ("auto", "0.0.0.0:9101", "127.0.0.1:9101", True, False),
        ("auto", "[::]:9101", "", True, False),
        ("auto", "10.0.0.1:9101", "", True, False),
        ("auto", "127.0.0.1:9101", "a:9101", True, False),
        ("auto", "127.0.0.1:9101", "127.0.0.1:9101,10.0.0.2:9101", True, False),
        ("on", "127.0.0.1:9101", "", True, False),
        ("off", "127.0.0.1:9101", "", False, False),
        ("off", "127.0.0.1:9101", "a:9101", False, True),
        ("off", "0.0.0.0:9101", "", False, True),
        ('{ certificate = "c", private_key = "k", ca = "r" }', "127.0.0.1:9101", "", True, False),
    ],
)
def test_a_service_beyond_loopback_is_reached_by_tls(
    tmp_path: Path, tls: str, listen: str, address: str, *, secured: bool, plain: bool
) -> None:
    environ = {"MESH_TLS": tls, "MESH_SERVICES_A_LISTEN": listen}
    if address:
        environ["MESH_SERVICES_A_ADDRESS"] = address
    found = read(tmp_path, "", environ)
    assert found.secures("a") is secured
    assert found.plain_text() == (["a"] if plain else [])


def test_own_files_lie_beside_mesh_toml(tmp_path: Path) -> None:
    text = '[tls]\ncertificate = "pki/tls.crt"\nprivate_key = "/run/tls.key"\nca = "ca.crt"'
    found = read(tmp_path, text, {"MESH_TLS_CA": "other.crt"})
    assert found.tls == TlsFiles(
        certificate=str(tmp_path / "pki/tls.crt"), private_key="/run/tls.key", ca=str(tmp_path / "other.crt")
    )


@pytest.mark.parametrize(
    ("text", "environ", "fault"),
    [
        ('name = "Shop"', {}, "mesh.toml name: the name of a mesh is at most 63 lower-case letters, digits"),
        ('name = ""', {}, "as in \"shop\"; got ''"),
        ('name = "a/b"', {}, "got 'a/b'"),
        ('name = "-a"', {}, "a letter or digit at both ends"),
        ('name = "é"', {}, "got 'é'"),
        (f'name = "{"a" * 64}"', {}, "at most 63"),
        ("", {"MESH_NAME": "Shop"}, "environment variable MESH_NAME: the name of a mesh"),
        ('tls = "yes"', {}, "mesh.toml [tls]: invalid enum value 'yes'; expected 'auto' or 'on' or 'off'"),
        (
            "",
            {"MESH_TLS": "yes"},
            "environment variable MESH_TLS: invalid enum value 'yes'; expected 'auto' or 'on' or 'off'",
        ),
        ("tls = true", {}, "mesh.toml [tls]: expected"),
        ('tls = { certificate = "c" }', {}, "mesh.toml [tls]: the key 'private_key' is missing"),
        ('tls = { certificat = "c" }', {}, "mesh.toml [tls]: unknown key 'certificat'; did you mean 'certificate'?"),
        ('tls = { certificate = "", private_key = "k", ca = "r" }', {}, "mesh.toml [tls] certificate: name a PEM file"),
        ('tls = { certificate = "\\u0000", private_key = "k", ca = "r" }', {}, "[tls] certificate: a path cannot"),
        ('keys = { listen = "9443" }', {}, "mesh.toml [keys] listen: expected host:port"),
        ('keys = { address = "keys" }', {}, "mesh.toml [keys] address: expected host:port"),
        ('keys = { address = "*:9443" }', {}, "name a host"),
        ('keys = { address = "keys:0" }', {}, "name the port"),
        ('keys = { lifetime = "1m" }', {}, "mesh.toml [keys] lifetime: expected 5 minutes to 398 days"),
        ('keys = { lifetime = "1000d" }', {}, "mesh.toml [keys] lifetime: expected 5 minutes to 398 days"),
        ('keys = { adress = "keys:1" }', {}, "mesh.toml [keys]: unknown key 'adress'; did you mean 'address'?"),
        ("", {"MESH_KEYS_ADDRESS": "keys"}, "environment variable MESH_KEYS_ADDRESS: expected host:port"),
    ],
)
def test_a_wrong_value_is_a_fault_with_its_place(
    tmp_path: Path, text: str, environ: dict[str, str], fault: str
) -> None:
    with pytest.raises(Faults) as found:
        read(tmp_path, text, environ)
    assert fault in str(found.value)


def test_loopback_is_told_by_the_address() -> None:
    assert local("localhost:1")
    assert not local("localhost.example:1")
    assert not local("[fe80::1%eth0]:1")
