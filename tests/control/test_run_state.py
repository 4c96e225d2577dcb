from __future__ import annotations

import socket
from pathlib import Path

import pytest

from mesh.address import bound_address
from mesh.control import run_state
from mesh.control.supervise import listening_sockets
from mesh.control.text_table import table
from mesh.faults import Faults


def test_what_runs_is_known_while_it_runs(tmp_path: Path) -> None:
    assert run_state.running(tmp_path) is None
    with run_state.claim(tmp_path) as claim:
        told = run_state.RunState(7, {"a": "127.0.0.1:1"}, "http://127.0.0.1:2", "")
        claim.write(told)
        assert run_state.running(tmp_path) == told
        with pytest.raises(Faults, match=r"this mesh runs already \(pid 7\); stop it first"), run_state.claim(tmp_path):
            pass
    assert run_state.running(tmp_path) is None


def test_what_a_killed_one_left_is_not_taken_for_running(tmp_path: Path) -> None:
    (tmp_path / "up.json").write_text('{"pid": 1, "addresses": {}}')
    assert run_state.running(tmp_path) is None
    with run_state.claim(tmp_path):
        pass


def test_the_file_of_an_earlier_release_is_private_before_it_holds_the_secret(tmp_path: Path) -> None:
    (tmp_path / "up.json").write_text("{}")
    (tmp_path / "up.json").chmod(0o644)
    with run_state.claim(tmp_path):
        assert (tmp_path / "up.json").stat().st_mode & 0o777 == 0o600


def test_a_taken_address_is_a_fault_with_its_place() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = bound_address(taken)
        with pytest.raises(Faults) as caught:
            listening_sockets.bind("mesh.toml [services.a] listen", address)
    assert str(caught.value).startswith(f"mesh.toml [services.a] listen: {address} is taken by another program")


@pytest.mark.parametrize(("address", "text"), [("192.0.2.1:0", "no address of this machine"), ("no.invalid:1", "used")])
def test_an_address_of_nobody_is_a_fault(address: str, text: str) -> None:
    with pytest.raises(Faults, match=text):
        listening_sockets.bind("here", address)


def test_a_table_aligns_cells_of_several_lines() -> None:
    assert table(("a", "b"), [("1", "x\nlonger"), ("22", "")]).splitlines() == [
        "a   b",
        "──  ──────",
        "1   x",
        "    longer",
        "22",
    ]
