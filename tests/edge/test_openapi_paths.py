"""Path templates in OpenAPI's form."""

from __future__ import annotations

import pytest

from mesh.contract import path_template
from mesh.edge.openapi.paths import PathTemplate


@pytest.mark.parametrize(
    ("text", "path", "patterns"),
    [
        ("/v1/users", "/v1/users", {}),
        ("/v1/users/{id}", "/v1/users/{id}", {"id": "{id}"}),
        ("/v1/users/{user.id}:cancel", "/v1/users/{user_id}:cancel", {"user.id": "{user_id}"}),
        ("/v1/{a}/{b}", "/v1/{a}/{b}", {"a": "{a}", "b": "{b}"}),
        (
            "/v1/{name=shelves/*/books/*}",
            "/v1/shelves/{shelves_id}/books/{books_id}",
            {"name": "shelves/{shelves_id}/books/{books_id}"},
        ),
        ("/v1/{name=books/*}:archive", "/v1/books/{books_id}:archive", {"name": "books/{books_id}"}),
        ("/v1/{name=a/*/a/*}", "/v1/a/{a_id}/a/{a_id_2}", {"name": "a/{a_id}/a/{a_id_2}"}),
        ("/v1/{name=*/*}", "/v1/{name}/{name_2}", {"name": "{name}/{name_2}"}),
        ("/v1/{title=**}", "/v1/{title}", {"title": "{title}"}),
        ("/v1/{name=things/**}:get", "/v1/things/{things_path}:get", {"name": "things/{things_path}"}),
        ("/v1/*/x/**", "/v1/{v1_id}/x/{x_path}", {}),
        ("/{a_id}/{name=a/*}", "/{a_id}/a/{a_id_2}", {"a_id": "{a_id}", "name": "a/{a_id_2}"}),
        ("/*/**", "/{id}/{path}", {}),
        ("/a%20b/{kind=lit}", "/a%20b/lit", {"kind": "lit"}),
        ("/.well-known/jwks.json", "/.well-known/jwks.json", {}),
    ],
)
def test_a_template(text: str, path: str, patterns: dict[str, str]) -> None:
    parsed = path_template.parse(text)
    made = PathTemplate.of(parsed)
    assert made.text == path
    said = {".".join(variable.field): made.pattern(variable) for variable in parsed.variables}
    assert {name: said[name] for name in patterns} == patterns


def test_one_path_has_one_set_of_names() -> None:
    first = PathTemplate.of(path_template.parse("/v1/users/{id}"))
    second = PathTemplate.of(path_template.parse("/v1/users/{user.id}"))
    assert first.shape == second.shape
    second.rename(first)
    assert second.text == "/v1/users/{id}"


def test_what_several_segments_say_of_themselves() -> None:
    (parameter,) = PathTemplate.of(path_template.parse("/v1/{title=**}")).parameters
    made = parameter.to_object(lambda _: {"type": "string"}, "A title.", "{title}")
    assert made["x-multi-segment"] is True
    assert made["schema"] == {"type": "string"}
    assert "slashes are not escaped" in made["description"]
