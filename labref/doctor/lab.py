"""One lab on this computer, seen from outside: its configuration, folders, rights, clock, port, service and room."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from labref.doctor.findings import fine, note, problem, warning
from labref.export.roots import is_network_folder, kind_of
from labref.files import read_file
from labref.lab import Lab
from labref.lab.mounts import condition_of
from labref.operations.condition import Finding
from labref.service import NAME, cut_off, is_outdated, registered

__all__ = ["clock", "export_folders", "permissions", "port", "service", "watch_limits"]

_EARLIEST: Final = datetime(2024, 1, 1, tzinfo=UTC)
"""Before labref was begun: a clock that says so has lost its battery."""
_SKEW_SECONDS: Final = 120.0
_FEW_WATCHES: Final = 20_000
_SOME: Final = 200  # entries of an export folder that are looked at


def export_folders(lab: Lab) -> Iterator[Finding]:
    """Whether each watched folder is there, can be read by this user, and brings file events."""
    if not lab.watched:
        yield problem("export", "no folder is watched", f"Name one in {lab.config_file}: [watch] folders.")
    for root in lab.watched:
        wrong = condition_of(lab, root)
        if wrong == "missing":
            yield problem(
                "export", f"{root} is not there", f"Mount it, or correct [watch] folders in {lab.config_file}."
            )
            continue
        if wrong == "unreadable":
            yield problem("export", f"{root} cannot be listed by this user", "Give labref's user the right to read it.")
            continue
        closed = _closed(root)
        if closed:
            yield problem(
                "export",
                f"{closed[0]} in {root} cannot be read by this user",
                "Give labref's user the right to read it.",
            )
        network = is_network_folder(root)
        kind = kind_of(root) if sys.platform != "win32" else ("a network drive" if network else "a local disk")
        polling = lab.config.watch.polling
        if network and polling is False:
            yield warning(
                "export",
                f"{root} is on a network share ({kind}), where file events cannot be relied on",
                f'Set polling = "auto" in {lab.config_file}, [watch].',
            )
        else:
            how = "is polled" if polling is True or (network and polling == "auto") else "brings file events"
            yield fine("export", f"{root} can be read, and {how} ({kind or 'file system unknown'})")


def _closed(root: Path) -> list[str]:
    """Entries of a folder, among its first, that this user may not read."""
    found: list[str] = []
    with contextlib.suppress(OSError), os.scandir(root) as entries:
        for _, entry in zip(range(_SOME), entries, strict=False):
            with contextlib.suppress(OSError):
                wanted = os.R_OK | os.X_OK if entry.is_dir() else os.R_OK
                if not os.access(entry.path, wanted):
                    found.append(entry.name)
    return found


def watch_limits(lab: Lab) -> Iterator[Finding]:
    """Whether Linux lets a process watch enough folders."""
    if sys.platform != "linux" or lab.config.watch.polling is True:
        return
    with contextlib.suppress(OSError, ValueError):
        most = int(read_file("/proc/sys/fs/inotify/max_user_watches", 64).split()[0])
        if most < _FEW_WATCHES:
            yield warning(
                "watch",
                f"this system lets a user watch {most:,} folders; an export with more is polled instead",
                "`sysctl fs.inotify.max_user_watches=524288`, and a line in /etc/sysctl.d to keep it.",
            )
        else:
            yield fine("watch", f"file events of up to {most:,} folders")


def permissions(lab: Lab) -> Iterator[Finding]:
    """Whether this user may write in the lab, and nobody else reads it."""
    folder = lab.folder
    try:
        descriptor, name = tempfile.mkstemp(prefix=".labref-doctor-", dir=folder)
        os.close(descriptor)
        Path(name).unlink()
    except OSError as error:
        yield problem(
            "permissions",
            f"nothing can be written in {folder}: {error.strerror or error}",
            "Run labref as the user who made the lab, or give this user the folder; look at the disk.",
        )
        return
    if os.name == "nt":
        yield note(
            "permissions",
            f"{folder} can be written",
            "Who else may read it, `icacls` says: make the lab in a folder that others cannot read.",
        )
        return
    mode, owner = folder.stat().st_mode, folder.stat().st_uid
    if owner != os.geteuid() and not lab.config.access.group:
        yield warning(
            "permissions",
            f"{folder} belongs to user {owner}, and this is user {os.geteuid()}: files made now are not the owner's",
            "Run labref as the lab's owner.",
        )
    open_to = stat.S_IMODE(mode) & ~lab.rights.folder & 0o777 & ~0o011
    if open_to:
        yield warning(
            "permissions",
            f"{folder} can be read by other users of this computer (mode {stat.S_IMODE(mode):o})",
            f"`chmod {lab.rights.folder & 0o777:o} {folder}`; the agent does so at its start where it owns the folder.",
        )
    else:
        yield fine("permissions", f"{folder} can be written, and is closed to other users")


def clock(lab: Lab, newest: datetime | None) -> Iterator[Finding]:
    """Whether this computer's clock can be right. newest : when the lab's newest cell came; None in an empty lab."""
    now = datetime.now(UTC)
    if now < _EARLIEST:
        yield problem("clock", f"this computer's clock says {now:%Y-%m-%d}", "Set it, and let it follow a time server.")
        return
    if newest is not None and (newest - now).total_seconds() > _SKEW_SECONDS:
        yield problem(
            "clock",
            f"the lab's newest cell came on {newest:%Y-%m-%d %H:%M} UTC, and the clock says {now:%Y-%m-%d %H:%M}: it goes wrong, or went",
            "Set the clock; labref removes nothing by age while it jumps.",
        )
        return
    skew = _disk_skew(lab.folder)
    if skew is not None and abs(skew) > _SKEW_SECONDS:
        yield warning(
            "clock",
            f"the disk of {lab.folder} gives files times that are {skew:.0f} s off this computer's clock",
            "Let both follow the same time server.",
        )
    else:
        yield fine("clock", f"{now:%Y-%m-%d %H:%M} UTC, {time.tzname[time.localtime().tm_isdst > 0]} here")


def _disk_skew(folder: Path) -> float | None:
    """By how many seconds a new file is dated after this moment."""
    with contextlib.suppress(OSError), tempfile.NamedTemporaryFile(prefix=".labref-doctor-", dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime - time.time()
    return None


def port(lab: Lab, running: bool) -> Iterator[Finding]:
    """Whether the agent's ports are free. running : whether the lab's agent has them."""
    web = lab.config.web
    wanted = [("127.0.0.1", lab.config.agent.port, "[agent] port")]
    if web.certificate is not None:
        wanted.append((web.address, web.port, "[web] address or port"))
    if lab.config.metrics.address:
        wanted.append((lab.config.metrics.address, lab.config.metrics.port, "[metrics] address or port"))
    for address, number, setting in wanted:
        if number == 0:
            yield fine("port", f"the agent takes any free port of {address}")
        elif running:
            yield fine("port", f"the agent has {address}:{number}")
        elif (error := _cannot_bind(address, number)) is None:
            yield fine("port", f"{address}:{number} is free")
        else:
            yield problem(
                "port",
                f"{address}:{number} cannot be used: {error}",
                f"End the program that has it, or choose another {setting} in {lab.config_file}"
                + ("; 0 takes any free one." if setting == "[agent] port" else "."),
            )


def _cannot_bind(address: str, number: int) -> str | None:
    try:
        family = socket.getaddrinfo(address, number, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            if os.name != "nt":  # there it would let two have one port
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((address, number))
    except OSError as error:
        return error.strerror or str(error)
    return None


def service(lab: Lab, running: bool) -> Iterator[Finding]:
    """Whether an agent runs, and whether the system starts one by itself."""
    found = registered(lab)
    how = "no service starts it with the computer" if found.kind is None else f"the service {NAME} is {found.state}"
    if beyond := cut_off(lab, found):
        yield warning(
            "service",
            f"the service {NAME} lets no other computer reach the agent, and labref.toml has it answer at {' and '.join(beyond)}",
            f"`labref service renew --lab {lab.folder}`, as administrator: it writes the unit anew.",
        )
    elif is_outdated(lab, found):
        yield note(
            "service",
            f"{found.file} is not what this labref writes: another version wrote it, or somebody changed it",
            f"`labref service renew --lab {lab.folder}`, as administrator, writes it anew. On Linux, changes of your own stay in a "
            f"drop-in: `systemctl edit {NAME}`.",
        )
    if running and found.kind is None:
        yield note("service", f"an agent runs; {how}", "`labref service install` registers it.")
    elif running:
        yield fine("service", f"an agent runs; {how}")
    else:
        yield warning(
            "service",
            f"no agent runs; {how}",
            f"Start one: `labref agent --lab {lab.folder}`, or as a service: `labref service install`.",
        )
