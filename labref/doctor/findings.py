"""Short ways to say what a check found."""

from __future__ import annotations

from labref.operations.condition import Finding, State

__all__ = ["fine", "note", "problem", "warning"]


def fine(check: str, says: str) -> Finding:
    """All is well."""
    return Finding(check=check, state=State.FINE, says=says)


def note(check: str, says: str, remedy: str | None = None) -> Finding:
    """Something to know."""
    return Finding(check=check, state=State.NOTE, says=says, remedy=remedy)


def warning(check: str, says: str, remedy: str) -> Finding:
    """Something that will be a problem."""
    return Finding(check=check, state=State.WARNING, says=says, remedy=remedy)


def problem(check: str, says: str, remedy: str) -> Finding:
    """Something that keeps the lab from working."""
    return Finding(check=check, state=State.PROBLEM, says=says, remedy=remedy)
