"""Fork server: a clean process with the imports of workers, which forks a worker for each command of the sidecar.

It is a program of its own (``python -m mesh.sidecar.workers.forkserver FD``), so that nothing of the sidecar (threads,
event loop, connections) is copied into a worker. It runs no event loop, starts no thread and never uses gRPC's core. It
does not import the service's own module: each worker runs that once, and new code needs only new workers.

While there is no worker, one process is forked ahead: the *spare*. It has what every worker has (the preloaded
libraries, an event loop) and nothing of the functions: no code of the project, no connection, no thread. It waits for
its end of a socket pair and then becomes a worker. So a start need not wait for the fork, nor for the copies of the
pages that it writes to (``mesh.sidecar.workers.prefault``).

The fork server ends with the sidecar. Its workers end with it, and so does everything that they have started.
``mesh.sidecar.workers.spawner_messages`` defines the messages between the two.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import gc
import importlib
import logging
import os
import pickle
import select
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NoReturn

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from mesh.contract import loader
from mesh.events.publish.publisher import Publications
from mesh.faults import Faults
from mesh.forks import STOP_SIGNALS, reset_signals_at_fork
from mesh.main_thread import ignore_signal
from mesh.rules.message_checks import request_check
from mesh.sidecar.workers import frames, prefault, process_tag, worker_process
from mesh.sidecar.workers.frame_payloads import encode
from mesh.sidecar.workers.spawner_messages import (
    COMMAND,
    LENGTH,
    ForkServerCommand,
    ForkServerReport,
    PreloadResult,
    ProcessEnd,
)  # fmt: skip
from mesh.sidecar.workers.watermark import shared_file
from mesh.sidecar.workers.worker_setup import WorkerSetup
from mesh.telemetry import logs
from mesh.text import prepare_output, text_of

if TYPE_CHECKING:
    from mesh.database import Database

__all__ = ["main"]

log = logging.getLogger("mesh.workers")

_DIE_WITH_PARENT, _ADOPT_ORPHANS = 1, 36
"""``PR_SET_PDEATHSIG``, ``PR_SET_CHILD_SUBREAPER`` (prctl(2))."""
_OOM_SCORE = b"500"
"""Out-of-memory score: the kernel kills a worker before the sidecar and the rest of the machine."""
_START_FAILED = 70
"""Exit code of a worker that failed before it ran any function (EX_SOFTWARE of sysexits.h)."""


def main() -> None:
    """Run until the sidecar is gone."""
    control = socket.socket(fileno=int(sys.argv[1]))
    parent = os.getppid()
    setup: WorkerSetup = pickle.loads(_read(control))  # noqa: S301 - written by the sidecar that started this process
    sys.path[:] = setup.path
    prepare_output(setup.encoding or None)
    server = _ForkServer(control, setup)
    _prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    _prctl(_ADOPT_ORPHANS, 1)
    if os.getppid() != parent:
        return
    server.run()


def _read(control: socket.socket) -> bytes:
    (length,) = LENGTH.unpack(_exactly(control, LENGTH.size))
    return _exactly(control, length)


def _exactly(control: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = control.recv(size - len(data))
        if not piece:
            sys.exit(0)  # the sidecar ended before it sent the setup
        data += piece
    return bytes(data)


class _UnassignedChild:
    """A forked process that is no worker yet.

    Attributes:
        pid: Its pid.
        tag: Its tag, by which its descendants are found (``mesh.sidecar.workers.process_tag``).
        assignment: Socket on which it waits for the connection that makes it a worker.
    """

    def __init__(self, pid: int, tag: str, assignment: socket.socket) -> None:
        self.pid = pid
        self.tag = tag
        self.assignment = assignment

    def assign(self, connection: int, memory: int) -> bool:
        """Make it a worker by sending it two descriptors; False if it has ended."""
        try:
            socket.send_fds(self.assignment, [b"."], [connection, memory])
        except OSError:
            return False
        finally:
            self.assignment.close()
        return True


class _ForkServer:
    """The fork server of one service: its workers, its spare process, and the socket to the sidecar."""

    def __init__(self, control: socket.socket, setup: WorkerSetup) -> None:
        self._control = control
        self._setup = setup
        self._workers: dict[int, int] = {}
        self._pids: dict[int, int] = {}
        self._tags: dict[int, str] = {}
        self._prefix = f"{os.getpid()}."
        self._forks = 0
        self._spare: _UnassignedChild | None = None
        self._dirty_pages = shared_file()
        self._wake, self._woken = socket.socketpair()
        self._contract: Any = None
        self._database: Database | None = None

    def run(self) -> None:
        logs.install(self._setup.name)
        faulthandler.enable()  # also in the workers: SIGABRT, by which a hung one is ended, shows its stacks
        worker_process.set_process_name("mesh-forkserver")
        gc.disable()  # a collection after the fork would copy the pages into every worker
        found = self._preload()
        self._report(ForkServerReport.PRELOADED, 0, found)
        if found.threaded:
            return
        self._contract = loader.read(FileDescriptorSet.FromString(self._setup.files), self._setup.services)
        self._compile_rules()
        if self._setup.database:
            self._open(self._setup.database)
        gc.collect()
        gc.freeze()
        for end in (self._wake, self._woken):
            end.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, ignore_signal)
        # Ctrl-C, and supervisors that signal a whole group, mean the sidecar. It ends this process when it has drained.
        for number in STOP_SIGNALS:
            signal.signal(number, ignore_signal)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        try:
            while self._turn({descriptor for descriptor, _ in poll.poll()}):
                pass
        finally:
            self._end()

    def _turn(self, ready: set[int]) -> bool:
        if self._wake.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                self._wake.recv(4096)
            self._reap()
        if self._control.fileno() in ready:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._control, COMMAND.size, 2)
            except OSError:
                return False
            if len(data) < COMMAND.size:
                return False
            kind, number = COMMAND.unpack(data)
            if kind == ForkServerCommand.FORK:
                self._fork(number, descriptors)
            elif kind == ForkServerCommand.PROBE:
                self._report(ForkServerReport.PROBE_RESPONSE, 0, None)
            elif number in self._pids:  # else it has ended by itself, and another process may have its pid
                os.kill(self._pids[number], signal.SIGKILL)
        return True

    def _preload(self) -> PreloadResult:
        failed: dict[str, str] = {}
        for name in (*_COMMON_IMPORTS, *self._setup.preload):
            began = perf_counter()
            try:
                importlib.import_module(name)
            except BaseException as error:  # noqa: BLE001 - the worker imports it again, and reports it if it matters
                failed[name] = f"{type(error).__name__}: {text_of(error)}"
            if _thread_count() > 1:
                return PreloadResult(failed, name, perf_counter() - began)
        return PreloadResult(failed, "", 0.0)

    def _compile_rules(self) -> None:
        """Compile the rules of requests, so that no worker has to. A worker reports the faults that it finds."""
        for service in self._setup.serves:
            for method in self._contract.services[service].methods.values():
                with contextlib.suppress(Faults):
                    request_check(method)

    def _open(self, url: str) -> None:
        from mesh.database import Database  # noqa: PLC0415 - a third of all imports, for services with a database only

        outbox = None
        if self._setup.events:
            from mesh.events.publish.outbox import NAME, Outbox  # noqa: PLC0415 - as above

            publications = Publications(self._contract, self._setup.serves, self._setup.name)
            outbox = Outbox(publications, sqlite=url.startswith("sqlite:"))
        self._database = Database(url, migrations=None, name=self._setup.name, outbox=outbox)
        if outbox is not None:
            outbox.tell = self._database.leader_lock(NAME).notify  # the relay is in the sidecar
        self._database.open()
        self._database.precompile_statements()

    def _fork(self, number: int, descriptors: list[int]) -> None:
        try:
            child = self._assigned(descriptors)
        except OSError as error:  # the other workers go on
            self._report(ForkServerReport.ENDED, number, ProcessEnd(_START_FAILED, fork_error=str(error)))
            return
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._tags[child.pid] = child.tag
        self._workers[child.pid] = number
        self._pids[number] = child.pid
        self._report(ForkServerReport.FORKED, number, child.pid)

    def _assigned(self, descriptors: list[int]) -> _UnassignedChild:
        """Return a process, the spare or a new one, that was given its connection and its memory.

        Raises:
            OSError: The machine has no process, or no descriptors, to give.
        """
        if len(descriptors) != 2:  # noqa: PLR2004 - connection and memory; the kernel drops what does not fit (cmsg(3))
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        child, self._spare = self._spare, None
        if child is None or not child.assign(*descriptors):
            child = self._fork_child(ahead=False)
            child.assign(*descriptors)
        return child

    def _fork_child(self, *, ahead: bool) -> _UnassignedChild:
        """Fork a process that becomes a worker when it is given its connection.

        Args:
            ahead: Whether it is a spare: no call waits for it, so it may prefault its pages.

        Raises:
            OSError: The machine has no process, or no descriptors, to give.
        """
        ours, theirs = socket.socketpair()
        self._forks += 1
        tag = f"{self._prefix}{self._forks}"
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            ours.close()
            self._run_worker(theirs, tag, ahead=ahead)
        theirs.close()
        return _UnassignedChild(pid, tag, ours)

    def _run_worker(self, assignment: socket.socket, tag: str, *, ahead: bool) -> NoReturn:
        """Run the worker in the forked process, and end the process."""
        try:
            process_tag.write(tag)
            _prctl(_DIE_WITH_PARENT, signal.SIGKILL)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            reset_signals_at_fork()
            for end in (self._control, self._wake, self._woken):
                end.close()
            with contextlib.suppress(OSError):
                Path("/proc/self/oom_score_adj").write_bytes(_OOM_SCORE)
            if ahead:
                prefault.prefault(self._dirty_pages)
            worker_process.run(assignment, self._setup, self._contract, self._database, self._dirty_pages)
        except BaseException:  # noqa: BLE001 - the child must never go on as its parent
            traceback.print_exc()
        finally:
            os._exit(_START_FAILED)

    def _reap(self) -> None:
        idle = reaped = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            reaped = True
            if self._spare is not None and self._spare.pid == pid:
                self._spare.assignment.close()
                self._spare = None
            number = self._workers.pop(pid, None)
            if number is not None:
                del self._pids[number], self._tags[pid]
                self._report(ForkServerReport.ENDED, number, ProcessEnd(os.waitstatus_to_exitcode(status)))
                idle = not self._workers
        if reaped:
            self._kill_orphans()
        if idle and self._spare is None:
            try:
                self._spare = self._fork_child(ahead=True)
            except OSError as error:  # the next worker is forked when it is needed, and reports a failure then
                log.warning("the spare worker cannot be forked: %s", error)

    def _kill_orphans(self) -> None:
        """Kill the processes that a dead worker has left behind; the kernel has made them children of this process.

        When one of them ends, its own children become children of this process, and the next call kills those.
        """
        live = self._tags.values()
        for pid in _children():
            known = pid in self._workers or (self._spare is not None and pid == self._spare.pid)
            if not known and process_tag.is_orphan(process_tag.read(pid), self._prefix, live):
                with contextlib.suppress(OSError):  # a process of another user: its own supervisor has to end it
                    os.kill(pid, signal.SIGKILL)

    def _end(self) -> None:
        """Kill every process that was ever started from here."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        while children := set(self._workers) | set(_children()):
            for pid in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for pid in children:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
                self._workers.pop(pid, None)

    def _report(self, kind: ForkServerReport, number: int, body: Any) -> None:
        with contextlib.suppress(OSError):  # the sidecar is gone, which the next read reports
            self._control.sendall(frames.frame(kind, number, encode(body)))


_COMMON_IMPORTS = (
    "grpc.aio", "google.protobuf.empty_pb2", "google.rpc.error_details_pb2", "opentelemetry.sdk.trace", "uvloop",
    "concurrent.futures.thread",
)  # fmt: skip
"""Modules that every worker uses, and that other modules import only at their first use."""


def _thread_count() -> int:
    """Return the number of threads, including those that Python does not know."""
    try:
        return sum(1 for _ in Path("/proc/self/task").iterdir())
    except OSError:
        return threading.active_count()


def _children() -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:
        return []


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        _libc.prctl(option, value, 0, 0, 0)


_libc = ctypes.CDLL(None)

if __name__ == "__main__":
    main()
