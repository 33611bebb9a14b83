"""Builds what a release is, and tries it in empty environments: `make release`.

The tag says the version: `v0.1.0` on the commit; `labref.__version__` and the newest section of CHANGELOG.md have to
agree with it. The wheel is built from the source distribution, so that nothing is missing there. Then each Python that
labref runs with makes an environment, installs the wheel with packages of the index, makes a lab, and asks it; with
--train it also imports what training needs. They are looked for on PATH and where pyenv keeps them; a release is tried
with all of them. --trial does all that for a commit without a tag, with those that are there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
PYTHONS: Final = ("3.11", "3.12", "3.13")
_DRAW: Final = """
import pathlib, sys
import numpy
from labref.demo.cells import LABELS, OPTICS, draw_cell, encode_jpeg, make_slides
folder, random = pathlib.Path(sys.argv[1]), numpy.random.default_rng(0)
folder.mkdir()
for i, slide in enumerate(make_slides(10)):
    picture = draw_cell(LABELS[i % 2], next(iter(OPTICS.values())), slide, random)
    (folder / f"{i}.jpg").write_bytes(encode_jpeg(picture))
"""
_SECTION: Final = re.compile(r"^## (?P<version>\S+)(?: \((?P<date>\d{4}-\d{2}-\d{2})\))?$", re.MULTILINE)


def version_of(root: Path) -> str:
    """The version that the code says."""
    found = re.search(r'^__version__ = "([^"]+)"$', (root / "labref" / "__init__.py").read_text("utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


def problems(root: Path) -> Iterator[str]:
    """Why the commit that is checked out is no release, in words."""
    version = version_of(root)
    tags = _git(root, "tag", "--points-at", "HEAD", "--list", "v*").split()
    if not tags:
        yield f"no tag is on this commit; `git tag v{version}` makes it version {version}"
    elif tags != [f"v{version}"]:
        yield f"this commit's tag is {', '.join(tags)}, and labref/__init__.py says {version}"
    if changed := _git(root, "status", "--porcelain").splitlines():
        yield f"the checkout holds changes that are in no commit: {', '.join(line[3:] for line in changed[:5])}"
    newest = _SECTION.search((root / "CHANGELOG.md").read_text(encoding="utf-8"))
    if newest is None or newest["version"] != version or newest["date"] is None:
        yield f"the first section of CHANGELOG.md is not `## {version} (DATE)`"


def build(root: Path, into: Path) -> tuple[Path, Path]:
    """The source distribution, and the wheel that is built from it."""
    _run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(into), str(root)])
    (sdist,), (wheel,) = into.glob("labref-*.tar.gz"), into.glob("labref-*.whl")
    return sdist, wheel


def try_it(wheel: Path, python: str, *, train: bool) -> str:
    """Install the wheel into an empty environment and use it. Returns what was done."""
    with tempfile.TemporaryDirectory() as folder:
        _run([python, "-m", "venv", f"{folder}/env"])
        own = Path(folder, "env", "Scripts" if sys.platform == "win32" else "bin")
        what = f"labref[train] @ {wheel.as_uri()}" if train else str(wheel)
        _run([str(own / "python"), "-m", "pip", "install", "--quiet", what])
        _run([str(own / "python"), "-m", "pip", "check"])
        said = _run([str(own / "labref"), "--version"], cwd=folder)
        if train:
            _run([str(own / "python"), "-c", "import keras, tf2onnx, onnx, filelock, matplotlib"], cwd=folder)
        else:
            _use(own, folder)
    return (
        f"{Path(python).name}: {said.strip()}, {'imports what training needs' if train else 'gives eight references'}"
    )


def program_of(python: str) -> str | None:
    """A program of this Python that runs, such as "3.12"; None where there is none. pyenv's own in PATH fails for a
    Python that it has and that nobody chose."""
    kept = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for program in (
        shutil.which(f"python{python}"),
        *sorted(map(str, kept.glob(f"{python}.*/bin/python")), reverse=True),
    ):
        if program is not None and not subprocess.run([program, "-c", ""], capture_output=True, check=False).returncode:
            return program
    return None


def _use(own: Path, folder: str) -> None:
    """Make a lab with drawn cells, and ask it. own : the environment's programs."""
    labref = str(own / "labref")
    _run([str(own / "python"), "-c", _DRAW, "export"], cwd=folder)
    _run([labref, "init", "lab", "--watch", "export"], cwd=folder)
    _run([labref, "agent", "--once", "--lab", "lab"], cwd=folder)
    answer = json.loads(_run([labref, "query", "export/0.jpg", "--lab", "lab", "--json"], cwd=folder))
    if len(answer["references"]) != 8:
        raise SystemExit(f"a lab of ten cells gives {len(answer['references'])} references, and not 8")


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout


def _run(words: Sequence[str], cwd: str | None = None) -> str:
    # this checkout is no part of an environment that is tried
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(list(words), capture_output=True, text=True, cwd=cwd, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"`{' '.join(words)}` failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trial", action="store_true", help="build and try a commit that is no release")
    parser.add_argument("--train", action="store_true", help="try what training needs as well: some GB")
    parser.add_argument("--into", type=Path, default=ROOT / "dist" / "release")
    options = parser.parse_args(arguments)
    wrong = list(problems(ROOT))
    for line in wrong:
        print(line, file=sys.stderr)
    if wrong and not options.trial:
        return 1
    shutil.rmtree(options.into, ignore_errors=True)
    options.into.mkdir(parents=True)
    built = build(ROOT, options.into)
    tried, missing = 0, []
    for python in PYTHONS:
        program = program_of(python)
        if program is None:
            print(f"there is no Python {python} here: not tried", flush=True)
            missing.append(python)
            continue
        for train in (False, True) if options.train else (False,):
            print(try_it(built[1], program, train=train), flush=True)
            tried += 1
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in built]
    (options.into / "SHA256SUMS").write_text("".join(lines), encoding="utf-8", newline="\n")
    print(f"{options.into}: {', '.join(file.name for file in built)}; tried {tried} times")
    if missing and not options.trial:
        print(f"a release has to be tried with Python {', '.join(missing)} as well: install it", file=sys.stderr)
    return 0 if tried and (options.trial or not missing) else 1


if __name__ == "__main__":
    sys.exit(main())
