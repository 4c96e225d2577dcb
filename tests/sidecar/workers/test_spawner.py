"""What the sidecar hands to its fork server."""

from __future__ import annotations

import pickle
from datetime import date

from mesh import Secret
from mesh.sidecar.workers.spawner import _pickled
from mesh.sidecar.workers.worker_setup import WorkerSetup


def test_settings_reach_workers_as_they_are_secrets_included() -> None:
    settings = {"since": date(2026, 11, 30), "keys": [Secret("correct horse")]}
    setup = WorkerSetup(name="a", module="a", serves=("a.A",), files=b"", path=(), settings=settings)
    received = pickle.loads(_pickled(setup))  # noqa: S301 - our own
    assert received.settings["since"] == date(2026, 11, 30)
    assert received.settings["keys"][0].reveal() == "correct horse"
    assert setup.settings["keys"][0].reveal() == "correct horse"
