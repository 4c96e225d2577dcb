"""The life of one component's process: load, wait for the go, start, report, wait to be told, stop.

``mesh sidecar NAME`` and ``mesh edge`` run this, by hand and in containers in the foreground, and as children of
``mesh up``. What a component is made of is ``mesh.control.component.assembly``'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

from mesh.boundary import cancel_task
from mesh.config.manifest import Manifest
from mesh.contract.model import Contract
from mesh.control.component.signals import Signals
from mesh.control.project import load
from mesh.control.readiness import STOP_MARGIN, Parent
from mesh.errors import RemoteError
from mesh.faults import Fault, Faults
from mesh.forks import give_back
from mesh.text import ready_output, text_of

if TYPE_CHECKING:
    from mesh.main_thread import MainThread

__all__ = ["Part", "run", "run_edge", "run_sidecar", "serve"]

log = logging.getLogger("mesh.control")

COLLECT_AFTER = (20_000, 20, 20)
"""Objects, then generations, after which cycles are looked for (``gc.set_threshold``)."""

_DESCRIPTORS = (65_536, 10_240)
"""Open files that a component asks for, the first that is granted."""

LEAVE = 1.0
"""Seconds that the process may take to end when all has been stopped."""
_STOPS = (signal.SIGINT, signal.SIGTERM)
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)
"""What a module may have given a signal back to when it was imported."""
OnSignal = Callable[[int, Callable[[], None]], None]


class Part(Protocol):
    """What runs in the process: a sidecar or the edge, with all that belongs to it."""

    async def start(self) -> str:
        """Start; return the bound ``host:port``.

        Raises:
            Exception: It cannot start. The text of ``Faults`` and ``OSError`` is shown as it is.
        """

    def reload(self) -> None:
        """Begin to run the code as it is now (SIGHUP)."""

    async def stop(self) -> None:
        """Finish what is in flight, up to the drain time, and stop."""


def run(file: Path, name: str | None, fd: int | None, *, migrate: bool = True) -> int:
    """Run one component in the foreground until SIGTERM, SIGINT or the end of the ``mesh up`` that started it.

    Args:
        file: mesh.toml.
        name: The entry, or None for the edge.
        fd: A listening socket to serve instead of the address in mesh.toml.
        migrate: Bring the database to its newest version first.

    Returns:
        The exit code.
    """
    import uvloop  # noqa: PLC0415 - only here

    _raise_descriptors()
    parent = Parent.inherited()
    if parent.present:
        ready_output("utf-8")  # `mesh up` reads it, whatever the user's terminal takes
    try:
        manifest, contract = load(file)
        _check_exists(manifest, name)
    except Faults as faults:
        return _fail(parent, str(faults))
    if name is not None and name in manifest.lambdas and manifest.services[name].workers is None:
        return _beside_a_handler(manifest, contract, name, fd, parent, migrate=migrate)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if name is None:
            return runner.run(run_edge(manifest, contract, fd, parent))
        return runner.run(run_sidecar(manifest, contract, name, fd, parent, migrate=migrate))


def _beside_a_handler(
    manifest: Manifest, contract: Contract, name: str, fd: int | None, parent: Parent, *, migrate: bool
) -> int:
    """Run the sidecar of a Lambda function in a thread: the main thread is the handler's, as on AWS."""
    import uvloop  # noqa: PLC0415 - as above

    from mesh.main_thread import MainThread  # noqa: PLC0415 - only here
    from mesh.threads import THREADS, Threads  # noqa: PLC0415 - as above

    signals = Signals(_STOPS if _at_terminal() else (*_STOPS, signal.SIGHUP))
    main = MainThread(Threads(THREADS), signals.keep)

    def sidecar() -> int:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(run_sidecar(manifest, contract, name, fd, parent, main, signals, migrate=migrate))

    return main.beside(sidecar, _leave)


def _leave(code: int) -> NoReturn:
    """End the process although a function does not end: nobody waits for it any more."""
    with contextlib.suppress(OSError, ValueError):  # whoever read them is gone, or the handler has closed them
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _at_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _raise_descriptors() -> None:
    """Allow more open files than the usual 1024 (macOS: 256), up to the hard limit: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for most in _DESCRIPTORS:
        wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
        if soft != resource.RLIM_INFINITY and wanted > soft:
            with contextlib.suppress(ValueError, OSError):  # macOS has another, lower bound
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                return


def _check_exists(manifest: Manifest, name: str | None) -> None:
    place = str(manifest.file)
    if name is None and manifest.edge is None:
        raise Faults([Fault(place, "there is no [edge] table")])
    if name is not None and name not in manifest.services:
        known = ", ".join(manifest.services) or "none"
        raise Faults([Fault(place, f"there is no [services.{name}] table (services: {known})")])


async def run_sidecar(
    manifest: Manifest,
    contract: Contract,
    name: str,
    fd: int | None,
    parent: Parent,
    main: MainThread | None = None,
    signals: Signals | None = None,
    *,
    migrate: bool = True,
) -> int:
    """Run the sidecar of one entry; returns the exit code.

    Args:
        manifest: The manifest.
        contract: The contract.
        name: The entry.
        fd: A listening socket to serve instead of the address in mesh.toml.
        parent: Where to report.
        main: The main thread, when the loop does not run there.
        signals: The signals, when the loop does not run in the main thread.
        migrate: Bring the database to its newest version first.
    """
    from mesh.control.component import assembly  # noqa: PLC0415 - the rooms below are loaded by who runs them

    drain = manifest.services[name].drain
    return await serve(
        lambda: assembly.sidecar(manifest, contract, name, fd, main, migrate=migrate), parent, drain, signals
    )


async def run_edge(manifest: Manifest, contract: Contract, fd: int | None, parent: Parent) -> int:
    """Run the edge; returns the exit code."""
    from mesh.control.component import assembly  # noqa: PLC0415 - as above

    assert manifest.edge is not None  # noqa: S101 - checked before
    return await serve(lambda: assembly.edge(manifest, contract, fd), parent, manifest.edge.drain)


async def serve(make: Callable[[], Part], parent: Parent, drain: float, signals: Signals | None = None) -> int:
    """Make a part, start it, report, wait for the end, stop it.

    Args:
        make: Makes the part; may raise as ``Part.start`` does.
        parent: Where to report.
        drain: Seconds that the stop may take.
        signals: The signals, when the loop does not run in the main thread.

    Returns:
        The exit code: 0, or 1 when it could not start.
    """
    loop = asyncio.get_running_loop()
    told, cleared = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        if told.is_set():  # the second time: at once
            os._exit(1)
        told.set()

    on_signal = loop.add_signal_handler if signals is None else signals.add
    _listen(on_signal, stop, _STOPS)
    give_back(_STOPS)

    def go() -> None:
        loop.call_soon_threadsafe(cleared.set)

    def orphaned() -> None:
        loop.call_soon_threadsafe(told.set)

    parent.watch(go, orphaned, drain + STOP_MARGIN)
    try:
        part = make()
        _listen(on_signal, stop, [number for number in _STOPS if signal.getsignal(number) in _DEFAULTS])
        if not await _start(part, told, cleared, parent, on_signal):
            return 0
    except (Faults, OSError) as error:
        return _fail(parent, str(error))
    except Exception as error:
        log.exception("the start failed")
        return _fail(parent, _text(error))
    await told.wait()
    code = 1
    try:
        await part.stop()
        code = 0
    finally:
        _end_soon(code)
    return code


def _end_soon(code: int) -> None:
    """End the process a little later if it does not end by itself: nobody waits for what functions have left behind.

    Tasks that swallow their cancellation hold the loop, and threads (``asyncio.to_thread``) the interpreter.
    """
    timer = threading.Timer(LEAVE, _leave, [code])
    timer.daemon = True
    timer.start()


def _listen(on_signal: OnSignal, stop: Callable[[], None], numbers: Iterable[int]) -> None:
    for number in numbers:
        on_signal(number, stop)


async def _start(
    part: Part,
    told: asyncio.Event,
    cleared: asyncio.Event,
    parent: Parent,
    on_signal: OnSignal,
) -> bool:
    """Start the part, once that is cleared, and report; False if it was told to stop meanwhile."""

    async def start() -> str:
        await cleared.wait()
        return await part.start()

    starting = asyncio.create_task(start())
    waiting = asyncio.create_task(told.wait())
    await asyncio.wait([starting, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not starting.done():
        cancel_task(starting)
        await asyncio.wait([starting])
        return False
    _settle()
    if not _at_terminal():  # where SIGHUP says that the terminal is gone
        on_signal(signal.SIGHUP, part.reload)
    parent.ready(starting.result())
    return True


def _settle() -> None:
    """Keep the collector of cycles off what the start has made, and let it look at the rest less often.

    Contract, codecs and modules live as long as the process, and a call frees what it made by itself; looking for
    cycles after every 700 objects that calls in flight hold took a quarter of the edge's time.
    """
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def _text(error: Exception) -> str:
    """Return what a user is told of an error that nobody expected; the log has the rest."""
    if isinstance(error, RemoteError):
        return f"a call that it makes when it starts failed: {error.status}"
    return f"{type(error).__name__}: {text_of(error)}"


def _fail(parent: Parent, reason: str) -> int:
    parent.failed(reason)
    if not parent.present:
        sys.stderr.write(f"{reason}\n")
    return 1
