"""Arguments of ``mesh events``, and the function of each command. The module loads nothing heavy, for ``--help``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["add", "run"]

RunCommand: TypeAlias = Callable[[argparse.Namespace], int]


def run(options: argparse.Namespace, file: Path) -> int:
    """Run the command with the mesh of a mesh.toml; return the exit code."""
    from mesh.control.commands import events_actions  # noqa: PLC0415 - protobuf and nats are heavy

    actions: dict[str, Callable[[], int]] = {
        "list": lambda: events_actions.list_(
            file, type=options.type, key=options.key, since=options.since, limit=options.limit
        ),
        "tail": lambda: events_actions.tail(file, type=options.type, key=options.key),
        "show": lambda: events_actions.show(file, options.event, type=options.type, key=options.key),
        "publish": lambda: events_actions.publish(file, options.type, options.data),
        "streams": lambda: events_actions.make_streams(file),
        "replay": lambda: events_actions.replay(file, options.method, since=options.since, unsigned=options.unsigned),
        "dead": lambda: events_actions.dead(file, method=options.method),
        "redrive": lambda: events_actions.redrive(
            file, options.numbers, method=options.method, every=options.all, unsigned=options.unsigned
        ),
        "discard": lambda: events_actions.discard(file, options.numbers, method=options.method, every=options.all),
    }
    name = options.command
    return actions[options.action if name == "dead" and options.action != "list" else name]()


def add(command: Callable[..., argparse.ArgumentParser], commands: Any, run_command: RunCommand) -> None:
    """Add the commands.

    Args:
        command: Makes a parser of a name, a function to run, a summary, a text and a group.
        commands: The commands of ``mesh``.
        run_command: The function that they run.
    """
    group = commands.add_parser(
        "events",
        help="look at events, and deliver them again",
        description="Look at events, and deliver them again.",
        epilog="mesh events COMMAND --help explains a command with examples.",
    ).add_subparsers(title="commands", metavar="COMMAND", required=True)

    def made(name: str, summary: str, text: str) -> argparse.ArgumentParser:
        parser = command(name, run_command, summary, text, group)
        parser.set_defaults(command=name)
        return parser

    def typed(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--type", default="", metavar="EVENT", help="only events of this message")
        parser.add_argument("--key", default="", metavar="KEY", help="only events with this key")

    ago = "a duration before now (2h) or a time (2026-11-22T10:00)"
    parser = made("list", "list the latest events", _EVENTS)
    typed(parser)
    parser.add_argument("--since", default="", metavar="WHEN", help=ago)
    parser.add_argument(
        "--limit", type=_positive, default=50, metavar="NUMBER", help="maximum number of events (default: 50)"
    )
    typed(made("tail", "print events as they are published", _EVENTS))
    parser = made("show", "print one event with its attributes", _EVENTS)
    parser.add_argument("event", metavar="PLACE|ID", help="its place in the list, or its id")
    typed(parser)
    parser = made("publish", "publish an event by hand", _EVENTS)
    parser.add_argument("type", metavar="EVENT", help="the message, by its full name or the last part of it")
    parser.add_argument("-d", "--data", default="", help="the message as JSON; @FILE or @- (standard input) reads it")
    parser = made("replay", "deliver past events to a method again", _REPLAY)
    parser.add_argument("method", metavar="METHOD", help="a method with an event or a change as its trigger")
    parser.add_argument("--since", default="", metavar="WHEN", help=f"{ago}; default: all stored events")
    unsigned = "deliver events without a signature too, as those of an earlier version"
    parser.add_argument("--unsigned", action="store_true", help=unsigned)
    made("streams", "make the streams, with the settings of mesh.toml", _STREAMS)
    parser = made("dead", "list, redrive or discard dead letters", _DEAD)
    parser.add_argument(
        "action", nargs="?", choices=("list", "redrive", "discard"), default="list", help="default: list"
    )
    parser.add_argument("numbers", nargs="*", type=int, default=[], metavar="NUMBER", help="numbers of dead letters")
    parser.add_argument("--method", default="", metavar="METHOD", help="dead letters of this method")
    parser.add_argument("--all", action="store_true", help="all dead letters")
    parser.add_argument("--unsigned", action="store_true", help=unsigned)


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number of 1 or more, not {text!r}")
    return number


_EVENTS = """
An event is named by its message, in full or by the last part of the name. The broker is that of mesh.toml, or that of
the running mesh.

  mesh events list --type UserRegistered --since 2h
  mesh events tail --key 4f1c2b
  mesh events show 1042
  mesh events publish UserRegistered -d '{"userId": "u1"}'
"""
_REPLAY = """
Delivers every stored event or change that matches the method's trigger to this method again, and to no other one. Each
event has its effect again, in order with new events of its key.

  mesh events replay login.v1.Login/OnUserRegistered --since 24h
"""
_STREAMS = """
Makes the streams that the broker does not have, and changes those whose settings differ from [events] of mesh.toml.
`mesh up` does so by itself. With another broker, run it when [events] has changed: services may not change a stream.

  mesh events streams
"""
_DEAD = """
A dead letter is an event that a method could not process: with an error that no retry can mend, or after too many
attempts. A redriven dead letter is delivered to its method again. A discarded one is deleted.

  mesh events dead
  mesh events dead redrive 17 18
  mesh events dead redrive --method Login/OnUserRegistered
  mesh events dead discard --all
"""
