"""Files of a mesh that other users can open are named, with the command that closes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.config import manifest
from mesh.control import file_rights


@pytest.fixture
def shop(tmp_path: Path) -> manifest.Manifest:
    file = tmp_path / "mesh.toml"
    file.write_text(
        '[services.orders]\nmodule = "m"\nserves = ["a.B"]\ndatabase = "sqlite:///data/orders.db"\n', encoding="utf-8"
    )
    for folder in ("data", ".mesh", ".mesh/identity"):
        (tmp_path / folder).mkdir(mode=0o755)
    (tmp_path / "data" / "orders.db").touch(0o644)
    (tmp_path / "data" / "orders.db-wal").touch(0o600)
    (tmp_path / ".mesh" / "identity" / "orders.key").touch(0o644)
    return manifest.load(file, {})


def test_what_others_can_open_is_named(shop: manifest.Manifest) -> None:
    root = shop.root
    assert file_rights.state_warnings(shop) == [
        f"other users of this machine can open {root}/.mesh (mode 0755): chmod 700 {root}/.mesh"
    ]
    assert file_rights.component_warnings(shop, "orders") == [
        f"other users of this machine can open {path} (mode 0644): chmod 600 {path}"
        for path in (f"{root}/.mesh/identity/orders.key", f"{root}/data/orders.db")
    ]
    assert file_rights.component_warnings(shop, "edge") == []


def test_api_keys_that_others_can_open_are_named(shop: manifest.Manifest) -> None:
    folder = shop.state / "api-keys"
    folder.mkdir(mode=0o755)
    (folder / "keys.json").touch(0o640)
    expected = [f"other users of this machine can open {folder} (mode 0755): chmod 700 {folder}"]
    expected.append(
        f"other users of this machine can open {folder}/keys.json (mode 0640): chmod 600 {folder}/keys.json"
    )
    assert file_rights.component_warnings(shop, "edge") == expected


def test_a_private_folder_protects_what_it_holds(shop: manifest.Manifest) -> None:
    for folder in (shop.state, shop.root / "data", shop.state / "identity"):
        folder.chmod(0o700)
    assert file_rights.state_warnings(shop) == []
    assert file_rights.component_warnings(shop, "orders") == []
