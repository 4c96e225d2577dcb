"""Process of one component: load, wait for the start signal, start, report, wait for a signal, stop.

``mesh sidecar NAME`` and ``mesh edge`` run it in the foreground: by hand, in containers, and as children of
``mesh up``. ``mesh.control.component.assembly`` builds the component.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

from mesh import private_files
from mesh.allocator import return_large_blocks
from mesh.boundary import cancel_task
from mesh.config.manifest import Manifest
from mesh.contract.model import Contract
from mesh.control.component.loop_watchdog import LoopWatchdog
from mesh.control.component.signals import SignalReceiver
from mesh.control.project import load
from mesh.control.readiness import STOP_MARGIN_SECONDS, ParentConnection
from mesh.errors import RemoteError
from mesh.faults import Fault, Faults
from mesh.forks import reset_signals_at_fork
from mesh.liveness import debugger_attached
from mesh.text import prepare_output, text_of

if TYPE_CHECKING:
    from mesh.main_thread import MainThread

__all__ = ["Component", "run", "run_edge", "run_sidecar", "run_signer", "serve"]

log = logging.getLogger("mesh.control")

GC_THRESHOLDS = (20_000, 20, 20)
"""Thresholds of Python's cyclic garbage collector: objects, then generations (``gc.set_threshold``)."""

_OPEN_FILE_LIMITS = (65_536, 10_240)
"""Limits of open files to ask for; the first that is granted counts."""

EXIT_TIMEOUT = 1.0
"""Seconds that the process may take to end after the component has stopped."""
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_DEFAULT_HANDLERS = (signal.SIG_DFL, signal.default_int_handler)
"""Handlers that show that the user's module has reset a signal while it was imported."""
OnSignal = Callable[[int, Callable[[], None]], None]


class Component(Protocol):
    """Sidecar or edge with all its parts."""

    async def start(self) -> str:
        """Start; return the bound ``host:port``.

        Raises:
            Exception: It cannot start. The text of ``Faults`` and ``OSError`` is shown unchanged.
        """

    def reload(self) -> None:
        """Begin to run the current code (SIGHUP)."""

    async def stop(self) -> None:
        """Finish the calls in progress, up to the drain time, and stop."""


def run(file: Path, name: str | None, fd: int | None, *, migrate: bool = True) -> int:
    """Run one component in the foreground until SIGTERM, SIGINT or the end of the ``mesh up`` that started it.

    Args:
        file: mesh.toml.
        name: The service, or None for the edge.
        fd: Descriptor of a listening socket to serve instead of the address in mesh.toml.
        migrate: Migrate the database to its newest version first.

    Returns:
        The exit code.
    """
    import uvloop  # noqa: PLC0415 - only here

    with contextlib.suppress(OSError, RuntimeError):  # standard error is closed, or is no file
        faulthandler.enable()  # SIGABRT, by which a hung process is ended, shows the stacks of all threads
    _raise_descriptors()
    return_large_blocks()
    private_files.disable_core_dumps()
    parent = ParentConnection.inherited()
    if parent.present:
        prepare_output("utf-8")  # `mesh up` reads it; the encoding of the user's terminal does not matter
    try:
        own = name or "edge"
        manifest, contract = load(file, lambda owner: owner in ("", own))
        _check_exists(manifest, name)
        if manifest.keys.address:
            from mesh.control.component import component_certificates  # noqa: PLC0415 - only with a signer

            component_certificates.obtain(manifest, name or "edge")
    except Faults as faults:
        return _fail(parent, str(faults))
    if name is not None and name in manifest.lambdas and manifest.services[name].workers is None:
        return _run_beside_lambda(manifest, contract, name, fd, parent, migrate=migrate)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if name is None:
            return runner.run(run_edge(manifest, contract, fd, parent))
        return runner.run(run_sidecar(manifest, contract, name, fd, parent, migrate=migrate))


def _run_beside_lambda(
    manifest: Manifest, contract: Contract, name: str, fd: int | None, parent: ParentConnection, *, migrate: bool
) -> int:
    """Run the sidecar of a Lambda function in a thread; the handler runs in the main thread, as on AWS."""
    import uvloop  # noqa: PLC0415 - as above

    from mesh.main_thread import MainThread  # noqa: PLC0415 - only here
    from mesh.threads import MAX_THREADS, ThreadPool  # noqa: PLC0415 - as above

    signals = SignalReceiver(_STOP_SIGNALS if _at_terminal() else (*_STOP_SIGNALS, signal.SIGHUP))
    main = MainThread(ThreadPool(MAX_THREADS), signals.keep)

    def sidecar() -> int:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(run_sidecar(manifest, contract, name, fd, parent, main, signals, migrate=migrate))

    return main.run_with_loop(sidecar, _exit)


def _exit(code: int) -> NoReturn:
    """End the process although a function has not ended; no caller waits for it any more."""
    with contextlib.suppress(OSError, ValueError):  # the reader has gone, or the handler has closed the streams
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _at_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _raise_descriptors() -> None:
    """Raise the limit of open files from the usual 1024 (macOS: 256) up to the hard limit; each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in _OPEN_FILE_LIMITS:
        wanted = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        if soft != resource.RLIM_INFINITY and wanted > soft:
            with contextlib.suppress(ValueError, OSError):  # macOS has another, lower limit
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
    parent: ParentConnection,
    main: MainThread | None = None,
    signals: SignalReceiver | None = None,
    *,
    migrate: bool = True,
) -> int:
    """Run the sidecar of one service; returns the exit code.

    Args:
        manifest: The manifest.
        contract: The contract.
        name: The service.
        fd: Descriptor of a listening socket to serve instead of the address in mesh.toml.
        parent: Gets the readiness report.
        main: The main thread, when the loop does not run there.
        signals: Receives the signals, when the loop does not run in the main thread.
        migrate: Migrate the database to its newest version first.
    """
    from mesh.control.component import assembly  # noqa: PLC0415 - most of the imports; faults are reported before

    drain = manifest.services[name].drain
    return await serve(
        lambda: assembly.sidecar(manifest, contract, name, fd, main, migrate=migrate),
        parent,
        drain,
        signals,
        manifest.liveness.seconds,
    )


async def run_edge(manifest: Manifest, contract: Contract, fd: int | None, parent: ParentConnection) -> int:
    """Run the edge; returns the exit code."""
    from mesh.control.component import assembly  # noqa: PLC0415 - as above

    assert manifest.edge is not None  # noqa: S101 - checked before
    edge = manifest.edge
    return await serve(
        lambda: assembly.edge(manifest, contract, fd), parent, edge.drain, liveness_timeout=manifest.liveness.seconds
    )


def run_signer(manifest: Manifest, each: Path | None) -> int:
    """Run the signer in the foreground until SIGTERM or SIGINT; return the exit code.

    Args:
        manifest: The manifest.
        each: Folder with the folders of broker and operator; None: they are on other machines.
    """
    import uvloop  # noqa: PLC0415 - as above

    from mesh.control.component import signer  # noqa: PLC0415 - as above

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        parent = ParentConnection.inherited()
        return runner.run(
            serve(
                lambda: signer.SignerComponent(manifest, each),
                parent,
                signer.DRAIN_SECONDS,
                None,
                manifest.liveness.seconds,
            )
        )


async def serve(
    make: Callable[[], Component],
    parent: ParentConnection,
    drain: float,
    signals: SignalReceiver | None = None,
    liveness_timeout: float | None = None,
) -> int:
    """Make a component, start it, report, wait for a signal, stop it.

    Args:
        make: Makes the component; may raise as ``Component.start`` does.
        parent: Gets the readiness report.
        drain: Seconds that the shutdown may take.
        signals: Receives the signals, when the loop does not run in the main thread.
        liveness_timeout: Seconds after which the process aborts itself if the loop does not turn and there is no
            parent that would notice; None: never.

    Returns:
        The exit code: 0, or 1 when it could not start.
    """
    loop = asyncio.get_running_loop()
    stop_requested, start_allowed = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        if stop_requested.is_set():  # the second signal ends the process at once
            os._exit(1)
        stop_requested.set()

    on_signal = loop.add_signal_handler if signals is None else signals.add
    _add_handlers(on_signal, stop, _STOP_SIGNALS)
    reset_signals_at_fork(_STOP_SIGNALS)

    def on_start() -> None:
        loop.call_soon_threadsafe(start_allowed.set)

    loop_thread = threading.get_ident()

    def on_probe() -> None:
        if debugger_attached(loop_thread):  # it may have stopped the event loop
            parent.alive(debugger=True)
            return
        with contextlib.suppress(RuntimeError):  # the event loop is closed: the process is about to end
            loop.call_soon_threadsafe(partial(parent.alive, debugger=False))

    def on_parent_exit() -> None:
        loop.call_soon_threadsafe(stop_requested.set)

    parent.watch(on_start, on_probe, on_parent_exit, drain + STOP_MARGIN_SECONDS)
    try:
        component = make()
        LoopWatchdog(None if parent.present else liveness_timeout).start()
        _add_handlers(
            on_signal, stop, [number for number in _STOP_SIGNALS if signal.getsignal(number) in _DEFAULT_HANDLERS]
        )
        if not await _start(component, stop_requested, start_allowed, parent, on_signal):
            return 0
    except (Faults, OSError) as error:
        return _fail(parent, str(error))
    except Exception as error:
        log.exception("the start failed")
        return _fail(parent, _text(error))
    await stop_requested.wait()
    code = 1
    try:
        await component.stop()
        code = 0
    finally:
        _exit_after_timeout(code)
    return code


def _exit_after_timeout(code: int) -> None:
    """End the process after ``EXIT_TIMEOUT`` if it has not ended by itself.

    Functions may have left something behind: a task that swallows its cancellation keeps the event loop running, a
    thread (``asyncio.to_thread``) the interpreter.
    """
    timer = threading.Timer(EXIT_TIMEOUT, _exit, [code])
    timer.daemon = True
    timer.start()


def _add_handlers(on_signal: OnSignal, stop: Callable[[], None], numbers: Iterable[int]) -> None:
    for number in numbers:
        on_signal(number, stop)


async def _start(
    component: Component,
    stop_requested: asyncio.Event,
    start_allowed: asyncio.Event,
    parent: ParentConnection,
    on_signal: OnSignal,
) -> bool:
    """Start the component after the start signal and report; return False if a stop was requested meanwhile."""

    async def start() -> str:
        await start_allowed.wait()
        return await component.start()

    starting = asyncio.create_task(start())
    waiting = asyncio.create_task(stop_requested.wait())
    await asyncio.wait([starting, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not starting.done():
        cancel_task(starting)
        await asyncio.wait([starting])
        return False
    _tune_gc()
    if not _at_terminal():  # at a terminal, SIGHUP means that the terminal has closed
        on_signal(signal.SIGHUP, component.reload)
    parent.ready(starting.result())
    return True


def _tune_gc() -> None:
    """Exclude the objects of the start from cyclic garbage collection, and run it less often.

    Contract, codecs and modules live as long as the process, and the objects of a call are freed by their reference
    counts. Python's default, a collection after each 700 objects that calls in progress hold, took a quarter of the
    edge's time.
    """
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _text(error: Exception) -> str:
    """Return the reason to report for an unexpected error; the log has its traceback."""
    if isinstance(error, RemoteError):
        return f"a call that it makes when it starts failed: {error.status}"
    return f"{type(error).__name__}: {text_of(error)}"


def _fail(parent: ParentConnection, reason: str) -> int:
    parent.failed(reason)
    if not parent.present:
        sys.stderr.write(f"{reason}\n")
    return 1
