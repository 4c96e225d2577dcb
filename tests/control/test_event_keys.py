"""Keys of event signatures: a retired or withdrawn key counts at once, without a restart."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from mesh.auth import key_files
from mesh.control.component import event_keys
from mesh.control.component.event_keys import KeyRing
from mesh.events.signatures import key_id


def test_files_that_change_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_files, "LOOK_INTERVAL", 0.0)
    key_files.ensure(tmp_path, ["login"])
    old = key_id(key_files.load(tmp_path, "login").public_key())
    ring = KeyRing(tmp_path)
    found = ring.find("login", old)
    assert found is not None
    assert found.retired is None
    now = datetime.now(UTC).replace(microsecond=0)
    retired = key_files.retire(tmp_path, "login", now)
    found = ring.find("login", old)
    assert found is not None
    assert found.retired == now + event_keys.RETIREMENT_GRACE
    fresh = ring.find("login", key_id(key_files.load(tmp_path, "login").public_key()))
    assert fresh is not None
    assert fresh.retired is None
    (tmp_path / "registration.pub").write_text("half of a key")
    assert ring.find("login", old) == found  # what cannot be read changes nothing
    (tmp_path / "registration.pub").unlink()
    retired.unlink()
    assert ring.find("login", old) is None
