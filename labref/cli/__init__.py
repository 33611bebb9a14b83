"""The `labref` command: one module per sub-command; what a sub-command needs is imported when it runs."""

from __future__ import annotations

from labref.cli._app import app, main

__all__ = ["app", "main"]
