from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.database.failures import DatabaseError
from mesh.database.migration_history import Version, newer_versions


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_older_code_runs_if_all_that_it_lacks_is_compatible(marks: list[bool], data: st.DataObject) -> None:
    history = {
        str(index): Version((str(index - 1),) if index else (), compatible=compatible)
        for index, compatible in enumerate(marks)
    }
    newest = data.draw(st.integers(0, len(marks) - 1))
    known = {str(index) for index in range(newest + 1)}
    lacking = [str(index) for index in range(newest + 1, len(marks))]
    arguments = ([str(len(marks) - 1)], known, str(newest), history)
    if all(marks[newest + 1 :]):
        assert newer_versions(*arguments) == lacking
    else:
        with pytest.raises(DatabaseError, match="older code cannot run after"):
            newer_versions(*arguments)


def test_a_merge_of_versions_needs_each_of_its_parents() -> None:
    history = {
        "a": Version((), compatible=True),
        "b": Version(("a",), compatible=True),
        "c": Version(("a",), compatible=True),
        "d": Version(("b", "c"), compatible=True),
    }
    assert newer_versions(["d"], {"a"}, "a", history) == ["b", "c", "d"]
    with pytest.raises(DatabaseError, match="older code cannot run after c, which is not marked"):
        newer_versions(["d"], {"a"}, "a", {**history, "c": Version(("a",), compatible=False)})


def test_code_with_versions_that_the_database_lacks_is_not_older() -> None:
    history = {"1": Version((), compatible=True), "2": Version(("1",), compatible=True)}
    with pytest.raises(DatabaseError, match="at version 2, and this code at 2b; neither is before the other"):
        newer_versions(["2"], {"1", "2b"}, "2b", history)


def test_the_database_of_another_service_is_refused() -> None:
    with pytest.raises(DatabaseError, match="neither is before the other"):
        newer_versions(["x"], {"1"}, "1", {"x": Version((), compatible=True)})


def test_a_version_that_was_never_recorded_is_refused() -> None:
    with pytest.raises(DatabaseError, match="at version 9, which this code does not have"):
        newer_versions(["9"], {"1"}, "1", {"1": Version((), compatible=True)})
