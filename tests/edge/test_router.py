"""The route matcher: tables of what matches what, and a naive matcher that it must agree with."""

from __future__ import annotations

import time
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.contract.path_template import parse
from mesh.edge.http.router import BadPath, Router


def router(*templates: str) -> Router[str]:
    """Each text is ``VERB template`` or a template of GET; the target is the text."""
    routes = []
    for text in templates:
        verb, _, template = text.rpartition(" ")
        routes.append((verb or "GET", parse(template), text))
    return Router(routes)


@pytest.mark.parametrize(
    ("template", "path", "values"),
    [
        ("/v1/users", "/v1/users", ()),
        ("/v1/users", "/v1/users/", None),
        ("/v1/users", "/v1/Users", None),
        ("/v1/users", "/v1", None),
        ("/v1/users/{id}", "/v1/users/7", ("7",)),
        ("/v1/users/{id}", "/v1/users/", None),
        ("/v1/users/{id}", "/v1/users/7/8", None),
        ("/v1/users/{id}", "/v1/users/a%2Fb%20c+d", ("a/b c+d",)),
        ("/v1/users/{id}", "/v1/users/a:b", ("a:b",)),
        ("/v1/{name=users/*}", "/v1/users/a%2Fb%20c", ("users/a%2Fb c",)),
        ("/v1/{name=users/*}", "/v1/users/a%2fb", ("users/a%2fb",)),
        ("/v1/{name=users/*}", "/v1/things/a", None),
        ("/v1/{name=*}", "/v1/a%2Fb", ("a/b",)),
        ("/v1/{name=**}", "/v1/a/b%2Fc/%20", ("a/b%2Fc/ ",)),
        ("/v1/{name=**}", "/v1/", ("",)),
        ("/v1/{name=**}", "/v1", ("",)),
        ("/v1/**", "/v1/a/b", ()),
        ("/v1/*/x", "/v1/a/x", ()),
        ("/v1/*/x", "/v1/a/y", None),
        ("/v1/{a}/{b.c}", "/v1/1/2", ("1", "2")),
        ("/v1/{name=a/*/b/**}", "/v1/a/1/b/2/3", ("a/1/b/2/3",)),
        ("/v1/{name=a/*/b/**}", "/v1/a/1/c/2/3", None),
        ("/v1/{name=things}", "/v1/things", ("things",)),
        ("/v1/users/{id}:cancel", "/v1/users/7:cancel", ("7",)),
        ("/v1/users/{id}:cancel", "/v1/users/7", None),
        ("/v1/users/{id}:cancel", "/v1/users/7:other", None),
        ("/v1/users/{id}:cancel", "/v1/users/a:b:cancel", ("a:b",)),
        ("/v1/users/{id}:cancel", "/v1/users/7%3Acancel", None),
        ("/v1/users:batchGet", "/v1/users:batchGet", ()),
        ("/v1/users:batchGet", "/v1/users:batch%47et", ()),
        ("/v1/{name=**}:undo", "/v1/a/b:undo", ("a/b",)),
        ("/v1/a%20b", "/v1/a%20b", ()),
        ("/v1/a%20b", "/v1/%61%20b", ()),
        ("/v1/ab", "/v1/%61b", ()),
        ("/v1/a%3Ab", "/v1/a:b", ()),
        ("/v1/{x}", "/v1/%E2%82%AC", ("€",)),
        ("/v1/{x}", "v1/a", None),
        ("/v1/{x}", "", None),
        ("/v1/{x}", "//v1/a", None),
        ("/v1/{x}", "/v1/%2F", ("/",)),
    ],
)
def test_a_template_matches(template, path, values):
    found = router(template).find(path, "GET")
    assert found == ((template, values) if values is not None else frozenset())


@pytest.mark.parametrize("path", ["/v1/%", "/v1/%2", "/v1/%zz", "/v1/%ff", "/%c3%28", "/v1/a%:x"])
def test_a_malformed_escape_is_refused(path):
    with pytest.raises(BadPath):
        router("/v1/{id}", "/v1/{id}:x", "/{name=**}").find(path, "GET")


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/v1/users/me", "/v1/users/me"),
        ("/v1/users/you", "/v1/users/{id}"),
        ("/v1/users/me/keys", "/v1/users/{id}/keys"),
        ("/v1/users/me/other", "/v1/{name=**}"),
        ("/v1/users/me:cancel", "/v1/users/{id}:cancel"),
        ("/v1/things/me:cancel", "/v1/{name=**}"),
        ("/v2/a/b", "/v2/a/**"),
        ("/v2/b/b", "/v2/*/b"),
        ("/v2/a/c", "/v2/a/**"),
        ("/v2/a", "/v2/a/**"),
        ("/v2/b/c", None),
    ],
)
@pytest.mark.parametrize("backwards", [False, True])
def test_the_most_specific_wins_whatever_the_order(path, target, backwards):
    templates = [
        "/v1/{name=**}", "/v1/users/{id}", "/v1/users/me", "/v1/users/{id}/keys", "/v1/users/{id}:cancel",
        "/v2/*/b", "/v2/a/**", "/v2/a/x/y",
    ]  # fmt: skip
    found = router(*(reversed(templates) if backwards else templates)).find(path, "GET")
    assert (found[0] if isinstance(found, tuple) else None) == target


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/x/y", "/{a}/{b}"),  # in full, before /x/…
        ("/x/y/z", "late /x/{a=**}"),
        ("/y/z/a", "/{a=**}"),
        ("/x", "late /x/{a=**}"),  # not the other one, which is not more specific
    ],
)
def test_a_target_that_comes_after_what_matches_in_full(path: str, target: str, *, backwards: bool) -> None:
    texts = ["/{a}/{b}", "late /x/{a=**}", "/{a=**}"]
    routes = [("GET", parse(text.removeprefix("late ")), text) for text in texts]
    router = Router(routes[::-1] if backwards else routes, full_first=lambda one: one.startswith("late "))
    found = router.find(path, "GET")
    assert isinstance(found, tuple)
    assert found[0] == target


def test_verbs():
    one = router("GET /v1/a", "POST /v1/a", "DELETE /v1/{x}", "* /v1/any", "GET /v1/any")
    assert one.find("/v1/a", "GET") == ("GET /v1/a", ())
    assert one.find("/v1/a", "DELETE") == ("DELETE /v1/{x}", ("a",))
    assert one.find("/v1/a", "PUT") == {"GET", "POST", "DELETE"}
    assert one.find("/v1/any", "GET") == ("GET /v1/any", ())
    assert one.find("/v1/any", "BREW") == ("* /v1/any", ())
    assert one.find("/v2", "GET") == frozenset()


# -- against a naive matcher --

_WORDS = ("a", "b", "a b", "c:d")
_SEGMENT = st.sampled_from(["a", "b", "*", "{f}", "a%20b", "{g=a/*}", "c%3Ad"])
_TEMPLATE = st.builds(
    lambda segments, tail, verb: "/" + "/".join([*segments, *tail]) + verb,
    st.lists(_SEGMENT, min_size=1, max_size=3, unique_by=lambda text: text if text.startswith("{") else object()),
    st.sampled_from([[], ["**"], ["{h=**}"], ["{h=b/**}"]]),
    st.sampled_from(["", "", "", ":x"]),
)
_PATH = st.builds(
    lambda segments, verb: "/" + "/".join(segments) + verb,
    st.lists(st.sampled_from(["a", "b", "%61", "a%20b", "a%2Fb", "c:d", "c", ""]), min_size=1, max_size=4),
    st.sampled_from(["", "", ":x", ":y"]),
)


def naive(template, path):  # noqa: C901 - every rule in one place, to be read beside the trie
    """Return (rank, values) of a template on a path, or None; a lower rank is more specific."""
    segments = path[1:].split("/")
    if template.verb is not None:
        if not segments[-1].endswith(f":{template.verb}"):
            return None
        segments[-1] = segments[-1][: -len(template.verb) - 1]
    rank = []
    pattern = list(template.segments)
    if pattern[-1] == "**":
        pattern.pop()
        if len(segments) < len(pattern):
            return None
    elif len(segments) != len(pattern):
        return None
    for wanted, got in zip(pattern, segments, strict=False):
        if wanted == "*":
            if not got:
                return None
            rank.append(1)
        elif wanted[1:] != unquote(got):
            return None
        else:
            rank.append(0)
    rank.append(2 if template.segments[-1] == "**" else -1)
    values = []
    for variable in template.variables:
        stop = None if template.segments[variable.stop - 1] == "**" else variable.stop
        text = "/".join(segments[variable.start : stop])
        values.append(text.replace("%20", " ").replace("%61", "a") if variable.multi else unquote(text))
    return ([template.verb is None, *rank], tuple(values))


@settings(max_examples=600, deadline=None)
@given(st.lists(_TEMPLATE, min_size=1, max_size=8), _PATH)
def test_it_agrees_with_a_naive_matcher(texts, path):
    shapes = {parse(text).shape: parse(text) for text in texts}
    found = Router([("GET", template, template.text) for template in shapes.values()]).find(path, "GET")
    matching = [(hit[0], template.text, hit[1]) for template in shapes.values() if (hit := naive(template, path))]
    if not matching:
        assert found == frozenset()
    else:
        _, text, values = min(matching)
        assert found == (text, values)


def test_its_time_does_not_grow_with_the_routes():
    def cost(count: int) -> float:
        routes = [("GET", parse(f"/v1/things{index}/{{id}}/parts/{{part}}"), index) for index in range(count)]
        one = Router(routes)
        paths = [f"/v1/things{index}/7/parts/8" for index in range(0, count, max(1, count // 10))]
        best = float("inf")
        for _ in range(5):
            start = time.process_time()
            for _ in range(20):
                for path in paths:
                    assert one.find(path, "GET")
            best = min(best, (time.process_time() - start) / len(paths))
        return best

    assert cost(10_000) < 5 * cost(10)
