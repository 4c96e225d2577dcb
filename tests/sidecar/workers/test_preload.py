"""Preload plan: found by importing a module in a process of its own, stored until something changes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mesh.sidecar.workers.preload import PreloadPlan, find

LIBRARIES = {
    "clean_lib.py": "import clean_inner\n",
    "clean_inner.py": "import time\n",
    "threaded_lib.py": "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n",
    "socket_lib.py": "import socket\nkept = socket.socket()\n",
    "around_lib/__init__.py": "from around_lib import good, bad\n",
    "around_lib/good.py": "import clean_inner\n",
    "around_lib/bad.py": "import threaded_lib\n",
    "late_lib.py": "import threaded_lib\nimport clean_lib\n",
}


class Project:
    """A project with libraries, in folders of its own."""

    def __init__(self, folder: Path, functions: str) -> None:
        self.root = folder / "project"
        self.stubs = self.root / "gen"
        self.libraries = self.root / ".venv" / "site-packages"
        self.keep = folder / "state" / "preload.json"
        for name, text in LIBRARIES.items():
            self.write(self.libraries / name, text)
        self.write(self.root / "shop" / "functions.py", functions)
        self.write(self.root / "shop" / "rules.py", "import clean_lib\n")
        self.write(self.stubs / "shop_pb2.py", "")

    @staticmethod
    def write(file: Path, text: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def find(self) -> PreloadPlan:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "path", [str(self.stubs), str(self.root), str(self.libraries), *sys.path])
            return find("shop.functions", root=self.root, stubs=self.stubs, keep=self.keep)


def test_libraries_and_stubs_but_not_the_projects_own_code(tmp_path: Path) -> None:
    plan = Project(tmp_path, "import shop_pb2\nfrom shop import rules\nimport json\n").find()
    assert plan.modules == ("shop_pb2", "clean_lib")
    assert (plan.excluded, plan.failed) == ({}, "")


def test_what_starts_threads_or_opens_sockets_is_left_out(tmp_path: Path) -> None:
    plan = Project(tmp_path, "import threaded_lib\nimport socket_lib\nimport clean_lib\n").find()
    assert plan.modules == ("clean_lib",)
    assert plan.excluded == {"threaded_lib": "it starts threads", "socket_lib": "it opens sockets"}


def test_the_clean_part_of_what_is_left_out_is_preloaded(tmp_path: Path) -> None:
    plan = Project(tmp_path, "import around_lib\n").find()
    assert plan.excluded["threaded_lib"] == "it starts threads"
    assert "imports" in plan.excluded["around_lib"]
    assert plan.modules == ("clean_inner",), "around_lib.good cannot come without around_lib"


def test_a_library_is_left_out_although_what_it_imports_was_there_before(tmp_path: Path) -> None:
    plan = Project(tmp_path, "import threaded_lib\nimport late_lib\n").find()
    assert plan.modules == ("clean_lib",)
    assert plan.excluded["late_lib"] == "it imports threaded_lib: it starts threads"


def test_grpc_itself_is_clean_and_a_channel_is_not(tmp_path: Path) -> None:
    project = Project(tmp_path, "import opens_channel\n")
    project.write(project.libraries / "opens_channel.py", "import grpc\nkept = grpc.insecure_channel('127.0.0.1:1')\n")
    plan = project.find()
    assert list(plan.excluded) == ["opens_channel"]
    assert all(name.startswith("grpc") for name in plan.modules)


def test_it_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project(tmp_path, "import clean_lib\nimport os\nopen(os.environ['LOG'], 'a').write('x')\n")
    log = tmp_path / "log"
    monkeypatch.setenv("LOG", str(log))
    first = project.find()
    assert project.find() == first
    assert log.read_text() == "x"
    changed = project.root / "shop" / "functions.py"
    project.write(changed, f"import socket_lib\n{changed.read_text()}")
    assert project.find().excluded == {"socket_lib": "it opens sockets"}
    (project.libraries / "new-1.0.dist-info").mkdir()
    project.find()
    assert log.read_text() == "xxx"
    project.keep.write_text("{")
    assert project.find().modules == ("clean_lib",)
    assert log.read_text() == "xxxx"


@pytest.mark.parametrize(
    ("functions", "why"),
    [
        ("import clean_lib\n1 / 0\n", "ZeroDivisionError: division by zero"),
        ("import clean_lib\nraise SystemExit(3)\n", "SystemExit: 3"),
        ("import os\nos._exit(3)\n", "the process that imported it ended with 3"),
    ],
)
def test_a_module_that_cannot_be_imported(tmp_path: Path, functions: str, why: str) -> None:
    project = Project(tmp_path, functions)
    plan = project.find()
    assert plan.failed == why
    assert plan.modules == (("clean_lib",) if "clean_lib" in functions else ())
    assert not project.keep.exists(), "what failed is tried again"
