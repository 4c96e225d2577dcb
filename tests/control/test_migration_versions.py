"""The lines about migrations that differ from those that have run."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.config.manifest import load
from mesh.control.supervise.migration_versions import MigrationVersions, is_version

MANIFEST = """
[services.shop]
module = "services.shop.functions"
serves = ["a"]
database = "sqlite:///shop.db"
[services.stock]
module = "services.stock"
serves = ["b"]
database = "sqlite:///stock.db"
migrations = "sql/stock"
[services.bare]
module = "services.bare.functions"
serves = ["c"]
"""
FIRST = 'revision = "1"\ndown_revision = None\n\ndef upgrade() -> None:\n    pass\n'


def after(revision: str, before: str) -> str:
    return FIRST.replace('"1"', repr(revision)).replace("None\n\n", f"{before!r}\n\n")


class Project:
    """A mesh.toml and its folders of versions, with the first one of the shop applied."""

    def __init__(self, root: Path) -> None:
        self.shop, self.stock = root / "services/shop/migrations", root / "sql/stock"
        for folder in (self.shop, self.stock, root / "services/bare/migrations"):
            folder.mkdir(parents=True)
        (root / "mesh.toml").write_text(MANIFEST)
        (self.shop / "v1.py").write_text(FIRST)
        self.bare = root / "services/bare/migrations/v1.py"
        self.versions = MigrationVersions(load(root / "mesh.toml", {}))

    def news(self) -> list[str]:
        return [line for lines in self.versions.differences().values() for line in lines]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_a_new_one_waits(project: Project) -> None:
    assert project.news() == []
    (project.shop / "v2.py").write_text(after("2", "1"))
    (project.stock / "v1.py").write_text(FIRST)
    assert project.news() == [
        "shop: the migration v2.py waits for a restart of `mesh up`: a save migrates no database",
        "stock: the migration v1.py waits for a restart of `mesh up`: a save migrates no database",
    ]
    (project.shop / "v2.py").write_text(after("2", "1") + "    print()\n")
    assert len(project.news()) == 2, "saving it again makes no news"
    (project.shop / "v2.py").unlink()
    (project.stock / "v1.py").unlink()
    assert project.news() == []


def test_one_that_has_run_does_not_run_again(project: Project) -> None:
    (project.shop / "v1.py").write_text(FIRST + "    print()\n")
    (line,) = project.news()
    assert line.startswith("shop: the migration v1.py has run already and does not run again, also by a restart")
    (project.shop / "v1.py").write_text(FIRST)
    assert project.news() == []


def test_one_that_is_gone_keeps_the_mesh_from_starting_again(project: Project) -> None:
    (project.shop / "v1.py").unlink()
    assert project.news() == [
        "shop: the migration v1.py is gone, and the database has it: a restart of `mesh up` needs it back"
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("def upgrade(:\n", "v2.py:1: "),
        ('revision = "2\n', "v2.py:1: "),
        ("\0", "v2.py"),
        ("", "v2.py says no `revision`"),
        (FIRST, "v1.py and v2.py are both '1'"),
        (after("2", "0"), "there is no '0', which one names as its down_revision"),
        (FIRST.replace('"1"', '"2"'), "1, 2 are all the newest; one has to be the down_revision of another"),
    ],
)
def test_what_a_restart_would_refuse_is_said(project: Project, text: str, fault: str) -> None:
    (project.shop / "v2.py").write_text(text)
    lines = project.news()
    assert lines[0] == "shop: the migration v2.py waits for a restart of `mesh up`: a save migrates no database"
    assert lines[1].startswith(f"shop: a restart of `mesh up` would refuse the migrations: {fault}")


def test_versions_that_join_two_lines_are_no_fault(project: Project) -> None:
    (project.shop / "v2.py").write_text(after("2", "1"))
    (project.shop / "v3.py").write_text(after("3", "1"))
    (project.shop / "v4.py").write_text('revision: str = "4"\ndown_revision: tuple[str, ...] = ("2", "3")\n')
    assert [line for line in project.news() if "refuse" in line] == []


def test_what_is_a_version(project: Project) -> None:
    assert project.versions.contains(project.shop / "v2.py")
    assert not project.versions.contains(project.shop / "__init__.py")
    assert not project.versions.contains(project.shop / "deep" / "v2.py")
    assert not project.versions.contains(project.shop.parent / "functions.py")
    assert not project.versions.contains(project.bare), "a service without a database has no migrations"
    assert not is_version(Path(".#v2.py"))
