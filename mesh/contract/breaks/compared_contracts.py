"""Two contracts to compare, with the places of their elements and the users of their messages."""

from __future__ import annotations

from mesh.contract.breaks.declared_elements import DeclaredElements
from mesh.contract.breaks.message_users import MessageUsers
from mesh.contract.model import Contract

__all__ = ["ComparedContracts"]


class ComparedContracts:
    """Two contracts to compare.

    Args:
        old: The contract that clients, stored events and running services have.
        new: The contract that is to replace it.
        ignores_unknown_json: Whether the edge ignores JSON fields that a message does not have
            (``[edge] ignore_unknown_fields``).
        default_timeout: Time limit of a unary HTTP request whose method declares none, seconds; None: no limit.

    Attributes:
        old_elements: Elements that the old contract declares.
        new_elements: Elements that the new contract declares.
        old_users: Users of the old contract's messages.
    """

    def __init__(
        self, old: Contract, new: Contract, *, ignores_unknown_json: bool, default_timeout: float | None
    ) -> None:
        self.old, self.new = old, new
        self.ignores_unknown_json = ignores_unknown_json
        self.default_timeout = default_timeout
        self.old_elements, self.new_elements = DeclaredElements(old.files), DeclaredElements(new.files)
        self.old_users = MessageUsers(old)
