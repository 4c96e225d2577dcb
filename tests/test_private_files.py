"""New files and folders are private whatever the umask, and those that are not are found."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh import private_files


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    """The worst umask: whatever a file is created with is what it gets."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_new_folder_and_its_parents_are_private_and_an_old_one_is_left(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    private_files.make_folder(shared / "one" / "two")
    assert [mode(path) for path in (shared, shared / "one", shared / "one" / "two")] == [0o755, 0o700, 0o700]
    private_files.make_folder(shared / "one" / "two")


def test_a_file_in_the_way_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        private_files.make_folder(tmp_path / "file" / "folder")
    with pytest.raises(OSError, match="Not a directory"):
        private_files.make_folder(tmp_path / "file")


def test_a_new_file_is_private_and_an_old_one_keeps_content_and_mode(tmp_path: Path) -> None:
    fresh, old, written = (tmp_path / name for name in ("fresh", "old", "written"))
    old.write_text("kept")
    private_files.create_file(fresh)
    private_files.create_file(old)
    with open(written, "w", opener=private_files.opener) as file:
        file.write("text")
    assert (mode(fresh), mode(old), mode(written)) == (0o600, 0o666, 0o600)
    assert (fresh.read_text(), old.read_text(), written.read_text()) == ("", "kept", "text")


def test_a_new_file_is_written_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    program = (
        "import resource, sys; from pathlib import Path; from mesh import private_files\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "private_files.write_new(Path(sys.argv[1]), b'x' * 44)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "key"], capture_output=True, text=True, check=False
    )
    assert "File too large" in done.stderr  # as on a full disk
    assert list(tmp_path.iterdir()) == []
    private_files.write_new(tmp_path / "key", b"x" * 44)
    assert (mode(tmp_path / "key"), [path.name for path in tmp_path.iterdir()]) == (0o600, ["key"])
    with pytest.raises(FileExistsError):
        private_files.write_new(tmp_path / "key", b"other")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"x" * 44]


def test_what_others_can_open_is_named_with_its_mode(tmp_path: Path) -> None:
    modes = {"own": 0o600, "group": 0o640, "world": 0o604, "enter": 0o601}
    for name, wanted in modes.items():
        (tmp_path / name).touch()
        (tmp_path / name).chmod(wanted)
    paths = [tmp_path / name for name in (*modes, "missing")]
    assert list(private_files.open_to_others(paths)) == [
        (tmp_path / name, modes[name]) for name in ("group", "world", "enter")
    ]


def test_core_dumps_are_off_for_the_process_and_its_children() -> None:
    code = (
        "import subprocess, sys\n"
        "child = 'import resource as r; print(r.getrlimit(r.RLIMIT_CORE)[0])'\n"
        "from mesh import private_files\n"
        "private_files.disable_core_dumps()\n"
        "sys.exit(subprocess.run([sys.executable, '-c', child]).returncode)"
    )
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (hard, hard)),
    )  # fmt: skip
    assert done.stdout.strip() == "0"
