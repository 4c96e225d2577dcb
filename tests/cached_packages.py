"""Packages that only one test needs: installed once into ``.mesh``, shared by all test processes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]


def npm(wanted: Path) -> Path:
    """Return a folder whose ``node_modules`` holds what the ``package.json`` at ``wanted`` names."""
    return _installed(
        f"npm-{wanted.parent.name}",
        wanted,
        lambda folder: ["npm", "install", "--prefix", folder, "--no-package-lock", "--no-audit", "--no-fund"],
    )


def pypi(wanted: Path) -> Path:
    """Return a folder for ``PYTHONPATH`` with what the ``requirements.txt`` at ``wanted`` names, without dependencies.

    The packages are no part of the environment of the tests, where they would hide generated stubs of their name.
    """
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    return _installed(
        f"pypi-{wanted.parent.name}",
        wanted,
        lambda folder: [*pip, "--require-hashes", "--requirement", wanted, "--target", folder],
    )


def _installed(name: str, wanted: Path, command: Callable[[Path], list[str | Path]]) -> Path:
    """Return the folder ``name``; if another ``wanted`` was installed there, or nothing, run ``command`` first."""
    folder = ROOT / ".mesh" / name
    stamp = folder / wanted.name
    if not (stamp.is_file() and stamp.read_bytes() == wanted.read_bytes()):
        folder.parent.mkdir(exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=".packages-", dir=folder.parent))
        try:
            shutil.copy(wanted, fresh)
            subprocess.run(command(fresh), check=True, stdout=subprocess.DEVNULL)
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)
        except OSError:  # another test process was first
            assert stamp.is_file()
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return folder
