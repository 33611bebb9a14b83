"""Registering the agent with the system, and taking it out again. Every step is a program of the system's own."""

from __future__ import annotations

import contextlib
import getpass
import ipaddress
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from labref.errors import LabError
from labref.files import replace_file
from labref.lab import Lab, absolute
from labref.service.descriptions import CLOSED, NAME, Chosen, Described, Kind, chosen_in, describe

__all__ = ["Registered", "cut_off", "install", "is_outdated", "registered", "remove", "renew", "write_container"]

_CONTAINER: Final = Path(__file__).parent / "container"
_UNITS: Final = Path("/etc/systemd/system")
_SECONDS: Final = 180.0
_Steps = Iterator[str]


@dataclass(frozen=True)
class Registered:
    """What the system knows of the service. kind : how it is registered; None where it is not.  state : in the system's
    words.  file : that describes it, where it is known."""

    kind: Kind | None
    state: str
    file: Path | None


def install(
    lab: Lab,
    *,
    user: str | None = None,
    winsw: Path | None = None,
    gpu: bool = False,
    writable: Sequence[Path] = (),
    only_write: Path | None = None,
) -> _Steps:
    """Register the agent of this lab, and start it; says each step that was done.

    user : that the agent runs as; by default who owns the lab.  winsw : WinSW's program, on Windows; None takes the
    Task Scheduler.  writable : folders beside the lab that the agent may write in, on Linux.  only_write : the file is
    written into this folder, and nothing is registered.
    Raises `LabError` where a step fails, with the system's own words.
    """
    kind: Kind = "systemd" if not _is_windows() else "task" if winsw is None else "winsw"
    user = user or _owner(lab)
    if kind == "systemd" and user == "root" and only_write is None:
        raise LabError(
            "the agent is not run as root: a fault in it would reach the whole computer. Make a user for it (`useradd --system "
            f"labref`), give it the lab (`chown -R labref: {lab.folder}`), and name it: --user labref."
        )
    if kind == "systemd" and only_write is None:
        _require_owner(lab, user)
    described = describe(
        kind,
        lab=lab.folder,
        python=Path(sys.executable),
        user=user,
        network=bool(_reached_at(lab)),
        gpu=gpu,
        writable=[absolute(folder) for folder in writable],
    )
    if only_write is not None:
        yield f"{_write(only_write, described)} written; nothing is registered"
        return
    if kind == "systemd":
        new = not (_UNITS / described.name).exists()
        file = _write(_UNITS, described)
        try:
            _run(["systemctl", "daemon-reload"])
        except LabError:
            if new:
                _unlink(file)  # systemd does not run: nothing is left behind that cannot be removed
            raise
        yield f"{file} written"
        _run(["systemctl", "enable", NAME])
        _run(["systemctl", "restart", NAME])  # one that runs takes the new file, and the new labref
        yield f"{NAME} starts with the computer, and runs now as {user}"
    elif winsw is not None:
        folder = lab.folder / "service"
        program = folder / f"{NAME}.exe"
        file = _write(folder, described)
        try:
            shutil.copyfile(winsw, program)
        except OSError as error:
            raise LabError(f"{winsw} cannot be copied to {program}: {error.strerror or error}.") from None
        yield f"{file} written, WinSW beside it"
        _run([str(program), "install"])
        _run([str(program), "start"])
        yield f"{NAME} starts with the computer, and runs now"
    else:
        file = _write(lab.folder / "service", described)
        yield f"{file} written"
        _run(["schtasks.exe", "/Create", "/F", "/TN", NAME, "/XML", str(file), "/RU", user, "/RP", "*"], asks=True)
        _run(["schtasks.exe", "/Run", "/TN", NAME])
        yield f"the task {NAME} starts with the computer, and runs now as {user}"


def write_container(folder: Path) -> _Steps:
    """Write what makes a container of a stick into its folder `container`. folder : that `make wheelhouse` made.

    Raises `LabError` where it is no such folder, or one for another system.
    """
    stick = folder / "stick.json"
    try:
        described = json.loads(stick.read_text(encoding="utf-8"))
        platform = described["platform"]
    except (OSError, ValueError, KeyError, TypeError):
        raise LabError(f"{folder} is no folder that `make wheelhouse PLATFORM=manylinux` made.") from None
    if platform != "manylinux":
        raise LabError(f"{folder} is for {platform}; a container needs one of `make wheelhouse PLATFORM=manylinux`.")
    for file in sorted(file for file in _CONTAINER.iterdir() if file.is_file()):
        yield f"{_write(folder / 'container', Described(file.name, file.read_bytes()))} written"


def renew(lab: Lab) -> _Steps:
    """Write the file of the registered service as this labref writes it, for the user, GPU and folders that it was
    registered with. Where it differs, the one before stays beside it, and an agent that runs is started anew.

    Raises `LabError` where no service of this lab is registered, the Task Scheduler has it, or a step fails.
    """
    found = registered(lab)
    if found.kind is None or found.file is None:
        raise LabError(f"no service {NAME} is registered here; `labref service install` registers it.")
    if found.kind == "task":
        raise LabError(
            "the Task Scheduler wants the user's password for a task that is changed: `labref service install` writes it anew."
        )
    described = _as_now(lab, found.kind, found.file)
    if described is None:
        raise LabError(
            f"{found.file} is not the service of the lab {lab.folder}: `labref service install` makes it that."
        )
    before = found.file.read_bytes()
    if before == described.data:
        yield f"{found.file} is as this labref writes it; nothing was changed"
        return
    kept = _write(found.file.parent, Described(f"{found.file.name}.before", before))
    _write(found.file.parent, described)
    if found.kind == "systemd":
        try:
            _run(["systemctl", "daemon-reload"])
        except LabError:
            _write(found.file.parent, Described(found.file.name, before))
            raise
    yield f"{found.file} written anew; the one before is {kept}"
    if found.kind == "systemd":
        _run(["systemctl", "try-restart", NAME])


def is_outdated(lab: Lab, found: Registered | None = None) -> bool:
    """Whether the file of this lab's registered service is not what this labref would write for the same choices,
    whichever Python it names: another version wrote it, somebody changed it, or labref.toml changed since. found : what
    the system knows of the service, where that was asked already."""
    found = found or registered(lab)
    if found.kind not in ("systemd", "winsw") or found.file is None:
        return False
    described = _as_now(lab, found.kind, found.file)
    return described is not None and _but_for_python(described.data) != _but_for_python(found.file.read_bytes())


def _as_now(lab: Lab, kind: Kind, file: Path) -> Described | None:
    """What this labref would write in place of a service's file; None where it cannot be read, or is of another lab."""
    try:
        text = file.read_text(encoding="utf-8")
        chosen = chosen_in(text) if kind == "systemd" else Chosen(lab.folder)  # the others lie in the lab
    except (OSError, ValueError):
        return None
    if chosen.lab != lab.folder:
        return None
    return describe(
        kind,
        lab=lab.folder,
        python=Path(sys.executable),
        user=chosen.user,
        network=bool(_reached_at(lab)),
        gpu=chosen.gpu,
        writable=chosen.writable,
    )


def _but_for_python(data: bytes) -> list[bytes]:
    return [line for line in data.splitlines() if not line.strip().startswith((b"ExecStart=", b"<executable>"))]


def remove(lab: Lab) -> _Steps:
    """Take the service out of the system: its agent ends in good order, where the system can do that. The lab stays."""
    found = registered(lab)
    if found.kind is None:
        raise LabError(f"no service {NAME} is registered here; there is nothing to remove.")
    if found.kind == "systemd":
        _run(["systemctl", "disable", "--now", NAME])
        for name in (f"{NAME}.service", f"{NAME}.service.before"):
            _unlink(_UNITS / name)
        _run(["systemctl", "daemon-reload"])
    elif found.kind == "winsw":
        program = lab.folder / "service" / f"{NAME}.exe"
        _run([str(program), "stop"])
        _run([str(program), "uninstall"])
        for file in (program, program.with_suffix(".xml"), program.with_suffix(".xml.before")):
            _unlink(file)
    else:
        _run(["schtasks.exe", "/End", "/TN", NAME])
        _run(["schtasks.exe", "/Delete", "/F", "/TN", NAME])
        _unlink(lab.folder / "service" / f"{NAME}-task.xml")
    yield f"{NAME} is not registered any more; the lab {lab.folder} is as it was"


def registered(lab: Lab) -> Registered:
    """What the system knows of the service now."""
    return _on_windows(lab) if _is_windows() else _by_systemd()


def cut_off(lab: Lab, found: Registered | None = None) -> list[str]:
    """Addresses of labref.toml at which other computers are to reach the agent, and the registered unit forbids it: it
    was written before they were set. found : as of `is_outdated`."""
    found = found or registered(lab)
    if found.kind != "systemd" or found.file is None:
        return []
    with contextlib.suppress(OSError, ValueError):
        if CLOSED in found.file.read_text(encoding="utf-8").splitlines():
            return _reached_at(lab)
    return []


def _reached_at(lab: Lab) -> list[str]:
    """The addresses of labref.toml at which other computers reach the agent: its pages, and its numbers."""
    web, metrics = lab.config.web, lab.config.metrics
    given = [*([web.address] if web.certificate is not None else []), metrics.address]
    return [address for address in given if address and not ipaddress.ip_address(address).is_loopback]


def _require_owner(lab: Lab, user: str) -> None:
    """Raise `LabError` where the agent, as this user, could not work on the lab."""
    uid = _uid(user)
    if uid is None:
        raise LabError(
            f"there is no user {user} on this computer. Make it (`useradd --system {user}`), give it the lab (`chown -R {user}: "
            f"{lab.folder}`), and call this again."
        )
    if not lab.config.access.group and uid != lab.folder.stat().st_uid:
        raise LabError(
            f"the lab {lab.folder} belongs to {_owner(lab)}, and an agent that runs as {user} could not write in it. Give it the lab "
            f"(`chown -R {user}: {lab.folder}`), or name its owner: --user."
        )


def _uid(user: str) -> int | None:
    """A user's number; None where this computer has no such user."""
    if sys.platform == "win32":
        return None
    import pwd

    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None


def _by_systemd() -> Registered:
    file = _UNITS / f"{NAME}.service"
    if shutil.which("systemctl") is None:
        return Registered(None, "this system has no systemd", None)
    state = _said(["systemctl", "is-active", NAME]) or "unknown"
    enabled = _said(["systemctl", "is-enabled", NAME])
    if not file.exists() and enabled not in ("enabled", "disabled", "static", "linked", "masked"):
        return Registered(None, "not registered", None)
    return Registered("systemd", f"{state}, {enabled or 'not enabled'}", file if file.exists() else None)


def _on_windows(lab: Lab) -> Registered:
    program = lab.folder / "service" / f"{NAME}.exe"
    if program.exists() and (state := _said([str(program), "status"])):
        return Registered("winsw", state, program.with_suffix(".xml"))
    if state := _said(["schtasks.exe", "/Query", "/TN", NAME, "/FO", "CSV", "/NH"]):
        return Registered("task", state.splitlines()[-1], lab.folder / "service" / f"{NAME}-task.xml")
    return Registered(None, "not registered", None)


def _is_windows() -> bool:
    return os.name == "nt"


def _owner(lab: Lab) -> str:
    if os.name == "nt":
        domain = os.environ.get("USERDOMAIN")
        name = getpass.getuser()
        return f"{domain}\\{name}" if domain else name
    try:
        return lab.folder.owner()
    except KeyError:  # of a user that was deleted
        return str(lab.folder.stat().st_uid)


def _write(folder: Path, described: Described) -> Path:
    file = folder / described.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(file, described.data, mode=0o644)
    except OSError as error:
        raise LabError(f"{file} cannot be written: {error.strerror or error}. {_otherwise()}") from None
    return file


def _unlink(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise LabError(f"{file} cannot be deleted: {error.strerror or error}. {_otherwise()}") from None


def _otherwise() -> str:
    """What to do where the system refuses a step."""
    if _is_root():
        return f"`journalctl -u {NAME}` and `labref doctor` may say more; or write the file only, --write FOLDER."
    return (
        "Services are registered as administrator: with sudo, on Windows in an administrator's prompt; or write the file only, "
        "--write FOLDER."
    )


def _is_root() -> bool:
    return sys.platform != "win32" and os.geteuid() == 0


def _run(command: Sequence[str], *, asks: bool = False) -> None:
    """Run a program of the system; `LabError` where it fails. asks : it asks on the terminal, as for a password."""
    try:
        done = subprocess.run(
            list(command), capture_output=not asks, text=True, errors="replace", timeout=None if asks else _SECONDS
        )
    except FileNotFoundError:
        raise LabError(f"there is no {command[0]} on this system. Write the file only: --write FOLDER.") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise LabError(f"`{' '.join(command)}` failed: {error}. {_otherwise()}") from None
    if done.returncode:
        said = "" if asks else "; ".join((done.stderr or done.stdout).split("\n")).strip("; ")
        raise LabError(f"`{' '.join(command)}` failed ({done.returncode}): {said or 'no word'}. {_otherwise()}")


def _said(command: Sequence[str]) -> str:
    """What a program prints; nothing where it is not there or does not answer."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            list(command), capture_output=True, text=True, errors="replace", timeout=10
        ).stdout.strip()
    return ""
