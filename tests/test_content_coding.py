"""Content codings of complete bodies: what is decompressed, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.content_coding import CODINGS, BadCodingError, compress, decompress

coding = st.sampled_from(CODINGS)


@given(coding, st.lists(st.binary(max_size=3000), min_size=1, max_size=5), st.integers(0, 2))
def test_parts_are_one_body_within_the_limit(coding: str, parts: list[bytes], spare: int) -> None:
    body = b"".join(parts)
    data = b"".join(compress(coding, part) for part in parts)
    assert decompress(coding, data, len(body) + spare) == body
    if body:
        assert decompress(coding, data, len(body) - 1) is None


@given(coding, st.binary(min_size=1, max_size=2000), st.data())
def test_what_is_cut_or_followed_by_other_bytes_is_refused(coding: str, body: bytes, data: st.DataObject) -> None:
    packed = compress(coding, body)
    end = data.draw(st.integers(1, len(packed) - 1))
    for wrong in (packed[:end], packed + b"other", b"other" + packed):
        with pytest.raises(BadCodingError):
            decompress(coding, wrong, 10_000)


@pytest.mark.parametrize("coding", CODINGS)
def test_the_number_of_parts_is_limited(coding: str) -> None:
    with pytest.raises(BadCodingError, match="more than 64 parts"):
        decompress(coding, compress(coding, b"") * 65, 10_000)


@pytest.mark.parametrize("coding", CODINGS)
def test_no_more_than_the_limit_is_decompressed(coding: str) -> None:
    assert decompress(coding, compress(coding, bytes(10**7)), 1000) is None
