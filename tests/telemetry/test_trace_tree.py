"""The picture of a trace."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mesh.telemetry.trace_tree import render

BEGIN = 1_795_295_103_000_000_000


def span(number: int, parent: int | None, start: float, took: float, name: str, **more: Any) -> dict[str, Any]:
    return {
        "span_id": f"{number:016x}",
        "parent_id": None if parent is None else f"{parent:016x}",
        "name": name,
        "service": "edge",
        "start": BEGIN + int(start * 1e6),
        "end": BEGIN + int((start + took) * 1e6),
        "error": False,
        "message": "",
        "attributes": {},
        **more,
    }


def test_a_registration() -> None:
    failed = {"error": True, "message": "the password is weak", "attributes": {"rpc.response.status_code": "INTERNAL"}}
    spans = [
        span(1, None, 0, 142.1, "POST /v1/users", attributes={"http.response.status_code": 201}),
        span(3, 2, 4, 120, "login.v1.Login/SetCredential", service="login", **failed),
        span(2, 1, 2.5, 138, "registration.v1.Registration/Register", service="registration"),
        span(4, 2, 130, 5, "INSERT users", service="registration"),
    ]
    assert render({"trace_id": "4bf92f", "spans": spans}, 140).splitlines() == [
        "trace 4bf92f  2026-11-21T21:05:03Z  142.1 ms",
        "POST /v1/users                            edge            0.0 ms  142.1 ms  201",
        "└─ registration.v1.Registration/Register  registration    2.5 ms  138.0 ms",
        "   ├─ login.v1.Login/SetCredential        login           4.0 ms  120.0 ms  ✗ INTERNAL the password is weak",
        "   └─ INSERT users                        registration  130.0 ms    5.0 ms",
    ]


def test_orphans_and_several_roots_are_shown() -> None:
    spans = [
        span(1, None, 0, 1, "one"),
        span(2, None, 5, 1, "two"),
        span(3, 99, 3, 1, "lost"),
        span(4, 3, 3, 1, "child"),
    ]
    lines = render({"trace_id": "ab", "spans": spans}).splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == ["one", "lost (parent not received)", "└─ child", "two"]


def test_a_clock_that_runs_behind() -> None:
    spans = [span(1, None, 10, 5, "edge"), span(2, 1, 2, 3, "early"), span(3, 1, 12, -4, "backwards")]
    lines = render({"trace_id": "ab", "spans": spans}).splitlines()
    assert lines[1].split()[:4] == ["edge", "edge", "8.0", "ms"]
    assert lines[2].split()[:5] == ["├─", "early", "edge", "0.0", "ms"]
    assert lines[3].split()[-2:] == ["0.0", "ms"]


def test_a_narrow_terminal_cuts_names_and_messages() -> None:
    spans = [span(1, None, 0, 1, "n" * 200, error=True, message="m" * 200)]
    [_, line] = render({"trace_id": "ab", "spans": spans}, 80).splitlines()
    assert len(line) == 80
    assert line.endswith("…")
    assert "n… " in line


def test_nothing_in_a_span_moves_the_cursor() -> None:
    spans = [span(1, None, 0, 1, "a\x1b[31m\nb", service="s\rt", error=True, message="\x07")]
    assert not set("\x1b\r\x07") & set(render({"trace_id": "ab", "spans": spans}))
    assert len(render({"trace_id": "ab", "spans": spans}).splitlines()) == 2


def test_an_empty_trace() -> None:
    assert render({"trace_id": "ab", "spans": []}) == "trace ab  no spans"


def test_a_deep_trace() -> None:
    spans = [span(at, at - 1 if at > 1 else None, at, 1, "deep") for at in range(1, 3000)]
    assert len(render({"trace_id": "ab", "spans": spans}).splitlines()) == 3000


@given(
    st.lists(
        st.tuples(
            st.integers(0, 9), st.none() | st.integers(0, 12), st.integers(-50, 50), st.integers(-5, 50), st.text()
        ),
        max_size=12,
    ),
    st.integers(10, 200),
)
def test_every_span_is_one_line_within_the_width(rows: list[tuple[int, int | None, int, int, str]], width: int) -> None:
    spans = [span(number, parent, start, took, name) for number, parent, start, took, name in rows]
    lines = render({"trace_id": "ab", "spans": spans}, width).split("\n")
    assert len(lines) == 1 + len({number for number, *_ in rows})
    assert all(len(line) <= width for line in lines[1:])


def test_linked_traces_are_named_below() -> None:
    span = {
        "span_id": "1", "parent_id": None, "name": "publish", "service": "shop", "start": 0, "end": 10, "error": False,
        "message": "", "attributes": {},
    }  # fmt: skip
    other = {"trace_id": "ab" * 16, "name": "login.v1.Login/OnOrdered", "service": "login", "error": True}
    text = render({"trace_id": "cd" * 16, "spans": [span], "from": [{**other, "error": False}], "to": [other]})
    assert text.splitlines()[-2:] == [
        f"came from  {'ab' * 16}  login.v1.Login/OnOrdered (login)",
        f"led to     {'ab' * 16}  login.v1.Login/OnOrdered (login)  ✗",
    ]
