"""All checks in their order, from what everything else needs to what only is good to know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from labref.asking.room import LEAST_FREE
from labref.bundles.bundle import Bundle
from labref.doctor import computer
from labref.doctor import lab as of_lab
from labref.doctor.findings import fine, note, problem, warning
from labref.doctor.speed_process import cells_a_second
from labref.errors import LabrefError
from labref.lab import Lab
from labref.operations.condition import Finding
from labref.operations.status import problems
from labref.times import local
from labref.web.desk import Desk

__all__ = ["NAMES", "examine"]

NAMES: Final = {
    "python": "a Python that can run labref",
    "packages": "each package that it needs, in a version that fits",
    "runtime": "ONNX Runtime, and how many CPUs it has",
    "gpu": "whether there is a GPU that could be used",
    "config": "labref.toml and the LABREF_* variables",
    "permissions": "the lab's folder can be written, and others do not read it",
    "export": "each watched folder is there, can be read, and brings file events or is polled",
    "watch": "how many folders the system lets a process watch",
    "store": "the store opens, or its agent answers",
    "bundle": "the bundle in use is whole",
    "signature": "who signed the bundle in use",
    "device": "where the networks run, where they were to run, and why that differs",
    "networks": "the networks give here what they gave where they were made, and how many cells a second",
    "change": "a change to another bundle",
    "disk": "room on the lab's disk, and how long it lasts",
    "backup": "the last backup",
    "shared": "the shared store is told of the lab's cells",
    "clock": "this computer's clock, and that of the lab's disk",
    "port": "the ports of agent, pages and metrics",
    "service": "an agent runs, and starts with the computer",
    "agent": "the agent takes cells in",
    "certificate": "the certificate of the pages",
    "layout": "patterns of the export's layout that take too long",
    "job": "background work that failed",
}
"""The checks by name, with what each looks at."""
_SPEED_SECONDS: Final = 2.0
_SLOW: Final = 2.0  # cells a second
_SLIDE: Final = 200


def examine(folder: Path | None, *, speed: bool = True) -> Iterator[Finding]:
    """Look for everything that goes wrong in a lab; each finding as soon as it is there.

    folder : the lab's; None finds it as every command does.  speed : the networks are run for two seconds.
    """
    yield from computer.python()
    yield from computer.packages()
    yield from computer.runtime()
    try:
        lab = Lab.find(folder)
    except LabrefError as error:
        yield problem("config", str(error), "All checks of the lab wait for that.")
        return
    yield fine("config", f"{lab.config_file} can be used; `labref config show` tells each setting")
    yield from of_lab.permissions(lab)
    yield from of_lab.export_folders(lab)
    yield from of_lab.watch_limits(lab)
    found: Mapping[str, Any] | None = None
    newest = None
    try:
        with Desk.open(lab) as desk:
            found = desk.status()
            newest = next((row["stored_at"] for row in desk.run("live.cells", limit=1)), None)
    except LabrefError as error:
        yield problem(
            "store", str(error), "`labref store check` looks at all of it; `labref store restore` brings a backup back."
        )
    running = found is not None and found["agent"] is not None
    if found is not None:
        yield from _of_status(lab, found)
        yield from _networks(lab, found, speed=speed)
    yield from of_lab.clock(lab, None if newest is None else datetime.fromisoformat(newest))
    yield from of_lab.port(lab, running)
    yield from of_lab.service(lab, running)


def _signature(signature: Mapping[str, Any]) -> Finding:
    if signature["key"] is not None:
        return fine("signature", f"the bundle in use is signed by {signature['key_name']} ({signature['key']})")
    why = "it came in when labref knew no signatures" if signature["state"] == "before" else "somebody let it in so"
    return warning(
        "signature",
        f"nobody signed the bundle in use: {why}",
        "Ask whoever made it for a signed one, and bring that in: `labref bundle install FILE`.",
    )


def _of_status(lab: Lab, found: Mapping[str, Any]) -> Iterator[Finding]:
    """What the lab says of itself."""
    wrong: dict[str, list[tuple[str, str | None]]] = {}
    for check, says, remedy in problems(dict(found), lab):
        if check != "watched":  # these folders were looked at
            wrong.setdefault(check, []).append((says, remedy))
    files = sum(found["outcomes"].values())
    yield fine("store", f"{found['cells']:,} cells of {files:,} files; `labref store check` reads all of it")
    if "signature" not in wrong:
        yield _signature(found["signature"])
    if "bundle" not in wrong:
        bundle = found["bundle"]
        left = f"; {found['without_latent']:,} cells are still to be embedded" if found["without_latent"] else ""
        yield fine("bundle", f"{bundle['name']} {bundle['version']} ({bundle['digest'][:12]}) is whole{left}")
        if "device" not in wrong:
            yield fine("device", f"{found['provider_line']}; asked for: {lab.config.inference.device}")
    yield from _room(found, "disk" in wrong)
    yield from _backup(lab, found, "backup" in wrong)
    if "shared" not in wrong and found["shared"] is not None:
        yield _shared(found["shared"])
    later = {"device", "backup", "shared", "layout", "change"}
    if found["disk"] is not None and found["disk"]["free"] >= LEAST_FREE:
        later.add("disk")  # it will be full
    for check, told in wrong.items():
        for says, remedy in told:
            made = warning if check in later else problem
            yield made(check, says, _sentence(remedy) if remedy else "The line says what to do.")


def _room(found: Mapping[str, Any], wrong: bool) -> Iterator[Finding]:
    disk = found["disk"]
    if wrong:
        return
    if disk is None:
        yield note("disk", "the system does not say how much room the lab's disk has")
        return
    says = f"{disk['free'] / 1e9:.1f} GB free of {disk['total'] / 1e9:.1f} GB"
    if disk["bytes_a_cell"] is not None:
        says += f", {disk['bytes_a_cell'] / 1e3:.0f} kB a cell"
    if disk["days_left"] is not None:
        says += f", for {disk['days_left']:,.0f} days at the lab's rate of {disk['cells_a_day']:,.0f} cells a day"
    yield fine("disk", says)


def _backup(lab: Lab, found: Mapping[str, Any], wrong: bool) -> Iterator[Finding]:
    made = found["backup"]
    if wrong:
        return
    if made is None:
        away = lab.config.health.backup_days
        asked = f"; a problem after {away} days" if away else ", and labref.toml asks for none"
        yield note("backup", f"none was made yet{asked}", "`labref store backup FOLDER`, best on another disk.")
        return
    says = f"{local(made['at'])}, {made['cells']:,} cells, {made['target']}"
    if made["missing"]:
        yield warning(
            "backup", f"{says}; {made['missing']} kept images could not be in it", "`labref ledger --check` names them."
        )
    else:
        yield fine("backup", says)


def _shared(shared: Mapping[str, Any]) -> Finding:
    """The shared store, where no cell waits for long."""
    if shared["problem"] is not None:
        return warning(
            "shared",
            f"the shared store {shared['server']} cannot be told of cells now: {shared['problem']}",
            "The line says what to do. The agent tries again by itself, and nothing is lost.",
        )
    waiting = (
        f"is still to be told of {shared['waiting']:,} changes" if shared["waiting"] else "knows all cells of this lab"
    )
    return fine("shared", f"the shared store {shared['server']} {waiting}")


def _networks(lab: Lab, found: Mapping[str, Any], *, speed: bool) -> Iterator[Finding]:
    """Whether the networks give here what they gave at export, and how fast."""
    if found["provider"] == "none":
        return
    try:
        bundle = Bundle.installed(lab.bundles, found["bundle"]["digest"])
        embedder = lab.inference.open(bundle)
        try:
            difference = embedder.golden_difference()
            rate = cells_a_second(embedder, embedder.batch_size, _SPEED_SECONDS) if speed else None
        finally:
            embedder.close()
    except LabrefError as error:
        yield problem(
            "networks", str(error), 'Bring the bundle in again (`labref bundle install FILE`), or set device = "cpu".'
        )
        return
    says = f"they give their golden outputs here (largest difference {difference:.2g})"
    if rate is None:
        yield fine("networks", says)
        return
    beside = ", beside the running agent" if found["agent"] is not None else ""
    says += f"; {rate:,.0f} cells a second{beside}: a slide of {_SLIDE} in {_SLIDE / rate:.0f} s, without the reading of files"
    if rate < _SLOW:
        yield warning("networks", says, "Give labref more CPUs, or a GPU; look at what else this computer does.")
    else:
        yield fine("networks", says)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith(".") else ".")
