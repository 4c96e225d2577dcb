"""Status in trailers: written within the limits on its size, read from anything; percent encoding."""

from __future__ import annotations

from base64 import b64decode
from urllib.parse import unquote

import pytest
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from mesh.call import MAX_METADATA_SIZE, field_bytes
from mesh.errors import Code, NotFound
from mesh.rpc import status


@given(st.text())
def test_percent_encoding_is_printable_and_can_be_undone(text: str) -> None:
    encoded = status.percent_encode(text)
    assert all(0x20 <= byte <= 0x7E for byte in encoded)
    assert encoded == encoded.strip(b" ")
    assert unquote(encoded.decode(), errors="strict") == text
    assert status.percent_decode(encoded) == text


@given(st.binary())
def test_percent_decoding_takes_anything(value: bytes) -> None:
    status.percent_decode(value)


def test_percent_coding_by_example() -> None:
    assert status.percent_encode("a%b\nü") == b"a%25b%0A%C3%BC"
    assert status.percent_encode("  a b ") == b"%20%20a b%20"
    assert status.percent_encode("  ") == b"%20%20"
    assert status.percent_decode(b"100%zz") == "100%zz"


def test_the_status_of_an_end_without_one() -> None:
    assert status.code_of_reset(7) is Code.UNAVAILABLE
    assert status.code_of_reset(0xFFFF) is Code.UNKNOWN
    assert status.code_of_http(404) is Code.UNIMPLEMENTED
    assert status.code_of_http(418) is Code.UNKNOWN


@given(st.text(max_size=5000), st.one_of(st.integers(0, 7168), st.integers(0, 10**6)), st.booleans())
def test_a_status_and_what_goes_beside_it_is_no_more_than_any_client_takes(
    text: str,
    metadata_bytes: int,
    rich: bool,  # noqa: FBT001
) -> None:
    details = [error_details_pb2.ErrorInfo(reason=text)] if rich else []
    pairs = status.write_status(NotFound(text, details=details), metadata_bytes)
    own = field_bytes([(b"content-type", b"application/grpc"), *pairs])
    assert own + metadata_bytes <= MAX_METADATA_SIZE or (own <= 768 and metadata_bytes > 7168)
    assert dict(pairs)[b"grpc-status"] == b"5"
    assert bool(text) == (b"grpc-message" in dict(pairs))


def test_the_pairs_of_a_rich_status() -> None:
    info = error_details_pb2.ErrorInfo(reason="GONE")
    pairs = dict(status.write_status(NotFound("no such user", details=[info])))
    assert (pairs[b"grpc-status"], pairs[b"grpc-message"]) == (b"5", b"no such user")
    raw = pairs[b"grpc-status-details-bin"]
    rich = status_pb2.Status.FromString(b64decode(raw + b"=" * (-len(raw) % 4)))
    assert (rich.code, rich.message, rich.details[0].type_url) == (
        5, "no such user", "type.googleapis.com/google.rpc.ErrorInfo",
    )  # fmt: skip
    assert status.write_status(NotFound()) == [(b"grpc-status", b"5")]


@given(st.sampled_from(sorted(Code)[1:]), st.text(max_size=200), st.booleans(), st.booleans())
def test_a_status_that_is_written_is_read_as_it_was(code: Code, text: str, rich: bool, unknown: bool) -> None:  # noqa: FBT001
    details = [error_details_pb2.ErrorInfo(reason="GONE")] * rich
    details += [Any(type_url="type.googleapis.com/no.such.Type", value=b"abc")] * unknown
    error = status.StatusError.of(code, text, details)
    metadata = [(b"x-why", b"gone")]
    found, rest = status.read_status([*status.write_status(error), *metadata])
    assert found is not None
    assert (found.code, found.message, list(found.details)) == (code, error.message, details)
    assert rest == metadata
    assert list(status.unpack_details(status.pack_status(error))) == details


@pytest.mark.parametrize("value", [b"0", b"00"])
def test_no_status_means_ok(value: bytes) -> None:
    assert status.read_status([(b"grpc-status", value), (b"te", b"trailers"), (b"a", b"b")]) == (None, [(b"a", b"b")])


@pytest.mark.parametrize("value", [b"", b"-1", b"five", b"1" * 5000])
def test_a_malformed_code_is_unknown(value: bytes) -> None:
    found, _ = status.read_status([(b"grpc-status", value)])
    assert found is not None
    assert found.code is Code.UNKNOWN
    assert "no valid grpc-status" in found.message
