"""The demo: a simulated analyser, a real agent, and what the agent made of the cells.

May import cli and below.
"""

from __future__ import annotations
