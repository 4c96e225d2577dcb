"""Third-party libraries and the packages that may import them. import-linter sees other distributions only whole."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("opentelemetry.sdk", "mesh/telemetry/"),
        (
            "ngh2",
            (
                "mesh/rpc/client/http2_connection.py",
                "mesh/rpc/client/health_check.py",
                "mesh/chaos/people/http2_client.py",
            ),
        ),
        ("h2corn", "mesh/rpc/server/listener.py"),
        ("grpc", "mesh/rpc/"),
        ("nats", "mesh/events/broker/"),
        ("nkeys", "mesh/events/broker/"),
    ],
)
def test_a_library_stays_in_its_package(library: str, allowed: str | tuple[str, ...]) -> None:
    users = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "mesh").rglob("*.py")
        if any(name == library or name.startswith(f"{library}.") for name in imports(file))
    }
    assert users
    assert {user for user in users if not user.startswith(allowed)} == set()
