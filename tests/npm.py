"""Packages of npm for tests that run Node: installed once into ``.mesh``, shared by all test processes."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def packages(wanted: Path) -> Path:
    """Return a folder whose ``node_modules`` holds what the ``package.json`` at ``wanted`` names."""
    folder = ROOT / ".mesh" / f"npm-{wanted.parent.name}"
    stamp = folder / "package.json"
    if not (stamp.is_file() and stamp.read_bytes() == wanted.read_bytes()):
        folder.parent.mkdir(exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=".npm-", dir=folder.parent))
        try:
            shutil.copy(wanted, fresh)
            command = ["npm", "install", "--prefix", fresh, "--no-package-lock", "--no-audit", "--no-fund"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)
        except OSError:  # another test process was first
            assert stamp.is_file()
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return folder
