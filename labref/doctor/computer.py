"""This computer, without a lab: Python, the packages, ONNX Runtime and the GPU."""

from __future__ import annotations

import platform
import struct
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion

from labref import __version__
from labref.bundles.inference import cuda_problem
from labref.cpus import usable_cpus
from labref.doctor.findings import fine, note, problem, warning
from labref.operations.condition import Finding

__all__ = ["packages", "python", "runtime"]

PYTHONS: Final = ">=3.11,<3.14"
_RUNTIMES: Final = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")


def python() -> Iterator[Finding]:
    """Whether this Python can run labref."""
    version, bits = platform.python_version(), 8 * struct.calcsize("P")
    says = f"Python {version}, {bits} bits, {sys.executable}"
    if not SpecifierSet(PYTHONS).contains(version, prereleases=True):
        yield problem("python", says, "Install labref with Python 3.11, 3.12 or 3.13.")
    elif bits != 64:
        yield problem("python", says, "Install a Python of 64 bits: ONNX Runtime and DuckDB have no other wheels.")
    else:
        yield fine("python", f"{says}; labref {__version__}")


def packages() -> Iterator[Finding]:
    """Whether each package that labref needs is installed, in a version that fits."""
    try:
        needed = metadata.requires("labref") or []
    except metadata.PackageNotFoundError:
        yield problem(
            "packages",
            "labref runs from a folder and is not installed",
            "Install it: `pip install labref` or its wheel.",
        )
        return
    wrong: list[str] = []
    checked = 0
    for line in needed:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:  # written by a newer tool than this packaging
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        checked += 1
        found = _installed(requirement.name)
        if found is None and requirement.name in _RUNTIMES and any(map(_installed, _RUNTIMES)):
            continue  # another build of the same library serves as well
        if found is None:
            wrong.append(f"{requirement.name} is missing")
        elif not _fits(requirement.specifier, found):
            wrong.append(f"{requirement.name} {found} does not fit {requirement.specifier}")
    if wrong:
        yield problem(
            "packages",
            "; ".join(wrong),
            "Install labref again, into an environment of its own, as the stick's installer makes it.",
        )
    else:
        yield fine("packages", f"{checked} packages, each in a version that fits")
    twice = [name for name in _RUNTIMES if _installed(name)]
    if len(twice) > 1:
        yield problem(
            "packages",
            f"{' and '.join(twice)} are both installed, and have overwritten each other's files",
            f"Leave one: `pip uninstall {' '.join(twice)}`, then install labref again.",
        )


def runtime() -> Iterator[Finding]:
    """Whether ONNX Runtime works here, and whether a GPU could be used."""
    try:
        import onnxruntime
    except ImportError as error:
        yield problem(
            "runtime",
            f"ONNX Runtime cannot be loaded: {error}",
            "On Windows install the Microsoft Visual C++ Redistributable (x64); elsewhere install labref again.",
        )
        return
    cpus = usable_cpus()
    says = f"ONNX Runtime {onnxruntime.__version__}, {cpus} CPU{'' if cpus == 1 else 's'} for this process"
    if cpus < 2:
        yield warning("runtime", says, "Give labref two CPUs or more: with one, cells wait while pages are made.")
    else:
        yield fine("runtime", says)
    why = cuda_problem()
    if why is None:
        yield fine("gpu", "an NVIDIA GPU with its driver; whether the networks run on it, the check `device` says")
    else:
        yield note("gpu", f"none is used: {why}")


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _fits(specifier: SpecifierSet, version: str) -> bool:
    try:
        return specifier.contains(version, prereleases=True)
    except InvalidVersion:
        return True  # a version in a form of its own is its maker's
