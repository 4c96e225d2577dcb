"""Path, query and body over a running edge: tables of what google/api/http.proto, AIP-127 and proto3 JSON say."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
async def edge(opened):
    async with opened() as running:
        yield running


MAX64 = str(2**63 - 1)

QUERIES = [
    ("", {}),
    ("text=a%2Fb+c%26d%3De%25", {"text": "a/b c&d=e%"}),
    ("text=%F0%9F%98%80", {"text": "😀"}),
    ("text=", {}),
    ("flag=true", {"flag": True}),
    ("flag=false", {}),
    ("flag=True&boolWrapper=False", {"flag": True, "boolWrapper": False}),  # as Python writes them
    ("int32Value=-2147483648", {"int32Value": -(2**31)}),
    ("int32_value=2147483647", {"int32Value": 2**31 - 1}),
    ("int64Value=-9223372036854775808", {"int64Value": "-9223372036854775808"}),
    (f"int64_value={MAX64}", {"int64Value": MAX64}),
    ("uint32Value=4294967295", {"uint32Value": 2**32 - 1}),
    ("uint64Value=18446744073709551615", {"uint64Value": str(2**64 - 1)}),
    ("sint32Value=-1&sint64Value=-1", {"sint32Value": -1, "sint64Value": "-1"}),
    ("fixed32Value=1&fixed64Value=1", {"fixed32Value": 1, "fixed64Value": "1"}),
    ("sfixed32Value=-1&sfixed64Value=-1", {"sfixed32Value": -1, "sfixed64Value": "-1"}),
    ("int32Value=1e3", {"int32Value": 1000}),
    ("int32Value=5.0", {"int32Value": 5}),
    ("doubleValue=NaN", {"doubleValue": "NaN"}),
    ("doubleValue=Infinity&floatValue=-Infinity", {"doubleValue": "Infinity", "floatValue": "-Infinity"}),
    ("doubleValue=1.7976931348623157e308", {"doubleValue": 1.7976931348623157e308}),
    ("doubleValue=5e-324", {"doubleValue": 5e-324}),
    ("doubleValue=-0.5&floatValue=1.5", {"doubleValue": -0.5, "floatValue": 1.5}),
    ("data=-_8%3D", {"data": "+/8="}),
    ("data=-_8", {"data": "+/8="}),
    ("data=%2B%2F8=", {"data": "+/8="}),
    ("color=RED", {"color": "RED"}),
    ("color=2", {"color": "GREEN"}),
    ("color=-1", {"color": "NEGATIVE"}),
    ("color=99", {"color": 99}),
    ("stringWrapper=", {"stringWrapper": ""}),
    ("boolWrapper=false", {"boolWrapper": False}),
    ("int64Wrapper=0", {"int64Wrapper": "0"}),
    ("int64_wrapper=7", {"int64Wrapper": "7"}),
    ("doubleWrapper=NaN", {"doubleWrapper": "NaN"}),
    ("bytesWrapper=AAE", {"bytesWrapper": "AAE="}),
    ("at=2026-01-31T12:00:00Z", {"at": "2026-01-31T12:00:00Z"}),
    ("at=2026-01-31T12:00:00.123456789-01:30", {"at": "2026-01-31T13:30:00.123456789Z"}),
    ("at=0001-01-01T00:00:00Z", {"at": "0001-01-01T00:00:00Z"}),
    ("span=-0.000000001s", {"span": "-0.000000001s"}),
    ("span=3s", {"span": "3s"}),
    ("span=-315576000000.999999999s", {"span": "-315576000000.999999999s"}),
    ("mask=text,inner.bigNumber", {"mask": "text,inner.bigNumber"}),
    ("mask=inner.big_number", {"mask": "inner.bigNumber"}),
    ("maybeText=", {"maybeText": ""}),
    ("maybeNumber=0&maybeColor=COLOR_UNSPECIFIED", {"maybeNumber": 0, "maybeColor": "COLOR_UNSPECIFIED"}),
    ("inner.name=a", {"inner": {"name": "a"}}),
    ("inner.bigNumber=1&inner.inner.big_number=2", {"inner": {"bigNumber": "1", "inner": {"bigNumber": "2"}}}),
    ("inner.words=a&inner.words=b", {"inner": {"words": ["a", "b"]}}),
    ("inner.since=1970-01-01T00:00:00Z", {"inner": {"since": "1970-01-01T00:00:00Z"}}),
    ("inner.name=", {"inner": {}}),
    ("texts=a&texts=&texts=b", {"texts": ["a", "", "b"]}),
    ("texts=a,b", {"texts": ["a,b"]}),
    (f"numbers=1&numbers={MAX64}", {"numbers": ["1", MAX64]}),
    ("colors=RED&colors=2&colors=7", {"colors": ["RED", "GREEN", 7]}),
    ("flags=true&flags=false&flags=True", {"flags": [True, False, True]}),
    ("doubles=1&doubles=NaN", {"doubles": [1.0, "NaN"]}),
    ("blobs=AA&blobs=_w==", {"blobs": ["AA==", "/w=="]}),
    ("times=1970-01-01T00:00:00Z", {"times": ["1970-01-01T00:00:00Z"]}),
    ("wrappedNumbers=1&wrapped_numbers=2", {"wrappedNumbers": ["1", "2"]}),
    ("called=a", {"called": "a"}),
    ("named=a", {"called": "a"}),
    ("this=", {"this": ""}),
    ("that=0", {"that": 0}),
    ("other.name=a", {"other": {"name": "a"}}),
    ("$alt=json&$prettyPrint=true&$fields=text&text=a", {"text": "a"}),
    ("$alt=json;enum-encoding=int&text=a", {"text": "a"}),
    ("%24alt=json&text=a", {"text": "a"}),
    ("&text=a&&", {"text": "a"}),
    ("t%65xt=a", {"text": "a"}),
]


@pytest.mark.parametrize(("query", "expected"), QUERIES)
async def test_a_query(edge, query, expected):
    reply = await edge.request("GET", f"/q?{query}")
    assert (reply.status, reply.json) == (200, expected)


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("nothing=1", "nothing"),
        ("Text=1", "Text"),
        ("text.x=1", "text.x"),
        ("inner=1", "inner"),
        ("inner.nothing=1", "inner.nothing"),
        ("inner.=1", "inner."),
        (".inner=1", ".inner"),
        ("inner..name=1", "inner..name"),
        ("inners.name=1", "inners.name"),
        ("inners=1", "inners"),
        ("labels=1", "labels"),
        ("labels.a=1", "labels.a"),
        ("labels[a]=1", "labels[a]"),
        ("texts[0]=1", "texts[0]"),
        ("structure=1", "structure"),
        ("structure.a=1", "structure.a"),
        ("any=1", "any"),
        ("int32Value=2147483648", "int32Value"),
        ("int32Value=1.5", "int32Value"),
        ("int32Value=0x1", "int32Value"),
        ("int32Value=%201", "int32Value"),
        ("int32Value=%D9%A1", "int32Value"),
        ("int64Value=9223372036854775808", "int64Value"),
        ("uint64Value=-1", "uint64Value"),
        ("uint32Value=4294967296", "uint32Value"),
        ("floatValue=1e39", "floatValue"),
        ("doubleValue=1e309", "doubleValue"),
        ("doubleValue=nan", "doubleValue"),
        ("doubleValue=0x1p3", "doubleValue"),
        ("flag=TRUE", "flag"),
        ("flag=1", "flag"),
        ("flag=", "flag"),
        ("color=red", "color"),
        ("color=2147483648", "color"),
        ("data=a", "data"),
        ("data=%2A", "data"),
        ("at=2026-01-31", "at"),
        ("at=2026-02-30T00:00:00Z", "at"),
        ("at=2026-01-31T24:00:00Z", "at"),
        ("span=1", "span"),
        ("span=315576000001s", "span"),
        ("maybeNumber=", "maybeNumber"),
        ("text=a&text=b", "text"),
        ("named=a&called=b", "called"),
        ("int32_value=1&int32Value=1", "int32Value"),
        ("this=a&that=1", "that"),
        ("this=a&other.name=b", "other.name"),
    ],
)
async def test_a_query_is_refused_with_the_name(edge, query, name):
    reply = await edge.request("GET", f"/q?{query}")
    assert reply.status == 400
    assert reply.json["code"] == 3
    (detail,) = reply.json["details"]
    assert [one["field"] for one in detail["fieldViolations"]] == [name]
    assert edge.library.calls == []


@pytest.mark.parametrize("query", ["text=%FF", "%FF=a", "text=%C3%28", "text=%ED%A0%80"])
async def test_a_query_that_is_no_text(edge, query):
    reply = await edge.request("GET", f"/q?{query}")
    assert (reply.status, reply.json["message"]) == (400, "the query is not UTF-8")


@pytest.mark.parametrize(
    ("verb", "path", "expected"),
    [
        ("GET", "/p/text/a%2Fb%3Fc%23d%25", {"text": "a/b?c#d%"}),
        ("GET", "/p/text/a+b", {"text": "a+b"}),
        ("GET", "/p/text/a:b", {"text": "a:b"}),
        ("GET", "/p/text/%F0%9F%98%80", {"text": "😀"}),
        ("GET", "/p/text/%00", {"text": "\0"}),
        ("GET", "/p/text/..", {"text": ".."}),
        ("GET", "/p/text/%2E%2E%2Fx", {"text": "../x"}),
        ("GET", "/%70/te%78t/a", {"text": "a"}),
        ("GET", "/p/flag/true", {"flag": True}),
        ("GET", "/p/flag/True", {"flag": True}),
        ("GET", "/p/int32/-5", {"int32Value": -5}),
        ("GET", "/p/uint64/18446744073709551615", {"uint64Value": str(2**64 - 1)}),
        ("GET", "/p/double/-Infinity", {"doubleValue": "-Infinity"}),
        ("GET", "/p/data/_-8", {"data": "/+8="}),
        ("GET", "/p/data/%2F%2B8=", {"data": "/+8="}),
        ("GET", "/p/color/GREEN", {"color": "GREEN"}),
        ("GET", "/p/color/1", {"color": "RED"}),
        ("GET", "/p/wrapper/0", {"int64Wrapper": "0"}),
        ("GET", "/p/at/2026-01-31T12:00:00Z", {"at": "2026-01-31T12:00:00Z"}),
        ("GET", "/p/span/1.5s", {"span": "1.500s"}),
        ("GET", "/p/mask/text,inner.name", {"mask": "text,inner.name"}),
        ("GET", "/p/maybe/a", {"maybeText": "a"}),
        ("GET", "/p/deep/a", {"inner": {"inner": {"name": "a"}}}),
        ("GET", "/p/deep/a?inner.name=b&inner.inner.bigNumber=1",
         {"inner": {"name": "b", "inner": {"name": "a", "bigNumber": "1"}}}),
        ("GET", "/p/things/things/a/parts", {"text": "things/a/parts"}),
        ("GET", "/p/things/things/a%2Fb/parts/c/%20d%2fe", {"text": "things/a%2Fb/parts/c/ d%2fe"}),
        ("GET", "/p/a/1/b/2:both", {"text": "a/1", "inner": {"name": "b/2"}}),
        ("GET", "/p:rest", {}),
        ("GET", "/p/x/y:rest", {"text": "x/y"}),
        ("GET", "/p/a/1/b/2:rest", {"text": "a/1/b/2"}),
        ("BREW", "/p/any/a", {"text": "a"}),
        ("PATCH", "/p/any/a", {"text": "a"}),
        ("OPTIONS", "/p/any/a", {"text": "a"}),
        ("LINK", "/p/link/a", {"text": "a"}),
    ],
)  # fmt: skip
async def test_a_path(edge, verb, path, expected):
    reply = await edge.request(verb, path)
    assert (reply.status, reply.json) == (200, expected)


@pytest.mark.parametrize(
    ("path", "status", "name"),
    [
        ("/p/text/", 404, None),
        ("/p/text/a/", 404, None),
        ("/p/text/a/b", 404, None),
        ("/P/text/a", 404, None),
        ("//p/text/a", 404, None),
        ("/p/things/others/a/parts", 404, None),
        ("/p/a/1/b/2%3Aboth", 404, None),
        ("/p/link/a", 405, None),
        ("/p/flag/yes", 400, "flag"),
        ("/p/int32/1.5", 400, "int32_value"),
        ("/p/uint64/-1", 400, "uint64_value"),
        ("/p/double/x", 400, "double_value"),
        ("/p/data/a", 400, "data"),
        ("/p/color/BLUE", 400, "color"),
        ("/p/at/now", 400, "at"),
        ("/p/text/a?text=b", 400, "text"),
        ("/p/deep/a?inner.inner.name=b", 400, "inner.inner.name"),
        ("/p/this/a?that=1", 400, "that"),
        ("/p/wrapper/1?int64Wrapper.value=2", 400, "int64Wrapper.value"),
        ("/p/at/1970-01-01T00:00:00Z?at.seconds=2", 400, "at.seconds"),
    ],
)
async def test_a_path_is_refused(edge, path, status, name):
    reply = await edge.request("GET", path)
    assert reply.status == status
    if name is not None:
        assert reply.json["details"][0]["fieldViolations"][0]["field"] == name
    assert edge.library.calls == []


@pytest.mark.parametrize("path", ["/p/text/%FF", "/p/text/%C3%28", "/%FF", "/p/x/%ED%A0%80:rest"])
async def test_a_path_that_is_no_text(edge, path):
    reply = await edge.request("GET", path)
    assert (reply.status, reply.json["message"]) == (400, "the path has percent escapes that are not UTF-8")


WHOLE = {
    "text": "ü", "flag": True, "int64Value": MAX64, "doubleValue": "NaN", "data": "+/8=", "color": "RED",
    "int64Wrapper": "0", "at": "2026-01-31T12:00:00Z", "span": "1.500s", "mask": "text,inner.bigNumber",
    "maybeText": "", "maybeNumber": 0, "inner": {"inner": {}}, "inners": [{}, {"words": ["a"]}], "numbers": ["1"],
    "labels": {"": "a", "b": ""}, "structure": {"a": [None, True, {"b": 1.0}]}, "value": None, "list": [[], {}],
    "any": {"@type": "type.googleapis.com/transcode.v1.Reason", "why": "w", "count": "1"}, "called": "n", "that": 0,
}  # fmt: skip


async def test_a_whole_body_there_and_back(edge):
    reply = await edge.json("POST", "/whole", WHOLE)
    assert (reply.status, reply.json) == (200, WHOLE)
    assert (await edge.json("DELETE", "/whole", WHOLE)).json == WHOLE


async def test_names_numbers_and_nulls_of_either_form_are_read(edge):
    body = {"int64_value": 5, "int32Value": "6", "color": 2, "data": "-_8", "text": None, "inner": None, "texts": None}
    reply = await edge.json("POST", "/whole", body)
    assert reply.json == {"int64Value": "5", "int32Value": 6, "color": "GREEN", "data": "+/8="}


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/part/inner", {"name": "a", "words": ["b"]}, None),
        ("/part/inner", {}, None),
        ("/part/inners", [{"name": "a"}, {}], None),
        ("/part/inners", [], None),
        ("/part/texts", ["a", ""], None),
        ("/part/labels", {"a": "b"}, None),
        ("/part/text", "a", None),
        ("/part/int64", MAX64, None),
        ("/part/int64", 5, "5"),
        ("/part/data", "-_8", "+/8="),
        ("/part/color", 1, "RED"),
        ("/part/wrapper", "0", None),
        ("/part/wrapper", None, None),
        ("/part/at", "1970-01-01T00:00:00Z", None),
        ("/part/value", [1.0, None, {"a": "b"}], None),
        ("/part/value", None, None),
        ("/part/structure", {"a": None}, None),
        ("/part/list", [[], "a"], None),
        ("/part/any", {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "3s"}, None),
        ("/part/other", {"name": "a"}, None),
    ],
)
async def test_a_field_is_the_body_and_the_answer(edge, path, body, expected):
    reply = await edge.request("POST", path, json.dumps(body).encode(), {"content-type": "application/json"})
    assert (reply.status, reply.json) == (200, body if expected is None else expected)


async def test_every_field_comes_from_one_place(edge):
    reply = await edge.json("POST", "/whole/path/deep", {"text": "body", "inner": {"name": "body", "bigNumber": "1"}})
    assert reply.json == {"text": "path", "inner": {"name": "deep", "bigNumber": "1"}}
    reply = await edge.json("POST", "/part/inner/path?text=q&maybe_number=0", {"name": "body", "words": ["w"]})
    assert reply.json == {"text": "q", "maybeNumber": 0, "inner": {"name": "path", "words": ["w"]}}
    for path, name in [
        ("/whole?text=a", "text"),
        ("/whole?nothing=a", "nothing"),
        ("/part/inner?inner.name=a", "inner.name"),
        ("/part/texts?texts=a", "texts"),
        ("/part/inner/a?inner.name=b", "inner.name"),
        ("/part/other?this=a", "this"),
    ]:
        reply = await edge.json("POST", path, [] if "texts" in path else {"name": "x"} if "part" in path else {})
        assert (reply.status, reply.json["details"][0]["fieldViolations"][0]["field"]) == (400, name), path


async def test_system_parameters_go_with_a_whole_body(edge):
    reply = await edge.json("POST", "/whole?$alt=json;enum-encoding=int&$prettyPrint=1", {"text": "a"})
    assert (reply.status, reply.json) == (200, {"text": "a"})


@pytest.mark.parametrize("path", ["/whole", "/part/inner", "/part/text", "/part/value", "/part/int64"])
async def test_no_body_is_the_empty_message(edge, path):
    for headers in ({}, {"content-type": "application/json"}, {"content-length": "0"}):
        assert (await edge.request("POST", path, None, headers)).status == 200


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{", "line 1, column 2"),
        (b'{"text": "a",}', "line 1, column 13"),
        (b'{\n  "text": "a"\n  "flag": true\n}', "line 3, column 3"),
        (b'{"text": tru}', "line 1, column 1"),
        (b"{'text': 1}", "line 1, column 2"),
        (b'{"doubleValue": NaN}', "line 1, column 17"),
        (b'{"text": "\xff"}', "line 1, column "),
        (b'{"text": "\\ud800"}', ""),
        (b'{"text": "a\nb"}', "line 1, column 12"),
        (b"{} {}", "line 1, column 4"),
        (b"\xef\xbb\xbf{}", "line 1, column 1"),
        (b'{"text":"a","text":"b"}', "text"),
        (b'{"int64Value":1,"int64_value":2}', "int64"),
        (b'{"this":"a","that":1}', "choice"),
        (b'{"nothing":1}', "nothing: there is no such field"),
        (b'{"inner":{"inner":{"nothing":1}}}', "inner.inner.nothing"),
        (b'{"inners":[{},{"name":1}]}', "inners[1].name"),
        (b'{"labels":{"a":1}}', 'labels["a"]'),
        (b'{"texts":[null]}', "texts[0]"),
        (b'{"any":{"@type":"type.googleapis.com/nobody.v1.Knows"}}', "any.@type"),
        (b"[]", "expected an object, got an array"),
        (b"null", "expected an object, got null"),
        (b" ", "line 1, column "),
    ],
)
async def test_a_body_is_refused_with_its_place(edge, body, text):
    reply = await edge.request("POST", "/whole", body, {"content-type": "application/json"})
    assert reply.status == 400
    assert reply.json["code"] == 3
    assert text in reply.json["message"]
    assert edge.library.calls == []


async def test_unknown_fields_are_passed_over_when_the_deployment_says_so(opened):
    body = {"nothing": {"a": [1]}, "text": "a", "inner": {"none": 1}, "color": "MAUVE", "colors": ["RED", "MAUVE"]}
    async with opened(ignore_unknown_fields=True) as edge:
        reply = await edge.json("POST", "/whole", body)
        assert (reply.status, reply.json) == (200, {"text": "a", "inner": {}, "colors": ["RED"]})
        assert (await edge.json("POST", "/part/inner", {"none": 1, "name": "a"})).json == {"name": "a"}
        assert (await edge.request("GET", "/q?nothing=1")).status == 400  # it is about bodies
        assert (await edge.json("POST", "/whole", {"text": 1})).status == 400


async def test_the_status_of_a_success(edge):
    reply = await edge.json("POST", "/things", {"text": "a"})
    assert (reply.status, reply.headers["location"], reply.json) == (201, "/things/a", {"text": "a"})
    assert edge.seen[-1].status == 201
    reply = await edge.request("DELETE", "/things/a")
    assert (reply.status, reply.body, reply.headers["content-type"]) == (204, b"", None)
    reply = await edge.request("POST", "/things/a:reset")
    assert (reply.status, reply.body, reply.headers["content-length"]) == (205, b"", "0")
    reply = await edge.request("DELETE", "/forget")
    assert (reply.status, reply.json) == (200, {})
    assert (await edge.json("POST", "/things", {"text": 1})).status == 400


async def test_details_of_an_error(edge):
    reply = await edge.request("GET", "/refuse")
    assert (reply.status, reply.json["code"], reply.json["message"]) == (400, 9, "no")
    assert reply.json["details"] == [
        {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "STOCKOUT", "domain": "shop.example",
         "metadata": {"zone": "a"}},
        {"@type": "type.googleapis.com/transcode.v1.Reason", "why": "too big", "count": "9007199254740993"},
        {"@type": "type.googleapis.com/nobody.v1.Knows", "value": "CAE="},
        {"@type": "type.googleapis.com/transcode.v1.Reason", "value": "/w=="},
        {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "3s"},
    ]  # fmt: skip
    assert b"secret" not in reply.body
