"""How a failure is told over HTTP: {"error": {"kind", "message"}}; at a page to people who have no command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from starlette.responses import JSONResponse

from labref.errors import AgentError
from labref.roles import Role
from labref.web.texts import Texts
from labref.web.visitors import Visitor

__all__ = ["failure", "for_person", "told", "unexpected", "without_commands"]

_COMMAND: Final = re.compile(r"`labref[ `]|(?<![\w.-])labref\.toml(?![\w/\\-]|\.\w)|(?<![\w/\\'\"-])--[a-z]")
"""What only whoever runs labref can use: a command, the file of settings, an option. A folder or a label may be called
so too."""
_ASIDE: Final = re.compile(r" ?\([^()]*\)")
_SENTENCE_END: Final = re.compile(r"(?<=[.?!])\s+(?![a-z])|(?<=\.)\s+(?=labref\b)")
"""Not the point of "e.g." and of other words in short, after which no capital stands."""
_CLAUSE_END: Final = re.compile(r"(?<=;)\s+")


def failure(
    code: int, error: Exception, headers: Mapping[str, str] | None = None, *, message: str | None = None
) -> JSONResponse:
    """A response of this status that tells of an error. message : in place of what the error says itself."""
    tells = told(error) if message is None else told(error) | {"message": message}
    return JSONResponse({"error": tells}, status_code=code, headers=headers)


def told(error: Exception) -> dict[str, str]:
    """An error as JSON values: the name of its class, and what it says."""
    kind = next(base.__name__ for base in type(error).__mro__ if not base.__name__.startswith("_"))
    return {"kind": kind, "message": str(error)}


def without_commands(message: str) -> str:
    """What an error says to somebody at a page: without the sentences, half-sentences and asides that name a command, a
    setting or an option. Empty where nothing else is said; the message itself where it names none."""
    if not _COMMAND.search(message):
        return message
    message = _ASIDE.sub(lambda aside: "" if _COMMAND.search(aside[0]) else aside[0], message)
    return " ".join(filter(None, map(_without_clauses, _SENTENCE_END.split(message))))


def _without_clauses(sentence: str) -> str:
    """A sentence without its half-sentences that name a command; whole again, or empty."""
    clauses = _CLAUSE_END.split(sentence)
    kept = [clause for clause in clauses if not _COMMAND.search(clause)]
    said = " ".join(kept).rstrip(" ;:,")
    if not said:
        return ""
    if kept[0] != clauses[0]:
        said = said[0].upper() + said[1:]
    return said if said.endswith((".", "!", "?", "…", ".)")) else f"{said}."


def for_person(message: str, visitor: Visitor | None, texts: Texts) -> str:
    """What an error says to whoever asked: to an admin and to a program all of it; to others no command, and whom they
    can ask instead."""
    words = message if visitor is None or visitor.role is Role.ADMIN else without_commands(message)
    if words == message:
        return message
    failed, ask = texts.gettext("This did not work."), texts.gettext("Whoever looks after labref in your lab can help.")
    return f"{words or failed} {ask}"


def unexpected(error: Exception) -> AgentError:
    """What is said of an error that nobody foresaw: its own message may name a patient."""
    return AgentError(f"the agent failed to answer ({type(error).__name__}); see its log")
