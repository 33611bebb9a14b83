"""The demo: a simulated analyser, a real agent that takes in its cells, and a summary of the results.

May import cli and below.
"""

from __future__ import annotations
