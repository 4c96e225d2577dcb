"""Reload: the effect of changed files, and the replacement of a child process."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from test_supervisor import Run, ask, run, until  # noqa: F401 - a fixture among them

from mesh.config.manifest import Manifest, load
from mesh.control.supervise.reload import ReloadEffect, changed_keys, effect, fixed_values

NESTED = """
[services.login]
module = "services.login.functions"
serves = ["a"]
[services.shop]
module = "services.shop"
serves = ["b"]
"""
FLAT = """
protos = ["api"]
[services.one]
module = "one"
serves = ["a"]
[services.two]
module = "two"
serves = ["b"]
"""
LAMBDA = """
[services.hello]
lambda = "hello:handler"
events = "routes/hello.json"
"""
ALL = {"login", "shop", "one", "two"}


def manifest(folder: Path, text: str) -> Manifest:
    for name in ("services/login/functions.py", "services/shop/__init__.py", "services/shop/rules.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "routes").mkdir(exist_ok=True)
    (folder / "routes" / "hello.json").write_text('{"events": [{"http": "GET /hello"}]}')
    (folder / "mesh.toml").write_text(text)
    return load(folder / "mesh.toml", {})


@pytest.mark.parametrize(
    ("text", "path", "contract", "services"),
    [
        (NESTED, "services/login/functions.py", False, {"login"}),
        (NESTED, "services/login/deep/tables.py", False, {"login"}),
        (NESTED, "services/shop/__init__.py", False, {"shop"}),
        (NESTED, "services/shop/rules.py", False, {"shop"}),
        (NESTED, "services/common.py", False, {"login", "shop"}),
        (NESTED, "lib/money.py", False, {"login", "shop"}),
        (NESTED, "tests/test_login.py", False, set()),
        (NESTED, "services/login/test_functions.py", False, set()),
        (NESTED, "services/login/conftest.py", False, set()),
        (NESTED, "services/login/notes.txt", False, set()),
        (NESTED, "protos/login/v1/login.proto", True, set()),
        (NESTED, "mesh.toml", True, set()),
        (NESTED, "deploy/mesh.toml", False, set()),
        (NESTED, "other/login.proto", False, set()),
        (FLAT, "one.py", False, {"one"}),
        (FLAT, "shared.py", False, {"one", "two"}),
        (FLAT, "package/inner.py", False, {"one", "two"}),
        (FLAT, "api/one.proto", True, set()),
        (LAMBDA, "routes/hello.json", True, set()),
        (LAMBDA, "routes/other.json", False, set()),
        (LAMBDA, "hello.py", False, {"hello"}),
    ],
)
def test_whom_a_file_concerns(tmp_path: Path, text: str, path: str, contract: bool, services: set[str]) -> None:  # noqa: FBT001 - a row of the table
    found = effect([tmp_path / path], manifest(tmp_path, text))
    assert found == ReloadEffect(contract, frozenset(services))


def test_several_files_together(tmp_path: Path) -> None:
    found = effect(
        [tmp_path / "protos/a.proto", tmp_path / "services/login/functions.py", Path("/elsewhere/x.py")],
        manifest(tmp_path, NESTED),
    )
    assert found == ReloadEffect(contract=True, services=frozenset({"login"}))


async def test_a_new_process_takes_over_and_the_old_one_drains(run: Run) -> None:  # noqa: F811 - the fixture
    run.add("one")
    await run.until_ready()
    child = run.supervisor.children["one"]
    old = child.pid
    assert await child.replace() is None
    assert child.pid not in (None, old)
    await until(lambda: "stop one" in run.events)
    assert run.events.index("ready one", 3) < run.events.index("stop one"), "ready before the old one is told"
    assert child.address is not None
    assert await ask(child.address) == child.pid


async def test_only_the_first_process_has_no_more_arguments(run: Run) -> None:  # noqa: F811 - as above
    """As for migrations: a start runs them; what replaces a process, or comes after one that died, does not."""
    component = replace(run.add("one"), restart_arguments=("--again",))
    run.components = [component]
    await run.until_ready()
    child = run.supervisor.children["one"]
    assert "again one" not in run.events
    assert await child.replace() is None
    assert run.events.count("again one") == 1
    assert child.pid is not None
    os.kill(child.pid, 9)
    await until(lambda: run.events.count("ready one") == 3)
    assert run.events.count("again one") == 2


async def test_one_that_cannot_start_replaces_nothing(run: Run) -> None:  # noqa: F811 - as above
    run.add("one", "once")
    await run.until_ready()
    child = run.supervisor.children["one"]
    old = child.pid
    reason = await child.replace()
    assert reason == "ended with exit code 3 before it was ready"
    assert child.pid == old
    assert child.address is not None
    assert await ask(child.address) == old
    assert "stop one" not in run.events


async def test_the_old_process_is_watched_again_after_a_failure(run: Run) -> None:  # noqa: F811 - as above
    run.add("one", "once")
    await run.until_ready()
    child = run.supervisor.children["one"]
    await child.replace()
    assert child.pid is not None
    os.kill(child.pid, 9)
    await until(lambda: any("died with signal SIGKILL" in line for line in run.said))


async def test_a_stop_waits_for_the_one_that_leaves(run: Run) -> None:  # noqa: F811 - as above
    """A deaf old process is killed when its time is over, and the stop of all does not forget it."""
    run.add("one", "deaf", drain=0.2)
    await run.until_ready()
    child = run.supervisor.children["one"]
    old = child.pid
    assert await child.replace() is None
    assert run.task is not None
    os.kill(os.getpid(), 15)
    assert await run.task == 0
    assert old is not None
    with pytest.raises(ProcessLookupError):
        os.kill(old, 0)


@pytest.mark.parametrize(
    ("old", "new", "places"),
    [
        (NESTED, NESTED, []),
        (NESTED, NESTED.replace("[services.login]", 'state = "else"\n[services.login]'), ["state"]),
        (NESTED, NESTED.replace("[services.login]", 'broker = "nats://h:1"\n[services.login]'), ["broker"]),
        (NESTED, NESTED + 'database = "sqlite:///x.db"\n', ["[services.shop] database"]),
        (
            NESTED,
            NESTED + 'migrations = "x"\nlisten = "127.0.0.1:1"\n',
            ["[services.shop] listen", "[services.shop] migrations"],
        ),
        (NESTED, NESTED + "workers = { max = 1 }\n", ["[services.shop] workers"]),
        (NESTED + "workers = { max = 1 }\n", NESTED + "workers = { max = 2 }\n", []),
        (NESTED, NESTED + 'drain = "3s"\n', []),
        (NESTED, NESTED + '[services.new]\nmodule = "services.login.functions"\nserves = ["c"]\n', ["[services.new]"]),
        (NESTED, NESTED.partition("[services.shop]")[0], ["[services.shop]"]),
        (NESTED, NESTED + '[edge]\nlisten = "127.0.0.1:0"\n', ["[edge] listen"]),
    ],
)
def test_what_a_running_mesh_cannot_take_is_named(tmp_path: Path, old: str, new: str, places: list[str]) -> None:
    assert changed_keys(fixed_values(manifest(tmp_path, old)), fixed_values(manifest(tmp_path, new))) == places
