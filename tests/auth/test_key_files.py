"""Key files: made once, whoever is first, and never replaced."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mesh.auth import key_files
from mesh.faults import Faults


def test_makes_what_is_missing_and_keeps_what_is_there(tmp_path: Path):
    folder = tmp_path / "identity"
    key_files.ensure(folder, ["login"])
    before = (folder / "login.key").read_bytes()
    key_files.ensure(folder, ["login", "edge"])
    assert (folder / "login.key").read_bytes() == before
    assert sorted(key_files.load_public(folder)) == ["edge", "login"]
    assert key_files.load(folder, "login").public_key() == key_files.load_public(folder)["login"]
    assert (folder / "login.key").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in folder.iterdir()) == ["edge.key", "edge.pub", "login.key", "login.pub"]


def test_a_container_may_hold_only_its_own_key(tmp_path: Path):
    key_files.ensure(tmp_path, ["login", "registration"])
    (tmp_path / "login.key").unlink()
    key_files.ensure(tmp_path, ["login", "registration"])
    assert not (tmp_path / "login.key").exists()
    with pytest.raises(Faults, match=r"identity key of login cannot be read: no such file.*needs it mounted"):
        key_files.load(tmp_path, "login")


def test_a_lost_public_key_is_made_from_the_private_one(tmp_path: Path):
    key_files.ensure(tmp_path, ["login"])
    (tmp_path / "login.pub").unlink()
    key_files.ensure(tmp_path, ["login"])
    assert key_files.load(tmp_path, "login").public_key() == key_files.load_public(tmp_path)["login"]


def test_each_holds_its_own_private_key_and_everyones_public_ones(tmp_path: Path):
    folders = {name: tmp_path / name for name in ("login", "edge")}
    for name, folder in folders.items():
        key_files.ensure(folder, [name])
    key_files.share(folders)
    files = {name: sorted(path.name for path in folder.iterdir()) for name, folder in folders.items()}
    assert files == {"login": ["edge.pub", "login.key", "login.pub"], "edge": ["edge.key", "edge.pub", "login.pub"]}
    before = (folders["edge"] / "edge.pub").read_bytes()
    for path in folders["login"].iterdir():  # its volume was deleted: a new identity, which the others learn
        path.unlink()
    key_files.ensure(folders["login"], ["login"])
    key_files.share(folders)
    fresh = key_files.load(folders["login"], "login").public_key()
    assert [key_files.load_public(folder)["login"] for folder in folders.values()] == [fresh, fresh]
    assert (folders["login"] / "edge.pub").read_bytes() == before
    with pytest.raises(Faults, match=r"nobody\.pub: the identity keys cannot be shared: no such file"):
        key_files.share({"nobody": tmp_path})


def test_several_processes_make_one_pair(tmp_path: Path):
    folder = tmp_path / "identity"
    code = (
        "import sys; from pathlib import Path; from mesh.auth import key_files; "
        "key_files.ensure(Path(sys.argv[1]), ['a', 'b'])"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(folder)]) for _ in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    for name in ("a", "b"):
        assert key_files.load(folder, name).public_key() == key_files.load_public(folder)[name]


@pytest.mark.parametrize(
    "content", [b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_what_is_no_key_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "login.key").write_bytes(content)
    (tmp_path / "login.pub").write_bytes(content)
    with pytest.raises(Faults, match=r"login\.key: expected an Ed25519 private key in PEM"):
        key_files.load(tmp_path, "login")
    with pytest.raises(Faults, match=r"login\.pub: expected an Ed25519 public key in PEM"):
        key_files.load_public(tmp_path)


def test_a_private_key_whose_public_key_is_another_one_is_a_fault(tmp_path: Path) -> None:
    key_files.ensure(tmp_path, ["login", "audit"])
    (tmp_path / "login.key").write_bytes((tmp_path / "audit.key").read_bytes())
    with pytest.raises(Faults, match=r"login\.pub: it is not the public key of login\.key: restore the pair"):
        key_files.load(tmp_path, "login")


def test_a_folder_that_cannot_be_made_is_a_fault(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Faults, match="the identity keys cannot be made: not a directory"):
        key_files.ensure(tmp_path / "file" / "identity", ["login"])
    with pytest.raises(Faults, match="the identity keys cannot be read: no such file"):
        key_files.load_public(tmp_path / "missing")


def test_a_retired_key_stays_for_what_it_has_signed(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("login", "audit")}
    for name, folder in folders.items():
        key_files.ensure(folder, [name])
    old = key_files.load_public(folders["login"])["login"]
    now = datetime(2026, 11, 30, 3, 30, tzinfo=UTC)
    kept = key_files.retire(folders["login"], "login", now)
    assert kept == folders["login"] / "retired" / "login.20261130T033000Z.pub"
    key_files.share(folders)
    for folder in folders.values():
        new = key_files.load_public(folder)
        assert set(new) == set(folders)  # a retired key is no service's
        assert new["login"].public_bytes_raw() != old.public_bytes_raw()
        ((name, key, retired),) = key_files.load_retired(folder)
        assert (name, key.public_bytes_raw(), retired) == ("login", old.public_bytes_raw(), now)
    assert key_files.load(folders["login"], "login").public_key().public_bytes_raw() == (
        key_files.load_public(folders["audit"])["login"].public_bytes_raw()
    )


def test_a_retired_key_without_a_time_is_a_fault(tmp_path: Path) -> None:
    key_files.ensure(tmp_path, ["login"])
    (tmp_path / "retired").mkdir()
    (tmp_path / "login.pub").rename(tmp_path / "retired" / "login.pub")
    with pytest.raises(Faults, match="expected a name such as login"):
        key_files.load_retired(tmp_path)


async def test_a_new_private_key_is_taken_after_verifiers_have_its_public_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_files, "LOOK_INTERVAL", 0.01)
    monkeypatch.setattr(key_files, "TAKE_DELAY", 0.02)
    key_files.ensure(tmp_path, ["login"])
    known = key_files.load(tmp_path, "login")
    taken: asyncio.Queue[Ed25519PrivateKey] = asyncio.Queue()
    watching = asyncio.create_task(key_files.watch_private(tmp_path, "login", known, taken.put_nowait))
    await asyncio.sleep(0.1)
    assert taken.empty()
    key_files.retire(tmp_path, "login", datetime.now(UTC))
    key = await asyncio.wait_for(taken.get(), 10)
    assert key.public_key() == key_files.load_public(tmp_path)["login"]
    watching.cancel()


async def test_a_private_key_that_was_replaced_while_the_component_started_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_files, "LOOK_INTERVAL", 0.01)
    monkeypatch.setattr(key_files, "TAKE_DELAY", 0.02)
    key_files.ensure(tmp_path, ["login"])
    known = key_files.load(tmp_path, "login")
    key_files.retire(tmp_path, "login", datetime.now(UTC))  # before the watch begins
    taken: asyncio.Queue[Ed25519PrivateKey] = asyncio.Queue()
    watching = asyncio.create_task(key_files.watch_private(tmp_path, "login", known, taken.put_nowait))
    key = await asyncio.wait_for(taken.get(), 10)
    assert key.public_key() == key_files.load_public(tmp_path)["login"]
    watching.cancel()


def test_a_change_is_noticed_once_also_one_in_place(tmp_path: Path) -> None:
    now = 0.0
    key_files.ensure(tmp_path, ["login"])
    watch = key_files.FolderWatch(tmp_path, lambda: now)
    public = tmp_path / "login.pub"
    for change in (
        lambda: key_files.ensure(tmp_path, ["audit"]),
        lambda: public.write_bytes(public.read_bytes() + b"\n"),
        lambda: key_files.retire(tmp_path, "audit", datetime.now(UTC)),
    ):
        change()
        assert not watch.changed()  # it has looked a moment ago
        now += 1
        assert watch.changed()
        now += 1
        assert not watch.changed()
    watch.repeat()
    now += 1
    assert watch.changed()
