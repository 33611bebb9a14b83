"""One lab: its folder, what is kept in it, its log, and the judge of which cells are the same. May import the store and
below."""

from labref.lab.lab import Lab, absolute, new_token, refuse_in_lab, refuse_own

__all__ = ["Lab", "absolute", "new_token", "refuse_in_lab", "refuse_own"]
