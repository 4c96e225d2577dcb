"""The fork server: a clean process that has imported what workers need, and forks one whenever it is told to.

A program of its own (``python -m mesh.sidecar.workers.forkserver FD``), so that nothing of the sidecar (threads, event
loop, connections) is copied into a worker. It runs no loop, starts no thread and never uses gRPC's core. The service's
own module is not imported here: each worker runs it once, and new code needs only new workers.

While there is no worker, one process is forked ahead, the *spare*: it has what every worker has (the preloaded
libraries, an event loop) and nothing of the functions: no code of the project, no connection, no thread. It waits for
its end of a socket pair, and then it is a worker as any other. A start then need not wait for the fork, nor for the
copies of the memory that it writes to (``mesh.sidecar.workers.prefault``).

It ends when the sidecar does, and its workers, and all that they have started, end with it.
What the two say to each other is in ``mesh.sidecar.workers.spawner_messages``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
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
from mesh.forks import STOPS, give_back
from mesh.main_thread import ignore
from mesh.sidecar.workers import frames, prefault, process_tag, worker_process
from mesh.sidecar.workers.call_headers import encode
from mesh.sidecar.workers.fork_setup import Setup
from mesh.sidecar.workers.spawner_messages import COMMAND, LENGTH, Command, Ended, Preloaded, Report
from mesh.sidecar.workers.watermark import shared_file
from mesh.telemetry import logs
from mesh.text import ready_output, text_of

if TYPE_CHECKING:
    from mesh.database import Database

__all__ = ["main"]

log = logging.getLogger("mesh.workers")

_DIE_WITH_PARENT, _ADOPT = 1, 36
"""``PR_SET_PDEATHSIG``, ``PR_SET_CHILD_SUBREAPER`` (prctl(2))."""
_OOM_SCORE = b"500"
"""When memory runs out, a worker goes before the sidecar and the rest of the machine."""
_BROKEN = 70
"""Exit code of a worker that could not even begin (EX_SOFTWARE of sysexits.h)."""


def main() -> None:
    """Run until the sidecar is gone."""
    control = socket.socket(fileno=int(sys.argv[1]))
    parent = os.getppid()
    setup: Setup = pickle.loads(_read(control))  # noqa: S301 - the sidecar that started this process wrote it
    sys.path[:] = setup.path
    ready_output(setup.encoding or None)
    server = _ForkServer(control, setup)
    _prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    _prctl(_ADOPT, 1)
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
            sys.exit(0)  # the sidecar has gone before it said anything
        data += piece
    return bytes(data)


class _Waiting:
    """A child that has nothing of a worker yet but what all have.

    Attributes:
        pid: Its pid.
        mark: By which what it will start is known (``mesh.sidecar.workers.process_tag``).
        way: Where it waits for its connection.
    """

    def __init__(self, pid: int, mark: str, way: socket.socket) -> None:
        self.pid = pid
        self.mark = mark
        self.way = way

    def give(self, link: int, memory: int) -> bool:
        """Let it be a worker; False if it has ended."""
        try:
            socket.send_fds(self.way, [b"."], [link, memory])
        except OSError:
            return False
        finally:
            self.way.close()
        return True


class _ForkServer:
    def __init__(self, control: socket.socket, setup: Setup) -> None:
        self._control = control
        self._setup = setup
        self._workers: dict[int, int] = {}
        self._pids: dict[int, int] = {}
        self._marks: dict[int, str] = {}
        self._prefix = f"{os.getpid()}."
        self._born = 0
        self._spare: _Waiting | None = None
        self._touched = shared_file()
        self._wake, self._woken = socket.socketpair()
        self._contract: Any = None
        self._database: Database | None = None

    def run(self) -> None:
        logs.install(self._setup.name)
        worker_process.be_called("mesh-nursery")
        gc.disable()  # what is collected later would be copied in every worker
        found = self._preload()
        self._say(Report.PRELOADED, 0, found)
        if found.threaded:
            return
        self._contract = loader.read(FileDescriptorSet.FromString(self._setup.files), self._setup.services)
        if self._setup.database:
            self._open(self._setup.database)
        gc.collect()
        gc.freeze()
        for end in (self._wake, self._woken):
            end.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, ignore)
        # Ctrl-C, and supervisors that signal a whole group, mean the sidecar: it ends this process when it has drained.
        for number in STOPS:
            signal.signal(number, ignore)
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
                data, descriptors_, _, _ = socket.recv_fds(self._control, COMMAND.size, 2)
            except OSError:
                return False
            if len(data) < COMMAND.size:
                return False
            kind, number = COMMAND.unpack(data)
            if kind == Command.FORK:
                self._fork(number, descriptors_)
            elif number in self._pids:  # else it has ended by itself, and its pid may be another's
                os.kill(self._pids[number], signal.SIGKILL)
        return True

    def _preload(self) -> Preloaded:
        failed: dict[str, str] = {}
        seconds: dict[str, float] = {}
        for name in (*_OWN, *self._setup.preload):
            began = perf_counter()
            try:
                importlib.import_module(name)
            except BaseException as error:  # noqa: BLE001 - the worker will say it, if it matters
                failed[name] = f"{type(error).__name__}: {text_of(error)}"
            seconds[name] = perf_counter() - began
            if _threads() > 1:
                return Preloaded(failed, name, seconds)
        return Preloaded(failed, "", seconds)

    def _open(self, url: str) -> None:
        from mesh.database import Database  # noqa: PLC0415 - a third of the imports; only who has one loads it

        outbox = None
        if self._setup.events:
            from mesh.events.publish.outbox import NAME, Outbox  # noqa: PLC0415 - as above

            publications = Publications(self._contract, self._setup.serves, self._setup.name)
            outbox = Outbox(publications, sqlite=url.startswith("sqlite:"))
        self._database = Database(url, migrations=None, name=self._setup.name, outbox=outbox)
        if outbox is not None:
            outbox.tell = self._database.sole(NAME).tell  # the relay is in the sidecar
        self._database.open()
        self._database.warm()

    def _fork(self, number: int, given: list[int]) -> None:
        try:
            child = self._given(given)
        except OSError as error:  # the workers that there are must not be lost over it
            self._say(Report.ENDED, number, Ended(_BROKEN, unborn=str(error)))
            return
        finally:
            for descriptor in given:
                os.close(descriptor)
        self._marks[child.pid] = child.mark
        self._workers[child.pid] = number
        self._pids[number] = child.pid
        self._say(Report.FORKED, number, child.pid)

    def _given(self, given: list[int]) -> _Waiting:
        """Return a process that was given its connection and its memory.

        Raises:
            OSError: The machine gives no process, or no descriptors.
        """
        if len(given) != 2:  # noqa: PLR2004 - the connection, the memory; the kernel drops what does not fit (cmsg(3))
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        child, self._spare = self._spare, None
        if child is None or not child.give(*given):
            child = self._bear(ahead=False)
            child.give(*given)
        return child

    def _bear(self, *, ahead: bool) -> _Waiting:
        """Fork a process that becomes a worker when it is given its connection.

        Args:
            ahead: Nobody waits for it yet, so it may take its time.

        Raises:
            OSError: The machine gives no process, or no descriptors.
        """
        ours, theirs = socket.socketpair()
        self._born += 1
        mark = f"{self._prefix}{self._born}"
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            ours.close()
            self._become(theirs, mark, ahead=ahead)
        theirs.close()
        return _Waiting(pid, mark, ours)

    def _become(self, way: socket.socket, mark: str, *, ahead: bool) -> NoReturn:
        """Be the worker."""
        try:
            process_tag.write(mark)
            _prctl(_DIE_WITH_PARENT, signal.SIGKILL)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            give_back()
            for end in (self._control, self._wake, self._woken):
                end.close()
            with contextlib.suppress(OSError):
                Path("/proc/self/oom_score_adj").write_bytes(_OOM_SCORE)
            if ahead:
                prefault.copy_ahead(self._touched)
            worker_process.run(way, self._setup, self._contract, self._database, self._touched)
        except BaseException:  # noqa: BLE001 - the child must never go on as its parent
            traceback.print_exc()
        finally:
            os._exit(_BROKEN)

    def _reap(self) -> None:
        idle = reaped = False
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            reaped = True
            if self._spare is not None and self._spare.pid == pid:
                self._spare.way.close()
                self._spare = None
            number = self._workers.pop(pid, None)
            if number is not None:
                del self._pids[number], self._marks[pid]
                self._say(Report.ENDED, number, Ended(os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024))
                idle = not self._workers
        if reaped:
            self._kill_orphans()
        if idle and self._spare is None:
            try:
                self._spare = self._bear(ahead=True)
            except OSError as error:  # the next worker is forked when it is needed, and says so if it cannot be
                log.warning("no process can be forked ahead: %s", error)

    def _kill_orphans(self) -> None:
        """Kill what a dead worker has started and left behind: it is this process's child now.

        Its own children are so when it has ended; that is a reason to look again.
        """
        live = self._marks.values()
        for pid in _children():
            known = pid in self._workers or (self._spare is not None and pid == self._spare.pid)
            if not known and process_tag.doomed(process_tag.read(pid), self._prefix, live):
                with contextlib.suppress(OSError):  # another user's: the next one up has to see to it
                    os.kill(pid, signal.SIGKILL)

    def _end(self) -> None:
        """End everything that was ever started from here."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        while children := set(self._workers) | set(_children()):
            for pid in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for pid in children:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
                self._workers.pop(pid, None)

    def _say(self, kind: Report, number: int, what: Any) -> None:
        with contextlib.suppress(OSError):  # the sidecar is gone: the next read says so
            self._control.sendall(frames.frame(kind, number, encode(what)))


_OWN = (
    "grpc.aio", "google.protobuf.empty_pb2", "google.rpc.error_details_pb2", "opentelemetry.sdk.trace", "uvloop",
    "concurrent.futures.thread",
)  # fmt: skip
"""What every worker uses, and modules load only when they are first used."""


def _threads() -> int:
    """Return how many threads there are, those included that Python knows nothing of."""
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
