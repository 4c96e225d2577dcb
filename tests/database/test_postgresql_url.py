"""URLs of providers on a real PostgreSQL: each parameter does what it says, everywhere a URL is used."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from postgresql import Front, front
from sqlalchemy import text

from mesh.chaos import evidence
from mesh.database import Database, DatabaseError
from mesh.errors import Unavailable

PEM = serialization.Encoding.PEM


@asynccontextmanager
async def opened(url: str, migrations: Path | None = None) -> AsyncIterator[Database]:
    made = Database(url, migrations=migrations, name="shop")
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def answer(url: str, question: str) -> Any:
    async with opened(url) as database, database.transaction() as tx:
        return (await tx.execute(text(question))).scalar_one()


@pytest.fixture
def running(postgres_server: Any) -> Any:
    return postgres_server


# -- parameters --


@pytest.mark.parametrize(
    ("query", "question", "found"),
    [
        ("application_name=shop%20one", "SHOW application_name", "shop one"),
        ("fallback_application_name=shop", "SHOW application_name", "shop"),
        ("options=-cstatement_timeout%3D1234", "SHOW statement_timeout", "1234ms"),
        ("options=-cstatement_timeout=1234%20-c%20lock_timeout=5s", "SHOW lock_timeout", "5s"),
        ("options=-csearch_path%3Dpg_catalog", "SHOW search_path", "pg_catalog"),
        ("connect_timeout=3&keepalives=0&client_encoding=utf8&gssencmode=prefer", "SELECT 1", 1),
        ("target_session_attrs=read-write", "SHOW transaction_read_only", "off"),
        ("prepared_statement_cache_size=0&statement_cache_size=0", "SELECT 1", 1),
    ],
)
async def test_a_parameter_does_what_it_says(new_postgres: Callable[[], str], query: str, question: str, found: object):
    assert await answer(f"{new_postgres()}&{query}", question) == found


async def test_services_that_share_a_database_have_a_schema_each(new_postgres: Callable[[], str], tmp_path: Path):
    """Tables, versions and the right to empty the outbox: none is the other's."""
    url = new_postgres()
    await evidence.run_query(url, lambda one: one.exec_driver_sql("CREATE SCHEMA one"))
    await evidence.run_query(url, lambda one: one.exec_driver_sql("CREATE SCHEMA two"))
    (tmp_path / "v1.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\nrevision = '1'\ndown_revision = None\n"
        "def upgrade():\n    op.create_table('items', sa.Column('id', sa.Integer, primary_key=True))\n"
    )
    forms = [f"{url}&options=-csearch_path%3D{schema}" for schema in ("one", "two")]
    async with opened(forms[0], tmp_path) as first, opened(forms[1], tmp_path) as second:
        async with first.transaction() as tx:
            await tx.execute(text("INSERT INTO items VALUES (1)"))
        async with second.transaction() as tx:
            assert (await tx.execute(text("SELECT count(*) FROM items"))).scalar_one() == 0
        mine, yours, again = first.leader_lock("relay"), second.leader_lock("relay"), first.leader_lock("relay")
        async with asyncio.timeout(20):
            await mine.acquire()
            await yours.acquire()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await again.acquire()
        for one in (mine, yours, again):
            await one.release()


async def test_a_schema_that_is_not_there_is_named(new_postgres: Callable[[], str], tmp_path: Path):
    (tmp_path / "v1.py").write_text("revision = '1'\ndown_revision = None\ndef upgrade(): pass\n")
    with pytest.raises(DatabaseError, match="there is no such schema; search_path names one"):
        async with opened(f"{new_postgres()}&options=-csearch_path%3Dnowhere", tmp_path):
            pass


async def test_a_password_with_every_special_character(running: Any, new_postgres: Callable[[], str]):
    """Quoted, it reaches the server; the server refuses the wrong one, and nobody shows either."""
    url = new_postgres()
    name = url.partition("?")[0].rpartition("/")[2]
    role = f"r{name}"
    running.psql(f"CREATE ROLE {role} LOGIN PASSWORD 'p@/:?#%&+ ü'")
    hba = running.pgdata / "pg_hba.conf"
    before = hba.read_text()
    try:
        hba.write_text(f"local all {role} scram-sha-256\n{before}")
        running.psql("SELECT pg_reload_conf()")
        right = f"postgresql://{role}:p%40%2F%3A%3F%23%25%26%2B%20%C3%BC@/{name}?{url.partition('?')[2]}"
        assert await answer(right, "SELECT current_user::text") == role
        assert await evidence.run_query(right, lambda one: one.exec_driver_sql("SELECT 1").scalar_one()) == 1
        with pytest.raises(DatabaseError, match="the password is wrong") as caught:
            await answer(right.replace("%C3%BC", "s3cret"), "SELECT 1")
        assert "s3cret" not in str(caught.value)
    finally:
        hba.write_text(before)
        running.psql("SELECT pg_reload_conf()")
        running.psql(f"DROP ROLE {role}")


async def test_a_service_file_says_the_rest(
    running: Any, new_postgres: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    name = new_postgres().partition("?")[0].rpartition("/")[2]
    folder = running.get_postmaster_info().socket_dir
    (tmp_path / "services").write_text(f"[shop]\nhost={folder}\ndbname={name}\nuser=postgres\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    assert await answer("postgresql:///?service=shop&application_name=x", "SELECT current_database()::text") == name


async def test_a_socket_that_is_not_there_is_named():
    with pytest.raises(DatabaseError, match=r"\(postgresql://u@/db\?host=/nowhere\): there is no such socket"):
        await answer("postgresql://u@/db?host=/nowhere", "SELECT 1")


# -- hosts --


def tcp(url: str, hosts: str, query: str = "") -> str:
    """Return a URL of TCP hosts for a database of the server."""
    return f"postgresql://postgres@{hosts}/{url.partition('?')[0].rpartition('/')[2]}?{query}"


async def test_hosts_are_tried_in_turn(running: Any, new_postgres: Callable[[], str]):
    """One that refuses, and one that takes connections and says nothing."""
    url = new_postgres()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        deaf = f"127.0.0.1:{silent.getsockname()[1]}"
        async with front(running) as there:
            hosts = f"127.0.0.1:1,{deaf},127.0.0.1:{there.port}"
            assert await answer(tcp(url, hosts, "connect_timeout=1"), "SELECT 1") == 1
            assert there.plain > 0
        with pytest.raises(DatabaseError, match="it did not answer in time"):
            await answer(tcp(url, f"127.0.0.1:1,{deaf}", "connect_timeout=1"), "SELECT 1")


async def test_a_host_that_is_not_what_was_asked_for(running: Any, new_postgres: Callable[[], str]):
    url = new_postgres()
    async with front(running) as there:
        with pytest.raises(DatabaseError, match="no host is what target_session_attrs asks for"):
            await answer(tcp(url, f"127.0.0.1:{there.port}", "target_session_attrs=standby"), "SELECT 1")
        prefer = tcp(url, f"127.0.0.1:{there.port}", "target_session_attrs=prefer-standby")
        assert await answer(prefer, "SELECT 1") == 1


async def test_a_connection_is_kept_alive(running: Any, new_postgres: Callable[[], str]):
    async with front(running) as there:
        query = "keepalives_idle=33&keepalives_interval=7&keepalives_count=4&tcp_user_timeout=9000"
        options = [
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE), (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL), (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
            (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
        ]  # fmt: skip
        for parameters, expected in ((query, [1, 33, 7, 4, 9000]), ("keepalives=0", [0])):
            async with opened(tcp(new_postgres(), f"127.0.0.1:{there.port}", parameters)) as database:
                assert database._engine is not None
                async with database._engine.connect() as connection:
                    raw: Any = (await connection.get_raw_connection()).driver_connection
                    held = raw._transport.get_extra_info("socket")
                    found = [held.getsockopt(*option) for option in options[: len(expected)]]
            assert found == expected


# -- TLS --


class Authority:
    """An authority, and the certificates that it signs."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.file = str(folder / f"{name}.pem")
        Path(self.file).write_bytes(self._made(self._name, self._key, ca=True).public_bytes(PEM))

    def signed(self, name: str, address: str = "127.0.0.1", password: str = "") -> tuple[str, str]:
        """Make a certificate and its key; return their files."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = self._made(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key, address=address)
        cert, secret = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        cert.write_bytes(made.public_bytes(PEM))
        hidden: Any = (
            serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
        )
        secret.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, hidden))
        return str(cert), str(secret)

    def _made(self, subject: x509.Name, key: Any, *, ca: bool = False, address: str = "") -> x509.Certificate:
        now = datetime.now(UTC)
        public = self._key.public_key()
        made = (
            x509.CertificateBuilder(self._name, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
            .add_extension(
                x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False),  # noqa: FBT003 - as it takes them
                critical=True,
            )
        )
        if address:
            names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
            made = made.add_extension(names, critical=False)
        return made.sign(self._key, hashes.SHA256())


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


def context(cert: tuple[str, str], asks: str = "") -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(*cert)
    made.set_alpn_protocols(["postgresql"])
    if asks:
        made.verify_mode = ssl.CERT_REQUIRED
        made.load_verify_locations(asks)
    return made


Ask = Callable[[str], Awaitable[Any]]


@pytest.fixture
async def secure(
    running: Any, authority: Authority, new_postgres: Callable[[], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncIterator[tuple[Front, Ask]]:
    """A server behind TLS, and who asks it something with some parameters."""
    monkeypatch.setenv("HOME", str(tmp_path))  # no certificates of whoever runs the tests
    monkeypatch.setenv("SSL_CERT_FILE", authority.file)  # what the system trusts
    async with front(running, context(authority.signed("server"))) as there:
        url = new_postgres()

        async def ask(query: str) -> Any:
            return await answer(tcp(url, f"127.0.0.1:{there.port}", query), "SELECT 1")

        yield there, ask


@pytest.mark.parametrize(
    "query",
    [
        "sslmode=prefer", "sslmode=require", "ssl=true", "sslmode=verify-ca&sslrootcert={ca}",
        "sslmode=verify-full&sslrootcert={ca}&ssl_min_protocol_version=TLSv1.3", "sslrootcert=system", "",
    ],
)  # fmt: skip
async def test_a_server_behind_tls_is_reached_with_it(secure: tuple[Front, Ask], authority: Authority, query: str):
    there, ask = secure
    assert await ask(query.format(ca=authority.file)) == 1
    assert (there.secured > 0, there.plain) == (True, 0)


async def test_tls_that_is_not_wanted_is_not_used(secure: tuple[Front, Ask]):
    there, ask = secure
    assert await ask("sslmode=disable") == 1
    assert (there.secured, there.plain > 0) == (0, True)


async def test_a_server_that_is_not_trusted_is_refused(secure: tuple[Front, Ask], authority: Authority, tmp_path: Path):
    """By an authority that did not sign it, by a name that it has not, and without a file at all."""
    _, ask = secure
    other = Authority(tmp_path, "other").file
    for mode in ("require", "verify-ca", "verify-full"):
        with pytest.raises(DatabaseError, match="the server's certificate is not accepted"):
            await ask(f"sslmode={mode}&sslrootcert={other}")
    with pytest.raises(DatabaseError, match=r"needs certificate authorities: sslrootcert=FILE"):
        await ask("sslmode=verify-full")
    with pytest.raises(DatabaseError, match=r"sslrootcert: .*none\.pem: no such file"):
        await ask(f"sslmode=verify-full&sslrootcert={tmp_path}/none.pem")


async def test_the_name_of_the_server_counts_with_verify_full(
    running: Any, authority: Authority, new_postgres: Callable[[], str]
):
    async with front(running, context(authority.signed("elsewhere", "192.0.2.1"))) as there:
        url = tcp(new_postgres(), f"127.0.0.1:{there.port}", f"sslrootcert={authority.file}")
        assert await answer(f"{url}&sslmode=verify-ca", "SELECT 1") == 1
        with pytest.raises(DatabaseError, match=r"is not accepted: .*127\.0\.0\.1"):
            await answer(f"{url}&sslmode=verify-full", "SELECT 1")


async def test_a_server_without_tls_is_refused_when_it_is_required(running: Any, new_postgres: Callable[[], str]):
    async with front(running) as there:
        url = tcp(new_postgres(), f"127.0.0.1:{there.port}")
        assert await answer(f"{url}sslmode=prefer", "SELECT 1") == 1
        with pytest.raises(DatabaseError, match="rejected SSL upgrade"):
            await answer(f"{url}sslmode=require", "SELECT 1")


@pytest.mark.parametrize("roots", ["sslmode=verify-full&sslrootcert={ca}", "sslrootcert=system"])
async def test_a_client_proves_who_it_is(
    running: Any, authority: Authority, new_postgres: Callable[[], str], monkeypatch: pytest.MonkeyPatch, roots: str
):
    monkeypatch.setenv("SSL_CERT_FILE", authority.file)
    cert, key = authority.signed("client", password="s3cret")
    async with front(running, context(authority.signed("server"), authority.file)) as there:
        url = tcp(
            new_postgres(), f"127.0.0.1:{there.port}", f"{roots.format(ca=authority.file)}&sslcert={cert}&sslkey={key}"
        )
        assert await answer(f"{url}&sslpassword=s3cret", "SELECT 1") == 1
        assert there.certified > 0
        with pytest.raises(
            DatabaseError, match="the key in sslkey and the password in sslpassword do not go together"
        ) as caught:
            await answer(f"{url}&sslpassword=wr0ng", "SELECT 1")
        assert "wr0ng" not in str(caught.value)


async def test_what_is_wrong_later_is_unavailable(running: Any, new_postgres: Callable[[], str]):
    """The server goes away between two calls: no address, and no password, reaches the caller."""
    async with front(running) as there:
        database = Database(tcp(new_postgres(), f"127.0.0.1:{there.port}"), migrations=None, name="shop")
        await database.start()
    with pytest.raises(Unavailable, match=r"^UNAVAILABLE: the database cannot be reached$"):
        async with database.transaction() as tx:
            await tx.execute(text("SELECT 1"))
    await database.stop()
