"""The grammar of google/api/http.proto, and which templates stand beside each other: tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.contract import loader, protoc
from mesh.contract.path_template import TemplateError, parse
from mesh.edge.http.router import Router
from mesh.faults import Faults


@pytest.mark.parametrize(
    ("text", "segments", "verb", "variables"),
    [
        ("/*", "*", None, {}),
        ("/**", "**", None, {}),
        ("/{a}", "*", None, {"a": (0, 1, False)}),
        ("/{a=**}", "**", None, {"a": (0, 1, True)}),
        ("/v1/{_a1}", "=v1 *", None, {"_a1": (1, 2, False)}),
        ("/v1/{a=*}", "=v1 *", None, {"a": (1, 2, False)}),
        ("/v1/{a=b}", "=v1 =b", None, {"a": (1, 2, True)}),
        ("/v1/{a=*/*}", "=v1 * *", None, {"a": (1, 3, True)}),
        ("/v1/{a.b.c=x/*/y/**}:do", "=v1 =x * =y **", "do", {"a.b.c": (1, 5, True)}),
        ("/v1/{a}/{b.c}/x/*", "=v1 * * =x *", None, {"a": (1, 2, False), "b.c": (2, 3, False)}),
        ("/v1/**:undo", "=v1 **", "undo", {}),
        ("/v1/things:batchGet", "=v1 =things", "batchGet", {}),
        ("/v1/%C3%BC", "=v1 =ü", None, {}),
        ("/v1/a%3Ab:c%2Fd", "=v1 =a:b", "c/d", {}),
        ("/v1/a%20b", "=v1 =a b".replace(" b", "\0b"), None, {}),
        ("/v1/$x/@me/~a_b-c.d!/e,f;g=h/(i)", "=v1 =$x =@me =~a_b-c.d! =e,f;g=h =(i)", None, {}),
    ],
)
def test_valid(text, segments, verb, variables):
    parsed = parse(text)
    assert parsed.segments == tuple(one.replace("\0", " ") for one in segments.split())
    assert parsed.verb == verb
    assert {".".join(one.field): (one.start, one.stop, one.multi) for one in parsed.variables} == variables


@pytest.mark.parametrize(
    "text",
    [
        "", "v1", "/", "//", "/v1/", "/v1//a", "/:v", " /v1", "/v1 ", "http://a/v1",
        "/v1/{", "/v1/}", "/v1/{}", "/v1/{a", "/v1/a}", "/v1/{a}b", "/v1/b{a}", "/v1/{a}{b}", "/v1/{a={b}}",
        "/v1/{a=}", "/v1/{a=b/}", "/v1/{a=/b}", "/v1/{a.}", "/v1/{.a}", "/v1/{a..b}", "/v1/{1a}", "/v1/{a-b}",
        "/v1/{a b}", "/v1/{ä}", "/v1/{*}", "/v1/{**}", "/v1/{a:b}", "/v1/{a=b:c}", "/v1/{a}/{a}",
        "/v1/***", "/v1/a*", "/v1/*a", "/v1/**/a", "/v1/{a=**}/b", "/v1/{a=**/b}", "/v1/**/**", "/v1/{a=**}/{b=**}",
        "/v1/a:", "/v1/a:b:c", "/v1/a:b/c", "/v1/{a}:{b}", "/v1/{a}:*", "/v1/:b/c",
        "/v1/a b", "/v1/a?b", "/v1/a#b", "/v1/ü", "/v1/a[b]", "/v1/a|b", "/v1/%", "/v1/%z0", "/v1/%ff",
    ],
)  # fmt: skip
def test_invalid(text):
    with pytest.raises(TemplateError) as caught:
        parse(text)
    assert repr(text) in str(caught.value)


CONTRACT = """syntax = "proto3";
package t.v1;
import "google/api/annotations.proto";
message Req { string a = 1; string b = 2; }
service S {
"""


def contract(tmp_path: Path, *routes: str):
    root = tmp_path / "protos"
    root.mkdir()
    methods = [
        f"  rpc M{index}(Req) returns (Req) {{ option (google.api.http) = {{ "
        f'custom: {{ kind: "{route.split()[0]}" path: "{route.split()[1]}" }} }}; }}'
        for index, route in enumerate(routes)
    ]
    (root / "t.proto").write_text(CONTRACT + "\n".join(methods) + "\n}\n")
    return loader.read(protoc.load([root], tmp_path / "gen"))


def test_what_is_ambiguous_is_a_fault(tmp_path):
    pairs = [
        ("/one/{a}", "/one/{b}"),
        ("/two/{a}", "/two/*"),
        ("/three/{a=x/*}", "/three/x/{b}"),
        ("/four/{a=**}", "/four/**"),
        ("/five/{a}:do", "/five/{b}:do"),
        ("/six/a%62", "/six/ab"),
        ("/seven/%C3%BC", "/seven/%c3%bc"),
        ("/eight/{a=x}", "/eight/x"),
    ]
    with pytest.raises(Faults) as caught:
        contract(tmp_path, *(f"GET {path}" for pair in pairs for path in pair), "* /nine/{a}", "* /nine/{b}")
    assert len(caught.value.faults) == len(pairs) + 1
    for fault in caught.value.faults:
        assert " is already the route of t.v1.S.M" in str(fault)
        assert fault.place.startswith("t.proto:")


@pytest.mark.parametrize("backwards", [False, True])
def test_what_overlaps_is_not_ambiguous_and_the_most_specific_wins(tmp_path, backwards):
    routes = [
        "GET /v1/{a}/x", "GET /v1/y/{b}", "GET /v1/**", "GET /v1/{a=*}", "GET /v1/{a=y/**}", "* /v1/{a}/x",
        "POST /v1/{a}/x", "GET /v1", "GET /v1/{a}:do", "GET /v1/{a=**}:do", "GET /v1/z:do", "GET /v1/z%3Ado",
    ]  # fmt: skip
    found = contract(tmp_path, *(reversed(routes) if backwards else routes))
    router = Router((r.verb, r.template, str(r)) for method in found.methods.values() for r in method.routes)
    for request, expected in [
        ("GET /v1/y/x", "GET /v1/y/{b}"),  # the leftmost literal decides
        ("GET /v1/z/x", "GET /v1/{a}/x"),
        ("POST /v1/y/x", "POST /v1/{a}/x"),
        ("PUT /v1/y/x", "* /v1/{a}/x"),
        ("GET /v1/y", "GET /v1/{a=y/**}"),  # "**" matches no segment too
        ("GET /v1/y/z/w", "GET /v1/{a=y/**}"),
        ("GET /v1/z/z", "GET /v1/**"),
        ("GET /v1", "GET /v1"),
        ("GET /v1/z:do", "GET /v1/z:do"),
        ("GET /v1/z%3Ado", "GET /v1/z%3Ado"),
        ("GET /v1/w:do", "GET /v1/{a}:do"),
        ("GET /v1/w/w:do", "GET /v1/{a=**}:do"),
        ("GET /v1/z", "GET /v1/{a=*}"),
        ("GET /v1/w:undo", "GET /v1/{a=*}"),
    ]:
        verb, path = request.split()
        assert router.find(path, verb)[0] == expected, request
