"""The words of ``mesh events``: what can be asked, and which function answers. Loads nothing heavy for ``--help``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["add", "run"]

Act: TypeAlias = Callable[[argparse.Namespace], int]


def run(options: argparse.Namespace, file: Path) -> int:
    """Do what was asked, with the mesh of a mesh.toml; returns the exit code."""
    from mesh.control.commands import events_actions  # noqa: PLC0415 - protobuf, nats: only who runs them

    answers: dict[str, Callable[[], int]] = {
        "list": lambda: events_actions.list_(
            file, type=options.type, key=options.key, since=options.since, limit=options.limit
        ),
        "tail": lambda: events_actions.tail(file, type=options.type, key=options.key),
        "show": lambda: events_actions.show(file, options.event, type=options.type, key=options.key),
        "publish": lambda: events_actions.publish(file, options.type, options.data),
        "replay": lambda: events_actions.replay(file, options.method, since=options.since),
        "dead": lambda: events_actions.dead(file, method=options.method),
        "redrive": lambda: events_actions.redrive(file, options.letters, method=options.method, every=options.all),
        "discard": lambda: events_actions.discard(file, options.letters, method=options.method, every=options.all),
    }
    what = options.what
    return answers[options.do if what == "dead" and options.do != "list" else what]()


def add(command: Callable[..., argparse.ArgumentParser], commands: Any, act: Act) -> None:
    """Add the commands.

    Args:
        command: Makes a parser: name, what it runs, summary, text, group.
        commands: The commands of ``mesh``.
        act: What they run.
    """
    group = commands.add_parser(
        "events",
        help="look at events, and deliver them again",
        description="Look at events, and deliver them again.",
        epilog="mesh events COMMAND --help explains a command with examples.",
    ).add_subparsers(title="commands", metavar="COMMAND", required=True)

    def made(name: str, summary: str, text: str) -> argparse.ArgumentParser:
        parser = command(name, act, summary, text, group)
        parser.set_defaults(what=name)
        return parser

    def typed(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--type", default="", metavar="EVENT", help="only events of this message")
        parser.add_argument("--key", default="", metavar="KEY", help="only events of this key")

    ago = "a duration ago (2h) or a time (2026-11-22T10:00)"
    parser = made("list", "list the latest events", _EVENTS)
    typed(parser)
    parser.add_argument("--since", default="", metavar="WHEN", help=ago)
    parser.add_argument("--limit", type=_positive, default=50, metavar="NUMBER", help="at most so many (default: 50)")
    typed(made("tail", "print events as they are published", _EVENTS))
    parser = made("show", "print one event whole", _EVENTS)
    parser.add_argument("event", metavar="PLACE|ID", help="which one")
    typed(parser)
    parser = made("publish", "publish an event by hand", _EVENTS)
    parser.add_argument("type", metavar="EVENT", help="the message, in full or by its last name")
    parser.add_argument("-d", "--data", default="", help="the message as JSON; @FILE or @- (standard input) reads it")
    parser = made("replay", "call a method again for past events", _REPLAY)
    parser.add_argument("method", metavar="METHOD", help="whose trigger is an event or a change")
    parser.add_argument("--since", default="", metavar="WHEN", help=f"{ago}; default: all that is kept")
    parser = made("dead", "list, redrive or discard dead letters", _DEAD)
    parser.add_argument("do", nargs="?", choices=("list", "redrive", "discard"), default="list", help="default: list")
    parser.add_argument("letters", nargs="*", type=int, default=[], metavar="LETTER", help="their numbers")
    parser.add_argument("--method", default="", metavar="METHOD", help="only those of this method")
    parser.add_argument("--all", action="store_true", help="all of them")


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number of 1 or more, not {text!r}")
    return number


_EVENTS = """
Events are named by their message, in full or by its last name. The broker is that of mesh.toml, or that of the mesh
which runs.

  mesh events list --type UserRegistered --since 2h
  mesh events tail --key 4f1c2b
  mesh events show 1042
  mesh events publish UserRegistered -d '{"userId": "u1"}'
"""
_REPLAY = """
The method is called again for every event, or change, that its trigger matches and that is still kept; nobody else is.
Each has its effect again, in order with what is new of its key.

  mesh events replay login.v1.Login/OnUserRegistered --since 24h
"""
_DEAD = """
A dead letter is an event that a method failed for: for good, or too often. Redriven, it is delivered to that method
again; discarded, it is gone.

  mesh events dead
  mesh events dead redrive 17 18
  mesh events dead redrive --method Login/OnUserRegistered
  mesh events dead discard --all
"""
