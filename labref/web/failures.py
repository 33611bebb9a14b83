"""How a failure is told over HTTP: {"error": {"kind", "message"}}."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse

from labref.errors import AgentError

__all__ = ["failure", "told", "unexpected"]


def failure(code: int, error: Exception, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A response of this status that tells of an error."""
    return JSONResponse({"error": told(error)}, status_code=code, headers=headers)


def told(error: Exception) -> dict[str, str]:
    """An error as JSON values: the name of its class, and what it says."""
    kind = next(base.__name__ for base in type(error).__mro__ if not base.__name__.startswith("_"))
    return {"kind": kind, "message": str(error)}


def unexpected(error: Exception) -> AgentError:
    """What is said of an error that nobody foresaw: its own message may name a patient."""
    return AgentError(f"the agent failed to answer ({type(error).__name__}); see its log")
