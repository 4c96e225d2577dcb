"""Arguments of ``mesh keys``, and the function of each action. The module loads nothing heavy, for ``--help``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

__all__ = ["add", "run"]


def run(options: argparse.Namespace, file: Path) -> int:
    """Run the action with the mesh of a mesh.toml; return the exit code.

    Raises:
        Faults: The manifest is not valid, or a file cannot be read or written.
    """
    from mesh.control.commands import keys_actions  # noqa: PLC0415 - cryptography is heavy

    each = Path(options.each) if options.each else None
    lifetime = None if options.days is None else timedelta(days=options.days)
    actions: dict[str | None, Callable[[], int]] = {
        None: lambda: keys_actions.make(file, each, lifetime),
        "serve": lambda: keys_actions.serve(file, each),
        "status": lambda: keys_actions.status(file),
        "rotate-root": lambda: keys_actions.rotate_root(file, wait=options.wait, force=options.force),
    }
    if options.retire is not None:
        return keys_actions.retire(file, each, options.retire)
    return actions[options.action]()


def add(command: Callable[..., argparse.ArgumentParser], run_command: Callable[[argparse.Namespace], int]) -> None:
    """Add the command.

    Args:
        command: Makes a parser of a name, a function to run, a summary and a text.
        run_command: The function that it runs.
    """
    keys = command("keys", run_command, "make the keys and certificates that are missing", _KEYS)
    keys.add_argument(
        "action", nargs="?", choices=("serve", "status", "rotate-root"), help="default: make what is missing or due"
    )
    keys.add_argument("--each", metavar="FOLDER", help="make one folder for each component below this one")
    keys.add_argument(
        "--days", type=_days, metavar="DAYS", help="validity of the certificates (default: `[keys] lifetime`, 24h)"
    )
    keys.add_argument(
        "--retire", metavar="NAME", help="give this service a new key; the old one stays valid for what it has signed"
    )
    keys.add_argument("--wait", action="store_true", help="rotate-root: wait for each step until the rotation is done")
    keys.add_argument("--force", action="store_true", help="rotate-root: do the next step without waiting for anybody")


def _days(text: str) -> float:
    days = float(text)
    if not 0 < days <= _MAX_DAYS:
        raise argparse.ArgumentTypeError(f"expected up to {_MAX_DAYS} days")
    return days


_MAX_DAYS = 398
"""Days of the longest validity, where public authorities stop too."""

_KEYS = """
Each service proves its identity with a key of its own and a certificate of the mesh's authority, in the folder
`identity` of the state folder. `mesh up` makes both, and renews the certificates. For containers, make them once with
--each, and mount to each container its own folder. It has one private key, all public keys, and a certificate, which
has to be made again with the same command before it expires.

`mesh keys --retire NAME` gives a service a new key while the mesh runs. The old public key moves to the folder
`retired`: events that the broker stored before are verified with it. Delete the file to refuse it at once.

`mesh keys serve` issues the certificates to components on other machines (`[keys] address`), until SIGTERM. Each
component proves its name with its own identity key. Only this command needs the folder `authority` of the state folder.
The broker and the operator do not ask. With --each FOLDER it renews their files, in FOLDER/broker and FOLDER/operator.

`mesh keys rotate-root` replaces the root certificate in three steps while the mesh runs. Each step waits until all
components have renewed their certificates. Without --wait the command does the steps that are safe now.

  mesh keys
  mesh keys --each .mesh/keys --days 90
  MESH_KEYS_LISTEN=0.0.0.0:9443 mesh keys serve --each .mesh/keys
  mesh keys --retire login
  mesh keys status
  mesh keys rotate-root --wait
"""
