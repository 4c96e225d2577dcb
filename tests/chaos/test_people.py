"""Hostile and honest clients of ``mesh chaos --people``, against a real server of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mesh.chaos.people.attack_process import attacking
from mesh.chaos.people.attack_target import AttackTarget
from mesh.chaos.people.attacks import ATTACKS, possible
from mesh.chaos.people.honest_client import HonestClient, HonestRequest
from mesh.chaos.people.http2_client import Http2Client
from mesh.chaos.people.observed import Observed
from mesh.rpc.server.listener import Listener

BODY = b"a" * 200_000


class Server:
    """ASGI application: records requests and answers with the statuses of ``script``, at the end with 200."""

    def __init__(self, *script: int) -> None:
        self.script = list(script)
        self.paths: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.paths.append(scope["path"])
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
        if scope["path"] == "/hangs" or scope["type"] == "websocket":
            while (await receive())["type"] not in ("http.disconnect", "websocket.disconnect"):
                pass
            return
        status = self.script.pop(0) if self.script else 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": BODY if scope["path"] == "/large" else b"{}"})


@asynccontextmanager
async def serving(app: Server) -> AsyncIterator[AttackTarget]:
    listener = Listener(app, "127.0.0.1:0", grpc=False, drain=0.0)
    address = await listener.start()
    try:
        yield AttackTarget(
            host="127.0.0.1", port=int(address.rpartition(":")[2]), get="/", post="/post", large="/large",
            stream="/hangs", hung="/hangs", costly="/costly", costly_bodies=("{}", "[]"), rate=200.0,
        )  # fmt: skip
    finally:
        await listener.stop()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what an attacker or a server counts cannot be awaited
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("name", ATTACKS)
async def test_each_attack_reaches_the_server(name: str) -> None:
    """An attacker that does nothing would let every test of abuse pass."""
    observed = Observed()
    async with serving(Server()) as target:
        attack = asyncio.create_task(ATTACKS[name].run(target, observed))
        needed = "requests" if name not in ("connections", "slow-heads-http1", "pings", "settings") else "connections"
        await until(lambda: observed.counts[needed] or attack.done())
        assert not attack.done()
        attack.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await attack


async def test_an_attacker_in_a_process_of_its_own_tells_what_it_observed() -> None:
    app = Server(429, 429, 503)
    async with serving(app) as target:
        async with attacking("oversubscription", target) as attack:
            await until(lambda: len(app.paths) > 20)
        counts = attack.observed.counts
        assert (counts["HTTP 429"], counts["HTTP 503"]) == (2, 1)
        assert counts["HTTP 200"] == len(attack.observed.times) > 0


async def test_an_offer_without_reuse_ends_with_its_bodies() -> None:
    async with serving(Server()) as target:
        single = AttackTarget(**{**target.as_json(), "costly_bodies": ("{}",) * 7, "reuse": False})
        observed = Observed()
        await ATTACKS["oversubscription"].run(single, observed)
        assert observed.counts == {"requests": 7, "HTTP 200": 7}


async def test_a_failed_attacker_is_an_error() -> None:
    nowhere = AttackTarget(host="127.0.0.1", port=1, costly="/")  # no body to send
    with pytest.raises(RuntimeError, match="the attacker oversubscription failed"):
        async with attacking("oversubscription", nowhere):
            await asyncio.sleep(0)


def test_a_target_without_a_path_is_spared_the_attacks_that_need_it() -> None:
    bare = AttackTarget(host="a", port=1)
    assert possible(bare) == ["watches", "reflection", "pings", "settings", "connections"]
    sidecar = AttackTarget(host="a", port=1, grpc=True, post="/a.B/C", get="/", stream="/s")
    assert "body-less" in possible(sidecar)
    assert not {"slow-heads-http1", "event-streams", "web-sockets", "hung"} & set(possible(sidecar))


async def test_an_honest_client_repeats_what_may_be_repeated() -> None:
    async with serving(Server(503, 429, 200)) as target:
        served = await HonestClient(target, [HonestRequest("GET", "/")], retry=True).run(0.05, rate=10)
        assert served.success == 100
    async with serving(Server(503)) as target:
        served = await HonestClient(target, [HonestRequest("GET", "/")]).run(0.05, rate=10)
        assert (served.success, served.failures) == (0, {"GET /: HTTP 503": 1})


async def test_an_honest_client_does_not_wait_for_ever() -> None:
    async with serving(Server()) as target:
        request = HonestRequest("GET", "/hangs")
        served = await HonestClient(target, [request], timeout=0.2).run(0.05, rate=10)
        assert served.failures == {"GET /hangs: no response": 1}
        stopped = HonestClient(target, [HonestRequest("GET", "/")])
        stopped.stop()
        assert not (await stopped.run()).calls


async def test_an_attacker_sees_a_server_that_is_not_there() -> None:
    observed = Observed()
    assert await Http2Client.open(AttackTarget(host="127.0.0.1", port=1), observed) is None
    assert observed.counts == {"connection refused": 1}
