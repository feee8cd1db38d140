"""What a token allows: its scopes, and whose requests and purchases its bearer may see."""

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple


class Scope(StrEnum):
    """What a call needs. Nobody buys for somebody else, whatever their scopes."""

    PURCHASE = "purchase"
    """Buy, and see one's own requests and purchases."""
    SALE_READ = "sale:read"
    SALE_WRITE = "sale:write"
    ADMIN = "admin"
    """All calls, and the requests and purchases of every user."""


class Caller(NamedTuple):
    """Who makes a call. `user_id` is the subject as a canonical user id, None if it is not one."""

    subject: str
    user_id: str | None
    scopes: frozenset[Scope]

    def may_see(self, user_id: str | None) -> bool:
        """Whether the caller may see the requests and purchases of this user; None stands for no known user."""
        return Scope.ADMIN in self.scopes or (user_id is not None and user_id == self.user_id)


def granted(names: Iterable[str]) -> frozenset[Scope]:
    """The scopes with these names, and those that they imply. Unknown names grant nothing."""
    scopes = frozenset(Scope(name) for name in names if name in _NAMES)
    return frozenset(Scope) if Scope.ADMIN in scopes else scopes


_NAMES = frozenset(map(str, Scope))
