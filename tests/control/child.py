"""A tiny real component: answers each connection with its pid. What it does is said by its arguments.

child.py NAME BEHAVIOUR [--again] --fd N, with BEHAVIOUR one of
    ok        runs until SIGTERM
    broken    reports before it is told to go that it cannot start
    fail      reports that it cannot start
    exit      ends before it is ready
    mute      never reports
    deaf      ignores SIGTERM
    hung      answers no liveness probe
    debugged  answers the first liveness probe only, with a debugger attached
    once      the first start is ok, all later ones end at once
What happens to it is written as lines to the file in $EVENTS.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import threading
from pathlib import Path

from mesh.control.readiness import ParentConnection

name, behaviour, fd = sys.argv[1], sys.argv[2], int(sys.argv[-1])
events = Path(os.environ["EVENTS"])


def event(what: str) -> None:
    with events.open("a") as file:
        file.write(f"{what} {name}\n")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def stop(*_: object) -> None:
    event("stop")
    sys.exit(0)


again = behaviour == "once" and f"start {name}\n" in (events.read_text() if events.exists() else "")
event("start")
faulthandler.enable()
if "--again" in sys.argv:
    event("again")
parent = ParentConnection.inherited()
signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour == "deaf" else stop)
cleared = threading.Event()
limits = {"hung": 0, "debugged": 1}
answers = iter(range(limits.get(behaviour, sys.maxsize)))


def answer() -> None:
    if next(answers, None) is not None:
        parent.alive(debugger=behaviour == "debugged")


parent.watch(cleared.set, answer, lambda: event("orphan"), 0.0)
if behaviour == "broken":
    parent.failed(f"{name} has a fault")
    sys.exit(1)
cleared.wait()
event("go")
if behaviour == "fail":
    parent.failed(f"the database of {name} cannot be reached\nand one more line")
    sys.exit(1)
if behaviour == "exit" or again:
    say("last words")
    sys.exit(3)
listener = socket.socket(fileno=fd)
if behaviour != "mute":
    event("ready")
    parent.ready("127.0.0.1:" + str(listener.getsockname()[1]))
say(f"{name} says hello")
say('{"time": "2026-11-21T21:14:38.123456Z", "level": "WARNING", "message": "as json", "user": "ada"}')
while True:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(str(os.getpid()).encode())
