"""Arguments of ``mesh secrets``, and the function of each action. The module loads nothing heavy, for ``--help``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["add", "run"]


def run(options: argparse.Namespace, file: Path) -> int:
    """Run an action with the mesh of a mesh.toml; return the exit code.

    Raises:
        Faults: The manifest or the name is not valid, or a file cannot be read or written.
    """
    from mesh.control.commands import secret_actions  # noqa: PLC0415 - not for --help

    if options.action == "list":
        return secret_actions.show(file)
    return (secret_actions.set_ if options.action == "set" else secret_actions.remove)(file, options.name)


def add(
    command: Callable[..., argparse.ArgumentParser], commands: Any, run_command: Callable[[argparse.Namespace], int]
) -> None:
    """Add the actions.

    Args:
        command: Makes a parser of a name, a function to run, a summary, a text and a group.
        commands: The parsers of all commands.
        run_command: The function that an action runs.
    """
    group = commands.add_parser("secrets", help="set, list and remove secrets on this machine").add_subparsers(
        title="actions", metavar="ACTION", required=True
    )
    for action, summary in (
        ("set", "store a secret, encrypted, from standard input"),
        ("list", "show where each secret is found, never its value"),
        ("remove", "remove a stored secret"),
    ):
        added = command(action, run_command, summary, _SECRETS, group)
        added.set_defaults(action=action)
        if action != "list":
            added.add_argument("name", metavar="NAME", help="the secret's name")


_SECRETS = """
mesh.toml names secrets: password = { secret = "smtp" } in settings, {secret:smtp} inside a URL. Each is looked up in
the variable MESH_SECRET_SMTP, in the file smtp of the folder `secrets` (/run/secrets), and in the encrypted file that
`mesh secrets set` writes to the state folder.

  mesh secrets set smtp
  mesh secrets set smtp < password.txt
  mesh secrets list
  mesh secrets remove smtp
"""
