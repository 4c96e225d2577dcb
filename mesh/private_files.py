"""Private files and folders: only their owner can read them, whatever the umask of the process.

A database, a key or a socket must not depend on the umask: the usual 022 lets every user of the machine read a new
file. The mode is given when the file is created, never changed afterwards, so there is no moment at which it is open.
"""

from __future__ import annotations

import contextlib
import os
import resource
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = [
    "FILE_MODE",
    "FOLDER_MODE",
    "create_file",
    "disable_core_dumps",
    "make_folder",
    "open_to_others",
    "opener",
    "replace_file",
    "write_new",
]

FILE_MODE = 0o600
FOLDER_MODE = 0o700


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents with mode 0700. An existing folder keeps its mode.

    Raises:
        OSError: It cannot be created.
    """
    missing = []
    at = folder
    while not at.is_dir():
        missing.append(at)
        at = at.parent
    for one in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another process was first
            one.mkdir(mode=FOLDER_MODE)
    if not folder.is_dir():
        raise NotADirectoryError(20, "Not a directory", str(folder))


def create_file(file: Path) -> None:
    """Create an empty file with mode 0600 if there is none. An existing file keeps its content and mode.

    Raises:
        OSError: It cannot be created.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, FILE_MODE))


def write_new(file: Path, content: bytes) -> None:
    """Create a file with mode 0600 and this content, written to the disk. There is never a part of it.

    Raises:
        FileExistsError: There is such a file.
        OSError: It cannot be written.
    """
    name = _write_beside(file, content)
    try:
        os.link(name, file)
    finally:
        name.unlink()


def replace_file(file: Path, content: bytes) -> None:
    """Write a file of mode 0600 in place of the existing one by one rename. A reader sees the old or the new content.

    Raises:
        OSError: It cannot be written.
    """
    name = _write_beside(file, content)
    try:
        name.replace(file)
    except BaseException:
        name.unlink()
        raise


def _write_beside(file: Path, content: bytes) -> Path:
    """Write a temporary file of mode 0600 in the folder of ``file``; return it."""
    descriptor, text = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)  # mode 0600
    name = Path(text)
    try:
        with os.fdopen(descriptor, "wb") as fresh:
            fresh.write(content)
            fresh.flush()
            os.fsync(fresh.fileno())
    except BaseException:
        name.unlink()
        raise
    return name


def opener(path: str, flags: int) -> int:
    """Open a file for ``open(…, opener=opener)``: one that is created has mode 0600."""
    return os.open(path, flags, FILE_MODE)


def disable_core_dumps() -> None:
    """Forbid core dumps of this process and of its children: a dump is a file with every key that they hold."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def open_to_others(paths: Iterable[Path]) -> Iterator[tuple[Path, int]]:
    """Yield each path that its group or other users can read, write or search, with its mode. Missing ones are none."""
    for path in paths:
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError:
            continue
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            yield path, mode
