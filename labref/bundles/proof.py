"""What this computer has shown: that the networks of a bundle give here what they gave at export.

It is shown once for each bundle, computer, version of ONNX Runtime, device and precision, before the bundle is used, in
a process of its own (`labref.bundles.trial`), and remembered in the file `logs/proven.json` of the lab. Without the
file it is shown again. What is remembered says that the networks may be run in this process; whether they still give
what they gave, two of the golden cells show each time they are opened, in the very sessions that will answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import re
from pathlib import Path
from typing import Any, Final, TypedDict, cast

import onnxruntime

from labref.bundles.bundle import Bundle, Precision
from labref.bundles.inference import Embedder, expected_provider
from labref.bundles.trial import Inference, tried
from labref.errors import BundleError
from labref.files import replace_file

__all__ = ["open_proven", "prove"]

_FILE: Final = Path("logs", "proven.json")
_MOST: Final = 200  # kept, the newest


class _Proven(TypedDict):
    """Which provider and precision gave the golden outputs."""

    provider: str
    precision: Precision


_shown_here: dict[str, _Proven] = {}
"""What this process has shown or read, by `_key`: a process that makes many labs with one bundle tries it once."""


def prove(bundle: Bundle, lab: Path, how: Inference, *, anew: bool = False) -> _Proven:
    """Have the golden cells of `bundle` run (`labref.bundles.trial`), unless `logs/proven.json` in the folder `lab`
    says that this computer did.

    anew : run them whatever is remembered. Raises `BundleError`, as `tried` does: nothing may be asked of it then.
    """
    key = _key(bundle, expected_provider(how.device), how.precision)
    known = _read(lab / _FILE)
    if not anew and key in known:
        return known[key]
    proven = None if anew else _shown_here.get(key)
    if proven is None:
        shown = tried(bundle, how)
        proven = _shown_here[key] = {"provider": shown.provider, "precision": shown.precision}
    _remember(lab / _FILE, key, proven)
    return proven


def open_proven(bundle: Bundle, lab: Path, how: Inference) -> Embedder:
    """The networks of `bundle`, opened as `how` says, after `prove`; two of its golden cells are run on them.

    Raises `BundleError`, also where these do not give their golden outputs: memory, driver or processor may have become
    faulty since.
    """
    for anew in (False, True):
        proven = prove(bundle, lab, how, anew=anew)
        embedder = how.open(bundle, precision=proven["precision"])
        if (embedder.provider, embedder.precision) == (proven["provider"], proven["precision"]):
            if how.precision == "auto":
                embedder.tell_of_refused()
            try:
                embedder.golden_sample()
            except BaseException:
                embedder.close()
                raise
            return embedder
        # a driver or a library came or went since
        embedder.close()
    raise BundleError(
        f"bundle {bundle.title} opens on another device each time ({embedder.provider_line}). Start again; if it stays so, set "
        'device = "cpu" in labref.toml, [inference].'
    )


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


def _read(file: Path) -> dict[str, _Proven]:
    """What is remembered; nothing where the file is missing or holds something else: then it is shown again."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found: Any = json.loads(file.read_bytes())
        if isinstance(found, dict) and all(_is_proven(value) for value in found.values()):
            return cast("dict[str, _Proven]", found)
    return {}


def _is_proven(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("provider"), str)
        and value.get("precision") in ("full", "float16", "int8")
    )


def _remember(file: Path, key: str, proven: _Proven) -> None:
    """Write it down; where the folder takes no file it is shown again next time."""
    known = {other: value for other, value in _read(file).items() if other != key} | {key: proven}
    with contextlib.suppress(OSError):
        replace_file(file, json.dumps(dict(list(known.items())[-_MOST:]), indent=1) + "\n")
