"""The packet capture of the walk: it reads what goes over a connection, once, in order."""

from __future__ import annotations

import secrets
import socket

import pytest
from capture import Capture


def test_it_reads_both_directions_of_a_connection() -> None:
    try:
        capture = Capture()
    except OSError as error:
        pytest.skip(f"packets cannot be captured here: {error}")
    question, answer = secrets.token_bytes(200_000), secrets.token_bytes(1000)
    with socket.create_server(("127.0.0.1", 0)) as server, capture:
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
        with client, accepted:
            for part in (question[:100_000], question[100_000:]):
                client.sendall(part)
                assert accepted.recv(len(part), socket.MSG_WAITALL) == part
            accepted.sendall(answer)
            assert client.recv(len(answer), socket.MSG_WAITALL) == answer
        address = server.getsockname()[:2]
    read = capture.read({address: "server"})
    assert question in read["server"]
    assert answer in read["server"]
    assert len(read["server"]) < len(question) + 2 * len(answer)
