"""How a request body is cut into messages, and how an answer's form is chosen: pure."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.edge.http import negotiation
from mesh.edge.http.json_stream import Lines, TooLarge, Values
from mesh.edge.http.negotiation import Form
from mesh.errors import InvalidArgument

LIMIT = 200

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='ab"\\{}[],\né'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='a"\\{['), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(alphabet='a"\\{['), values, max_size=3)
messages = st.lists(objects.filter(lambda value: len(json.dumps(value)) <= LIMIT), max_size=5)
cuts = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def cut(by, body, sizes):
    found, at = [], 0
    while at < len(body):
        for size in sizes:
            found += by.feed(body[at : at + size])
            at += size
    return found + by.end()


def loaded(texts):
    return [json.loads(text) for text in texts]


@given(messages, cuts, st.sampled_from(["\n", "\r\n", "\n\n \n"]))
def test_lines_in_any_pieces(items, sizes, separator):
    body = separator.join(map(json.dumps, items)).encode()
    assert loaded(cut(Lines(LIMIT + 1), body, sizes)) == items


@given(messages, cuts, st.sampled_from(["", "\n", " "]), st.integers(0, 4) | st.none())
def test_values_in_any_pieces(items, sizes, separator, indent):
    body = separator.join(json.dumps(item, indent=indent) for item in items).encode()
    assert loaded(cut(Values(10_000), body, sizes)) == items


@given(st.lists(values, max_size=5), cuts, st.integers(0, 4) | st.none())
def test_an_array_in_any_pieces(items, sizes, indent):
    body = b" \n" + json.dumps(items, indent=indent).encode() + b"\n "
    assert loaded(cut(Values(10_000), body, sizes)) == items


@pytest.mark.parametrize("body", [b"[{},]", b"[,{}]", b"[,]", b"[{}", b"[{}] x", b"[{}][", b"}", b"[{}, ,{}]", b"{}]"])
def test_arrays_that_are_wrong(body):
    for sizes in ([100], [1]):
        with pytest.raises(InvalidArgument):
            cut(Values(LIMIT), body, sizes)


@pytest.mark.parametrize("by", [Lines, Values])
@pytest.mark.parametrize("size", [1, 1000])
def test_the_limit_is_of_one_message(by, size):
    fits = b'{"a":"' + b"b" * (LIMIT - 8) + b'"}'
    assert len(fits) == LIMIT
    assert cut(by(LIMIT), fits + b"\n" + fits, [size]) == [fits, fits]
    with pytest.raises(TooLarge):
        cut(by(LIMIT), b'{"a":"b' + fits[6:], [size])


@given(st.binary(max_size=60), cuts)
def test_nothing_else_is_raised(body, sizes):
    for by in (Lines, Values):
        with contextlib.suppress(TooLarge, InvalidArgument):
            cut(by(30), body, sizes)


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (b"", Form.JSON),
        (b"application/x-protobuf, */*;q=0.1", Form.PROTOBUF),
        (b"application/*;q=0.3, application/json;q=0.2", Form.PROTOBUF),
        (b"application/json;q=oops, application/protobuf;q=0.1", Form.PROTOBUF),
        (b"application/json;q=0", None),
        (b"APPLICATION/JSON ; Q=0.5", Form.JSON),
        (b", ,;q=1,", None),
        (b"application/json;q=2", None),
    ],
)
def test_accept(accept, chosen):
    found = negotiation.choose(accept, (Form.JSON, Form.PROTOBUF))
    assert (found[0] if found else None) is chosen


@given(st.binary(max_size=80))
def test_no_header_breaks_it(value):
    negotiation.choose(value, (Form.JSON, Form.LINES, Form.EVENTS))
    negotiation.content_coding(value, ("zstd", "gzip"))
