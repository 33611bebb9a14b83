"""The files that describe the agent to the system: a systemd unit, WinSW's XML, a task of the Task Scheduler."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final, Literal
from xml.sax.saxutils import escape

from labref.errors import LabError

__all__ = ["CLOSED", "NAME", "Chosen", "Described", "Kind", "chosen_in", "describe"]

NAME: Final = "labref-agent"
"""What the system calls the service."""
CLOSED: Final = "IPAddressDeny=any"
"""A unit with this line lets no other computer reach the agent."""
Kind = Literal["systemd", "winsw", "task"]
_STOP_SECONDS: Final = 120
_WATCHDOG_SECONDS: Final = 180
"""systemd ends and starts an agent that has not said for so long that it is at work; see `labref.agent.notify`."""

_UNIT: Final = """\
[Unit]
Description=labref agent: takes the analyser's cells in, answers reference queries
After=network-online.target remote-fs.target
Wants=network-online.target
# never given up: what keeps it from starting, as a full disk, may be gone tomorrow
StartLimitIntervalSec=0

[Service]
# The agent says when it is ready, and that it is at work: one that hangs is ended and started again
Type=notify
NotifyAccess=main
WatchdogSec={watchdog}
TimeoutStartSec=600
{user}Environment={lab_variable}
ExecStart=:{command}
# SIGTERM: the agent finishes the batch in hand, closes the store, and exits 0
KillSignal=SIGTERM
TimeoutStopSec={stop}
Restart=on-failure
RestartSec=30
# The analyser's own software comes first
Nice=5
IOSchedulingClass=best-effort
IOSchedulingPriority=6

# The lab is all that the agent writes; the export folder is read
ProtectSystem=strict
ReadWritePaths={writable}
ProtectHome=read-only
PrivateTmp=yes
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
{devices}ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
ProtectProc=invisible
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
{network}
[Install]
WantedBy=multi-user.target
"""
_WINSW: Final = """\
<service>
  <id>{name}</id>
  <name>labref agent</name>
  <description>Takes the analyser's cells in and answers reference queries</description>
  <executable>{program}</executable>
  <arguments>{arguments}</arguments>
  <workingdirectory>{lab}</workingdirectory>
  <env name="LABREF_LAB" value="{lab}"/>
  <startmode>Automatic</startmode>
  <delayedAutoStart>true</delayedAutoStart>
  <priority>belownormal</priority>
  <!-- Ctrl-C: the agent finishes the batch in hand, closes the store, and exits 0 -->
  <stoptimeout>{stop} sec</stoptimeout>
  <onfailure action="restart" delay="15 sec"/>
  <onfailure action="restart" delay="60 sec"/>
  <onfailure action="restart" delay="300 sec"/>
  <resetfailure>1 hour</resetfailure>
  <logpath>{logs}</logpath>
  <log mode="roll-by-size">
    <sizeThreshold>5120</sizeThreshold>
    <keepFiles>4</keepFiles>
  </log>
</service>
"""
_TASK: Final = """\
<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo>
    <Description>labref agent: takes the analyser's cells in, answers reference queries</Description>
  </RegistrationInfo>
  <Triggers>
    <BootTrigger>
      <Enabled>true</Enabled>
      <Delay>PT1M</Delay>
    </BootTrigger>
  </Triggers>
  <Principals>
    <Principal id="Author">
      <UserId>{user}</UserId>
      <LogonType>Password</LogonType>
      <RunLevel>LeastPrivilege</RunLevel>
    </Principal>
  </Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <StartWhenAvailable>true</StartWhenAvailable>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <Priority>7</Priority>
    <RestartOnFailure>
      <Interval>PT1M</Interval>
      <Count>999</Count>
    </RestartOnFailure>
  </Settings>
  <Actions Context="Author">
    <Exec>
      <Command>{program}</Command>
      <Arguments>{arguments}</Arguments>
      <WorkingDirectory>{lab}</WorkingDirectory>
    </Exec>
  </Actions>
</Task>
"""


@dataclass(frozen=True)
class Described:
    """One file that describes the service. name : of the file.  data : its bytes."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Chosen:
    """What a unit was written with; see `describe`. lab : None where the unit names none."""

    lab: Path | None = None
    user: str | None = None
    gpu: bool = False
    writable: tuple[Path, ...] = ()


def chosen_in(unit: str) -> Chosen:
    """What a systemd unit of `describe` was written with. Raises `ValueError` where its quotes do not close."""
    lab, user, writable = None, None, []
    for line in unit.splitlines():
        name, _, value = line.partition("=")
        if name == "Environment":
            for word in _words(value):
                if word.startswith("LABREF_LAB="):
                    lab = Path(word.partition("=")[2])
        elif name == "User":
            user = value.replace("%%", "%")
        elif name == "ReadWritePaths":
            writable += [Path(word[1:]) for word in _words(value) if word.startswith("-")]
    return Chosen(lab, user, "PrivateDevices=yes" not in unit.splitlines(), tuple(writable))


def describe(
    kind: Kind,
    *,
    lab: PurePath,
    python: PurePath,
    user: str | None,
    network: bool = False,
    gpu: bool = False,
    writable: Sequence[PurePath] = (),
) -> Described:
    """The file for a lab.

    lab : its folder, absolute.  python : the Python that has labref.  user : that the agent runs as; None lets WinSW
    take its own account, and systemd root, which `labref service install` never does.  network : other computers reach
    the agent; else systemd lets it reach this one alone.  gpu : it may use devices.  writable : folders beside the lab
    that it may write in, as for backups, absolute; systemd lets it write nowhere else.
    Raises `LabError` where a path or a name cannot be written there.
    """
    for what, value in (
        ("the lab's folder", str(lab)),
        ("Python's path", str(python)),
        ("the user's name", user or ""),
        *(("a folder's name", str(folder)) for folder in writable),
    ):
        if any(ord(character) < 32 for character in value):
            raise LabError(f"{what} {value!r} holds a control character, and no service can be told of it. Rename it.")
    if kind == "systemd":
        if any(character in "\"'\\" for character in str(python)):
            raise LabError(
                f"systemd runs no program with quotes or backslashes in its path: {python}. Install labref elsewhere."
            )
        return Described(f"{NAME}.service", _unit(lab, python, user, network, gpu, writable).encode())
    arguments = f'-m labref agent --lab "{lab}"'
    values = {
        "name": NAME,
        "program": str(python),
        "arguments": arguments,
        "lab": str(lab),
        "logs": str(lab / "logs"),
        "user": user or "",
        "stop": str(_STOP_SECONDS),
    }
    written = {name: escape(value, {'"': "&quot;"}) for name, value in values.items()}
    if kind == "winsw":
        return Described(f"{NAME}.xml", _WINSW.format_map(written).encode())
    return Described(f"{NAME}-task.xml", _TASK.format_map(written).encode("utf-16"))


def _unit(
    lab: PurePath, python: PurePath, user: str | None, network: bool, gpu: bool, writable: Sequence[PurePath]
) -> str:
    command = " ".join(_quoted(word) for word in (str(python), "-m", "labref", "agent", "--lab", str(lab)))
    return _UNIT.format(
        watchdog=_WATCHDOG_SECONDS,
        stop=_STOP_SECONDS,
        user="" if user is None else f"User={_plain(user)}\n",
        lab_variable=_quoted(f"LABREF_LAB={lab}"),
        command=command,
        # one that is not there, as a disk that is not plugged in, does not keep the agent from starting
        writable=" ".join([_quoted(str(lab)), *(_quoted(f"-{folder}") for folder in writable)]),
        devices="" if gpu else "PrivateDevices=yes\n",
        network="" if network else f"{CLOSED}\nIPAddressAllow=localhost\n",
    )


def _words(value: str) -> list[str]:
    """What `_quoted` wrote."""
    return [word.replace("%%", "%") for word in shlex.split(value)]


def _plain(word: str) -> str:
    return word.replace("%", "%%")


def _quoted(word: str) -> str:
    """A word for systemd: in quotes where it has to be, with what systemd would expand doubled. `$` means nothing: the
    command begins with a colon, see systemd.service(5)."""
    word = _plain(word).replace("\\", "\\\\")
    if any(character in word for character in " \t'\";"):
        return '"' + word.replace('"', '\\"') + '"'
    return word
