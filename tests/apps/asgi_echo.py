"""apps.echo as an ASGI application, for servers that import one: ``apps.asgi_echo:app``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mesh.contract import loader, protoc
from mesh.contract.model import Contract

ROOT = Path(__file__).parents[2]
STUBS = ROOT / ".mesh" / "test-stubs"


def _contract() -> Contract:
    contract = loader.read(protoc.load([ROOT / "tests" / "protos"], STUBS))
    sys.path.insert(0, str(STUBS))
    return contract


def _note(text: str) -> None:
    """Tell the test process."""
    with Path(os.environ["TEST_ASGI_LOG"]).open("a") as log:
        log.write(f"{text}\n")


contract = _contract()

from hosting import sidecar_of  # noqa: E402 - needs the stubs

from mesh.call import Call, Handler  # noqa: E402


async def trace(call: Call, next: Handler) -> None:
    _note(f"began {call.method.name}")
    try:
        await next(call)
    except BaseException as error:
        _note(f"{type(error).__name__} {call.method.name}")
        raise


app = sidecar_of(contract, os.environ["TEST_ASGI_MODULE"], trace=trace).asgi
