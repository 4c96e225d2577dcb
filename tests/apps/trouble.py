"""Functions of conformance.v1.Echo that do to their process what ``text`` says, and otherwise what apps.echo does."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import time

from apps.echo import bidi, client_stream, server_stream  # noqa: F401 - found by name
from conformance.v1 import conformance_pb2 as pb

from mesh import Context

kept: list[bytes] = []
born = time.monotonic_ns()
"""When this process ran the module."""


def start(what: str) -> list[int]:
    """Start processes of a kind that nobody waits for; returns their pids."""
    if what == "forked":
        ours, theirs = os.pipe()
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.write(theirs, str(os.getpid()).encode())
                signal.pause()
            os._exit(0)
        os.wait()
        return [int(os.read(ours, 20))]
    line = "(sleep 600 & echo $!; wait) & echo $!; echo $$; wait" if what == "tree" else "sleep 600 & echo $!"
    shell = subprocess.Popen(
        ["/bin/sh", "-c", line], stdout=subprocess.PIPE, start_new_session=True, env={} if what == "bare" else None
    )
    assert shell.stdout is not None
    return [int(shell.stdout.readline()) for _ in line.split("echo")[1:]]


async def unary(request: pb.EchoRequest, context: Context) -> pb.EchoResponse:  # noqa: C901, PLR0912 - a list of troubles
    what, _, more = request.text.partition(" ")
    if what == "exit":
        os._exit(int(more))
    if what == "segfault":
        ctypes.string_at(0)
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "loop":
        while True:
            pass
    if what == "block":
        time.sleep(float(more))  # noqa: ASYNC251 - it blocks the event loop
    if what == "ignore":
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue
    if what == "sweep":
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(float(more))
    if what == "leak":
        kept.append(os.urandom(int(more)))
    if what == "start":
        return pb.EchoResponse(text=" ".join(map(str, [os.getpid(), *start(more)])))
    if what == "once":  # the first worker to see it dies of it
        try:
            os.mkdir(more)  # noqa: PTH102
        except FileExistsError:
            return pb.EchoResponse(text="alive")
        os._exit(1)
    if what == "wait":  # for a file
        while not os.path.exists(more):  # noqa: ASYNC110, ASYNC240, PTH110 - nothing tells of it
            await asyncio.sleep(0.01)
    if what == "sleep":
        await asyncio.sleep(float(more))
    return pb.EchoResponse(text=str(os.getpid()), index=born)


idempotent = unary


def slow(request: pb.EchoRequest, context: Context) -> pb.EchoResponse:
    """Block a thread, deaf to everything; its method has a deadline of 500 ms."""
    time.sleep(float(request.text))
    return pb.EchoResponse(text=str(os.getpid()))
