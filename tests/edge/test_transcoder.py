"""Path, query and body → request: tables of what sets which field, and of what is refused by which name."""

from __future__ import annotations

import json

import pytest
from google.protobuf import json_format

from mesh.edge.http.transcoder import Transcoder
from mesh.errors import InvalidArgument
from mesh.protojson.codec import Codecs


@pytest.fixture(scope="module")
def transcode(contract):
    """Return (method, index of route) → transcoder."""

    def of(method: str, route: int = 0) -> Transcoder:
        found = contract.methods[f"/edge.v1.Library/{method}"]
        return Transcoder(found, found.routes[route], Codecs())

    return of


def request(transcoder, values=(), query="", body=b""):
    data = transcoder.request(values, query.encode(), body)
    return json_format.MessageToDict(transcoder.method.input.FromString(data))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {}),
        ("&&", {}),
        ("title=a+b%20c%2B", {"title": "a b c+"}),
        ("title", {}),
        ("title=%E2%82%AC", {"title": "€"}),
        ("title=a=b", {"title": "a=b"}),
        ("isbn=9223372036854775807", {"isbn": "9223372036854775807"}),
        ("isbn=-1", {"isbn": "-1"}),
        ("inPrint=true", {"inPrint": True}),
        ("in_print=true", {"inPrint": True}),
        ("in_print=false", {}),
        ("genre=PROSE", {"genre": "PROSE"}),
        ("genre=2", {"genre": "PROSE"}),
        ("genre=77", {"genre": 77}),
        ("genres=PROSE&genres=1", {"genres": ["PROSE", "POETRY"]}),
        ("tags=a&title=x&tags=b", {"tags": ["a", "b"], "title": "x"}),
        ("cover=-_8=", {"cover": "+/8="}),
        ("cover=%2B/8", {"cover": "+/8="}),
        ("price=1.5e3", {"price": 1500.0}),
        ("price=NaN", {"price": "NaN"}),
        ("price=-Infinity&weight=Infinity", {"price": "-Infinity", "weight": "Infinity"}),
        ("author.name=A&author.born=1", {"author": {"name": "A", "born": 1}}),
        ("author.teacher.teacher.name=A", {"author": {"teacher": {"teacher": {"name": "A"}}}}),
        ("published=2026-01-31T12:00:00.5%2B01:00", {"published": "2026-01-31T11:00:00.500Z"}),
        ("printings=2026-01-31T12:00:00Z&printings=1970-01-01T00:00:00Z",
         {"printings": ["2026-01-31T12:00:00Z", "1970-01-01T00:00:00Z"]}),
        ("readingTime=-1.5s", {"readingTime": "-1.500s"}),
        ("pages=0", {"pages": 0}),
        ("mask=title,inPrint", {"mask": "title,inPrint"}),
        ("mask=in_print,author.name", {"mask": "inPrint,author.name"}),
        ("note=", {"note": ""}),
        ("room=", {"room": ""}),
        ("number=0", {"number": 0}),
        ("$alt=json;enum-encoding=int&$prettyPrint=true&title=a", {"title": "a"}),
    ],
)  # fmt: skip
def test_a_query_sets_fields(transcode, query, expected):
    assert request(transcode("GetBook", 6), query=query) == expected


@pytest.mark.parametrize(
    ("query", "field", "text"),
    [
        ("nothing=1", "nothing", "not a field"),
        ("author=1", "author", "not a field"),
        ("author.nothing=1", "author.nothing", "not a field"),
        ("title.x=1", "title.x", "not a field"),
        ("editors.name=1", "editors.name", "not a field"),
        ("labels=1", "labels", "not a field"),
        ("labels.key=1", "labels.key", "not a field"),
        ("=1", "", "not a field"),
        (".=1", ".", "not a field"),
        ("title=a&title=b", "title", "twice"),
        ("in_print=true&inPrint=true", "inPrint", "twice"),
        ("isbn=x", "isbn", "expected an integer"),
        ("isbn=", "isbn", "expected an integer"),
        ("isbn=9223372036854775808", "isbn", "out of range"),
        ("isbn=1.5", "isbn", "fraction"),
        ("inPrint=yes", "inPrint", "true or false"),
        ("inPrint=1", "inPrint", "true or false"),
        ("genre=HORROR", "genre", "PROSE"),
        ("cover=%25", "cover", "base64"),
        ("price=inf", "price", "expected a number"),
        ("price=1_0", "price", "expected a number"),
        ("weight=1e39", "weight", "range of a float"),
        ("published=yesterday", "published", "RFC 3339"),
        ("readingTime=5", "readingTime", "seconds"),
        ("pages=many", "pages", "expected an integer"),
        ("number=1&room=a", "room", "only one of 'shelf'"),
    ],
)
def test_a_query_is_refused_by_name(transcode, query, field, text):
    with pytest.raises(InvalidArgument) as caught:
        transcode("GetBook", 6).request((), query.encode(), b"")
    (detail,) = caught.value.details
    assert detail.field_violations[0].field == field
    assert text in detail.field_violations[0].description
    assert repr(field) in caught.value.message


@pytest.mark.parametrize("query", ["title=%", "title=%f", "%zz=1", "title=%ff", "title=\udcff"])
def test_a_query_that_is_no_text_is_refused(transcode, query):
    with pytest.raises(InvalidArgument, match="the query"):
        transcode("GetBook", 6).request((), query.encode("utf-8", "surrogateescape"), b"")


@pytest.mark.parametrize(
    ("route", "values", "expected"),
    [
        (0, ("shelves/1/books/2",), {"name": "shelves/1/books/2"}),
        (1, ("12",), {"isbn": "12"}),
        (2, ("PROSE", "true", "2.5"), {"genre": "PROSE", "inPrint": True, "price": 2.5}),
        (2, ("2", "false", "NaN"), {"genre": "PROSE", "price": "NaN"}),
        (3, ("2026-01-31T12:00:00Z", "3s", "0", "AAE"),
         {"published": "2026-01-31T12:00:00Z", "readingTime": "3s", "pages": 0, "cover": "AAE="}),
        (4, ("A", "B"), {"author": {"name": "A", "teacher": {"name": "B"}}}),
    ],
)  # fmt: skip
def test_a_path_sets_typed_fields(transcode, route, values, expected):
    assert request(transcode("GetBook", route), values) == expected


@pytest.mark.parametrize(
    ("route", "values", "field"),
    [
        (1, ("x",), "isbn"),
        (2, ("NONE", "true", "1"), "genre"),
        (2, ("1", "maybe", "1"), "in_print"),
        (3, ("now", "3s", "0", ""), "published"),
    ],
)
def test_a_path_value_of_the_wrong_type_is_named(transcode, route, values, field):
    with pytest.raises(InvalidArgument, match=f"{field} in the path") as caught:
        transcode("GetBook", route).request(values, b"", b"")
    assert caught.value.details[0].field_violations[0].field == field


def test_what_the_path_binds_is_no_query_parameter(transcode):
    with pytest.raises(InvalidArgument, match=r"'name': is part of the path"):
        transcode("GetBook", 0).request(("a",), b"name=b", b"")
    with pytest.raises(InvalidArgument, match=r"'author\.name'"):
        transcode("GetBook", 4).request(("a", "b"), b"author.name=c", b"")
    assert request(transcode("GetBook", 4), ("a", "b"), "author.born=3")["author"]["born"] == 3


def test_a_whole_body_leaves_no_query(transcode):
    with pytest.raises(InvalidArgument, match=r"'title'.*the body is the whole request"):
        transcode("CreateBook").request((), b"title=a", b"{}")
    assert request(transcode("CreateBook"), query="$alt=json", body=b'{"title":"a"}') == {"title": "a"}


def test_a_body_field_leaves_the_others_to_the_query(transcode):
    update = transcode("UpdateBook")
    assert request(update, ("books/1",), "reason=r&update_mask=in_print", b'{"title":"t","name":"x"}') == {
        "book": {"name": "books/1", "title": "t"}, "reason": "r", "updateMask": "inPrint",
    }  # fmt: skip
    with pytest.raises(InvalidArgument, match=r"'book\.title': belongs in the body"):
        update.request(("books/1",), b"book.title=t", b"")
    assert request(update, ("books/1",)) == {"book": {"name": "books/1"}}


def test_the_body_is_refused_by_its_path_in_the_request(transcode):
    with pytest.raises(InvalidArgument, match=r" book\.editors\[1\]\.born: expected an integer"):
        transcode("UpdateBook").request(("b",), b"", b'{"editors":[{},{"born":[]}]}')
    with pytest.raises(InvalidArgument, match=r" tags\[0\]: expected a string, got a number"):
        transcode("TagBook").request(("b",), b"", b"[1]")
    with pytest.raises(InvalidArgument, match=r" the body: expected an object, got an array"):
        transcode("CreateBook").request((), b"", b"[]")
    with pytest.raises(InvalidArgument, match=r"not valid JSON: .*line 1, column 2"):
        transcode("CreateBook").request((), b"", b"{]")


def test_a_message_nested_deeper_than_the_wire_allows_is_refused(transcode):
    deep = {"name": "x"}
    for _ in range(90):
        deep = {"teacher": deep}
    assert transcode("CreateBook").request((), b"", json.dumps({"author": deep}).encode())
    for _ in range(20):
        deep = {"teacher": deep}
    with pytest.raises(InvalidArgument, match="nested deeper"):
        transcode("CreateBook").request((), b"", json.dumps({"author": deep}).encode())
    values = b'{"extra":' + b"[" * 60 + b"]" * 60 + b"}"
    with pytest.raises(InvalidArgument, match="nested too deeply"):
        transcode("CreateBook").request((), b"", values)
    with pytest.raises(InvalidArgument, match="is not a field"):
        transcode("GetBook", 6).request((), b"author." + b"teacher." * 200 + b"name=x", b"")


def test_required_fields_that_are_missing_are_named(contract):
    method = contract.methods["/odd.v1.Odd/Default"]
    for route, query, body in ((method.routes[0], b"number=1", b""), (method.routes[1], b"", b'{"text":"a"}')):
        with pytest.raises(InvalidArgument, match=r"needed: the field is required$") as caught:
            Transcoder(method, route, Codecs()).request((), query, body)
        assert caught.value.details[0].field_violations[0].field == "needed"


def test_answers(transcode, contract):
    book = contract.message("edge.v1.Book")(title="t", isbn=5)
    assert json.loads(transcode("GetBook").response(book.SerializeToString())) == {"title": "t", "isbn": "5"}
    assert transcode("UpdateBook").response(b"") == b'""'
    assert transcode("TagBook").response(b"") == b"[]"
    assert transcode("WhenPublished").response(b"") == b"null"
    book.published.seconds = 0
    assert transcode("WhenPublished").response(book.SerializeToString()) == b'"1970-01-01T00:00:00Z"'
