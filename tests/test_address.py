"""Addresses: parser and formatter agree, and a listener accepts connections at its address."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.address import authority, bind, bound_address, join, reachable, split

HOSTS = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.builds("{}%{}".format, st.ip_addresses(v=6), st.from_regex(r"[a-z]{1,5}[0-9]{0,2}", fullmatch=True)),
    st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,10}[a-z0-9])?(\.[a-z]{1,5}){0,2}", fullmatch=True),
)


@given(HOSTS, st.integers(0, 65535))
def test_what_is_written_is_read(host: str, port: int) -> None:
    assert split(join(host, port)) == (host, port)
    assert "%" not in authority(join(host, port))


@given(st.text(max_size=30))
def test_any_other_text_is_refused_or_is_one_host(text: str) -> None:
    try:
        host, port = split(text)
    except ValueError as error:
        found = str(error)
    else:
        found = f"expected host:port, got {text!r}"
        assert host.isascii()
        assert join(host, port).rpartition(":")[0] == text.rpartition(":")[0]
    assert found.startswith(f"expected host:port, got {text!r}")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (":8080", 'for all interfaces write "*:8080"'),
        ("::1:8080", 'write an IPv6 address in brackets: "[::1]:8080"'),
        ("fd00::5", 'with a port: "[fd00::5]:8080"'),
        ("[127.0.0.1]:80", "'127.0.0.1' is no IPv6 address"),
        ("h:65536", "a port is at most 65535"),
        ("müller.example:80", "write the name in ASCII: 'xn--mller-kva.example'"),
    ],
)
def test_a_near_miss_says_what_would_be_right(text: str, right: str) -> None:
    with pytest.raises(ValueError, match=r"^expected host:port") as caught:
        split(text)
    assert right in str(caught.value)


@pytest.mark.parametrize(
    ("bound", "reached"),
    [
        ("0.0.0.0:80", "127.0.0.1:80"),
        ("*:80", "127.0.0.1:80"),
        ("[::]:80", "127.0.0.1:80" if socket.has_dualstack_ipv6() else "[::1]:80"),
        ("[0::0]:80", "127.0.0.1:80" if socket.has_dualstack_ipv6() else "[::1]:80"),
        ("[::1]:80", "[::1]:80"),
        ("a:1", "a:1"),
    ],
)
def test_others_reach_any_address_on_loopback(bound: str, reached: str) -> None:
    assert reachable(bound) == reached


@pytest.mark.parametrize("listen", ["*:0", "[::]:0"])
def test_every_interface_is_that_of_both_protocols(listen: str) -> None:
    with bind(listen, 1) as listener:
        port = split(bound_address(listener))[1]
        families = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
        for _, host in families if socket.has_dualstack_ipv6() else families[:1]:
            with socket.create_connection((host, port), 5):
                pass


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0"])
def test_one_address_is_that_alone(listen: str) -> None:
    if "[" in listen and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    with bind(listen, 1) as listener:
        host, port = split(bound_address(listener))
        assert IPv6Address(host).is_loopback if ":" in host else IPv4Address(host).is_loopback
        with socket.create_connection((host, port), 5):
            pass


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_an_ipv4_address_may_be_written_as_ipv6() -> None:
    with bind("[::ffff:127.0.0.1]:0", 1) as listener:
        socket.create_connection(("127.0.0.1", split(bound_address(listener))[1]), 5).close()


def test_a_link_local_listener_names_its_zone() -> None:
    zoned = _link_local()
    if zoned is None:
        pytest.skip("no link-local address here")
    with bind(join(zoned, 0), 1) as listener:
        host, port = split(bound_address(listener))
        assert host == zoned
        with socket.create_connection((host, port), 5):
            pass


def _link_local() -> str | None:
    """Return a link-local address of this machine with its zone."""
    try:
        lines = Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith("fe80")]
    return f"{IPv6Address(bytes.fromhex(found[0][0]))}%{found[0][-1]}" if found else None
