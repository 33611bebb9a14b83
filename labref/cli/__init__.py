"""The `labref` command: one module per sub-command; what a sub-command needs is imported when it runs.

May import all but the store; `demo` is the one room above it that it starts.
"""

from labref.cli._app import app, main

__all__ = ["app", "main"]
