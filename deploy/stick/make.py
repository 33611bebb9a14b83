"""Makes the folder from which a lab installs labref without internet: `make wheelhouse PLATFORM=win_amd64 PYTHON=3.12`.

The versions are those of `constraints.txt`, each file compared with its hash; what a shared store needs is among
them, as a lab without internet cannot get it later. What is downloaded fits the lab's
computer, not this one. A package without a wheel is built here; labref's own wheel is built from a copy of the
checkout. Large wheels are packed again more densely (`squeeze`): the stick is a fifth smaller. `bill.py` writes what
ships, and under which licences.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import string
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import tomlkit
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

sys.path.insert(0, str(Path(__file__).parent))
import bill

from labref import __version__
from labref.cpus import usable_cpus
from labref.store.duckdb.migrations import latest_version

ROOT: Final = Path(__file__).resolve().parents[2]
_HERE: Final = Path(__file__).resolve().parent
PLATFORMS: Final = {"win_amd64": "Windows", "manylinux": "Linux"}
"""What `make wheelhouse` calls a system, and what people call it; both on x86-64."""
RUNTIMES: Final = ("cpu", "cuda")
_GLIBC: Final = (
    28  # ONNX Runtime's and cryptography's wheels need glibc 2.28: Debian 10, Ubuntu 20.04, RHEL 8 and newer
)
_ZIP_BEGINS: Final = 315532800  # a zip knows no time before 1980
_SOURCES: Final = frozenset({"minisom"})
"""Packages that the index has no wheel of. They are pure Python, and one wheel serves every system."""
_LARGE: Final = 300_000
"""Bytes of a wheel from which on it is packed again: of the others, which are small, little is gained."""
_CACHES: Final = shutil.ignore_patterns("__pycache__")
_LAUNCHERS: Final = {"win_amd64": "install.cmd", "manylinux": "install.sh"}


class StickError(Exception):
    """The folder cannot be made; the message says why."""


@dataclass(frozen=True)
class Pinned:
    """One package of `constraints.txt`. line : name and version as pip reads them, without its marker.  hashes : of the
    files that may be installed, `sha256:…`."""

    name: str
    line: str
    hashes: tuple[str, ...]


def target(platform: str, python: str) -> dict[str, str]:
    """The variables of markers on the lab's computer. python : as `3.12`."""
    windows = platform == "win_amd64"
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "nt" if windows else "posix",
        "platform_machine": "AMD64" if windows else "x86_64",
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Windows" if windows else "Linux",
        "platform_version": "",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "win32" if windows else "linux",
        "extra": "",
    }


def pinned(constraints: Path, platform: str, python: str, runtime: str) -> Iterator[Pinned]:
    """What a computer needs, of a file that holds it for all. With `cpu` the smaller `onnxruntime` stands in place of
    `onnxruntime-gpu`."""
    environment = target(platform, python)
    for line in constraints.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        head, *hashes = line.split("--hash=")
        requirement = Requirement(head)
        name = canonicalize_name(requirement.name)
        if name in ("onnxruntime", "onnxruntime-gpu"):
            wanted = name == ("onnxruntime" if runtime == "cpu" else "onnxruntime-gpu")
        else:
            wanted = requirement.marker is None or requirement.marker.evaluate(environment)
        if wanted:
            yield Pinned(name, f"{requirement.name}{requirement.specifier}", tuple(each.strip() for each in hashes))


def make(
    platform: str,
    python: str,
    runtime: str,
    into: Path,
    *,
    constraints: Path | None = None,
    epoch: int | None = None,
    dense: Collection[str] | None = None,
) -> Path:
    """Make the folder within `into`, and return it.

    epoch : seconds since 1970 that files inside of wheels bear; by default the commit's time.  dense : packages whose
    wheels are packed again; by default all with a large one, which takes minutes. Raises `StickError`.
    """
    constraints = constraints or ROOT / ("constraints.txt" if runtime == "cpu" else "constraints-cuda.txt")
    needed = list(pinned(constraints, platform, python, runtime))
    epoch = _committed_at() if epoch is None else epoch
    with tempfile.TemporaryDirectory(dir=_made(into)) as scratch:
        made = Path(scratch, "made")
        wheels = _made(made / "wheels")
        _download(needed, platform, python, wheels)
        for package in needed:
            if package.name in _SOURCES:
                _build_source(package, wheels, epoch)
        own = _build_labref(wheels, runtime, epoch, Path(scratch, "source"))
        pip = _download_pip(_made(made / "installer"))
        described = _describe(own, platform, python, runtime, epoch)
        before = squeeze(wheels, dense)
        of_index = {digest for package in needed for digest in package.hashes}
        published = {name: digest for name, digest in before.items() if f"sha256:{digest}" in of_index}
        _requirements(made)
        shutil.copy(ROOT / "LICENSE", made / "LICENSE.txt")
        _pages(_made(made / "pages"))
        bill.write(made, [*sorted(wheels.glob("*.whl")), pip], target(platform, python), described, published)
        if platform == "manylinux":
            shutil.copytree(ROOT / "labref" / "service" / "container", made / "container", ignore=_CACHES)
        (made / "stick.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
        _installer(made, described)
        _page(made, described)
        _digests(made)
        folder = into / f"wheelhouse-{described['labref'].partition('+')[0]}-{platform}-{python}-{runtime}"
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)
    return folder


def _download(needed: Sequence[Pinned], platform: str, python: str, wheels: Path) -> None:
    tags = ["win_amd64"] if platform == "win_amd64" else [f"manylinux_2_{n}_x86_64" for n in range(_GLIBC, 4, -1)]
    if platform == "manylinux":
        tags += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    requirements = wheels.parent / "download.txt"
    ready = [each for each in needed if each.name not in _SOURCES]
    requirements.write_text("".join(f"{each.line} {_hashed(each)}\n" for each in ready), encoding="utf-8")
    _pip(
        "download",
        *("--only-binary", ":all:", "--no-deps", "--require-hashes", "--implementation", "cp"),
        *("--python-version", python, *(word for tag in tags for word in ("--platform", tag))),
        *("--dest", str(wheels), "--requirement", str(requirements)),
    )
    requirements.unlink()


def _hashed(package: Pinned) -> str:
    return " ".join(f"--hash={each}" for each in package.hashes)


def _build_source(package: Pinned, wheels: Path, epoch: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        requirements = Path(scratch, "requirements.txt")
        requirements.write_text(f"{package.line} {_hashed(package)}\n", encoding="utf-8")
        options = ["--no-deps", "--no-binary", package.name, "--no-build-isolation", "--no-cache-dir"]
        _pip("wheel", *options, "--require-hashes", "--wheel-dir", scratch, "-r", str(requirements), epoch=epoch)
        (built,) = Path(scratch).glob("*.whl")
        if not built.name.endswith("-none-any.whl"):
            raise StickError(f"{built.name} runs on this system only; {package.name} needs a wheel of the index.")
        shutil.copy(built, wheels)


def _build_labref(wheels: Path, runtime: str, epoch: int, copy: Path) -> Path:
    """labref's own wheel, from a copy of the checkout: a build leaves folders behind. With `cpu` its metadata asks for
    `onnxruntime`, and its version ends in `+cpu`, so that two wheels with different needs are never taken for one."""
    shutil.copytree(ROOT / "labref", copy / "labref", ignore=_CACHES)
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    document = tomlkit.parse((ROOT / "pyproject.toml").read_text(encoding="utf-8")).unwrap()
    project, version = document["project"], __version__
    if runtime == "cpu":
        version += ".cpu" if "+" in version else "+cpu"
        project["dependencies"] = [
            f"onnxruntime{Requirement(line).specifier}" if line.startswith("onnxruntime-gpu") else line
            for line in project["dependencies"]
            if Requirement(line).name != "onnxruntime"
        ]
    project["version"] = version
    project["dynamic"].remove("version")
    del document["tool"]["setuptools"]["dynamic"]
    (copy / "pyproject.toml").write_text(tomlkit.dumps(document), encoding="utf-8")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir", "--wheel-dir", str(wheels)]
    _pip("wheel", *options, str(copy), epoch=epoch)
    (built,) = wheels.glob("labref-*.whl")
    return built


def _is_large(wheel: Path) -> bool:
    return wheel.stat().st_size >= _LARGE and not wheel.name.startswith("nvidia")  # whose licence is their own


def squeeze(wheels: Path, names: Collection[str] | None = None) -> dict[str, str]:
    """Pack the large wheels of a folder, or those of the packages `names`, again by LZMA (zip's method 14) instead of
    Deflate. Python unpacks it, and so pip does. What is in them stays as it is, with the digests in their RECORD.
    Returns the SHA-256 that each of these wheels had before, by its file's name."""
    large = [
        wheel
        for wheel in sorted(wheels.glob("*.whl"))
        if (_is_large(wheel) if names is None else parse_wheel_filename(wheel.name)[0] in names)
    ]
    published = {wheel.name: _sha256(wheel) for wheel in large}
    with ThreadPoolExecutor(usable_cpus()) as pool:
        list(pool.map(_squeeze, sorted(large, key=lambda wheel: -wheel.stat().st_size)))
    return published


def _squeeze(wheel: Path) -> None:
    packed = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA) as made:
        for member in source.infolist():
            kept = zipfile.ZipInfo(member.filename, member.date_time)  # a program stays one
            kept.external_attr, kept.create_system = member.external_attr, member.create_system
            kept.compress_type, kept.file_size = zipfile.ZIP_LZMA, member.file_size
            with source.open(member) as old, made.open(kept, "w") as new:
                shutil.copyfileobj(old, new, 1 << 20)
    packed.replace(wheel)


def _download_pip(folder: Path) -> Path:
    """pip itself, of the version that works here: the lab's Python may come without one, or with one of years ago."""
    version = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, text=True, check=True)
    number = version.stdout.split()[1]
    _pip("download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), f"pip=={number}")
    (found,) = folder.glob("pip-*.whl")
    return found


def _describe(own: Path, platform: str, python: str, runtime: str, epoch: int) -> dict[str, str]:
    _, version, _, _ = parse_wheel_filename(own.name)
    return {
        "labref": str(version),
        "python": python,
        "platform": platform,
        "runtime": runtime,
        "schema": str(latest_version()),
        "made": datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%d"),
    }


def _requirements(made: Path) -> None:
    lines = []
    for wheel in sorted((made / "wheels").glob("*.whl")):
        name, version, _, _ = parse_wheel_filename(wheel.name)
        lines.append(f"{name}=={version} --hash=sha256:{_sha256(wheel)}\n")
    (made / "requirements.txt").write_text("".join(lines), encoding="utf-8", newline="\n")


def _installer(made: Path, described: dict[str, str]) -> None:
    shutil.copy(_HERE / "install.py", made / "installer" / "install.py")
    name = _LAUNCHERS[described["platform"]]
    text = (_HERE / name).read_text(encoding="utf-8").replace("@PYTHON@", described["python"])
    text = text.replace("@MINOR@", described["python"].partition(".")[2])
    ending = "\r\n" if name.endswith(".cmd") else "\n"
    (made / name).write_text(text, encoding="utf-8", newline=ending)
    (made / name).chmod(0o755)


def _page(made: Path, described: dict[str, str]) -> None:
    text = (_HERE / f"page-{described['platform']}.html").read_text(encoding="utf-8")
    size = sum(file.stat().st_size for file in made.rglob("*") if file.is_file())
    words = described | {
        "version": described["labref"].partition("+")[0],
        "runtime_words": {"cpu": "the processor (CPU)", "cuda": "an NVIDIA GPU"}[described["runtime"]],
        "gpu": " --gpu" if described["runtime"] == "cuda" else "",  # lets a unit of systemd's reach the device
        "megabytes": f"{size / 1e6:.0f}",
        "packages": str(len(list((made / "wheels").glob("*.whl")))),
    }
    (made / "README.html").write_text(string.Template(text).substitute(words), encoding="utf-8", newline="\n")


def _pages(into: Path) -> None:
    """The pages for people, with what they link to: a lab without internet has no other copy."""
    deploy = ROOT / "deploy"
    for pattern in ("*.md", "labref.example.toml", "*.service"):
        for file in sorted(deploy.glob(pattern)):
            shutil.copy(file, into / file.name)
    for folder in ("monitoring", "pictures"):
        shutil.copytree(deploy / folder, into / folder)


def _digests(made: Path) -> None:
    """SHA256SUMS, as `sha256sum --check` reads it: the installer compares every file before anything runs."""
    files = sorted(file for file in made.rglob("*") if file.is_file())
    lines = [f"{_sha256(file)}  {file.relative_to(made).as_posix()}\n" for file in files]
    (made / "SHA256SUMS").write_text("".join(lines), encoding="utf-8", newline="\n")


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _committed_at() -> int:
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else int(datetime.now(UTC).timestamp())


def _pip(command: str, *arguments: str, epoch: int | None = None) -> None:
    words = [sys.executable, "-m", "pip", "--disable-pip-version-check", command, "--quiet", *arguments]
    environment = os.environ | ({} if epoch is None else {"SOURCE_DATE_EPOCH": str(max(epoch, _ZIP_BEGINS))})
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StickError(f"`pip {command}` failed:\n{done.stderr.strip() or done.stdout.strip()}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--platform", required=True, choices=PLATFORMS)
    parser.add_argument("--python", default="3.12", help="the lab's Python, as 3.12")
    parser.add_argument("--runtime", default="cpu", choices=RUNTIMES)
    parser.add_argument("--into", type=Path, default=ROOT / "dist")
    options = parser.parse_args(arguments)
    if not re.fullmatch(r"3\.1[123]", options.python):
        parser.error(f"labref runs with Python 3.11, 3.12 or 3.13, not {options.python}")
    try:
        folder = make(options.platform, options.python, options.runtime, options.into)
    except StickError as error:
        print(error, file=sys.stderr)
        return 1
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    digest = _sha256(folder / "SHA256SUMS")
    print(f"{folder}: {size / 1e6:.1f} MB, {len(list((folder / 'wheels').glob('*.whl')))} wheels")
    print(f"copy the folder to a stick, as it is; tell the lab by another way: SHA256SUMS is {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
