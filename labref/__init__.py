"""labref: adaptive reference cells for blood-cell analysers."""

__version__ = "0.1.0"
