"""The agent: scans and watches the export folders, takes every cell in, answers on loopback HTTP.

May import web and below.

What a pass needs is imported when it runs: a query that only asks the agent does not load the agent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from labref.agent.service import Summary
    from labref.lab import Lab

__all__ = ["run"]


def run(lab: Lab, *, once: bool = False, json: bool = False, console: Console | None = None) -> Summary:
    """Run the lab's agent until it is asked to end, or with `once` for one full pass over the export folders.

    json : print machine-readable output on stdout and nothing else there.  console : where people read what is said; by
    default progress goes to stderr and the rest to stdout. Ctrl-C and SIGTERM end it cleanly, and then it returns as
    usual. Raises `AgentError` where an agent runs on this lab already or something asked for failed, and other
    `LabrefError`.
    """
    from labref.agent.service import run_agent

    return run_agent(lab, once=once, json=json, console=console)
