"""What somebody who looks at the lab's pages may do. Imports nothing."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Role"]


class Role(StrEnum):
    """What somebody may do: look; give labels and decide; all, such as letting others in. Each may do what those before
    it may."""

    VIEW = "view"
    REVIEW = "review"
    ADMIN = "admin"

    def covers(self, least: Role) -> bool:
        """Whether this role may do what `least` may."""
        return list(Role).index(self) >= list(Role).index(least)
