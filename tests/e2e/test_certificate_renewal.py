"""Certificates over days, by a clock that is moved: leaves are renewed and the root is replaced, and no call fails.

Every process of the mesh believes the moved clock, the command line too. Calls go on all the time, over TLS between the
edge and two services.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from importlib.metadata import distribution
from pathlib import Path

import pytest
from cryptography import x509
from mesh_process import Mesh, http

from mesh.certificates.authority import issuer_id
from mesh.certificates.authority_store import AuthorityStore
from mesh.certificates.leaf_files import current_leaf
from mesh.certificates.rotation import Step

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="the wheel's libfaketime is of Linux on x86-64"
)

DAYS = int(os.environ.get("CERTIFICATE_DAYS", "1"))
STEP = timedelta(hours=6)
CLOCK_SECONDS = 2.2
"""Seconds in which all processes have read a moved clock: libfaketime reads the file once a second, in whole seconds.
Without its cache, threads that read the file at the same time got the time of the machine now and then (45 of 156,634
readings of four threads; none of 171,086 with it)."""
SETTLE_SECONDS = 3.0
"""Real seconds in which connections are replaced after a renewal. Half a day of a mesh has more of them."""
NAMES = ("front", "back", "edge")
PROTO = """
syntax = "proto3";
package NAME.v1;
import "google/api/annotations.proto";
import "meshapi/v1/annotations.proto";
message Text { string text = 1; }
service SERVICE {OPTION
  rpc Say(Text) returns (Text) {
    option idempotency_level = NO_SIDE_EFFECTS;ROUTE
  }
}
"""
FRONT = """
from back.v1 import back_pb2
from back.v1.back_pb2_grpc import BackStub

async def say(request, context):
    reply = await context.stub(BackStub).Say(back_pb2.Text(text=request.text))
    request.text = reply.text
    return request
"""
BACK = """
async def say(request, context):
    request.text = request.text.upper()
    return request
"""
MANIFEST = """name = "shop"
tls = "on"
[edge]
listen = "127.0.0.1:0"
[services.front]
module = "front_functions"
serves = ["front.v1.Front"]
[services.back]
module = "back_functions"
serves = ["back.v1.Back"]
"""
ROUTE = """
    option (google.api.http) = { get: "/say/{text}" };
    option (meshapi.v1.method) = { access: PUBLIC };"""


class Days:
    """A mesh under a clock that the test moves, with calls in the background."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("front", "back"):
            proto = folder / "protos" / name / "v1" / f"{name}.proto"
            proto.parent.mkdir(parents=True)
            text = PROTO.replace("NAME", name).replace("SERVICE", name.title())
            option = '\n  option (meshapi.v1.service) = { calls: "back.v1.Back" };' if name == "front" else ""
            inside = "\n    option (meshapi.v1.method) = { access: INTERNAL };"
            proto.write_text(text.replace("OPTION", option).replace("ROUTE", ROUTE if name == "front" else inside))
        (folder / "front_functions.py").write_text(FRONT)
        (folder / "back_functions.py").write_text(BACK)
        (folder / "mesh.toml").write_text(MANIFEST)
        self._clock = folder / "clock"
        self._offset = timedelta()
        self._between_calls = threading.Lock()
        self.move(timedelta())
        files = distribution("libfaketime").files or []
        library = next(file for file in files if file.name.startswith("libfaketime.so"))
        self.environ = {
            "LD_PRELOAD": str(library.locate()), "FAKETIME_TIMESTAMP_FILE": str(self._clock),
            "FAKETIME_CACHE_DURATION": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1",
        }  # fmt: skip
        self.mesh = Mesh(folder / "mesh.toml", folder / ".mesh", self.environ)
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []
        self._stopped = threading.Event()
        self._caller = threading.Thread(target=self._call)

    def move(self, by: timedelta) -> None:
        """Move the clock of all processes, by one rename, between two calls.

        The token of a call that began before would have expired when it arrives, and so would one between two processes
        of which only one has read the file.
        """
        with self._between_calls:
            self._offset += by
            fresh = self._clock.with_suffix(".new")
            fresh.write_text(f"{self._offset.total_seconds():+.0f}s\n")
            fresh.replace(self._clock)
            time.sleep(CLOCK_SECONDS)

    def call(self) -> None:
        """Call all the time from now on."""
        self._caller.start()

    def _call(self) -> None:
        while not self._stopped.is_set():
            with self._between_calls:
                answer = http(f"{self.mesh.edge}/say/hello")
            self.statuses[answer.status] += 1
            if answer.status != 200:
                self.failures.append(f"at {self._offset}: {answer}")
            time.sleep(0.01)  # half of the processor's time is left to what is under test

    def stop(self) -> int:
        self._stopped.set()
        if self._caller.ident is not None:
            self._caller.join()
        return self.mesh.stop()

    def leaf(self, name: str) -> x509.Certificate:
        leaf = current_leaf(self.folder / ".mesh" / "identity", name, "shop")
        assert leaf is not None
        return leaf

    def renewals(self, name: str) -> int:
        """How often a component has taken new credentials."""
        return len(re.findall(rf"new certificate of {name}:", self.mesh.output()))

    def renewed(self, act: Callable[[], object]) -> None:
        """Do something that makes certificates due, and wait until every component has new ones in use."""
        before = {name: self.renewals(name) for name in NAMES}
        act()
        self.mesh.until(lambda: all(self.renewals(name) > before[name] for name in NAMES))
        time.sleep(SETTLE_SECONDS)  # nothing announces that a listener and its callers have replaced their connections

    def calls(self, count: int) -> None:
        """Wait for so many more calls."""
        goal, until = self.statuses.total() + count, time.monotonic() + 60
        while self.statuses.total() < goal:
            assert time.monotonic() < until
            time.sleep(0.01)

    def keys(self, *words: str) -> str:
        """Run ``mesh keys``."""
        done = subprocess.run(
            [sys.executable, "-m", "mesh", "keys", *words, "--file", str(self.folder)],
            env={**os.environ, **self.environ}, capture_output=True, text=True, check=False, timeout=90,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def days(tmp_path: Path) -> Iterator[Days]:
    made = Days(tmp_path)
    try:
        made.mesh.ready()
        yield made
    finally:
        code = made.stop()
    assert code == 0, made.mesh.output()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_certificates_are_renewed_and_the_root_is_replaced_without_a_failed_call(days: Days) -> None:
    """``CERTIFICATE_DAYS=30`` and ``-rP`` make it a long run with its figures."""
    store = AuthorityStore(days.folder / ".mesh" / "authority", "shop")
    days.call()
    days.calls(20)
    old = issuer_id(days.leaf("back"))
    renewals = 0
    for number in range(1, round(timedelta(days=DAYS) / STEP) + 1):
        if number % 2:  # less than half of the life
            days.move(STEP)
        else:
            days.renewed(lambda: days.move(STEP))
            renewals += 1
        days.calls(5)
    assert renewals >= DAYS
    for step in (Step.ADDED, Step.SIGNING, Step.STEADY):
        days.renewed(lambda: days.keys("rotate-root"))
        assert store.status().state.step is step
        days.calls(20)
        days.move(timedelta(minutes=1))
    assert {issuer_id(days.leaf(name)) for name in NAMES} == {store.status().state.signing} != {old}
    assert "no rotation is in progress" in days.keys("status")
    days.renewed(lambda: days.move(2 * STEP))
    days.calls(20)
    sys.stdout.write(f"{DAYS} days, {days.renewals('back')} renewals of back, calls: {dict(days.statuses)}\n")
    assert not days.failures, (len(days.failures), days.failures[:3], days.mesh.output())
