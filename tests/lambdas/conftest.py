"""What hosting a function changes in its process is changed back."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_process(tmp_path: Path) -> Iterator[None]:
    """Each test has the environment and the path of a process of its own, and imports from its folder."""
    environment, path, modules = dict(os.environ), list(sys.path), set(sys.modules)
    sys.path.insert(0, str(tmp_path))
    yield
    sys.path[:] = path
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(tmp_path)):
            del sys.modules[name]
