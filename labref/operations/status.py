"""`labref status`: how a lab and its agent are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from pydantic import Field

from labref.asking.answer import store_status
from labref.asking.room import LEAST_FREE, is_short, room
from labref.bundles.inference import Embedder
from labref.errors import BundleError
from labref.export.paths import path_to_text
from labref.lab import Lab
from labref.lab.backups import age_of_backup, is_old, last_backup
from labref.lab.mounts import condition_of
from labref.operations import operation
from labref.operations.bundle import BundleChange
from labref.operations.models import Answer, BundleName, BundleSignature, JobEnded, JobRunning
from labref.operations.optics import OpticsState
from labref.printing import counted
from labref.progress import Row
from labref.roles import Role
from labref.tasks.context import Context
from labref.tasks.publishing import is_behind, state
from labref.times import local
from labref.words import LabelSource, Outcome

__all__ = ["AgentJobs", "AgentStatus", "BackupState", "DiskState", "Status", "TrashState", "WatchedFolder", "problems"]


class WatchedFolder(Answer):
    """A folder of the analyser's export."""

    folder: str = Field(description="The folder.")
    how: Literal["events", "polling", "one pass", "unwatched", "missing", "unreadable"] = Field(
        description="How it is watched; `one pass` by `labref agent --once`, `unwatched` while no agent runs, `missing` "
        "where it is not there, `unreadable` where it cannot be listed."
    )


class AgentJobs(Answer):
    """The agent's background work."""

    running: JobRunning | None = Field(description="The job at work.")
    waiting: list[str] = Field(description="Names of the jobs that wait.")
    ended: dict[str, JobEnded] = Field(description="How each job ended last, by name.")


class AgentStatus(Answer):
    """The running agent."""

    pid: int = Field(description="Its process.")
    port: int = Field(description="The port of 127.0.0.1 that it answers on.")
    started_at: str = Field(description="Since when it runs, ISO 8601, UTC.")
    state: str = Field(description="What it does: starting, scanning, watching or ending.")
    problem: str | None = Field(description="What keeps it from storing cells; else null.")
    certificate_problem: str | None = Field(
        description="Why the certificate of HTTPS that is on the disk now is not used; null where it is, or there is none."
    )
    waiting: int = Field(description="Files that are still being written.")
    in_flight: int = Field(description="Files that are being read, embedded or stored.")
    embedded: int = Field(description="Cells embedded since its start.")
    last_scan_at: str | None = Field(description="When its last full scan ended, ISO 8601, UTC.")
    last_scan_seconds: float | None = Field(description="How long that scan took, seconds.")
    unreadable: list[str] = Field(description="Folders in the watched ones that the last scan could not read.")
    others: dict[str, int] = Field(description="Files that are no images by their names, by ending, at the last scan.")
    reserved: int = Field(
        description="Hidden folders, and folders and files with a name of the system's own, not looked at."
    )
    slow_patterns: list[str] = Field(description="Patterns of the layout that take too long on some paths, in words.")
    jobs: AgentJobs = Field(description="Its background work.")


class TrashState(Answer):
    """The cells that retention removed and that `labref store bring-back` brings back."""

    cells: int = Field(description="How many.")
    bytes: int = Field(description="Size of their kept bytes.")
    first_until: str = Field(
        description="Until when the first of them to go can be brought back, ISO 8601, UTC; later where the lab stands "
        "still meanwhile."
    )
    last_until: str = Field(description="The same of the last of them.")


class DiskState(Answer):
    """The disk that holds the lab's folder."""

    free: int = Field(description="Bytes that are free for labref.")
    total: int = Field(description="Bytes in all.")
    bytes_a_cell: int | None = Field(
        description="Bytes that a cell takes, its original and its rows in the store; null where none came in the last thirty days."
    )
    cells_a_day: float | None = Field(
        description="Cells that came a day, in the last thirty days; null where the lab has not grown for two days yet."
    )
    days_left: float | None = Field(description="Days until the disk is full, at this rate; null where there is none.")


class BackupState(Answer):
    """The last backup that `labref store backup` made of this lab."""

    at: str = Field(description="When it was whole, ISO 8601, UTC.")
    target: str = Field(description="The folder or file.")
    cells: int = Field(description="Cells in its store.")
    missing: int = Field(description="Kept images that it could not have, as they are missing or damaged.")


class SharedState(Answer):
    """The shared store that this lab publishes to."""

    server: str = Field(description="Where it is: host, port and database.")
    waiting: int = Field(description="Cells that came, changed or went, and of which it is still to be told.")
    since: str | None = Field(description="When the first of them did, ISO 8601, UTC; null where none waits.")
    problem: str | None = Field(
        description="Why the agent cannot tell it now; it tries again by itself. Null where it can, or no agent runs."
    )


class Status(Answer):
    """How a lab and its agent are."""

    lab: str = Field(description="The lab's folder.")
    version: str = Field(description="Version of labref.")
    bundle: BundleName = Field(description="The active bundle.")
    signature: BundleSignature = Field(description="Who signed the active bundle.")
    without_latent: int = Field(description="Cells that are still to be embedded by the active bundle.")
    optics: list[OpticsState] = Field(description="Each optics and whether it drifts, the one with most cells first.")
    bundle_change: BundleChange | None = Field(description="The change to another bundle that is under way.")
    provider: str = Field(description="Where the networks run: ONNX Runtime's name of the execution provider, or none.")
    provider_line: str = Field(description="The same in words, and why.")
    fallback: str | None = Field(
        description="Why the GPU of this computer is not used, where it was to be; null where there is none, or it is used."
    )
    cells: int = Field(description="Cells stored.")
    trash: TrashState | None = Field(description="Removed cells that can be brought back; null where there are none.")
    outcomes: dict[Outcome, int] = Field(description="Files by outcome.")
    labels: dict[str, int] = Field(description="Cells by class.")
    label_sources: dict[LabelSource, int] = Field(description="Cells by who gave their class.")
    slides: dict[str, int] = Field(
        description="Cells by slide, with the watched folder where several have the name; it can identify a patient."
    )
    analysers: dict[str, int] = Field(description="Cells by analyser, of those that name one.")
    disk: DiskState | None = Field(
        description="The disk that holds the lab's folder; null where the system does not say."
    )
    backup: BackupState | None = Field(description="The last backup; null where there was none.")
    shared: SharedState | None = Field(description="The shared store; null where the lab has none.")
    watch: list[WatchedFolder] = Field(description="The watched folders.")
    agent: AgentStatus | None = Field(description="The running agent; null while none runs.")
    attention: list[str] = Field(
        description="Problems for somebody to solve, each with what to do. While there is one, `labref status` exits 1."
    )


@operation("status", Status, method="GET", single=True, role=Role.VIEW)
def status(context: Context) -> Iterator[Row]:
    """Say how the lab and its agent are: what is stored, which bundle, which device, what is watched."""
    embedder: Embedder | BundleError
    try:
        embedder = context.embedder()
    except BundleError as error:  # what is stored can be told all the same
        embedder = error
    found = store_status(context.lab, context.store, embedder)
    if context.agent_status is not None:
        found |= context.agent_status()
    else:
        watch = [
            {"folder": path_to_text(str(folder)), "how": condition_of(context.lab, folder) or "unwatched"}
            for folder in context.lab.watched
        ]
        found |= {"watch": watch, "agent": None}
    found["shared"] = state(context.lab, context.store, context.publisher)
    found["disk"] = room(context.lab, context.store, found["cells"])
    made = last_backup(context.lab)
    found["backup"] = None if made is None else asdict(made)
    told = [what if remedy is None else f"{what}; {remedy}" for _, what, remedy in problems(found, context.lab)]
    yield found | {"attention": told}


def problems(found: Row, lab: Lab) -> Iterator[tuple[str, str, str | None]]:
    """The problems in a status that somebody has to solve: what it is about, what is wrong, and what to do, where that
    is not already said. found : a `Status`."""
    if found["provider"] == "none":
        yield (
            "bundle",
            f"{found['provider_line']} Until then no cell is taken in and no question answered",
            "or change to another bundle: `labref bundle install FILE`, then `labref bundle activate NAME`",
        )
    if found["fallback"] is not None:
        yield (
            "device",
            f"this computer has a GPU that is not used: {found['fallback']}",
            'or set device = "cpu" in labref.toml, [inference]',
        )
    signature = found["signature"]
    if signature["state"] == "revoked":
        yield (
            "signature",
            f"the active bundle is signed by the key {signature['key_name']} ({signature['key']}), which was revoked here",
            "change to one that a trusted key signed (`labref bundle install FILE`, then `labref bundle activate NAME`), or go "
            "back: `labref bundle rollback`",
        )
    for watched in found["watch"]:
        if watched["how"] == "missing":
            yield (
                "watched",
                f"the watched folder {watched['folder']} is not there",
                f"mount it, or correct [watch] folders in {path_to_text(str(lab.config_file))}",
            )
        elif watched["how"] == "unreadable":
            yield "watched", f"the watched folder {watched['folder']} cannot be listed", "give labref's user access"
    change = found["bundle_change"]
    if change is not None and change["state"] == "held":
        yield (
            "change",
            f"the change to another bundle waits, as {change['failed']} cells cannot be embedded",
            "restore them from a backup, or leave them out: `labref bundle activate "
            f"{change['bundle']['digest'][:12]} --switch --leave-out`",
        )
    if is_short(found["disk"], lab.config.health.disk_days):
        yield "disk", _short_of_room(found["disk"]), _MORE_ROOM
    if is_old(lab, found["cells"]):
        yield "backup", _old_backup(lab, found["backup"]), _BACK_UP
    agent, shared = found["agent"], found["shared"]
    if shared is not None and shared["since"] is not None and is_behind(datetime.fromisoformat(shared["since"])):
        why = f": {shared['problem'].rstrip('.')}" if shared["problem"] else ""
        yield (
            "shared",
            f"the shared store {shared['server']} was not told of {counted(shared['waiting'], 'change')}, the first since {local(shared['since'])}{why}",
            "start the agent, or say `labref shared publish`"
            if agent is None
            else "the agent tries again by itself, and nothing is lost",
        )
    if agent is not None:
        if agent["problem"] is not None:
            yield "agent", f"the agent stores nothing: {agent['problem']}", None
        if agent["certificate_problem"] is not None:
            yield "certificate", f"the renewed certificate is not used: {agent['certificate_problem']}", None
        for slow in agent["slow_patterns"]:
            yield "layout", slow, None
        if agent["unreadable"]:
            named = ", ".join(agent["unreadable"][:3])
            yield (
                "export",
                f"{len(agent['unreadable'])} folders in the watched ones cannot be read: {named}",
                "give labref's user access",
            )
        for name, ended in agent["jobs"]["ended"].items():
            if ended["outcome"] == "failed":
                yield "job", f"the job {name} failed: {ended['message']}", None


_MORE_ROOM: Final = "free space, move the lab to a larger disk, or let old cells go ([retention] in labref.toml)"
_BACK_UP: Final = (
    "make one with `labref store backup FOLDER`, best on another disk. Where the lab's folder is backed up in another way, "
    "say so: [health] backup_days = 0 in labref.toml"
)


def _short_of_room(disk: Row) -> str:
    if disk["free"] < LEAST_FREE:
        return f"the disk that holds the lab is full: {disk['free'] / 1e6:.0f} MB are free"
    return (
        f"the disk that holds the lab will be full in {disk['days_left']:.0f} days: {disk['free'] / 1e9:.1f} GB are free, and "
        f"{disk['cells_a_day']:.0f} cells of {disk['bytes_a_cell'] / 1e3:.0f} kB come a day"
    )


def _old_backup(lab: Lab, made: Row | None) -> str:
    age = age_of_backup(lab, datetime.now(UTC))
    if made is None or age is None:
        return "the lab was never backed up"
    if age < timedelta(0):
        return (
            f"the last backup is dated {made['at'][:10]}, which is still to come: the clock was wrong when it was made"
        )
    return f"the last backup is {age.days} days old"
