"""``mesh keys``: keys and certificates of each component, the state of the authority, and a rotation of its root."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from mesh import cli
from mesh.certificates.authority import parse_bundle, verify_leaf
from mesh.certificates.authority_store import AuthorityStore
from mesh.certificates.leaf_files import current_leaf
from mesh.certificates.rotation import SETTLE_TIME, Step
from mesh.config import manifest
from mesh.control import mesh_certificates
from mesh.control.component.certificate_keeper import CertificateKeeper

TEXT = """
name = "shop"
[keys]
listen = "0.0.0.0:9443"
[edge]
[services.login]
module = "login"
serves = ["login.v1.Login"]
address = ["login:9102", "10.0.0.7:9102", "[fd00::7]:9102"]
"""


PROTO = """
syntax = "proto3";
package login.v1;
message Nothing {}
service Login {
  rpc Login(Nothing) returns (Nothing);
}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mesh.toml"
    path.write_text(TEXT)
    (tmp_path / "protos").mkdir()
    (tmp_path / "protos" / "login.proto").write_text(PROTO)
    return path


def run(file: Path, *words: str) -> int:
    return cli.main(["keys", *words, "--file", str(file)])


def leaf(folder: Path, name: str) -> x509.Certificate:
    found = current_leaf(folder, name, "shop")
    assert found is not None
    return found


def test_every_component_has_a_certificate_with_its_names(file: Path) -> None:
    assert run(file) == 0
    folder = file.parent / ".mesh" / "identity"
    roots = parse_bundle((folder / "roots.pem").read_bytes())
    for name in ("login", "edge", "operator", "broker", "keys"):
        verify_leaf(leaf(folder, name), roots, datetime.now(UTC))
    names = leaf(folder, "login").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["login", "localhost"]
    assert list(map(str, names.get_values_for_type(x509.IPAddress))) == [
        "127.0.0.1", "::1", "10.0.0.7", "fd00::7",
    ]  # fmt: skip
    assert (file.parent / ".mesh" / "authority").stat().st_mode & 0o777 == 0o700


def test_each_component_gets_a_folder_with_its_own_key_only(file: Path) -> None:
    folder = file.parent / "keys"
    assert run(file, "--each", str(folder), "--days", "90") == 0
    files = {path.name for path in (folder / "login").iterdir()}
    assert {"login.key", "login.pub", "edge.pub", "login.pem", "roots.pem"} <= files
    assert not files & {"edge.key", "edge.pem"}
    left = leaf(folder / "edge", "edge").not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=89) < left <= timedelta(days=90)
    serial = leaf(folder / "edge", "edge").serial_number
    assert run(file, "--each", str(folder)) == 0
    assert leaf(folder / "edge", "edge").serial_number == serial


@pytest.mark.parametrize("days", ["0", "-1", "399", "x"])
def test_a_wrong_validity_is_refused(file: Path, days: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(file, f"--days={days}")
    assert "--days" in capsys.readouterr().err


def test_own_files_are_not_replaced(file: Path) -> None:
    file.write_text('tls = { certificate = "a", private_key = "b", ca = "c" }\n' + TEXT)
    assert run(file) == 0
    assert not (file.parent / ".mesh" / "authority").exists()


def test_status_says_what_a_rotation_waits_for(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(file, "status") == 1
    assert "there is no authority" in capsys.readouterr().err
    run(file)
    assert run(file, "status") == 0
    text = capsys.readouterr().out
    assert "signs, trusted" in text
    assert "no rotation is in progress" in text
    assert all(f"{name} " in text for name in ("login", "edge", "operator", "broker", "keys"))
    assert run(file, "rotate-root") == 0
    text = capsys.readouterr().out
    assert "is trusted now" in text
    assert re.search(r"the new root will sign in \d+ s: components take their new files", text)
    assert run(file, "status") == 0
    assert "trusted, signs next" in capsys.readouterr().out


def test_a_rotation_in_three_commands(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(file)
    store = mesh_certificates.authority(manifest.load(file))
    old = store.status().state.signing
    for step in (Step.ADDED, Step.SIGNING, Step.STEADY):
        assert run(file, "rotate-root", "--force") == 0
        assert store.status().state.step is step
        folder = file.parent / ".mesh" / "identity"
        verify_leaf(leaf(folder, "login"), parse_bundle((folder / "roots.pem").read_bytes()), datetime.now(UTC))
    assert "the rotation is done" in capsys.readouterr().out
    assert store.status().state.trusted != (old,)


def test_a_rotation_names_the_components_that_have_not_renewed(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "keys"
    run(file, "--each", str(folder))
    assert run(file, "rotate-root") == 0
    text = capsys.readouterr().out
    assert "at the latest in 24 h: broker, edge, keys, login, operator" in text.replace("25 h", "24 h")
    run(file, "--each", str(folder))
    assert run(file, "rotate-root") == 0
    assert re.search(r"will sign in \d+ s: components take their new files", capsys.readouterr().out)


def test_the_keeper_renews_at_half_life_after_a_jump_of_the_clock_and_in_a_rotation(file: Path) -> None:
    found = manifest.load(file)
    keeper = CertificateKeeper(found)
    folder, now = found.state / "identity", datetime.now(UTC)
    serial = leaf(folder, "login").serial_number
    assert not keeper.check(now + timedelta(hours=11))
    assert keeper.check(now + timedelta(hours=12))
    assert leaf(folder, "login").serial_number != serial
    serial = leaf(folder, "login").serial_number
    assert keeper.check(now)  # the clock was set back: the leaf is from the future
    assert leaf(folder, "login").serial_number != serial
    serial = leaf(folder, "login").serial_number
    store = AuthorityStore(found.state / "authority", "shop")
    assert store.advance(now) is not None
    assert keeper.check(now + timedelta(seconds=1))
    assert leaf(folder, "login").serial_number != serial
    assert store.advance(now + SETTLE_TIME + timedelta(seconds=2)) is not None
