"""Secrets of mesh.toml: where they are found, what they become, and what is said when they are not there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mesh import Secret
from mesh.config import manifest
from mesh.config.secret_store import SecretStore
from mesh.faults import Faults

TOML = """
secrets = "mounted"

[services.orders]
module = "m"
serves = ["a.B"]
database = "postgresql://orders:{secret:orders-db}@db/orders"

[services.orders.settings]
smtp = { secret = "smtp" }
note = { secret = "note", optional = true }
nested = [{ password = { secret = "smtp" } }]
header = "Basic {secret:smtp}"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "mesh.toml"
    found.write_text(TOML, encoding="utf-8")
    (tmp_path / "mounted").mkdir()
    return found


def everything(_: str) -> bool:
    return True


def test_environment_then_mounted_file_then_encrypted_file(file: Path) -> None:
    store = SecretStore(file.parent / ".mesh", {})
    for name in ("orders-db", "smtp", "note"):
        store.set(name, f"{name} of the store")
    (file.parent / "mounted" / "smtp").write_text("mounted\n\n")
    (file.parent / "mounted" / "orders-db").write_text("mounted")
    found = manifest.load(file, {"MESH_SECRET_ORDERS_DB": "p@ss/word"}, secrets_of=everything).services["orders"]
    assert found.database == "postgresql://orders:p%40ss%2Fword@db/orders"
    assert found.settings == {
        "smtp": Secret("mounted\n"),
        "note": Secret("note of the store"),
        "nested": [{"password": Secret("mounted\n")}],
        "header": Secret("Basic mounted\n"),
    }


def test_a_secret_that_is_nowhere_is_a_fault_with_every_place(file: Path) -> None:
    with pytest.raises(Faults) as caught:
        manifest.load(file, {"MESH_SECRET_SMTP": "x"}, secrets_of=everything)
    assert str(caught.value) == (
        f"mesh.toml [services.orders] database: the secret 'orders-db' is nowhere: expected the file "
        f"{file.parent}/mounted/orders-db, the variable MESH_SECRET_ORDERS_DB, or `mesh secrets set orders-db`"
    )


def test_an_optional_secret_may_be_missing(file: Path) -> None:
    environ = {"MESH_SECRET_SMTP": "x", "MESH_SECRET_ORDERS_DB": "y"}
    assert manifest.load(file, environ, secrets_of=everything).services["orders"].settings["note"] == Secret("")


def test_what_is_not_looked_up_has_a_valid_value(file: Path) -> None:
    found = manifest.load(file, {"MESH_SECRET_SMTP": "x"})
    assert found.services["orders"].database == "postgresql://orders:***@db/orders"
    assert found.services["orders"].settings["smtp"] == Secret("")
    assert found.secret_names == {"orders": {"orders-db", "smtp", "note"}}


def test_a_component_looks_up_its_own_secrets_and_those_of_all(file: Path) -> None:
    with file.open("a") as end:
        end.write('[events]\ntoken = { secret = "broker" }\n[services.other]\nmodule = "m"\nserves = ["a.C"]\n')
        end.write('database = { secret = "other" }\n[auth]\nissuer = "i"\naudience = "a"\n')
        end.write('jwks = "https://u:{secret:jwks}@issuer/keys"\n')
    environ = {f"MESH_SECRET_{name}": f"<{name}>" for name in ("SMTP", "ORDERS_DB", "BROKER", "JWKS")}
    found = manifest.load(file, environ, secrets_of=lambda owner: owner in ("", "orders"))
    assert found.events.token == "<BROKER>"
    assert found.auth is not None
    assert found.auth.jwks == "https://u:%3CJWKS%3E@issuer/keys"
    assert found.services["other"].database == "postgresql:///unresolved"
    assert found.secret_names[""] == {"broker", "jwks"}


def test_a_whole_value_is_not_encoded(file: Path) -> None:
    environ = {
        "MESH_SECRET_SMTP": "x", "MESH_SECRET_URL": "sqlite:///a b.db",
        "MESH_SERVICES_ORDERS_DATABASE": "{secret:name}", "MESH_SECRET_NAME": "a/b",
    }  # fmt: skip
    with pytest.raises(Faults, match="expected sqlite:///PATH"):
        manifest.load(file, environ, secrets_of=everything)
    file.write_text(
        file.read_text().replace('"postgresql://orders:{secret:orders-db}@db/orders"', '{ secret = "url" }')
    )
    del environ["MESH_SERVICES_ORDERS_DATABASE"]
    database = manifest.load(file, environ, secrets_of=everything).services["orders"].database
    assert database == f"sqlite:///{file.parent}/a b.db"


@pytest.mark.parametrize("name", ["", "../identity/orders.key", "a/b", "-x", "a b"])
def test_a_name_that_leads_elsewhere_is_refused(file: Path, name: str) -> None:
    file.write_text(file.read_text().replace("secret:orders-db", f"secret:{name}"))
    with pytest.raises(Faults, match=r"database: a secret's name is letters, digits"):
        manifest.load(file, {"MESH_SECRET_SMTP": "x"}, secrets_of=everything)


def test_files_that_cannot_be_read_are_named(file: Path) -> None:
    (file.parent / "mounted" / "smtp").mkdir()
    (file.parent / "mounted" / "orders-db").write_bytes(b"\xff")
    with pytest.raises(Faults) as caught:
        manifest.load(file, {}, secrets_of=everything)
    assert "orders-db: the secret cannot be read: it is not UTF-8" in str(caught.value)
    assert "smtp: the secret cannot be read: is a directory" in str(caught.value)


# -- the encrypted file --


def test_the_file_holds_no_plain_text_and_is_private(tmp_path: Path) -> None:
    state = tmp_path / "state"
    store = SecretStore(state, {})
    store.set("smtp", "correct horse")
    store.set("empty", "")
    assert (store.get("smtp"), store.get("empty"), store.get("other")) == ("correct horse", "", None)
    assert store.names() == ["empty", "smtp"]
    assert b"horse" not in (state / "secrets").read_bytes()
    modes = {path.name: path.stat().st_mode & 0o777 for path in (state, *state.iterdir())}
    assert modes == {"state": 0o700, "secrets": 0o600, "secrets.key": 0o600, "secrets.lock": 0o600}
    assert store.remove("smtp")
    assert not store.remove("smtp")
    assert store.names() == ["empty"]


def test_the_key_of_the_environment_is_used_and_another_is_named(tmp_path: Path) -> None:
    SecretStore(tmp_path, {}).set("one", "1")
    key = (tmp_path / "secrets.key").read_text()
    (tmp_path / "secrets.key").unlink()
    assert SecretStore(tmp_path, {"MESH_SECRETS_KEY": key}).get("one") == "1"
    with pytest.raises(
        Faults, match=r"secrets.key: the key of the secrets cannot be used: no such file.*MESH_SECRETS_KEY"
    ):
        SecretStore(tmp_path, {}).get("one")
    with pytest.raises(Faults, match="MESH_SECRETS_KEY: expected a key of 32 bytes"):
        SecretStore(tmp_path, {"MESH_SECRETS_KEY": "short"}).get("one")
    SecretStore(tmp_path, {}).set("two", "2")
    with pytest.raises(Faults, match=r"the secret 'one' is encrypted with another key than that of .*secrets.key"):
        SecretStore(tmp_path, {}).get("one")


@pytest.mark.parametrize("text", ["[1]", "[" * 100_000 + "]" * 100_000])
def test_a_file_that_is_no_store_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    (tmp_path / "secrets").write_text(text)
    for action in (lambda store: store.set("a", "b"), lambda store: store.names(), lambda store: store.get("a")):
        with pytest.raises(Faults, match="is not a file of `mesh secrets`"):
            action(SecretStore(tmp_path, {}))
    assert (tmp_path / "secrets").read_text() == text


def test_secrets_that_are_set_at_once_are_all_kept(tmp_path: Path) -> None:
    names = [f"s{number}" for number in range(24)]
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: SecretStore(tmp_path, {}).set(name, name), names))
    store = SecretStore(tmp_path, {})
    assert {name: store.get(name) for name in store.names()} == {name: name for name in names}
