"""Database URLs of users and providers: the parsed value, or the fault with its correction."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.database_url import DatabaseUrl, UrlError, file_faults, located, parse, sqlite_url

DATABASE = "postgresql://u:p@h/db"


@pytest.mark.parametrize(
    ("url", "hosts", "user", "password", "database"),
    [
        ("postgresql://u:p@h:5433/db", (("h", 5433),), "u", "p", "db"),
        ("postgres://u:p@h/db", (("h", None),), "u", "p", "db"),
        ("POSTGRES://u@h/db", (("h", None),), "u", None, "db"),
        ("postgresql+asyncpg://u:p@h/db", (("h", None),), "u", "p", "db"),
        ("postgresql:///db", (), None, None, "db"),
        ("postgresql://:5433/db", (("", 5433),), None, None, "db"),
        ("postgresql:///db?port=5433", (("", 5433),), None, None, "db"),
        ("postgresql://h1:1,h2:2,h3/db", (("h1", 1), ("h2", 2), ("h3", None)), None, None, "db"),
        ("postgresql://h1,h2/db?port=7", (("h1", 7), ("h2", 7)), None, None, "db"),
        ("postgresql:///db?host=h1,h2&port=1,2", (("h1", 1), ("h2", 2)), None, None, "db"),
        ("postgresql:///db?host=h1:1&host=h2:2", (("h1", 1), ("h2", 2)), None, None, "db"),
        ("postgresql://old/db?host=new", (("new", None),), None, None, "db"),
        ("postgresql://[::1]:5433/db", (("::1", 5433),), None, None, "db"),
        ("postgresql://[fe80::1%25eth0]/db", (("fe80::1%eth0", None),), None, None, "db"),
        ("postgresql:///db?host=::1", (("::1", None),), None, None, "db"),
        ("postgresql://%2Fvar%2Frun%2Fpostgresql/db", (("/var/run/postgresql", None),), None, None, "db"),
        ("postgresql://u@/db?host=/cloudsql/p:r:i", (("/cloudsql/p:r:i", None),), "u", None, "db"),
        ("postgresql://?host=h&user=u&password=p&dbname=db", (("h", None),), "u", "p", "db"),
        ("postgresql://us%40er:p%2Fa%3Fs%25@h/my%20db", (("h", None),), "us@er", "p/a?s%", "my db"),
        ("postgresql://u:p@ss#wo?rd@h/db", (("h", None),), "u", "p@ss#wo?rd", "db"),
        ("postgresql://u:a+b@h/db", (("h", None),), "u", "a+b", "db"),
        (" postgresql://u:p@h/db\r\n", (("h", None),), "u", "p", "db"),  # a secret's file ends with a line's end
    ],
)
def test_what_a_url_says(url: str, hosts: object, user: str | None, password: str | None, database: str):
    found = parse(url)
    assert (found.hosts, found.user, found.password, found.database) == (hosts, user, password, database)


def test_parameters_of_providers():
    found = parse(
        DATABASE
        + "?sslmode=verify-full&sslrootcert=/a.pem&sslcert=/c.pem&sslkey=/k.pem&sslpassword=x&application_name=a b"
        "&connect_timeout=7&options=-csearch_path%3Dshop%20-c%20statement_timeout%3D5s&target_session_attrs=read-write"
        "&channel_binding=prefer&gssencmode=disable&client_encoding=UTF8&keepalives=1&keepalives_idle=30"
    )
    assert found.driver == {
        "sslmode": "verify-full", "sslrootcert": "/a.pem", "sslcert": "/c.pem", "sslkey": "/k.pem", "sslpassword": "x",
    }  # fmt: skip
    assert found.settings == {
        "application_name": "a b", "options": "-csearch_path=shop -c statement_timeout=5s",
    }  # fmt: skip
    assert found.numbers == {"connect_timeout": 7, "keepalives": 1, "keepalives_idle": 30}
    assert found.target == "read-write"


@pytest.mark.parametrize(
    ("query", "mode", "system"),
    [
        ("", "", False),
        ("ssl=true", "require", False),
        ("ssl=require", "require", False),
        ("sslmode=disable", "disable", False),
        ("sslrootcert=system", "verify-full", True),
        ("sslrootcert=system&sslmode=verify-full", "verify-full", True),
    ],
)
def test_how_tls_is_asked_for(query: str, mode: str, *, system: bool):
    found = parse(f"{DATABASE}?{query}")
    assert (found.driver.get("sslmode", ""), found.system_roots) == (mode, system)


@pytest.mark.parametrize(
    ("query", "fault"),
    [
        ("ssl_mode=require", "unknown parameter 'ssl_mode'; did you mean sslmode?"),
        ("aplication_name=x", "unknown parameter 'aplication_name'; did you mean application_name?"),
        ("frobnicate=1", r"unknown parameter 'frobnicate' \(known: application_name, "),
        ("sslmode=requir", "sslmode is one of disable, allow, prefer, require, verify-ca, verify-full"),
        ("sslmode=verify_full", "sslmode is one of"),
        ("ssl=yes", "sslmode is one of"),
        ("target_session_attrs=primry", "target_session_attrs is one of any, read-write"),
        ("connect_timeout=5s", "connect_timeout is a whole number"),
        ("channel_binding=require", "channel_binding: the driver .* sslmode=verify-full&sslrootcert=system"),
        ("sslrootcert=system&sslmode=require", "sslrootcert=system goes with sslmode=verify-full, not with require"),
        ("sslkey=/k.pem", "sslkey belongs to a certificate: add sslcert=FILE"),
        ("sslnegotiation=direct&sslmode=prefer", "sslnegotiation=direct needs sslmode=require"),
        ("gssencmode=require", "gssencmode: .* use sslmode"),
        ("load_balance_hosts=random", "load_balance_hosts: the hosts are tried in their order"),
        ("client_encoding=latin1", "client_encoding: the driver speaks UTF-8 only"),
        ("pgbouncer=true", "'pgbouncer' is not a parameter of PostgreSQL's own URLs: a pooler in transaction mode"),
        ("schema=shop", "write options=-csearch_path%3DSCHEMA"),
        ("currentSchema=shop", "'currentSchema' .* write options=-csearch_path%3DSCHEMA"),
        ("connection_limit=1", "each process keeps up to 20 connections"),
        ("search_path=shop", "search_path is a setting of the server: write options=-csearch_path%3DVALUE"),
        ("sslmode", "a parameter has no value: write NAME=VALUE"),
    ],
)
def test_a_parameter_that_cannot_be_honoured_is_named(query: str, fault: str):
    with pytest.raises(UrlError, match=fault):
        parse(f"{DATABASE}?{query}")


def test_all_faults_are_named_at_once():
    with pytest.raises(UrlError) as caught:
        parse("postgresql://h?ssl_mode=require&schema=x")
    assert len(caught.value.faults) == 3
    assert "the name of the database is missing" in caught.value.faults[2]


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("postgresql://u:pass/word@h/db", "in a user or a password '/' is written %2F"),
        ("postgresql://u:12/word@h/db", "the name of the database contains '@': in a user or a password"),
        ("postgresql://h:0/db", "a port is a number from 1 to 65535"),
        ("postgresql://h:99999/db", "a port is a number from 1 to 65535"),
        ("postgresql://::1/db", r"write an IPv6 address in brackets, \[::1\]:5432"),
        ("postgresql://h1,,h2/db", "a host is missing between two commas"),
        ("postgresql://h1,h2/db?port=1,2,3", "3 ports for 2 hosts"),
        ("postgresql+psycopg2://h/db", "the mesh has its own driver: begin the URL with postgresql://, not with"),
        ("sqlite3:///x.db", "the mesh has its own driver: begin the URL with sqlite:///, not with sqlite3://"),
        ("mysql://h/db", "expected sqlite:///PATH or postgresql://"),
        ("data.db", "expected sqlite:///PATH or postgresql://"),
        ("", "expected sqlite:///PATH or postgresql://"),
        ("postgresql:h/db", "expected sqlite:///PATH or postgresql://"),
        (
            "sqlite://data.db",
            "write a relative path after three slashes, sqlite:///PATH, and an absolute one after four",
        ),
        ("sqlite:data.db", "write a relative path after three slashes"),
        ("sqlite:/abs/data.db", "write a relative path after three slashes"),
        ("sqlite://", "each connection would have its own database in memory"),
        ("sqlite:///:memory:", "its own database in memory"),
        ("sqlite:///data.db?mode=ro", "a SQLite URL has no parameters"),
        ("sqlite:///~/data.db", "'~' is not a folder here"),
        ("sqlite:///data/", "the path is a folder: add the name of a file"),
        ("sqlite:///da%00ta.db", "a path or a password cannot contain the character U\\+0000"),
        ("postgresql://u%00:word@h/db", "a path or a password cannot contain the character U\\+0000 .%00."),
        ("postgresql://u:word%00@h/db", "a path or a password cannot contain the character U\\+0000"),
        ("postgresql://u:word%FF@h/db", "the bytes after '%' are no UTF-8; in a user or a password"),
        ("postgresql://u@h/db?application_name=%C3", "the bytes after '%' are no UTF-8"),
        ("sqlite:///.", "the path is a folder: add the name of a file"),
        ("sqlite:///data/..", "the path is a folder: add the name of a file"),
    ],
)
def test_a_url_that_cannot_be_used_says_what_would_be_right(url: str, fault: str):
    with pytest.raises(UrlError, match=fault) as caught:
        parse(url)
    assert "word" not in str(caught.value).replace("password", "")


@given(st.text(min_size=4).filter(lambda text: text.isprintable()))
def test_no_password_shows_anywhere(password: str):
    """Quoted it is read as it was; raw, it is read or refused without a word of it."""
    found = parse(f"postgresql://me:{quote(password, safe='')}@h/db")
    assert found.password == password
    secret = f"zq{password}qz"
    for form in (f"postgresql://me:{secret}@h/db", f"postgresql://h/db?password={secret}&user=me"):
        assert not {"zq", "qz"} & set(re.findall("zq|qz", _said(form)))


def _said(url: str) -> str:
    """Return all that is ever shown of a URL."""
    try:
        found = parse(url)
    except UrlError as error:
        return str(error)
    return f"{found} {found.where} {found!r}"


def test_a_url_is_shown_without_what_is_secret():
    found = parse("postgresql://me:s3cret@h1:1,[::1]:2/db?sslpassword=s3cret&application_name=x")
    assert str(found) == "postgresql://me:***@h1:1,[::1]:2/db"
    assert found.where == "postgresql://h1:1,[::1]:2/db"
    assert str(parse("postgresql://me@/db?host=/tmp")) == "postgresql://me@/db?host=/tmp"
    assert "s3cret" not in repr(found)


def test_files_are_relative_to_mesh_toml():
    root = Path("/srv/shop")
    assert located("sqlite:///data/x.db", root) == "sqlite:////srv/shop/data/x.db"
    assert located("sqlite+aiosqlite:////abs/x.db", root) == "sqlite:////abs/x.db"
    made = located("postgres://u:p@ss?@h/db?sslrootcert=tls/ca.pem&sslkey=/k.pem&sslcert=c.pem&user=a%26b", root)
    assert made == (
        "postgresql://u:p@ss?@h/db?sslrootcert=/srv/shop/tls/ca.pem&sslkey=/k.pem&sslcert=/srv/shop/c.pem&user=a%26b"
    )
    assert located(f"{DATABASE}?sslrootcert=system", root).endswith("sslrootcert=system")
    assert located(f"{DATABASE}?nonsense=1", root) == f"{DATABASE}?nonsense=1"


@pytest.mark.parametrize("url", ["sqlite:///a.db", f"{DATABASE}?sslmode=require", f"{DATABASE}?sslrootcert=ca.pem"])
def test_what_stands_around_a_url_is_none_of_it(url: str):
    assert located(f"{url}\n", Path("/x")) == located(url, Path("/x"))


def test_files_that_cannot_be_used_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = parse(f"{DATABASE}?sslmode=verify-full&sslrootcert={tmp_path}/ca.pem")
    assert list(file_faults(found, {})) == [f"sslrootcert: {tmp_path}/ca.pem: no such file or directory"]
    (tmp_path / "ca.pem").touch()
    assert list(file_faults(found, {})) == [f"sslrootcert: {tmp_path}/ca.pem holds nothing in PEM form"]
    bare = parse(f"{DATABASE}?sslmode=verify-ca")
    assert "sslrootcert=FILE, or sslrootcert=system" in next(file_faults(bare, {}))
    assert list(file_faults(bare, {"PGSSLROOTCERT": "/x"})) == []
    assert "write sslrootcert=system into the URL" in next(file_faults(bare, {"PGSSLROOTCERT": "system"}))


def test_a_service_of_a_service_file(tmp_path: Path):
    (tmp_path / "services").write_text("[shop]\nhost=h\npassword=50%\n")
    for name, faults in (("shop", []), ("shp", [f"service: {tmp_path}/services has no [shp]"])):
        found = parse(f"postgresql:///?service={name}")
        assert list(file_faults(found, {"PGSERVICEFILE": f"{tmp_path}/services"})) == faults


def test_a_sqlite_file():
    assert parse("sqlite:///a b%20c.db") == DatabaseUrl(file=Path("a b c.db"))
    assert parse(sqlite_url(Path("/50%20?x"))).file == Path("/50%20?x")
    assert str(parse("sqlite:////x/y.db")) == "sqlite:////x/y.db"
