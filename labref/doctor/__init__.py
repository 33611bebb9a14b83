"""What goes wrong with labref in a lab, looked for before somebody has to ask: each finding with its remedy.

May import the desk and below. Nothing here changes a lab.
"""

from labref.doctor.examination import NAMES, examine

__all__ = ["NAMES", "examine"]
