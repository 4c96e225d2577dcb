"""Arguments of ``mesh apikeys``, and the function of each action. The module loads nothing heavy, for ``--help``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["add", "run"]


def run(options: argparse.Namespace, file: Path) -> int:
    """Run an action with the mesh of a mesh.toml; return the exit code.

    Raises:
        Faults: The manifest, the contract or an argument is not valid, or the file of the keys cannot be written.
    """
    from mesh.control import project  # noqa: PLC0415 - not for --help
    from mesh.control.commands import apikey_actions  # noqa: PLC0415 - as above

    if options.action == "list":
        return apikey_actions.show(file)
    if options.action == "revoke":
        return apikey_actions.revoke(file, options.name)
    _, contract = project.load(file)
    return apikey_actions.create(file, contract, options.name, options.scope, options.expires, options.rate)


def add(
    command: Callable[..., argparse.ArgumentParser], commands: Any, run_command: Callable[[argparse.Namespace], int]
) -> None:
    """Add the actions.

    Args:
        command: Makes a parser of a name, a function to run, a summary, a text and a group.
        commands: The parsers of all commands.
        run_command: The function that an action runs.
    """
    group = commands.add_parser("apikeys", help="create, list and revoke API keys").add_subparsers(
        title="actions", metavar="ACTION", required=True
    )
    for action, summary in (
        ("create", "create an API key and print it, once"),
        ("list", "list the API keys with their scopes, never a key"),
        ("revoke", "revoke an API key; components refuse it within seconds"),
    ):
        added = command(action, run_command, summary, _APIKEYS, group)
        added.set_defaults(action=action)
        if action != "list":
            added.add_argument("name", metavar="NAME", help="the key's name")
        if action == "create":
            added.add_argument("--scope", action="append", default=[], metavar="SCOPE", help="a scope; repeatable")
            added.add_argument("--expires", default="never", metavar="TIME", help="such as 90d; default: never")
            added.add_argument(
                "--rate", default="", metavar="RATE", help='rate limit at the edge, such as "10/s burst 50"'
            )


_APIKEYS = """
API keys are for programs that call methods with access: KEY. The state folder holds their hashes; a key is shown once.

  mesh apikeys create ci --scope orders:read --expires 90d --rate 10/s
  mesh apikeys list
  mesh apikeys revoke ci
"""
