"""Who the client is: tables of what proxies say, and of what is believed."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.call import Metadata
from mesh.edge.calls import Origin
from mesh.edge.layers.forwarded import host_of, origin_of

TRUSTED = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


def origin(peer, *headers):
    return origin_of(peer, Metadata.from_wire([(name.encode(), value.encode()) for name, value in headers]), TRUSTED)


FOR, PROTO, HOST, RFC = "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded"


@pytest.mark.parametrize("headers", [[(FOR, "1.1.1.1")], [(RFC, "for=1.1.1.1")], [(PROTO, "https")], []])
@pytest.mark.parametrize("peer", ["192.168.0.1", "2001:db8::1", "11.0.0.1", "", "unix"])
def test_a_peer_that_is_no_proxy_is_the_client(peer, headers):
    assert origin(peer, *headers) is None


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], Origin("10.0.0.1")),
        ([(FOR, "1.1.1.1")], Origin("1.1.1.1")),
        ([(FOR, "6.6.6.6, 1.1.1.1")], Origin("1.1.1.1")),  # 6.6.6.6 is what the client said
        ([(FOR, "6.6.6.6"), (FOR, "1.1.1.1")], Origin("1.1.1.1")),  # two lines are one list
        ([(FOR, "6.6.6.6, 1.1.1.1, 10.2.2.2")], Origin("1.1.1.1")),  # two proxies
        ([(FOR, "10.3.3.3, 10.2.2.2")], Origin("10.3.3.3")),  # nobody from outside
        ([(FOR, "6.6.6.6, rubbish")], Origin("10.0.0.1")),
        ([(FOR, "6.6.6.6, rubbish, 10.2.2.2")], Origin("10.2.2.2")),
        ([(FOR, "")], Origin("10.0.0.1")),
        ([(FOR, "1.1.1.1:5123")], Origin("1.1.1.1")),
        ([(FOR, "2001:db8::7")], Origin("2001:db8::7")),
        ([(FOR, "[2001:db8::7]:5123")], Origin("2001:db8::7")),
        ([(FOR, "::ffff:1.1.1.1")], Origin("1.1.1.1")),
        ([(FOR, "1.1.1.1"), (PROTO, "https"), (HOST, "shop.example:8443")],
         Origin("1.1.1.1", "https", "shop.example:8443")),
        ([(FOR, "6.6.6.6, 1.1.1.1"), (PROTO, "http, https")], Origin("1.1.1.1", "https")),
        ([(FOR, "1.1.1.1, 10.2.2.2"), (PROTO, "https, http")], Origin("1.1.1.1", "https")),
        ([(FOR, "6.6.6.6, 1.1.1.1"), (PROTO, "https")], Origin("1.1.1.1", "https")),
        ([(FOR, "1.1.1.1"), (PROTO, "gopher")], Origin("1.1.1.1")),
        ([(FOR, "1.1.1.1"), (HOST, "a/b")], Origin("1.1.1.1")),
        ([(PROTO, "https")], Origin("10.0.0.1")),  # without a client it is nobody's
        ([(RFC, "for=1.1.1.1")], Origin("1.1.1.1")),
        ([(RFC, 'For="[2001:db8::7]:4711";Proto=HTTPS;by=10.0.0.1;host="a.example:1"')],
         Origin("2001:db8::7", "https", "a.example:1")),
        ([(RFC, "for=6.6.6.6;proto=http, for=1.1.1.1;proto=https;host=b.example")],
         Origin("1.1.1.1", "https", "b.example")),
        ([(RFC, 'for="6.6.6.6, for=7.7.7.7", for=1.1.1.1')], Origin("1.1.1.1")),
        ([(RFC, "for=unknown")], Origin("10.0.0.1")),
        ([(RFC, "for=_hidden, for=10.2.2.2")], Origin("10.2.2.2")),
        ([(RFC, "for=1.1.1.1;proto")], Origin("10.0.0.1")),
        ([(RFC, "proto=https")], Origin("10.0.0.1")),
        ([(RFC, "for=1.1.1.1"), (FOR, "1.1.1.1")], Origin("1.1.1.1")),
        ([(RFC, "for=6.6.6.6"), (FOR, "1.1.1.1")], Origin("10.0.0.1")),  # one came through unchecked: which?
    ],
)  # fmt: skip
def test_what_a_proxy_says(headers, expected):
    assert origin("10.0.0.1", *headers) == expected


def test_a_proxy_may_be_reached_by_a_mapped_address():
    assert origin("::ffff:10.0.0.1", (FOR, "1.1.1.1")) == Origin("1.1.1.1")
    assert origin("fd00::1", (FOR, "1.1.1.1")) == Origin("1.1.1.1")


@given(st.lists(st.ip_addresses(), max_size=4), st.ip_addresses(v=4), st.lists(st.ip_addresses(network="10.0.0.0/8")))
def test_nothing_that_the_client_writes_moves_what_is_found(said, client, proxies):
    if any(client in network for network in TRUSTED):
        return
    chain = ", ".join(map(str, [*said, client, *proxies][-60:]))
    assert origin("10.0.0.1", (FOR, chain)) == Origin(str(client))


@given(st.text())
def test_any_text_is_read(text):
    found = origin("10.0.0.1", (RFC, text.encode("utf-8", "replace").decode()))
    assert found is not None
    assert host_of(found.client) is not None


async def test_the_call_knows_its_client(opened):
    async with opened(trusted_proxies=["127.0.0.0/8"]) as edge:
        headers = {FOR: "6.6.6.6, 1.2.3.4", PROTO: "https", HOST: "shop.example"}
        await edge.request("GET", "/v1/books", headers=headers)
        (call,) = edge.seen
        assert (call.client, call.address, call.scheme) == ("1.2.3.4", "1.2.3.4", "https")
        assert call.authority == "shop.example"
        assert call.peer_address == "127.0.0.1"


async def test_nobody_is_believed_who_is_not_named(opened):
    async with opened(trusted_proxies=["10.0.0.0/8"]) as edge:
        await edge.request("GET", "/v1/books", headers={FOR: "1.2.3.4", PROTO: "https", HOST: "shop.example"})
        (call,) = edge.seen
        assert call.client.startswith("127.0.0.1:")
        assert (call.address, call.scheme, call.authority) == ("127.0.0.1", "http", edge.address)
