"""mesh.toml and the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.config.manifest import CorsConfig, Duration, Manifest, Size, WorkersConfig, load
from mesh.database_url import parse
from mesh.faults import Faults

ISSUERS = "[[auth.issuers]]\nissuer = 'https://i'\naudience = 'a'\n[[auth.issuers]]\nissuer = 'https://j'"
BASE = """
[edge]
listen = "127.0.0.1:0"
[services.log-in]
module = "services.login.functions"
serves = ["login.v1.Login"]
"""


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "mesh.toml"
    file.write_text(text)
    return file


def read(tmp_path: Path, text: str, **environ: str) -> Manifest:
    return load(write(tmp_path, text), environ)


def test_what_a_manifest_says(tmp_path: Path) -> None:
    manifest = read(
        tmp_path,
        BASE
        + """listen = "0.0.0.0:9101"
database = "sqlite:///.mesh/login.db"
max_message = "8MiB"
drain = "250ms"
settings = { admin = "root", nested = { a = 1 } }
""",
    )
    entry = manifest.services["log-in"]
    assert manifest.root == tmp_path
    assert manifest.protos == (tmp_path / "protos",)
    assert (manifest.stubs, manifest.state, manifest.channel) == (tmp_path / "gen", tmp_path / ".mesh", "ngh2")
    assert entry.addresses == ("127.0.0.1:9101",)
    assert entry.database == f"sqlite:///{tmp_path}/.mesh/login.db"
    assert (entry.max_message, entry.drain) == (8 * 2**20, 0.25)
    assert entry.settings == {"admin": "root", "nested": {"a": 1}}
    assert manifest.host_of("login.v1.Login") == "log-in"
    assert manifest.host_of("nobody.v1.Nobody") is None


def test_the_environment_overrides_any_value(tmp_path: Path) -> None:
    manifest = read(
        tmp_path,
        BASE,
        MESH_CHANNEL="grpcio",
        MESH_EDGE_MAX_BODY="7MB",
        MESH_EDGE_CONCURRENCY="5",
        MESH_AUTH_ISSUER="me",
        MESH_AUTH_AUDIENCE="you",
        MESH_AUTH_JWKS="https://keys.example/jwks.json",
        MESH_SERVICES_LOG_IN_DATABASE="postgresql://u:p@db/login",
        MESH_SERVICES_LOG_IN_ADDRESS="a:1, b:2",
        MESH_SERVICES_LOG_IN_SERVES='["login.v1.Login", "login.v1.Other"]',
        MESH_SERVICES_LOG_IN_SETTINGS_ADMIN_PASSWORD="s3cret",
        MESH_INTERNAL_READY_FD="3",
        OTHER="ignored",
    )
    entry = manifest.services["log-in"]
    assert manifest.channel == "grpcio"
    assert manifest.edge is not None
    assert (manifest.edge.max_body, manifest.edge.concurrency) == (7_000_000, 5)
    assert manifest.auth is not None
    assert manifest.auth.issuer == "me"
    assert entry.database == "postgresql://u:p@db/login"
    assert entry.addresses == ("a:1", "b:2")
    assert entry.serves == ("login.v1.Login", "login.v1.Other")
    assert entry.settings == {"admin_password": "s3cret"}


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("[fd00::5]:9101", ("[fd00::5]:9101",)),
        ("[fd00::5]:9101, [fe80::1%eth0]:9102", ("[fd00::5]:9101", "[fe80::1%eth0]:9102")),
        ('["[fd00::5]:9101", "b:1"]', ("[fd00::5]:9101", "b:1")),
        ("a:1,b:2", ("a:1", "b:2")),
        ("[]", ("127.0.0.1:0",)),
    ],
)
def test_addresses_of_the_environment(tmp_path: Path, text: str, addresses: tuple[str, ...]) -> None:
    login = read(tmp_path, BASE, MESH_SERVICES_LOG_IN_ADDRESS=text).services["log-in"]
    assert login.addresses == addresses


@pytest.mark.parametrize(("path", "file"), [("a/b.db", "a/b.db"), ("a%20b.db", "a b.db"), ("ü.db", "ü.db")])
def test_a_sqlite_file_is_absolute_wherever_the_folder_is(tmp_path: Path, path: str, file: str) -> None:
    folder = tmp_path / "50%41?x=y"
    folder.mkdir()
    database = read(folder, BASE + f'database = "sqlite:///{path}"').services["log-in"].database
    assert parse(database).file == folder / file


@pytest.mark.parametrize("text", ["[::1]", "{a}", '"a"', "'a", "true", "1", "a\nb = 2", " a "])
def test_a_text_of_the_environment_is_itself(tmp_path: Path, text: str) -> None:
    found = read(tmp_path, BASE, MESH_SERVICES_LOG_IN_SETTINGS_WORD=text, MESH_STUBS=text)
    assert (found.services["log-in"].settings["word"], found.stubs) == (text, (tmp_path / text).resolve())


def test_several_issuers(tmp_path: Path) -> None:
    text = f"[auth]\nissuer = 'me'\naudience = 'a'\njwks = 'a.A/B'\n{ISSUERS}\naudience = ['a', 'b']\n{BASE}"
    auth = read(tmp_path, text).auth
    assert auth is not None
    assert [(place, one.issuer, one.audiences, one.url) for place, one in auth.places()] == [
        ("[auth]", "me", ("a",), ""),
        ("[[auth.issuers]] 1", "https://i", ("a",), "https://i"),
        ("[[auth.issuers]] 2", "https://j", ("a", "b"), "https://j"),
    ]
    alone = read(tmp_path, f"{ISSUERS}\naudience = 'a'\n{BASE}").auth
    assert alone is not None
    assert [place for place, _ in alone.places()] == ["[[auth.issuers]] 1", "[[auth.issuers]] 2"]
    variable = '[{ issuer = "https://k", audience = "a", jwks = "https://k/keys" }]'
    only = read(tmp_path, BASE, MESH_AUTH_ISSUERS=variable, MESH_AUTH_ROLE_PREFIX="").auth
    assert only is not None
    assert [(place, one.url) for place, one in only.places()] == [("[[auth.issuers]] 1", "https://k/keys")]


def test_who_may_come_in(tmp_path: Path) -> None:
    manifest = read(
        tmp_path,
        """
[edge]
metadata = ["x-tenant"]
trusted_proxies = ["10.0.0.0/8", "::1"]
[edge.cors]
origins = ["https://app.example"]
credentials = true
max_age = "1h"
[edge.rate_limit]
per_client = "600/m burst 50"
""",
        MESH_EDGE_RATE_LIMIT_PER_IDENTITY="5/s",
        MESH_EDGE_CORS_EXPOSE="x-total,x-next",
    )
    edge = manifest.edge
    assert edge is not None
    assert edge.cors_rules == CorsConfig(
        origins=("https://app.example",), credentials=True, max_age=Duration(3600), expose=("x-total", "x-next")
    )
    limit = edge.rate_limit
    assert limit.per_client is not None
    assert (limit.per_client, limit.per_client.burst) == (10.0, 50)
    assert limit.per_identity is not None
    assert (limit.per_identity, limit.per_identity.burst) == (5.0, 5)
    listed = read(tmp_path, "[edge]\ncors = ['http://a:1']", MESH_EDGE_CORS="http://b:2, https://[::1]:8").edge
    assert listed is not None
    assert listed.cors_rules == CorsConfig(origins=("http://b:2", "https://[::1]:8"))


class TestWorkers:
    """``workers`` of a service."""

    def test_absent_the_functions_run_in_the_sidecar(self, tmp_path: Path) -> None:
        assert read(tmp_path, BASE).services["log-in"].workers is None

    def test_an_empty_table_is_the_defaults(self, tmp_path: Path) -> None:
        found = read(tmp_path, BASE + "workers = {}").services["log-in"].workers
        assert found == WorkersConfig()
        assert found is not None
        assert (found.min, found.max, found.concurrency, found.max_requests) == (0, 4, 16, 0)
        assert (found.idle, found.memory, found.timeout) == (60.0, 256_000_000, 30.0)

    def test_all_of_it(self, tmp_path: Path) -> None:
        line = (
            'workers = { min = 1, max = 2, concurrency = 3, idle = "5m", memory = "1GiB", max_requests = 9, '
            'timeout = "250ms" }'
        )
        assert read(tmp_path, BASE + line).services["log-in"].workers == WorkersConfig(
            min=1, max=2, concurrency=3, idle=Duration(300), memory=Size(2**30), max_requests=9, timeout=Duration(0.25)
        )

    def test_the_environment_overrides_each_key(self, tmp_path: Path) -> None:
        manifest = read(
            tmp_path,
            BASE + "workers = { max = 2, idle = '1s' }",
            MESH_SERVICES_LOG_IN_WORKERS_MAX="7",
            MESH_SERVICES_LOG_IN_WORKERS_MAX_REQUESTS="100",
            MESH_SERVICES_LOG_IN_WORKERS_TIMEOUT="5s",
            MESH_SERVICES_LOG_IN_WORKERS_MEMORY="128MB",
        )
        assert manifest.services["log-in"].workers == WorkersConfig(
            max=7, max_requests=100, idle=Duration(1), timeout=Duration(5), memory=Size(128_000_000)
        )

    def test_the_environment_can_bring_them(self, tmp_path: Path) -> None:
        one = read(tmp_path, BASE, MESH_SERVICES_LOG_IN_WORKERS_MAX="1").services["log-in"].workers
        whole = read(tmp_path, BASE, MESH_SERVICES_LOG_IN_WORKERS="{ max = 1 }").services["log-in"].workers
        assert one == whole == WorkersConfig(max=1)


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ("a = [", {}, "mesh.toml:1: not TOML: Invalid value, in the statement that begins here"),
        ("a = " + "[" * 10_000 + "]" * 10_000, {}, "mesh.toml:1: not TOML: "),
        ("prottos = []", {}, "mesh.toml: unknown key 'prottos'; did you mean 'protos'?"),
        (BASE + "lisen = 'x'", {}, "mesh.toml [services.log-in]: unknown key 'lisen'; did you mean 'listen'?"),
        (BASE + "lamda = 'a:b'", {}, "mesh.toml [services.log-in]: unknown key 'lamda'; did you mean 'lambda'?"),
        ("[edge]\nport = 1", {}, "mesh.toml [edge]: unknown key 'port'; known are listen, max_body"),
        ("[services.a]\nserves = ['x']", {}, "mesh.toml [services.a]: the key 'module' is missing"),
        ("[services.a]\nmodule = 1\nserves = ['x']", {}, "mesh.toml [services.a] module: expected str, got int"),
        ("[services.a]\nmodule = 'x'\nserves = []", {}, "mesh.toml [services.a] serves: name at least one service"),
        ("[services.A]\nmodule = 'x'\nserves = ['x']", {}, "a service's name is lower-case letters"),
        ("[services.edge]\nmodule = 'x'\nserves = ['x']", {}, "not 'broker' or 'edge' or 'keys' or 'operator'"),
        (BASE + "max_message = true", {}, 'expected a size such as 4096, "256MB" or "4MiB", got True'),
        (BASE + "drain = '5'", {}, 'expected a duration such as "250ms", "60s" or "5m", got \'5\''),
        (BASE + "listen = 'here'", {}, "mesh.toml [services.log-in] listen: expected host:port, got 'here'"),
        (BASE + "listen = 'h:99999'", {}, "expected host:port, got 'h:99999'"),
        (BASE + "listen = ':80'", {}, "expected host:port, got ':80'; for all interfaces write \"*:80\""),
        (BASE + "address = ['*:80']", {}, "address: '*:80' is an address to listen at, not to connect to; name a host"),
        (BASE + "address = ['a:0']", {}, "address: 'a:0' is an address to listen at, not to connect to; name the port"),
        (BASE, {"MESH_SERVICES_LOG_IN_ADDRESS": "fd00::5"}, "write an IPv6 address in brackets"),
        (BASE, {"MESH_PROTOS": '["a", b]'}, "environment variable MESH_PROTOS: expected array, got str"),
        (
            "[services.a-b]\nmodule = 'x'\nserves = ['x']\n[services.a_b]\nmodule = 'x'\nserves = ['y']",
            {},
            "mesh.toml [services.a_b]: its environment variables would be those of 'a-b'; use another name",
        ),
        ('state = "a\\u0000b"', {}, "mesh.toml state: a path cannot contain NUL, as 'a\\x00b' does"),
        (
            BASE + 'database = "sqlite:///a\\u0000b"',
            {},
            "mesh.toml [services.log-in] database: a path or a password cannot contain the character U+0000",
        ),
        ("[edge]\nmetadata = ['user-agent']", {}, "[edge] metadata: 'user-agent' belongs to the connection"),
        (BASE + "concurrency = 0", {}, "concurrency: must be at least 1, not 0"),
        (
            BASE + "workers = 4",
            {},
            "mesh.toml [services.log-in] workers: expected a table, as in workers = { max = 3 }; got int",
        ),
        (BASE + "workers = { mx = 4 }", {}, "[services.log-in] workers: unknown key 'mx'; did you mean 'max'?"),
        (BASE + "workers = { max = 0 }", {}, "workers.max: must be at least 1, not 0; without workers the functions"),
        (BASE + "workers = { min = 5 }", {}, "workers.min: is 5, more than max, which is 4"),
        (BASE + "workers = { min = -1 }", {}, "workers.min: must be at least 0, not -1"),
        (BASE + "workers = { concurrency = 0 }", {}, "workers.concurrency: must be at least 1, not 0"),
        (BASE + "workers = { memory = '20MB' }", {}, "workers.memory: 20000000 bytes are less than a worker needs"),
        (BASE + "workers = { max_requests = -1 }", {}, "workers.max_requests: must be 0 (never) or more, not -1"),
        (BASE + "workers = { timeout = '0s' }", {}, "workers.timeout: must be longer than 0 s"),
        (BASE + "workers = { idle = 60 }", {}, "workers.idle: expected a duration such as"),
        (BASE, {"MESH_SERVICES_LOG_IN_WORKERS_MAX": "0"}, "variable MESH_SERVICES_LOG_IN_WORKERS_MAX: must be at le"),
        (BASE + "database = 'mysql://x'", {}, "database: expected sqlite:///PATH or postgresql://"),
        (BASE + "database = 'sqlite://x.db'", {}, "database: write a relative path after three slashes"),
        (
            BASE,
            {"MESH_SERVICES_LOG_IN_DATABASE": "postgresql://u:p@db/login?sslmod=require"},
            "variable MESH_SERVICES_LOG_IN_DATABASE: unknown parameter 'sslmod'; did you mean sslmode?",
        ),
        ("channel = 'x'", {}, 'mesh.toml channel: expected "ngh2" or "grpcio", got \'x\''),
        (BASE, {"MESH_EDGE_LISTEN": "8080"}, "environment variable MESH_EDGE_LISTEN: expected host:port, got '8080'"),
        (BASE, {"MESH_EDGE_CONCURRENCY": "x"}, "environment variable MESH_EDGE_CONCURRENCY: expected int, got str"),
        ("[edge]\ncors = ['*', 'https://a.b']", {}, '[edge] cors: "*" means every origin; name it alone'),
        ("[edge]\ncors = { origins = ['*'], credentials = true }", {}, 'credentials with "*" would let every page'),
        ("[edge]\ncors = ['https://a.b/']", {}, "without a path, got 'https://a.b/'"),
        ("[edge]\ncors = ['HTTPS://A.b']", {}, "expected an origin such as"),
        ("[edge]\ncors = ['https://a.b:443']", {}, "leave the default port out of an origin: write 'https://a.b'"),
        ("[edge]\ncors = ['null']", {}, "expected an origin such as"),
        ("[edge]\ncors = 'https://a.b'", {}, "[edge] cors: expected object | array, got str"),
        ("[edge.cors]\norigin = ['*']", {}, "mesh.toml [edge] cors: unknown key 'origin'"),
        ("[edge.cors]\norigins = ['*']\nexpose = ['X-A']", {}, "expected the name of a header in lower case"),
        ("[edge]\nmetadata = ['X-Tenant']", {}, "the name of a header in lower case, got 'X-Tenant'"),
        ("[edge]\nmetadata = ['te']", {}, "[edge] metadata: 'te' belongs to the connection"),
        ("[edge]\nmetadata = ['grpc-timeout']", {}, "'grpc-timeout' is reserved for the mesh"),
        ("[edge]\nmetadata = ['mesh-identity']", {}, "'mesh-identity' is reserved for the mesh"),
        ("[edge]\nmetadata = ['authorization']", {}, "'authorization' is forwarded by the mesh itself"),
        ("[edge]\nmetadata = [':path']", {}, "the name of a header in lower case, got ':path'"),
        ("[edge]\ntrusted_proxies = ['10.0.0.0/99']", {}, "[edge] trusted_proxies: expected an address or a network"),
        ("[edge]\ntrusted_proxies = ['0.0.0.0/0']", {}, "trusted_proxies: every IPv4 address would be trusted"),
        ("[edge]\ntrusted_proxies = ['::/1', '8000::/1']", {}, "trusted_proxies: every IPv6 address would be trusted"),
        ("[edge]\ncors = ['ftp://a.b']", {}, "no page has an origin with the scheme 'ftp'; expected https or http"),
        ("[auth]\nissuer = ''\naudience = 'a'\njwks = 'a.A/B'", {}, "[auth] issuer: must not be empty"),
        ("[auth]\nissuer = 'i'\naudience = ' '\njwks = 'a.A/B'", {}, "[auth] audience: must not be empty"),
        ("[auth]\nissuer = 'i'\naudience = 'a'\njwks = 'a.A/B'\nroles = ''", {}, "[auth] roles: must not be empty"),
        (
            "[auth]\nissuer = 'i'\naudience = 'a'\njwks = 'a.A/B'\nrevocation_stale = 'closed'",
            {},
            "[auth] revocation_stale: is for issuers with revocations",
        ),
        ("[auth]\nissuer = 'i'\naudience = 'a'\njwks = 'ftp://a/b'", {}, "[auth] jwks: expected https://HOST/PATH"),
        ("[auth]\nissuer = 'i'\naudience = 'a'\njwks = 'https:///b'", {}, "[auth] jwks: expected https://HOST/PATH"),
        (
            "[auth]\nissuer = 'i'\naudience = 'a'\njwks = 'a.A/B'\nleeway = '2d'",
            {},
            "[auth] leeway: tokens would be valid 48 h after their end; at most 1h is allowed",
        ),
        ("[auth]", {}, "[auth] issuer: is missing; or write a table [[auth.issuers]] for each issuer"),
        ("[auth]\nissuer = 'i'\naudience = 'a'", {}, "[auth] jwks: is missing; only an issuer that is an https URL"),
        ("[auth]\nissuer = 'https://i?a=b'\naudience = 'a'", {}, "[auth] jwks: is missing; only an issuer that is"),
        ("[auth]\nissuer = 'https://i'", {}, "[auth] audience: must not be empty"),
        ("[auth]\nissuer = 'https://i'\naudience = ['a', '']", {}, "[auth] audience: must not be empty"),
        ("[auth]\nissuer = 'https://i'\naudience = 'a'\nsubject = ''", {}, "[auth] subject: must not be empty"),
        (f"{ISSUERS}\naudience = ''", {}, "[[auth.issuers]] 2 audience: must not be empty"),
        (f"{ISSUERS}\naudience = 1", {}, "mesh.toml [[auth.issuers]] audience: expected str | array"),
        (f"{ISSUERS}\naudience = 'a'\nrole = 'r'", {}, "[[auth.issuers]]: unknown key 'role'; did you mean 'roles'?"),
        (ISSUERS, {}, "[[auth.issuers]]: the key 'audience' is missing"),
        (
            f"{ISSUERS}\naudience = 'a'\n[auth]\nissuer = 'https://j'\naudience = 'a'",
            {},
            "[[auth.issuers]] 2 issuer: 'https://j' is the issuer of [auth] already",
        ),
        (
            "",
            {"MESH_AUTH_ISSUERS_2_AUDIENCE": "a"},
            "variable MESH_AUTH_ISSUERS_2_AUDIENCE: 'issuers' is a list of tables, which a variable sets as a",
        ),
        ("[edge.rate_limit]\nper_client = '100'", {}, 'expected a rate such as "100/s", "600/m"'),
        ("[edge.rate_limit]\nper_client = '0/s'", {}, "expected a rate such as"),
        ("[edge.rate_limit]\nper_clients = '1/s'", {}, "[edge] rate_limit: unknown key 'per_clients'; did you mean"),
        ("[edge]\nmax_uri = '1 mile'", {}, "expected a size such as"),
        ("[edge]\nmax_body = 0", {}, "[edge] max_body: must be at least 1, not 0"),
        ("[edge]\nmax_headers = '0B'", {}, "[edge] max_headers: must be at least 1, not 0"),
        ("[edge]\nconcurrency = 0", {}, "[edge] concurrency: must be at least 1, not 0"),
        ("[edge]\nqueue = -1", {}, "[edge] queue: must be at least 0, not -1"),
        (BASE + "max_message = 0", {}, "max_message: must be at least 1, not 0"),
        (
            "[edge]\ntimeout = '0s'",
            {},
            "[edge] timeout: '0s' is over at once; for no limit write \"none\"",
        ),
        ("[edge]\ntimeout = '-1s'", {}, 'expected a duration such as "250ms", "60s" or "5m", or "none", got \'-1s\''),
        ("[edge]\ntimeout = 0", {}, 'or "none", got 0'),
        ("[edge]\ntimeout = '40000d'", {}, "expected a duration of at most 100 years, or \"none\", got '40000d'"),
        ("[edge]\ntimeout = 'None'", {}, "or \"none\", got 'None'"),
        ("[edge]", {"MESH_EDGE_TIMEOUT": "0ms"}, "environment variable MESH_EDGE_TIMEOUT: '0ms' is over at once"),
        ("liveness = '0s'", {}, "mesh.toml [liveness]: '0s' is over at once; for no limit write \"none\""),
        ("liveness = '100ms'", {}, 'liveness: must be at least "1s", or "none"'),
        (BASE + "drain = '-1s'", {}, 'expected a duration such as "250ms", "60s" or "5m", got \'-1s\''),
        (BASE + "drain = '36501d'", {}, "drain: expected a duration of at most 100 years, got '36501d'"),
        (BASE + f"drain = '{'9' * 400}d'", {}, "expected a duration of at most 100 years, got '999"),
        ("[edge]\ncors = []", {"MESH_EDGE_CORS_CREDENTIALS": "true"}, "'cors' is no table in mesh.toml"),
        (BASE, {"MESH_EDG": "x"}, "environment variable MESH_EDG: there is no value 'edg' in mesh.toml"),
        (BASE, {"MESH_SERVICES_X_LISTEN": "x"}, "no such service in mesh.toml: X_LISTEN (services: log-in)"),
    ],
)
def test_a_fault_says_where_and_what_would_be_right(
    tmp_path: Path, text: str, environ: dict[str, str], expected: str
) -> None:
    with pytest.raises(Faults) as caught:
        read(tmp_path, text, **environ)
    assert expected in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_a_time_limit_may_be_none(tmp_path: Path) -> None:
    for text, environ, seconds in (
        ("[edge]", {}, 30.0),
        ("[edge]\ntimeout = '250ms'", {}, 0.25),
        ("[edge]\ntimeout = 'none'", {}, None),
        ("[edge]", {"MESH_EDGE_TIMEOUT": "none"}, None),
    ):
        edge = read(tmp_path, text, **environ).edge
        assert edge is not None
        assert edge.timeout.seconds == seconds


def test_faults_of_several_services_come_together(tmp_path: Path) -> None:
    with pytest.raises(Faults) as caught:
        read(tmp_path, "[services.a]\nserves = ['x']\n[services.b]\nmodule = 'x'\nserves = []")
    assert len(caught.value.faults) == 2


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(Faults, match="no such file or directory; name its path with --file"):
        load(tmp_path / "mesh.toml", {})


def test_the_broker(tmp_path: Path) -> None:
    manifest = read(
        tmp_path,
        """
broker = "nats://a:4222,tls://b:4222"
[events]
retention = "30d"
max_bytes = "1GiB"
credentials = "mesh.creds"
""",
        MESH_EVENTS_REPLICAS="3",
        MESH_BROKER="nats://c:4222",
    )
    assert manifest.broker == "nats://c:4222"
    assert (manifest.events.retention, manifest.events.max_bytes, manifest.events.replicas) == (30 * 86400, 2**30, 3)
    assert manifest.events.credentials == str((tmp_path / "mesh.creds").resolve())
    assert manifest.events.ca == ""


@pytest.mark.parametrize("nul", ["%00", "\\u0000"])
def test_no_fault_of_a_database_shows_its_password(tmp_path: Path, nul: str) -> None:
    with pytest.raises(Faults) as caught:
        read(tmp_path, BASE + f'database = "postgresql://u:secret{nul}@h/db"')
    assert "database: a path or a password cannot contain the character U+0000" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("broker = 'http://a'", "mesh.toml broker: expected nats://HOST:PORT or tls://HOST:PORT"),
        ("broker = 'nats://user:secret@'", "mesh.toml broker: expected nats://HOST:PORT"),
        ("[events]\nuser = 'a'", "mesh.toml [events] user: user and password belong together"),
        ("[events]\ntoken = 'a'\nnkey = 'b'", "mesh.toml [events] nkey: token and nkey: the broker accepts one"),
        ("[events]\nreplicas = 2", "mesh.toml [events] replicas: must be 1, 3 or 5, not 2"),
        ("[events]\nlisten = 'x'", "mesh.toml [events] listen: expected host:port, got 'x'"),
        ("[events]\nmax_byte = 5", "did you mean 'max_bytes'?"),
        ("[events]\ncertificate = 'a'", "certificate and private_key belong together"),
    ],
)
def test_a_broker_that_cannot_be_meant(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(Faults) as caught:
        read(tmp_path, text)
    assert fault in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_nul_in_a_url_is_refused_without_its_password(tmp_path):
    file = tmp_path / "mesh.toml"
    file.write_text(BASE + 'database = "postgresql://u:hunter2@h/a%00b"')
    with pytest.raises(Faults) as caught:
        load(file, {})
    assert "database: a path or a password cannot contain the character U+0000" in str(caught.value)
    assert "hunter2" not in str(caught.value)
