"""Installs labref from this folder, without a network and without anything but Python's own library.

    sh install.sh                  install, or upgrade to what is on this stick
    sh install.sh --back           go back to the version before
    sh install.sh --remove         take labref off this computer; labs stay as they are
    sh install.sh --check          only compare the stick's files with their digests

On Windows `install.cmd`, with the same words. Each version has a folder of its own below `versions`, and `current`
leads to the one in use: an upgrade is made beside it, and only then takes its place. Nothing is written elsewhere.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

_SERVICE: Final = "labref-agent"  # as `labref service install` calls it
_HERE: Final = Path(__file__).resolve().parent
_STATE: Final = "installed.json"
_WINDOWS: Final = os.name == "nt"
_SECONDS: Final = 900
_NEVER_RUN: Final = r"[/\\]tests?[/\\]"


class InstallError(Exception):
    """It cannot be done; the message says what to do next."""


class Stick:
    """The folder that `make wheelhouse` made. described : of `stick.json`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.described: dict[str, str] = json.loads((folder / "stick.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InstallError(f"{folder} is no stick of labref's: run install from the stick's own folder.") from None
        except (OSError, ValueError) as error:
            raise InstallError(f"{folder / 'stick.json'} cannot be read ({error}). Copy the stick again.") from None

    @property
    def version(self) -> str:
        return self.described["labref"]

    @property
    def name(self) -> str:
        """Of its environment: the version, and a digest of all that is installed with it."""
        digest = hashlib.sha256((self.folder / "requirements.txt").read_bytes()).hexdigest()
        return f"{self.version.replace('+', '-')}-{digest[:8]}"

    def check_files(self) -> int:
        """Compare every file with its digest, and return how many there are. Raises `InstallError`."""
        wrong, seen = [], 0
        for line in (self.folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
            digest, _, name = line.partition("  ")
            seen += 1
            try:
                with (self.folder / name).open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                        wrong.append(f"{name} is not what it was")
            except OSError as error:
                wrong.append(f"{name} cannot be read: {error.strerror or error}")
        if wrong:
            raise InstallError(
                f"the stick is damaged, or was changed: {'; '.join(wrong[:5])}"
                f"{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''}. Nothing was installed. Copy it again."
            )
        return seen

    def check_computer(self) -> None:
        """Whether this Python can use these wheels. Raises `InstallError`."""
        python, wanted = f"{sys.version_info[0]}.{sys.version_info[1]}", self.described["python"]
        if python != wanted:
            raise InstallError(
                f"this stick is for Python {wanted}, and this is Python {python}. Install Python {wanted}."
            )
        system = {"win_amd64": "Windows", "manylinux": "Linux"}[self.described["platform"]]
        machine = platform.machine().lower()
        if platform.system() != system or machine not in ("x86_64", "amd64") or sys.maxsize < 2**32:
            raise InstallError(
                f"this stick is for {system} on x86-64, with a Python of 64 bits; this is {platform.system()} on {machine}."
            )
        if importlib.util.find_spec("_lzma") is None:
            raise InstallError(
                "this Python was built without lzma, which unpacks what is on this stick. Install Python of the system's own packages, or of python.org."
            )


class Installed:
    """labref on this computer: `folder` holds every version, and which one is in use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.current: str | None = None
        self.before: str | None = None
        with contextlib.suppress(FileNotFoundError):
            try:
                state: dict[str, Any] = json.loads((folder / _STATE).read_text(encoding="utf-8"))
                self.current, self.before = state["current"], state["before"]
            except (ValueError, KeyError, TypeError):
                raise InstallError(f"{folder / _STATE} is damaged. Move {folder} away and install again.") from None

    def environment(self, name: str) -> Path:
        return self.folder / "versions" / name

    def python(self, name: str) -> Path:
        return _python_in(self.environment(name))

    def described(self, name: str) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.environment(name) / "stick.json").read_text(encoding="utf-8"))
        return found

    def is_whole(self, name: str) -> bool:
        """Whether it was installed to its end: the last thing written is what it is."""
        return (self.environment(name) / "stick.json").exists()

    def build(self, stick: Stick) -> None:
        """Make the environment of this stick's version, from the stick alone."""
        environment = self.environment(stick.name)
        if environment.exists():
            shutil.rmtree(environment)  # left behind when it was interrupted
        say(f"labref {stick.version} is installed into {environment} …")
        venv.create(environment, with_pip=False, symlinks=not _WINDOWS)
        (pip,) = (stick.folder / "installer").glob("pip-*.whl")
        python = [str(self.python(stick.name)), "-I", str(pip / "pip"), "--isolated", "--disable-pip-version-check"]
        options = [
            "--no-index",
            "--no-deps",
            "--require-hashes",
            "--only-binary",
            ":all:",
            "--no-cache-dir",
            "--no-compile",
            "--quiet",
        ]
        where = ["--find-links", str(stick.folder / "wheels"), "--requirement", str(stick.folder / "requirements.txt")]
        _run([*python, "install", *options, *where], "the packages could not be installed")
        _run([*python, "check"], "the packages do not fit each other")
        # who runs labref cannot write here; what is not compiled now is compiled at every start
        _asked(
            [
                str(self.python(stick.name)),
                "-I",
                "-m",
                "compileall",
                "-q",
                "-j",
                "0",
                "-x",
                _NEVER_RUN,
                str(environment),
            ]
        )
        _run([str(self.python(stick.name)), "-I", "-m", "labref", "--version"], "labref does not start")
        shutil.copyfile(stick.folder / "stick.json", environment / "stick.json")

    def switch(self, name: str) -> None:
        """Let `current` lead to another version; the one that it led to is the one before."""
        _link(self.folder / "current", self.environment(name))
        if name != self.current:
            self.current, self.before = name, self.current
        part = self.folder / f"{_STATE}.part"
        part.write_text(json.dumps({"current": self.current, "before": self.before}) + "\n", encoding="utf-8")
        part.replace(self.folder / _STATE)

    def write_commands(self, stick: Stick) -> None:
        """The command `labref`, and this installer: the way back needs no stick."""
        own = self.folder / "installer"
        own.mkdir(exist_ok=True)
        shutil.copyfile(_HERE / "install.py", own / "install.py")
        name = "install.cmd" if _WINDOWS else "install.sh"
        shutil.copyfile(stick.folder / name, self.folder / name)
        if _WINDOWS:
            command = '@"%~dp0current\\Scripts\\python.exe" -m labref %*\r\n'
        else:
            python = shlex.quote(str(self.python_in_use))
            command = f'#!/bin/sh\nexec {python} -m labref "$@"\n'
        file = self.folder / ("labref.cmd" if _WINDOWS else "labref")
        file.write_text(command, encoding="utf-8", newline="")
        file.chmod(0o755)

    def drop_others(self) -> None:
        """Leave two versions: the one in use and the one before."""
        for folder in (self.folder / "versions").iterdir():
            if folder.name not in (self.current, self.before):
                shutil.rmtree(folder, ignore_errors=True)

    def at_work(self) -> list[tuple[int, str]]:
        """The programs of labref that run from this folder, but for their children: number and words of each."""
        found, below = [], "\\" if _WINDOWS else "/"
        own = tuple(os.path.normcase(f"{folder}{below}") for folder in {self.folder, self.folder.resolve()})
        for number, words in _processes():
            at = next((i for i, word in enumerate(words[:-1]) if word == "-m" and words[i + 1] == "labref"), None)
            if at is not None and number != os.getpid() and os.path.normcase(words[0]).startswith(own):
                found.append((number, " ".join(words[at + 1 :])))
        return found

    @property
    def python_in_use(self) -> Path:
        return _python_in(self.folder / "current")

    @property
    def command(self) -> str:
        if _WINDOWS:
            return f'"{self.folder}\\labref"'
        return shlex.quote(str(self.folder / "labref"))


def install(stick: Stick, into: Installed, *, lab: Path | None, sure: bool) -> None:
    """Install, or upgrade. lab : that the service works on; the service's own by default. sure : nothing is asked."""
    say(f"{stick.check_files()} files of the stick are as they were made.")
    stick.check_computer()
    before = into.current
    if before == stick.name and into.is_whole(stick.name):
        _finish(stick, into)
        say(f"labref {stick.version} is what is installed here already, in {into.folder}. Nothing was changed.")
        return
    old = into.described(before) if before and into.is_whole(before) else None
    if not into.is_whole(stick.name):
        into.build(stick)
    if old is None:
        _finish(stick, into)
        say(f"labref {stick.version} is installed in {into.folder}.")
        say(_first_steps(into, stick))
        return
    say(f"labref {old['labref']} is in use; {stick.version} is ready to take its place.")
    lab = lab or _lab_of_service()
    newer = int(stick.described["schema"]) - int(old["schema"])
    if newer > 0:
        say(
            f"Its store is newer ({stick.described['schema']}, now {old['schema']}): the new agent brings the lab's store up "
            f"to date when it starts, and labref {old['labref']} does not open it any more. Make a backup first; with it you "
            f"can go back:\n\n    {_as_owner(lab)}{into.command} store backup BACKUP --lab {_shown(lab)}\n"
        )
        _ask("Is the backup made?", sure)
    elif newer < 0:
        raise InstallError(
            f"labref {stick.version} is older than {old['labref']}, and does not open a store that this one wrote "
            f"({old['schema']}, it knows {stick.described['schema']}). To go back: install --back."
        )
    with _stopped(into):
        _finish(stick, into)
        _renew(into, lab)
    into.drop_others()
    say(f"labref {stick.version} is in use. To go back: {_installer(into)} --back")
    say(f"See that all is well:\n\n    {_as_owner(lab)}{into.command} doctor --lab {_shown(lab)}\n")


def back(into: Installed, *, lab: Path | None, sure: bool) -> None:
    """Go back to the version before."""
    if into.current is None or into.before is None or not into.is_whole(into.before):
        raise InstallError(f"there is no version before in {into.folder}: nothing was changed.")
    now, old = into.described(into.current), into.described(into.before)
    lab = lab or _lab_of_service()
    if int(old["schema"]) >= int(now["schema"]):
        with _stopped(into):
            into.switch(into.before)
            _renew(into, lab)
        say(f"labref {old['labref']} is in use again. To go forward: {_installer(into)} --back")
        return
    say(
        f"labref {old['labref']} does not open a store that labref {now['labref']} has brought up to date ({now['schema']}, it "
        f"knows {old['schema']}). The lab then has to be put back from the backup that was made before the upgrade; what came "
        "since is taken in again from the export folder."
    )
    _ask("Go back all the same?", sure)
    with _stopped(into, starts=False):
        into.switch(into.before)
        _renew(into, lab)
    owner = _as_owner(lab)
    moved = f"move {_shown(lab)} {_shown(lab)}.newer" if _WINDOWS else f"sudo mv {_shown(lab)} {_shown(lab)}.newer"
    say(
        f"labref {old['labref']} is in use again, and its agent is stopped. Where the new one had opened the lab:\n\n    {moved}\n"
        f"    {owner}{into.command} store restore BACKUP {_shown(lab)}\n\nThen, or where it had not:\n\n    {_start_words()}\n"
    )


def remove(into: Installed, *, sure: bool) -> None:
    """Take labref off this computer."""
    if into.current is None:
        raise InstallError(f"there is no labref in {into.folder}.")
    if _is_registered():
        raise InstallError(
            f"the agent is a service of this computer. Take it out first: {into.command} service remove --lab "
            f"{_shown(_lab_of_service())}"
        )
    if at_work := _at_work(into):
        raise InstallError(at_work)
    say(f"{into.folder} is deleted, with every version in it. Labs are elsewhere, and stay as they are.")
    _ask("Delete it?", sure)
    _unlink(into.folder / "current")
    for name in ("versions", "installer"):
        shutil.rmtree(into.folder / name, ignore_errors=True)
    for name in (_STATE, "labref", "labref.cmd", "install.sh", "install.cmd"):
        (into.folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        into.folder.rmdir()
    say("labref is no longer on this computer.")


def _finish(stick: Stick, into: Installed) -> None:
    into.write_commands(stick)
    into.switch(stick.name)


def _first_steps(into: Installed, stick: Stick) -> str:
    command = into.command
    gpu = " --gpu" if stick.described["runtime"] == "cuda" else ""
    if _WINDOWS:
        return (
            "Next, for a lab in C:\\labref-lab that watches D:\\CellaVision\\Export (put your own folders in their place):\n\n"
            f'    {command} init C:\\labref-lab --watch "D:\\CellaVision\\Export"\n'
            f"    {command} agent --once --lab C:\\labref-lab\n"
            f"    {command} service install --lab C:\\labref-lab\n"
            f"    {command} doctor --lab C:\\labref-lab\n"
        )
    lab, owner = "/var/lib/labref/lab", "sudo -u labref "
    return (
        "Next, for a lab that watches /mnt/analyser/export (put your own folder in its place):\n\n"
        "    sudo useradd --system --home-dir /var/lib/labref --shell /usr/sbin/nologin labref\n"
        "    sudo install -d -o labref -g labref -m 750 /var/lib/labref\n"
        f"    {owner}{command} init {lab} --watch /mnt/analyser/export\n"
        f"    {owner}{command} agent --once --lab {lab}\n"
        f"    sudo {command} service install --lab {lab} --user labref{gpu}\n"
        f"    {owner}{command} doctor --lab {lab}\n"
    )


def _installer(into: Installed) -> str:
    if _WINDOWS:
        return f'"{into.folder}\\install.cmd"'
    return f"sudo sh {shlex.quote(str(into.folder / 'install.sh'))}"


def _as_owner(lab: Path | None) -> str:
    if _WINDOWS:
        return ""
    with contextlib.suppress(OSError, KeyError):
        if lab is not None:
            return f"sudo -u {lab.owner()} "
    return "sudo -u labref "


def _shown(lab: Path | None) -> str:
    if lab is None:
        return "LAB"
    return f'"{lab}"' if _WINDOWS else shlex.quote(str(lab))


# the system's service


@contextlib.contextmanager
def _stopped(into: Installed, *, starts: bool = True) -> Any:
    """While neither the service nor anything else of labref runs. starts : the service is started again where it ran.

    Raises `InstallError` where somebody started labref by hand: the service then goes on as it was.
    """
    was_running = _is_running()
    if was_running:
        say("The agent is stopped …")
        _stop()
    if at_work := _at_work(into):
        if was_running:
            _start()
        raise InstallError(at_work)
    yield
    if was_running and starts:
        say("The agent is started …")
        _start()


def _at_work(into: Installed) -> str | None:
    """That labref is at work, and what to do; None where it is not."""
    found = "; ".join(f"process {number} ({words})" for number, words in into.at_work())
    if not found:
        return None
    return f"labref is at work, started by hand: {found}. End it (Ctrl-C in its window), and call this again. Nothing was changed."


def _renew(into: Installed, lab: Path | None) -> None:
    """Have the service's file written as the version in use writes it."""
    if lab is None or not _is_registered():
        return
    done = _asked([str(into.python_in_use), "-I", "-m", "labref", "service", "renew", "--lab", str(lab)])
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        say(f"The service's file stays as it was, and serves this version too, perhaps less well:\n{said}")
    else:
        say(done.stdout.strip())


def _is_registered() -> bool:
    if _WINDOWS:
        return _task() or _asked(["sc.exe", "query", _SERVICE]).returncode == 0
    return Path(f"/etc/systemd/system/{_SERVICE}.service").exists()


def _is_running() -> bool:
    if not _WINDOWS:
        return _asked(["systemctl", "is-active", "--quiet", _SERVICE]).returncode == 0
    service = _asked(["sc.exe", "query", _SERVICE])
    if service.returncode == 0:
        return re.search(r":\s*[24]\s", service.stdout) is not None  # SERVICE_START_PENDING, SERVICE_RUNNING
    return _task()  # a task that does not run is ended without harm


def _task() -> bool:
    return _asked(["schtasks.exe", "/Query", "/TN", _SERVICE]).returncode == 0


def _service_words(verb: str) -> list[str]:
    if not _WINDOWS:
        return ["systemctl", verb, _SERVICE]
    if _asked(["sc.exe", "query", _SERVICE]).returncode == 0:
        return ["net.exe", verb, _SERVICE]
    return ["schtasks.exe", "/Run" if verb == "start" else "/End", "/TN", _SERVICE]


def _stop() -> None:
    _run(_service_words("stop"), "the agent could not be stopped, and nothing was changed")


def _start() -> None:
    _run(_service_words("start"), "the agent did not start. See `labref doctor`, or go back: install --back")


def _start_words() -> str:
    return " ".join(_service_words("start")) if _WINDOWS else f"sudo systemctl start {_SERVICE}"


def _lab_of_service() -> Path | None:
    """The lab that the service works on, where the system says it: the unit has it as LABREF_LAB."""
    if _WINDOWS:
        said = _asked(["sc.exe", "qc", _SERVICE]).stdout  # LAB\service\labref-agent.exe
        found = re.search(r':\s*"?([^":\r\n]:\\[^"\r\n]+)\\service\\labref-agent\.exe', said, re.IGNORECASE)
        return Path(found[1]) if found else None
    with contextlib.suppress(OSError, ValueError):
        unit = Path(f"/etc/systemd/system/{_SERVICE}.service").read_text(encoding="utf-8")
        for line in unit.splitlines():
            if line.startswith("Environment="):
                for word in shlex.split(line.partition("=")[2]):
                    if word.startswith("LABREF_LAB="):
                        return Path(word.partition("=")[2].replace("%%", "%"))
    return None


def _asked(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            list(command), capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return subprocess.CompletedProcess(list(command), 1, "", str(error))


def _run(command: Sequence[str], failed: str) -> None:
    try:
        done = subprocess.run(
            list(command), capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InstallError(f"{failed}: {error}.") from None
    if done.returncode:
        raise InstallError(f"{failed}:\n{(done.stderr or done.stdout).strip()}")


def _processes() -> list[tuple[int, list[str]]]:
    """The programs that run on this computer, as far as they can be seen: number and words of each."""
    found: list[tuple[int, list[str]]] = []
    if _WINDOWS:
        asked = 'Get-CimInstance Win32_Process -Filter "Name=\'python.exe\'" | ForEach-Object { "$($_.ProcessId) $($_.CommandLine)" }'
        for line in _asked(["powershell.exe", "-NoProfile", "-Command", asked]).stdout.splitlines():
            number, _, command = line.strip().partition(" ")
            if number.isdecimal():
                found.append((int(number), [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', command)]))
        return found
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
            found.append((int(process.name), words))
    return found


# small things


def _python_in(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if _WINDOWS else "bin/python")


def _link(link: Path, folder: Path) -> None:
    if _WINDOWS:  # a symbolic link needs a right of its own there; a junction does not
        _unlink(link)
        _run(["cmd.exe", "/c", "mklink", "/J", str(link), str(folder)], f"{link} could not be made")
        return
    part = link.with_name(f"{link.name}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(folder, target_is_directory=True)
    part.replace(link)


def _unlink(link: Path) -> None:
    if _WINDOWS and link.exists():
        link.rmdir()  # takes the junction away, and not what it leads to
    elif link.is_symlink():
        link.unlink()


def _ask(question: str, sure: bool) -> None:
    if sure:
        return
    if not sys.stdin.isatty():
        raise InstallError(f"{question} Nobody is there to answer; say --yes. Nothing was changed.")
    if input(f"{question} [yes/no] ").strip().lower() not in ("y", "yes"):
        raise InstallError("Nothing was changed.")


def say(line: str) -> None:
    print(line, flush=True)


def _default_folder() -> Path:
    if (_HERE.parent / _STATE).exists():
        return _HERE.parent
    return Path(os.environ.get("PROGRAMFILES", r"C:\Program Files"), "labref") if _WINDOWS else Path("/opt/labref")


def main(arguments: Sequence[str] | None = None) -> int:
    about = "Installs labref from this folder, without a network. Called again, it upgrades."
    parser = argparse.ArgumentParser(prog="install", description=about)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--back", action="store_true", help="go back to the version before")
    action.add_argument("--remove", action="store_true", help="take labref off this computer; labs stay as they are")
    action.add_argument("--check", action="store_true", help="only compare the stick's files with their digests")
    parser.add_argument("--to", type=Path, default=_default_folder(), metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--lab", type=Path, metavar="LAB", help="the lab of this computer; default: the service's")
    parser.add_argument("--yes", action="store_true", help="ask nothing")
    options = parser.parse_args(arguments)
    os.umask(0o022)  # who runs labref is not who installs it
    folder = Path.cwd() / options.to
    try:
        if options.check:
            say(f"{Stick(_HERE.parent).check_files()} files of the stick are as they were made.")
        elif options.back:
            back(Installed(folder), lab=options.lab, sure=options.yes)
        elif options.remove:
            remove(Installed(folder), sure=options.yes)
        else:
            stick = Stick(_HERE.parent)
            (folder / "versions").mkdir(parents=True, exist_ok=True)
            install(stick, Installed(folder), lab=options.lab, sure=options.yes)
    except InstallError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except PermissionError as error:
        how = "in an administrator's prompt" if _WINDOWS else "with sudo"
        print(f"\n{error.filename} cannot be written. Run it {how}, or choose a folder: --to FOLDER", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"\n{error.filename or folder}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
