"""A walk through docker-compose.yml with a real engine: what the issue and docs/containers.md promise, step by step.

    python tests/containers/walk.py

It works in a project of its own (``mesh-walk``), on free ports, without any .env, and removes it in the end. A step
that does not hold raises ``AssertionError``. Jaeger is left out where its image can be neither found nor pulled.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from http.client import HTTPException
from pathlib import Path
from typing import Any, Self

from capture import Capture

ROOT = Path(__file__).parent.parent.parent
PASSWORD = "correct horse battery"
ADMIN = "the admin's own password"
PROJECT = "mesh-walk"
COMPONENTS = ("audit", "login", "registration", "edge")
AWAY = {"503 14", "504 4"}
"""What a caller may see of a service that is away: UNAVAILABLE, or a deadline."""
KEPT = 10.0
"""Seconds for which a caller keeps calls to a service that is away. On a slow machine a restart takes longer."""


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def run(*command: str, check: bool = True, **environ: str) -> str:
    """Return what a command prints; its errors are shown when it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, **environ}
    )  # fmt: skip
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def http(url: str, method: str = "GET", body: Any = None, token: str = "") -> tuple[int, Any]:
    """Make one request; return status and JSON."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json"} if data is not None else {}
    if token:
        headers["authorization"] = f"Bearer {token}"
    request = urllib.request.Request(url, data=data, method=method, headers=headers)  # noqa: S310 - loopback
    try:
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - loopback
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


class Stack:
    """The compose project of this walk."""

    def __init__(self, scratch: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        # No admin, also when the shell of the walk names one.
        self.environ = {
            "EDGE_PORT": str(port), "JAEGER_PORT": str(free_port()), "MESH_TAG": "walk", "ADMIN_PASSWORD": "",
        }  # fmt: skip
        self.files = ["--env-file", os.devnull, "--file", "docker-compose.yml"]
        self.rotation: Rotation | None = None
        self._leave_out_jaeger(scratch)

    def _leave_out_jaeger(self, scratch: Path) -> None:
        """Leave it out unless its image is here or can be pulled."""
        image = json.loads(self.compose("config", "--format", "json"))["services"]["jaeger"]["image"]
        if (
            not run("docker", "image", "ls", "-q", image)
            and subprocess.run(["docker", "pull", "--quiet", image], capture_output=True, check=False).returncode
        ):
            say(f"without jaeger: {image} is neither here nor can it be pulled")
            override = scratch / "without-jaeger.yml"
            override.write_text("services:\n  jaeger: !reset null\n")
            self.files += ["--file", str(override)]
            self.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = ""

    def compose(self, *words: str, check: bool = True) -> str:
        command = ["docker", "compose", "--project-name", PROJECT, "--progress", "quiet", *self.files, *words]
        return run(*command, check=check, **self.environ)

    def container(self, service: str) -> str:
        return self.compose("ps", "--all", "--quiet", service)

    def inspect(self, service: str, what: str) -> str:
        return run("docker", "inspect", "--format", what, self.container(service))

    def address(self, service: str) -> str:
        return self.inspect(service, "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")

    def sql(self, database: str, query: str) -> str:
        return self.compose("exec", "-T", "postgres", "psql", "-U", "postgres", "-d", database, "-Atc", query)

    def register(self, name: str) -> tuple[int, Any]:
        user = {"name": name, "email": f"{name}@example.com", "password": PASSWORD}
        return http(f"{self.url}/v1/users", "POST", user)

    def login(self, name: str, password: str = PASSWORD) -> tuple[int, Any]:
        return http(f"{self.url}/v1/sessions", "POST", {"login": name, "password": password})

    def me(self, token: str) -> tuple[int, Any]:
        return http(f"{self.url}/v1/users/me", token=token)


class Load:
    """Requests without pause: accounts are made, sessions begun, accounts read; keeps how each ended.

    Attributes:
        acknowledged: Name → id of each account that was made.
        ends: Kind and end of a request → how many.
        longest: Kind → seconds of the longest request.
        away: Kind → seconds of the longest time without a success.
    """

    def __init__(self, stack: Stack, prefix: str) -> None:
        self.stack = stack
        self.prefix = prefix
        self.acknowledged: dict[str, str] = {}
        self.ends: Counter[tuple[str, str]] = Counter()
        self.longest: Counter[str] = Counter()
        self.away: Counter[str] = Counter()
        self._stop = threading.Event()
        assert stack.register(prefix)[0] == 200
        self._token = stack.login(prefix)[1]["accessToken"]
        self._threads = [threading.Thread(target=self._run, args=work) for work in enumerate(self._kinds())]
        for thread in self._threads:
            thread.start()

    @staticmethod
    def _kinds() -> list[str]:
        return ["register", "login", "me", "me"]

    def _run(self, worker: int, kind: str) -> None:
        count = 0
        answered = time.monotonic()
        while not self._stop.is_set():
            count += 1
            name = f"{self.prefix}{worker}x{count}"
            begin = time.monotonic()
            try:
                if kind == "register":
                    status, body = self.stack.register(name)
                else:
                    status, body = self.stack.me(self._token) if kind == "me" else self.stack.login(self.prefix)
            except OSError:  # the edge itself is away
                end = "no connection"
            else:
                end = "200" if status == 200 else f"{status} {body['code']}"
                if status == 200 and kind == "register":
                    self.acknowledged[name] = body["id"]
            self.ends[kind, end] += 1
            if end == "200":
                self.away[kind] = max(self.away[kind], time.monotonic() - answered)
                answered = time.monotonic()
            self.longest[kind] = max(self.longest[kind], time.monotonic() - begin)

    def progress(self, more: int = 5) -> None:
        """Wait until so many more of each kind have succeeded."""
        kinds = set(self._kinds())
        target = {kind: self.ends[kind, "200"] + more for kind in kinds}
        until = time.monotonic() + 90
        while any(self.ends[kind, "200"] < target[kind] for kind in kinds):
            assert time.monotonic() < until, dict(self.ends)
            time.sleep(0.05)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def failures(self, kind: str = "") -> Counter[str]:
        found: Counter[str] = Counter()
        for (what, end), count in list(self.ends.items()):
            if end != "200" and kind in ("", what):
                found[end] += count
        return found

    def __str__(self) -> str:
        kinds = sorted({kind for kind, _ in self.ends})
        return "; ".join(
            f"{kind} {self.ends[kind, '200']} ok, {dict(self.failures(kind)) or 'none failed'}, "
            f"longest {self.longest[kind]:.1f} s"
            for kind in kinds
        )


def configuration_is_clean(stack: Stack) -> None:
    done = subprocess.run(
        ["docker", "compose", *stack.files, "config", "--quiet"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done


def starts_on_a_fresh_machine(stack: Stack) -> None:
    begin = time.monotonic()
    stack.compose("build", "--quiet")
    built = time.monotonic()
    stack.compose("up", "--detach", "--wait", "--wait-timeout", "180")
    say(f"  built in {built - begin:.0f} s, up and healthy in {time.monotonic() - built:.0f} s")
    assert stack.inspect("identity", "{{.State.ExitCode}}") == "0"


def answers_every_request(stack: Stack) -> None:
    """The requests of a first user: each refusal tells the caller what to do."""
    assert stack.register("ada")[0] == 200
    assert stack.register("bob")[0] == 200
    status, session = stack.login("ada")
    token = session["accessToken"]
    assert (status, stack.me(token)[1]["email"]) == (200, "ada@example.com")
    bob = stack.me(stack.login("bob")[1]["accessToken"])[1]["id"]
    refusals = [
        (401, "wrong password", stack.login("ada", "wrong password")),
        (409, "duplicate", stack.register("ADA")),
        (400, "bad JSON", http(f"{stack.url}/v1/users", "POST", b'{"name": ')),
        (401, "missing token", http(f"{stack.url}/v1/users/me")),
        (403, "another's account", http(f"{stack.url}/v1/users/{bob}", token=token)),
        (404, "unknown route", http(f"{stack.url}/nope")),
    ]
    for expected, what, (status, body) in refusals:
        say(f"  {status} {what}: {body['message']}")
        assert (status, bool(body["message"])) == (expected, True)
    assert stack.login("admin", "admin")[0] == 401  # nobody is admin until ADMIN_PASSWORD is set


def keeps_data_in_postgresql(stack: Stack) -> None:
    names = stack.sql("registration", "select name from users order by name").split()
    assert {"ada", "bob"} <= set(names), names
    assert stack.sql("login", "select count(*) from credentials") == str(len(names))
    say(f"  users in PostgreSQL: {names}")


def holds_no_secrets_and_no_privileges(stack: Stack) -> None:
    for name in COMPONENTS:
        assert stack.compose("exec", "-T", name, "id", "-u") == "10001"
        held = set(stack.compose("exec", "-T", name, "ls", "/app/.mesh/identity").split())
        assert {f"{name}.key", f"{name}.pem", "roots.pem", *(f"{other}.pub" for other in COMPONENTS)} <= held
        private = {file for file in held if not file.endswith(".pub")} - {"roots.pem"}
        assert all(file.startswith(f"{name}.") for file in private), held
    image = stack.inspect("edge", "{{.Image}}")
    told = run("docker", "history", "--no-trunc", image) + run("docker", "inspect", image)
    assert "PASSWORD" not in told
    files = run("docker", "run", "--rm", "--entrypoint", "find", image, "/app", "-name", "*.key", "-o", "-name", ".env")
    assert not files, files
    say(f"  image: {int(run('docker', 'inspect', '--format', '{{.Size}}', image)) / 1e6:.0f} MB with its base")


def speaks_tls_between_containers(stack: Stack) -> None:
    """Each component has a certificate of the signer, which alone has the authority; plain text is refused."""
    issued = stack.compose("exec", "-T", "keys", "mesh", "keys", "status")
    assert all(f"\n{name} " in issued for name in COMPONENTS), issued
    for name in COMPONENTS:
        assert stack.compose("exec", "-T", name, "ls", "-A", "/app/.mesh/authority") == ""
    code = (
        "import socket; peer = socket.create_connection(('login', 9102), 5); "
        "peer.sendall(b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n' + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])); "
        "print(peer.recv(2).hex())"
    )
    reply = stack.compose("exec", "-T", "edge", "python", "-c", code).strip()
    assert reply in ("", "1503"), reply  # a TLS alert, or the end
    say(f"  plain text at login: {reply or 'closed'}; certificates:\n{issued}")


STRANGER = """
import socket, ssl
for secure in (False, True):
    peer = socket.create_connection(("nats", 4222), 5)
    info = peer.recv(65536)
    assert info.startswith(b"INFO ") and info.endswith(b"\\r\\n"), info
    if secure:
        context = ssl.create_default_context(cafile="/app/.mesh/identity/roots.pem")
        peer = context.wrap_socket(peer, server_hostname="nats")
    try:
        peer.sendall(b'CONNECT {"verbose":false}\\r\\nPING\\r\\n')
        print(peer.recv(200))
    except OSError as error:
        print(type(error).__name__)
"""


def refuses_strangers_at_the_broker(stack: Stack) -> None:
    """Plain text is refused, and so is a client by TLS without a key. The server has the certificate of the broker."""
    replies = stack.compose("exec", "-T", "edge", "python", "-c", STRANGER).splitlines()
    say(f"  at nats: in plain text {replies[0]}, by TLS without a key {replies[1]}")
    assert "PONG" not in replies[0], replies
    assert "Authorization Violation" in replies[1], replies


def delivers_events_to_the_audit(stack: Stack) -> None:
    """The event of a registration, and the changes of its row, arrive at another service."""
    status, user = stack.register("eve")
    assert status == 200, user
    until = time.monotonic() + 60
    query = f"select count(*) from records where user_id = '{user['id']}'"  # noqa: S608 - an id of the service
    while stack.sql("audit", query) != "3":
        assert time.monotonic() < until, stack.sql("audit", query)
        time.sleep(0.2)  # recorded by a container that tells nobody here


SERVERS = {
    "registration": 9101, "login": 9102, "audit": 9103, "nats": 4222, "keys": 9443, "edge": 8080, "postgres": 5432,
}  # fmt: skip
"""Containers that listen, with their ports."""
IN_PLAIN_TEXT = {"edge", "postgres"}
"""Those whose connections docs/containers.md names as not encrypted."""


def encrypts_a_registration(stack: Stack) -> None:
    """Whoever listens on the bridge reads a registration on the way to the edge and to the database, nowhere else."""
    try:
        capture = Capture()
    except OSError as error:
        say(f"  skipped, because packets cannot be captured here: {error}")
        return
    servers = {(stack.address(name), port): name for name, port in SERVERS.items()}
    with capture:
        status, user = stack.register("mallory")
        assert status == 200, user
        session = stack.login("mallory")[1]
        assert stack.me(session["accessToken"])[0] == 200
        query = f"select count(*) from records where user_id = '{user['id']}'"  # noqa: S608 - an id of the service
        until = time.monotonic() + 60
        while stack.sql("audit", query) != "3":
            assert time.monotonic() < until, stack.sql("audit", query)
            time.sleep(0.2)
    seen = capture.read(servers)
    if not seen:
        say("  skipped, because the containers' network is not in this network namespace")
        return
    words = {
        "name": b"mallory", "e-mail": b"mallory@example.com", "password": PASSWORD.encode(), "id": user["id"].encode(),
        "access token": session["accessToken"].encode(), "SQL": b"INSERT INTO", "event": b"UserRegistered",
        "gRPC": b"PRI * HTTP/2.0",
    }  # fmt: skip
    found = {name: [word for word, text in words.items() if text in seen.get(name, b"")] for name in SERVERS}
    for name, plain in found.items():
        say(f"  {name:12} {len(seen.get(name, b'')):8} bytes  {', '.join(plain) or 'nothing readable'}")
    assert {"name", "e-mail", "password", "access token"} <= set(found["edge"]), "packets were missed"
    assert all(map(seen.get, ("registration", "login", "nats", "postgres"))), "packets were missed"
    assert {name for name, plain in found.items() if plain} <= IN_PLAIN_TEXT


class Rotation:
    """The replacement of the root, which goes on beside the steps of the walk.

    Args:
        stack: The project.
    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._before = stack.compose("exec", "-T", "keys", "mesh", "keys", "status")
        self._said = ""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._begin = time.monotonic()
        self._took = 0.0
        self._thread.start()

    def _run(self) -> None:
        self._said = self._stack.compose("exec", "-T", "keys", "mesh", "keys", "rotate-root", "--wait", check=False)
        self._took = time.monotonic() - self._begin

    def end(self) -> None:
        """Wait until it is done: every certificate is of the new root, and all still works."""
        self._thread.join(600)
        status = self._stack.compose("exec", "-T", "keys", "mesh", "keys", "status")
        say(f"  the root was replaced in {self._took:.0f} s:\n{self._said}\n{status}")
        assert "the rotation is done" in self._said, (self._said, status)
        old = self._before.splitlines()[2].split()[0]
        assert old not in status, status
        refuses_strangers_at_the_broker(self._stack)  # it makes connections with the new root only


def rotates_the_root(stack: Stack) -> None:
    """Begin; the next steps go on meanwhile."""
    stack.rotation = Rotation(stack)


def has_rotated_the_root(stack: Stack) -> None:
    """Wait for the end of the rotation: the restarts and moves before did not hold it up."""
    assert stack.rotation is not None
    stack.rotation.end()


def rebuilds_only_what_changed(scratch: Path) -> None:
    """A change of code installs no dependency again, and leaves their layer as it is."""
    copy = scratch / "changed"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "gen", "__pycache__", "scratch"))
    shutil.copy(ROOT / ".dockerignore", copy)
    with (copy / "mesh" / "layers" / "concurrency.py").open("a") as file:
        file.write("# changed\n")
    begin = time.monotonic()
    run("docker", "build", "--quiet", "--tag", "function-mesh:walk-changed", str(copy))
    took = time.monotonic() - begin
    kinds = [layers(f"function-mesh:{tag}") for tag in ("walk", "walk-changed")]
    kept = [old for old, new in zip(*kinds, strict=True) if old == new]
    fresh = kinds[1][len(kept) :]
    size = sum(int(size) for _, size in fresh)
    say(f"  rebuilt in {took:.0f} s; {len(kept)} of {len(kinds[1])} layers kept, {size / 1e6:.1f} MB are new")
    assert size < 10e6, fresh
    run("docker", "image", "rm", "function-mesh:walk-changed")


def layers(image: str) -> list[tuple[str, str]]:
    """Return digest and size of each layer of an image, from the bottom."""
    digests = json.loads(run("docker", "inspect", "--format", "{{json .RootFS.Layers}}", image))
    history = run("docker", "history", "--human=false", "--no-trunc", "--format", "{{json .}}", image)
    steps = [json.loads(line) for line in reversed(history.splitlines())]
    made = [step["Size"] for step in steps if step["CreatedBy"].startswith(("COPY", "ADD", "WORKDIR", "RUN"))]
    top = digests[-len(made) :]  # what the base was made of is its own business
    return list(zip(top, made[-len(top) :], strict=True))


def survives_restarts_under_load(stack: Stack) -> None:
    for service in ("audit", "login", "registration", "edge", "postgres", "nats"):
        load = Load(stack, f"restart-{service}-")
        try:
            load.progress()
            stack.compose("restart", service)
            load.progress(10)
        finally:
            load.stop()
        say(f"  restart {service}: {load}")
        judge(stack, load, edge=service == "edge")
        if service in ("login", "registration") and load.away["me"] < KEPT:
            # What can be tried again is: only its own deadline, on a machine where a restart takes longer, ends that.
            assert set(load.failures("me")) <= {"504 4"}, "what can be tried again was lost"


def finds_a_service_at_another_address(stack: Stack) -> None:
    """A container that comes back may have another IP address, and another may have got its old one."""
    squatter = run(
        "docker", "create", "--rm", "--network", f"{PROJECT}_default", "--entrypoint", "sleep",
        stack.inspect("edge", "{{.Image}}"), "600",
    )  # fmt: skip
    registration, before = stack.container("registration"), stack.address("registration")
    load = Load(stack, "moved-")
    try:
        load.progress()
        run("docker", "stop", registration)
        run("docker", "start", squatter)
        run("docker", "start", registration)
        begin = time.monotonic()
        load.progress(10)
        took = time.monotonic() - begin
    finally:
        load.stop()
        run("docker", "rm", "--force", squatter)
    after = stack.address("registration")
    say(f"  registration moved from {before} to {after}, found {took:.1f} s after its start: {load}")
    assert after != before
    judge(stack, load, edge=False)


def survives_kills(stack: Stack) -> None:
    for service in (*COMPONENTS, "postgres"):
        load = Load(stack, f"kill-{service}-")
        try:
            load.progress()
            stack.compose("kill", service)
            stack.compose("up", "--detach", "--wait", "--no-build")
            load.progress(10)
        finally:
            load.stop()
        say(f"  kill {service}: {load}")
        judge(stack, load, edge=service == "edge")


def judge(stack: Stack, load: Load, *, edge: bool) -> None:
    """Callers saw UNAVAILABLE at worst, and what was acknowledged is there."""
    allowed = AWAY | ({"no connection"} if edge else set())
    assert set(load.failures()) <= allowed, load
    stored = set(stack.sql("registration", f"select id from users where name like '{load.prefix}%'").split())  # noqa: S608
    assert set(load.acknowledged.values()) <= stored
    if load.acknowledged:
        until = time.monotonic() + 60
        while stack.login(list(load.acknowledged)[-1])[0] == 503 and time.monotonic() < until:
            pass  # the event that lets this user in may be waiting for the broker; each try waits for it by itself
        assert stack.login(list(load.acknowledged)[-1])[0] == 200


def stops_cleanly(stack: Stack) -> None:
    """A stop within the grace period, under load: every component ends by itself with 0."""
    load = Load(stack, "stop-")
    load.progress()
    begin = time.monotonic()
    stack.compose("stop", *COMPONENTS)
    took = time.monotonic() - begin
    load.stop()
    codes = {name: stack.inspect(name, "{{.State.ExitCode}}") for name in COMPONENTS}
    say(f"  stopped in {took:.1f} s with {codes}; {load}")
    assert set(codes.values()) == {"0"}, codes
    stack.compose("start", *COMPONENTS)
    stack.compose("up", "--detach", "--wait", "--no-build")
    judge(stack, load, edge=True)


def keeps_volumes(stack: Stack) -> None:
    before = stack.sql("registration", "select count(*) from users")
    stack.compose("down")
    stack.environ["ADMIN_PASSWORD"] = ADMIN  # from here on there is an admin
    stack.compose("up", "--detach", "--wait", "--no-build")
    assert stack.sql("registration", "select count(*) from users") == str(int(before) + 1)  # and the admin
    token = stack.login("admin", ADMIN)[1]["accessToken"]
    assert http(f"{stack.url}/v1/users?pageSize=1", token=token)[0] == 200
    say(f"  {before} users before and after; the admin of ADMIN_PASSWORD lists them")


class Watch:
    """Reads the live stream of the audit as an admin, in a thread; one that ends begins again after what it has seen.

    Attributes:
        seen: Sequence, type and user of each record, as they came.
        begun: How often the stream was begun.
    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._token = stack.login("admin", ADMIN)[1]["accessToken"]
        newest = http(f"{stack.url}/v1/audit?pageSize=1", token=self._token)[1].get("records", [])
        self._after = int(newest[0]["sequence"]) if newest else 0
        self.seen: list[tuple[int, str, str]] = []
        self.begun = 0
        self._changed = threading.Condition()
        self._stop = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True  # the thread sees it with the next line: the stream says every few seconds that it lives
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stop:
            after = self.seen[-1][0] if self.seen else self._after
            request = urllib.request.Request(  # noqa: S310 - loopback
                f"{self._stack.url}/v1/audit:watch?after={after}",
                headers={"authorization": f"Bearer {self._token}", "accept": "text/event-stream"},
            )
            self.begun += 1
            try:
                with urllib.request.urlopen(request, timeout=60) as stream:  # noqa: S310 - loopback
                    for line in stream:
                        if self._stop:
                            return
                        self._heard(line)
            except (OSError, HTTPException):  # HTTPError too: audit or the edge is away, or went in the middle
                time.sleep(0.2)

    def _heard(self, line: bytes) -> None:
        record = json.loads(line[6:]) if line.startswith(b"data: {") else {}
        if "sequence" in record:
            with self._changed:
                self.seen.append((int(record["sequence"]), record["type"], record.get("userId", "")))
                self._changed.notify_all()

    def wait(self, users: set[str], seconds: float) -> float:
        """Wait until the registration of each of these has come; return how long that took."""
        begin = time.monotonic()
        with self._changed:
            came = self._changed.wait_for(lambda: users <= self.registered(), seconds)
            assert came, (users - self.registered(), self._after, self.seen[:1], self.seen[-1:], self.begun)
        return time.monotonic() - begin

    def registered(self) -> set[str]:
        return {user for _, type_, user in self.seen if type_ == "registration.v1.UserRegistered"}

    def without_gap(self) -> None:
        """What came, over all breaks, is what was recorded: each once, in order, none left out."""
        numbers = [sequence for sequence, _, _ in self.seen]
        assert numbers == list(range(self._after + 1, self._after + 1 + len(numbers))), numbers


def recorded_once(stack: Stack, load: Load) -> int:
    """Each acknowledged registration is in the audit: its event and the two changes of its row, each once."""
    wanted = dict.fromkeys(load.acknowledged.values(), "3 3")
    query = "select user_id || ' ' || count(*) || ' ' || count(distinct event_id) from records group by user_id"
    until = time.monotonic() + 120
    while True:
        found = dict(line.split(" ", 1) for line in stack.sql("audit", query).splitlines())
        wrong = {user: found.get(user) for user in wanted if found.get(user) != wanted[user]}
        if not wrong or time.monotonic() > until:
            break
        time.sleep(0.5)  # recorded by a container that tells nobody here
    assert not wrong, wrong
    assert stack.sql("audit", "select count(*) - count(distinct event_id) from records") == "0"
    for database in ("registration", "login", "audit"):
        assert stack.sql(database, "select count(*) from mesh_outbox") == "0", database
    return len(wanted)


def shows_what_happens_live(stack: Stack) -> None:
    """A registration over HTTP appears in the live stream of the audit."""
    with Watch(stack) as watch:
        took = []
        for name in ("live1", "live2", "live3"):
            status, user = stack.register(name)
            assert status == 200, user
            took.append(watch.wait({user["id"]}, 30))
        say(f"  seen {', '.join(f'{one:.2f}' for one in took)} s after the answer")


def loses_no_event_without_its_broker(stack: Stack) -> None:
    """The broker is killed under load, audit and registration too meanwhile: all is recorded once when it is back."""
    with Watch(stack) as watch:  # before the load: what is recorded before a watch begins is not in it
        load = Load(stack, "nats-")
        try:
            load.progress()
            stack.compose("kill", "nats")
            for name in ("registration", "audit"):
                stack.compose("kill", name)
                stack.compose("up", "--detach", "--wait", "--no-build", "--no-deps", name)
            status, user = stack.register(f"{load.prefix}without")
            assert status == 200, user
            held = stack.sql("registration", "select count(*) from mesh_outbox")
            stack.compose("start", "nats")
            load.progress()
            stack.compose("restart", "audit")
            load.progress(10)
        finally:
            load.stop()
        load.acknowledged[f"{load.prefix}without"] = user["id"]
        say(f"  {load}")
        judge(stack, load, edge=False)
        number = recorded_once(stack, load)
        watch.wait(set(load.acknowledged.values()), 60)
        watch.without_gap()
        say(
            f"  {held} rows were in the outbox of registration when nats came back; {number} registrations, each "
            f"recorded once and seen live ({len(watch.seen)} records over {watch.begun} streams)"
        )


def shares_the_work_among_replicas(stack: Stack) -> None:
    """Two replicas of each service: killed and stopped one after the other under load, nothing is lost or doubled."""
    scale = [word for name in COMPONENTS if name != "edge" for word in ("--scale", f"{name}=2")]
    stack.compose("up", "--detach", "--wait", "--no-build", *scale)
    with Watch(stack) as watch:
        load = Load(stack, "scale-")
        try:
            load.progress()
            for service in ("audit", "registration", "login"):
                replicas = stack.container(service).split()
                assert len(replicas) == 2, replicas
                run("docker", "kill", replicas[0])
                load.progress()
                run("docker", "start", replicas[0])
                stack.compose("up", "--detach", "--wait", "--no-build", *scale)
                run("docker", "restart", "--time", "20", replicas[1])
                stack.compose("up", "--detach", "--wait", "--no-build", *scale)
                load.progress()
        finally:
            load.stop()
        say(f"  {load}")
        judge(stack, load, edge=False)
        number = recorded_once(stack, load)
        watch.wait(set(load.acknowledged.values()), 60)
        watch.without_gap()
        holders = stack.sql(
            "registration", "select count(*) from pg_locks where locktype = 'advisory' and granted and database = "
            "(select oid from pg_database where datname = current_database())",
        )  # fmt: skip
        assert holders == "1", holders
        say(
            f"  {number} registrations with two replicas of each service, each recorded once and seen live "
            f"({len(watch.seen)} records over {watch.begun} streams); one relay"
        )
    stack.compose("up", "--detach", "--wait", "--no-build")


def walk() -> None:
    """Take every step, and clear up.

    Raises:
        AssertionError: A step does not hold.
    """
    with tempfile.TemporaryDirectory(prefix="mesh-walk-") as folder:
        scratch = Path(folder)
        stack = Stack(scratch)
        try:
            for step in (
                configuration_is_clean, starts_on_a_fresh_machine, answers_every_request, keeps_data_in_postgresql,
                holds_no_secrets_and_no_privileges, speaks_tls_between_containers, refuses_strangers_at_the_broker,
                delivers_events_to_the_audit, encrypts_a_registration, rotates_the_root, survives_restarts_under_load,
                finds_a_service_at_another_address, has_rotated_the_root,
                survives_kills, stops_cleanly, keeps_volumes, shows_what_happens_live,
                loses_no_event_without_its_broker, shares_the_work_among_replicas,
            ):  # fmt: skip
                say(step.__name__.replace("_", " "))
                step(stack)
            say("rebuilds only what changed")
            rebuilds_only_what_changed(scratch)
        except BaseException:
            say(stack.compose("ps", "--all", check=False))
            say(stack.compose("logs", "--no-color", "--tail", "10", *COMPONENTS, check=False))
            raise
        finally:
            stack.compose("down", "--volumes", "--timeout", "5", check=False)
            run("docker", "image", "rm", "function-mesh:walk", check=False)
    say("every step holds")


if __name__ == "__main__":
    walk()
