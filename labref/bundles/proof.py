"""What this computer has shown: that the networks of a bundle give here what they gave at export.

It is shown once for each bundle, computer, version of ONNX Runtime, device and precision, before the bundle is used,
and remembered in the file `logs/proven.json` of the lab. Without the file it is shown again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
from pathlib import Path
from typing import Any, Final

import onnxruntime

from labref.bundles.bundle import Bundle
from labref.bundles.inference import Embedder

__all__ = ["prove", "prove_installed"]

_FILE: Final = Path("logs", "proven.json")
_MOST: Final = 200  # kept, the newest
_shown_here: set[str] = set()
"""What this process has shown."""
_opened_here: dict[str, str] = {}
"""By bundle, what this process has shown of one that it installed."""


def prove(embedder: Embedder, lab: Path) -> None:
    """Run the golden crops through `embedder`, unless `logs/proven.json` in the folder `lab` says that this computer
    did.

    Raises `BundleError` where they do not give the golden outputs: nothing may be asked of it then.
    """
    key = _key(embedder.bundle, embedder.provider, embedder.precision)
    if key in _read(lab / _FILE):
        return
    if key not in _shown_here:
        embedder.golden_difference()
        _shown_here.add(key)
    _remember(lab / _FILE, key)


def prove_installed(bundle: Bundle, lab: Path) -> None:
    """Open the networks of a bundle that was just installed, and `prove` them: before a lab is made with it."""
    # a process that makes many labs with one bundle opens it once
    if bundle.digest in _opened_here:
        _remember(lab / _FILE, _opened_here[bundle.digest])
        return
    with Embedder.open(bundle) as embedder:
        prove(embedder, lab)
        _opened_here[bundle.digest] = _key(bundle, embedder.provider, embedder.precision)


def _key(bundle: Bundle, provider: str, precision: str) -> str:
    """What was shown, as 64 hexadecimal characters: with the computer in it, and without telling of it."""
    computer = [platform.node(), platform.machine(), platform.processor(), _cpu()]
    whole = [bundle.digest, onnxruntime.__version__, provider, precision, *computer]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


def _cpu() -> str:
    """The processor's model where Linux tells it; elsewhere `platform.processor` does."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        return found[1] if found else ""
    return ""


def _read(file: Path) -> list[str]:
    """What is remembered; nothing where the file is missing or holds something else: then it is shown again."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found: Any = json.loads(file.read_bytes())
        if isinstance(found, list) and all(isinstance(key, str) for key in found):
            return found
    return []


def _remember(file: Path, key: str) -> None:
    """Write it down; where the folder takes no file it is shown again next time."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}.part")
    with contextlib.suppress(OSError):
        try:
            temporary.write_text(json.dumps([*_read(file), key][-_MOST:], indent=1) + "\n", encoding="ascii")
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
