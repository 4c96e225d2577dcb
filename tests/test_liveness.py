from __future__ import annotations

import io
import os
import pdb  # noqa: T100 - what the test is about
import sys
import threading
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.liveness import SilenceTimer, debugger_attached, probe_interval


def test_a_process_hangs_after_its_timeout_without_an_answer() -> None:
    silence = SilenceTimer(10.0, now=100.0)
    assert not silence.check(100.0, answered=True)
    assert [silence.check(100.0 + 2 * step, answered=False) for step in range(1, 6)] == [False] * 4 + [True]


def test_an_answer_begins_the_timeout_again() -> None:
    silence = SilenceTimer(10.0, now=0.0)
    for step in range(1, 5):
        silence.check(2.0 * step, answered=False)
    assert not silence.check(10.0, answered=True)
    assert [silence.check(10.0 + 2 * step, answered=False) for step in range(1, 6)] == [False] * 4 + [True]


@given(st.lists(st.floats(min_value=3.0, max_value=1e6), max_size=30))
def test_late_checks_add_nothing(delays: list[float]) -> None:
    """The machine was suspended, or the supervisor had no processor: the process may have had none either."""
    silence, now = SilenceTimer(10.0, now=0.0), 0.0
    for delay in delays:
        now += delay
        assert not silence.check(now, answered=False)


@pytest.mark.parametrize(("timeout", "interval"), [(1.0, 0.2), (5.0, 1.0), (10.0, 2.0), (600.0, 2.0)])
def test_the_interval_is_a_few_seconds_at_most(timeout: float, interval: float) -> None:
    assert probe_interval(timeout) == interval


def test_a_debugger_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    before, here = sys.gettrace(), threading.get_ident()
    sys.settrace(None)
    try:
        assert not debugger_attached(here)
        sys.settrace(lambda *_: None)
        assert debugger_attached(here)
        sys.settrace(None)
        monkeypatch.setitem(sys.modules, "pydevd", ModuleType("pydevd"))
        assert debugger_attached(here)
    finally:
        sys.settrace(before)


def test_breakpoint_in_another_thread_is_noticed() -> None:
    reading, asked = os.pipe(), threading.Event()

    class Terminal(io.StringIO):
        def readline(self, _: int = -1) -> str:
            asked.set()
            return os.read(reading[0], 100).decode()

    def function() -> None:
        pdb.Pdb(stdin=Terminal(), stdout=io.StringIO(), nosigint=True).set_trace()
        os.getpid()

    thread = threading.Thread(target=function)
    thread.start()
    try:
        assert asked.wait(20)
        assert debugger_attached(thread.ident or 0)
    finally:
        os.write(reading[1], b"continue\n")
        thread.join(20)
        for end in reading:
            os.close(end)
