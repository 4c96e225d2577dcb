"""How often one caller may ask: the arithmetic by its properties, the layers over real sockets."""

from __future__ import annotations

import asyncio
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.call import Identity
from mesh.config.values import Rate
from mesh.edge.layers.rate_limit import Buckets, client_rate_limit, identity_rate_limit
from mesh.errors import ResourceExhausted

BEARER = "Bearer "


class Naive:
    """A token bucket as the text-book has it, in exact numbers."""

    def __init__(self, rate, burst):
        self.rate, self.burst, self.tokens, self.at = rate, burst, Fraction(burst), Fraction(0)

    def take(self, now):
        self.tokens = min(Fraction(self.burst), self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens >= 1:
            self.tokens -= 1
            return Fraction(0)
        return (1 - self.tokens) / self.rate


@given(
    st.sampled_from([Fraction(1, 3600), Fraction(1, 4), Fraction(1), Fraction(7), Fraction(100), Fraction(10_000)]),
    st.integers(1, 50),
    st.lists(st.integers(0, 5000), max_size=200),
)
def test_it_is_a_token_bucket(rate, burst, gaps):
    buckets, naive, now = Buckets(float(rate), burst), Naive(rate, burst), Fraction(0)
    for gap in gaps:
        now += Fraction(gap, 1024) / rate  # times that a float holds almost exactly
        assert buckets.take("a", float(now)) == pytest.approx(float(naive.take(now)), rel=1e-6, abs=1e-6 / float(rate))


@given(st.integers(1, 20), st.integers(1, 20), st.lists(st.floats(0, 3), max_size=100))
def test_no_window_lets_more_through_than_burst_and_rate(rate, burst, gaps):
    buckets, now, passed = Buckets(rate, burst), 0.0, []
    for gap in gaps:
        now += gap
        before = buckets.left("a", now)
        wait = buckets.take("a", now)
        assert (wait == 0) == (before > 0)
        if wait == 0:
            passed.append(now)
        else:
            assert buckets.take("a", now + wait) == 0  # what it says to wait is enough …
            return
    for index, start in enumerate(passed):
        for count, end in enumerate(passed[index:], 1):
            assert count <= burst + rate * (end - start) + 1e-6


def test_keys_do_not_touch_each_other_and_are_bounded():
    buckets = Buckets(1, 1, max_buckets=3)
    for key in "abc":
        assert buckets.take(key, 0.0) == 0
    assert buckets.take("a", 0.0) > 0  # "a" asked last, so "b" is the one to forget
    assert buckets.take("d", 0.0) == 0
    assert len(buckets) == 3
    assert buckets.take("b", 0.0) == 0
    assert buckets.take("a", 0.0) > 0


async def test_a_client_that_asks_too_often_is_429(opened):
    async with opened(rate_limit={"per_client": "2/h"}, cors=["*"]) as edge:
        for left in (1, 0):
            reply = await edge.request("GET", "/v1/books")
            assert reply.status == 200
            assert reply.headers["ratelimit"] == f'"client";r={left}'
            assert reply.headers["ratelimit-policy"] == '"client";q=2;w=3600'
        reply = await edge.request("GET", "/v1/books", headers={"origin": "https://a.example"})
        assert reply.status == 429
        assert 1700 < int(reply.headers["retry-after"]) <= 1800
        assert reply.headers["ratelimit"] == f'"client";r=0;t={reply.headers["retry-after"]}'
        assert reply.headers["access-control-allow-origin"] == "*"
        assert reply.json["code"] == 8
        assert reply.json["message"] == "this client sends too many requests; try again later"
        assert reply.json["details"][0]["@type"] == "type.googleapis.com/google.rpc.RetryInfo"
        assert (await edge.request("GET", "/healthz")).status == 200
        assert len(edge.library.calls) == 2


async def test_clients_behind_a_proxy_are_told_apart(opened):
    async with opened(rate_limit={"per_client": "1/h"}, trusted_proxies=["127.0.0.1"]) as edge:
        for client in ("1.1.1.1", "1.1.1.2", "2001:db8::1", "2001:db8:0:1::1"):
            assert (await edge.request("GET", "/v1/books", headers={"x-forwarded-for": client})).status == 200
        for client in ("1.1.1.1", "6.6.6.6, 1.1.1.1", "2001:db8::2"):  # a site of IPv6 is one client
            assert (await edge.request("GET", "/v1/books", headers={"x-forwarded-for": client})).status == 429


async def test_a_user_that_asks_too_often_is_429_from_anywhere(opened):
    async with opened(rate_limit={"per_identity": "2/h burst 1"}, trusted_proxies=["127.0.0.1"]) as edge:
        ada = {"authorization": BEARER + "ada"}
        assert (await edge.request("GET", "/v1/books", headers=ada)).status == 200
        reply = await edge.request("GET", "/v1/books", headers={**ada, "x-forwarded-for": "1.1.1.1"})
        assert (reply.status, reply.headers["ratelimit-policy"]) == (429, '"user";q=1;w=1800')
        assert (await edge.request("GET", "/v1/books", headers={"authorization": BEARER + "bob"})).status == 200
        for _ in range(3):
            assert (await edge.request("GET", "/v1/books")).status == 200  # nobody in particular


@pytest.mark.parametrize(
    ("per_identity", "per_key", "passed"),
    [
        (None, None, {"ada": 5, "key:ci": 5, "key:own": 3, "key:other": 3}),
        ("1/h", None, {"ada": 1, "key:ci": 1, "key:own": 3, "key:other": 3}),
        ("1/h", "2/h", {"ada": 1, "key:ci": 2, "key:own": 3, "key:other": 3}),
    ],
)
async def test_the_limit_of_a_key_is_its_own_or_that_of_keys_or_that_of_everybody(per_identity, per_key, passed):
    rates = [text and Rate.parse(text) for text in (per_identity, per_key)]
    own = {"key:own": Rate.parse("3/h"), "key:other": Rate.parse("3/h")}
    layer = identity_rate_limit(*rates, own.get, lambda: 0.0)
    counts = dict.fromkeys(passed, 0)

    class Request:
        def __init__(self, subject):
            self.headers = []
            self.identity = Identity(subject, scopes=frozenset() if subject.startswith("key:") else None)

    async def next(call):
        counts[call.identity.subject] += 1

    for subject, allowed in passed.items():
        for _ in range(allowed):
            await layer(Request(subject), next)
        for _ in range(5 - allowed):
            request = Request(subject)
            with pytest.raises(ResourceExhausted, match="sends too many requests; try again later"):
                await layer(request, next)
            assert dict(request.headers)[b"ratelimit"].startswith(b'"key"' if "key" in subject else b'"user"')
    assert counts == passed


async def test_time_gives_it_back():
    now = 0.0
    layer = client_rate_limit(0.5, 1, lambda: now)
    passed = []

    class Request:
        network = "1.1.1.1"

        def __init__(self):
            self.headers = []

    async def next(call):
        passed.append(call)

    await layer(Request(), next)
    with pytest.raises(Exception, match="too many requests") as caught:
        await layer(Request(), next)
    assert caught.value.details[0].retry_delay.seconds == 2
    now = 2.0
    await layer(Request(), next)
    assert len(passed) == 2


async def test_many_at_once_are_counted_one_by_one(opened):
    async with opened(rate_limit={"per_client": "3/h"}) as edge:
        replies = await asyncio.gather(*(edge.request("GET", "/v1/books") for _ in range(4)))
        assert sorted(reply.status for reply in replies) == [200, 200, 200, 429]
