"""Templates, schedules and the graph: parsers and order, without a clock or a socket."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.contract import cron, graph, path_template


@pytest.mark.parametrize(
    ("text", "segments", "verb", "variables"),
    [
        ("/v1/users", ["=v1", "=users"], None, []),
        ("/v1/users/{id}", ["=v1", "=users", "*"], None, [("id", 2, 3, False)]),
        ("/v1/{user.id}:cancel", ["=v1", "*"], "cancel", [("user.id", 1, 2, False)]),
        ("/v1/{name=shelves/*/books/*}", ["=v1", "=shelves", "*", "=books", "*"], None, [("name", 1, 5, True)]),
        ("/v1/{name=**}:get", ["=v1", "**"], "get", [("name", 1, 2, True)]),
        ("/v1/*/x/**", ["=v1", "*", "=x", "**"], None, []),
        ("/a%20b/{x=*}", ["=a b", "*"], None, [("x", 1, 2, False)]),
        ("/v1/{x=lit}", ["=v1", "=lit"], None, [("x", 1, 2, True)]),
        ("/.well-known/jwks.json", ["=.well-known", "=jwks.json"], None, []),
    ],
)
def test_templates(text: str, segments: list[str], verb: str | None, variables: list[tuple[object, ...]]) -> None:
    parsed = path_template.parse(text)
    assert list(parsed.segments) == segments
    assert parsed.verb == verb
    assert [(".".join(v.field), v.start, v.stop, v.multi) for v in parsed.variables] == variables


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("v1/x", "must begin with '/'"),
        ("/", "empty segment"),
        ("/v1//x", "empty segment"),
        ("/v1/", "empty segment"),
        ("/v1/{id", "is not closed"),
        ("/v1/{}", "is not a field path"),
        ("/v1/{a-b}", "is not a field path"),
        ("/v1/{a.}", "is not a field path"),
        ("/v1/{a={b}}", "cannot hold another variable"),
        ("/v1/{a}{b}", "'/' or ':' or the end must follow"),
        ("/v1/**/x", "'**' may only be the last segment"),
        ("/v1/{a=**}/x", "'**' may only be the last segment"),
        ("/v1/{a}/{a}", "occurs twice"),
        ("/v1/x y", "must escape"),
        ("/v1/x?y", "must escape"),
        ("/v1/x:", "must escape"),
        ("/v1/a*", "must escape"),
        ("/v1/}", "empty segment"),
    ],
)
def test_what_is_no_template(text: str, what: str) -> None:
    with pytest.raises(path_template.TemplateError) as caught:
        path_template.parse(text)
    assert what in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "* * * * *", "*/5 * * * *", "0 3 * * *", "0 0 3 1,15 JAN-MAR MON", "1-5/2 * * * 0-7",
        "@every 1h30m", "@every 1.5m", "@daily", "0 0 ? * mon",
    ],
)  # fmt: skip
def test_schedules(line: str) -> None:
    cron.check(line)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("* * * *", "has 4 fields"),
        ("60 * * * *", "minute must be 0-59, not '60'"),
        ("* 24 * * *", "hour must be 0-23"),
        ("* * 0 * *", "day of month must be 1-31"),
        ("* * * 13 *", "month must be 1-12 or JAN-DEC"),
        ("* * * * 8", "day of week must be 0-7 or SUN-SAT"),
        ("*/0 * * * *", "step of minute must be a positive number"),
        ("5-1 * * * *", "runs backwards"),
        ("a * * * *", "not 'a'"),
        ("@every soon", "after @every comes a duration"),
        ("@often", "known are"),
        ("", "has 0 fields"),
    ],
)
def test_what_is_no_schedule(line: str, what: str) -> None:
    with pytest.raises(cron.ScheduleError) as caught:
        cron.check(line)
    assert what in str(caught.value)


def test_order_is_layers() -> None:
    assert graph.order({"edge": ["a", "b"], "a": ["b"], "b": [], "c": []}) == [["b", "c"], ["a"], ["edge"]]
    assert graph.order({}) == []
    assert graph.order({"a": ["b"]}) == [["b"], ["a"]]


def test_a_cycle_is_named() -> None:
    with pytest.raises(graph.CycleError, match="a → b → a"):
        graph.order({"a": ["b"], "b": ["a"], "c": ["a"]})
    assert graph.cycle({"a": ["a"]}) == ["a", "a"]


@given(st.dictionaries(st.integers(0, 9).map(str), st.lists(st.integers(0, 9).map(str), max_size=4), max_size=10))
def test_either_an_order_or_a_true_cycle(edges: dict[str, list[str]]) -> None:
    found = graph.cycle(edges)
    if found:
        assert found[0] == found[-1]
        assert all(after in edges[before] for before, after in itertools.pairwise(found))
        return
    layers = graph.order(edges)
    place = {node: index for index, layer in enumerate(layers) for node in layer}
    assert all(place[needed] < place[node] for node, needs in edges.items() for needed in needs)
