"""Paths as text. The store and JSON hold UTF-8 only; names of files may hold any bytes."""

from __future__ import annotations

import os
import re

__all__ = ["path_from_text", "path_to_text"]

_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")


def path_to_text(path: str) -> str:
    r"""`path`, a path as Python holds it, as valid Unicode text; bytes that are no UTF-8 are written as `\xff`.

    No two paths give the same text: a name that itself holds such a sequence has its backslash written as `\x5c`.
    """
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        if os.name == "nt":  # an unpaired UTF-16 surrogate
            return path.encode("utf-8", "backslashreplace").decode()
    else:
        if os.name == "nt" or not _ESCAPED.search(path):
            return path
    raw = path.encode("utf-8", "surrogateescape").replace(b"\\", b"\\x5c")
    return raw.decode("utf-8", "backslashreplace")


def path_from_text(text: str) -> str:
    r"""The path whose text `path_to_text` gave: the inverse of it (but for Windows' unpaired surrogates)."""
    if os.name == "nt" or not _ESCAPED.search(text):
        return text
    parts = _ESCAPED.split(text)
    raw = b"".join(bytes([int(part, 16)]) if index % 2 else part.encode("utf-8") for index, part in enumerate(parts))
    return raw.decode("utf-8", "surrogateescape")
