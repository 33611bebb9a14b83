"""The agent as a service: its unit is one that systemd takes and finds closed, its XML says what was meant, and what is
registered is registered in order. Windows' programs are stubs here, and systemd is asked without running."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from typer.testing import CliRunner

from labref.agent import notify
from labref.bundles.bundle import Bundle
from labref.cli import app
from labref.config import set_values
from labref.doctor import lab as of_lab
from labref.errors import LabError
from labref.lab import Lab
from labref.service import NAME, cut_off, describe, install, is_outdated, registered, registering, remove, renew
from labref.service.descriptions import Chosen, Kind, chosen_in
from labref.tasks import backup
from tests.labs import running_agent, wait_until

DEPLOY = Path(__file__).parent.parent / "deploy"
LINUX = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")


@pytest.fixture
def lab(tmp_path: Path, starter: Bundle) -> Lab:
    (tmp_path / "export").mkdir()
    return Lab.create(tmp_path / "a lab", [tmp_path / "export"], starter.folder)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """What the system's programs were called with; all of them succeed."""
    calls: list[list[str]] = []

    def run(command: Sequence[str], **_: object) -> SimpleNamespace:
        calls.append(list(command))
        return SimpleNamespace(returncode=0, stdout="active", stderr="")

    monkeypatch.setattr(registering.subprocess, "run", run)
    monkeypatch.setattr(registering, "_UNITS", tmp_path / "units")
    monkeypatch.setattr(registering.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(registering, "_uid", {"root": 0, "labref": os.getuid() if os.name != "nt" else None}.get)
    return calls


def test_the_unit_in_deploy_is_the_one_that_is_written() -> None:
    unit = describe(
        "systemd",
        lab=PurePosixPath("/var/lib/labref/lab"),
        python=PurePosixPath("/opt/labref/venv/bin/python"),
        user="labref",
    )
    assert (DEPLOY / unit.name).read_bytes() == unit.data


@LINUX
@pytest.mark.parametrize(("gpu", "network", "most"), [(False, False, 3.0), (True, False, 3.0), (True, True, 3.0)])
def test_systemd_takes_the_unit_and_finds_it_closed(tmp_path: Path, gpu: bool, network: bool, most: float) -> None:
    python = tmp_path / "a folder" / "100 % $HOME é" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    described = describe(
        "systemd",
        lab=tmp_path / "the lab; of 5",
        python=python,
        user="root",
        network=network,
        gpu=gpu,
        writable=[tmp_path / "back; up", PurePosixPath("/mnt/50%")],
    )
    file = tmp_path / described.name
    file.write_bytes(described.data)
    verified = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True)
    assert (verified.returncode, [line for line in verified.stderr.splitlines() if NAME in line]) == (0, [])
    told = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(file)], capture_output=True, text=True, check=True
    ).stdout
    exposure = re.search(r"exposure level for \S+: ([\d.]+)", told)
    assert exposure is not None and float(exposure[1]) <= most, told


def test_the_xml_for_windows_says_what_was_meant() -> None:
    lab, python = (
        PureWindowsPath(r"C:\labs\Müller & \"Söhne\" <1>"),
        PureWindowsPath(r"C:\labref\venv\Scripts\python.exe"),
    )
    winsw = ElementTree.fromstring(describe("winsw", lab=lab, python=python, user=None).data)
    assert winsw.findtext("id") == NAME and winsw.findtext("executable") == str(python)
    assert winsw.findtext("arguments") == f'-m labref agent --lab "{lab}"'
    environment = winsw.find("env")
    assert environment is not None and environment.get("value") == str(lab)
    assert winsw.findtext("stoptimeout") == "120 sec"
    assert [one.get("action") for one in winsw.findall("onfailure")] == ["restart"] * 3
    task = ElementTree.fromstring(describe("task", lab=lab, python=python, user=r"LAB\anna").data)
    space = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"
    assert task.findtext(f".//{space}UserId") == r"LAB\anna"
    assert task.findtext(f".//{space}ExecutionTimeLimit") == "PT0S"  # never ended for its age
    assert task.findtext(f".//{space}Command") == str(python)


@pytest.mark.parametrize("kind", ["systemd", "winsw", "task"])
def test_a_name_that_no_service_can_be_told_of_is_refused(kind: Kind) -> None:
    with pytest.raises(LabError, match="control character"):
        describe(kind, lab=PurePosixPath("/lab\nExecStart=/bin/sh"), python=PurePosixPath("/python"), user="labref")


def test_a_program_that_systemd_does_not_run_is_refused() -> None:
    with pytest.raises(LabError, match="quotes or backslashes"):
        describe("systemd", lab=PurePosixPath("/lab"), python=PurePosixPath("/O'Hara/python"), user="labref")


@pytest.mark.skipif(sys.platform != "linux", reason="systemd")
def test_linux_registers_and_removes_in_order(lab: Lab, called: list[list[str]], tmp_path: Path) -> None:
    with pytest.raises(LabError, match="not run as root.*--user labref"):
        list(install(lab, user="root"))
    assert called == []
    told = list(install(lab, user="labref"))
    # restarted and not only started: one that runs takes the new unit, and the new labref
    assert called == [["systemctl", "daemon-reload"], ["systemctl", "enable", NAME], ["systemctl", "restart", NAME]]
    unit = (tmp_path / "units" / f"{NAME}.service").read_text()
    assert f'ReadWritePaths="{lab.folder}"' in unit and "User=labref" in unit and "runs now as labref" in told[-1]
    assert registered(lab).kind == "systemd"
    called.clear()
    assert "the lab" in "".join(remove(lab))
    wanted = [["systemctl", "disable", "--now", NAME], ["systemctl", "daemon-reload"]]
    assert [one for one in called if one[1] not in ("is-active", "is-enabled")] == wanted
    assert not (tmp_path / "units" / f"{NAME}.service").exists() and lab.store_file.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="systemd")
def test_a_user_who_could_not_run_the_agent_is_refused(
    lab: Lab, called: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LabError, match="no user anna.*useradd --system anna.*chown -R anna:"):
        list(install(lab, user="anna"))
    monkeypatch.setattr(registering, "_uid", {"anna": os.getuid() + 1}.get)
    with pytest.raises(LabError, match=r"belongs to .*as anna could not write.*chown -R anna:"):
        list(install(lab, user="anna"))
    assert called == [] and not (tmp_path / "units").exists()
    # a group may share a lab
    set_values(lab.config_file, {("access", "group"): True})
    assert "runs now as anna" in list(install(Lab.open(lab.folder), user="anna"))[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="systemd")
def test_a_unit_lets_the_network_in_where_the_lab_says_so_and_doctor_sees_one_that_does_not(
    lab: Lab, called: list[list[str]]
) -> None:
    list(install(lab, user="labref"))
    assert cut_off(lab) == []
    set_values(lab.config_file, {("metrics", "address"): "0.0.0.0"})
    lab = Lab.open(lab.folder)
    told = [one for one in of_lab.service(lab, True) if one.state == "warning"]
    assert len(told) == 1 and "0.0.0.0" in told[0].says and "service renew" in (told[0].remedy or "")
    list(install(lab, user="labref"))
    file = registered(lab).file
    assert file is not None and "IPAddress" not in file.read_text()
    assert [one.state for one in of_lab.service(lab, True)] == ["fine"]


@pytest.mark.parametrize("gpu", [False, True])
def test_what_a_unit_was_written_with_is_read_from_it(gpu: bool) -> None:
    chosen = Chosen(
        lab=Path("/srv/the lab; of 5"),
        user="lab%ref",
        gpu=gpu,
        writable=(Path('/mnt/50 % "é"'), Path("/mnt/back\\up"), Path("/mnt/-a")),
    )
    assert chosen.lab is not None
    unit = describe(
        "systemd", lab=chosen.lab, python=Path("/python"), user=chosen.user, gpu=gpu, writable=chosen.writable
    )
    assert chosen_in(unit.data.decode()) == chosen


@pytest.mark.skipif(sys.platform != "linux", reason="systemd")
def test_a_unit_of_another_version_is_written_anew_with_what_was_chosen(
    lab: Lab, called: list[list[str]], tmp_path: Path
) -> None:
    with pytest.raises(LabError, match="labref service install"):
        list(renew(lab))
    list(install(lab, user="labref", gpu=True, writable=[tmp_path / "back up"]))
    unit = tmp_path / "units" / f"{NAME}.service"
    written = unit.read_text()
    called.clear()
    assert not is_outdated(lab) and "nothing was changed" in "".join(renew(lab))
    assert unit.read_text() == written and not any("restart" in word for call in called for word in call)
    older = written.replace("StartLimitIntervalSec=0\n", "").replace("Nice=5", "Nice=3")
    assert older != written
    unit.write_text(older)
    (told,) = [found for found in of_lab.service(lab, running=True) if "not what this labref writes" in found.says]
    assert told.state == "note" and told.remedy is not None and "labref service renew" in told.remedy
    called.clear()
    done = CliRunner().invoke(app, ["service", "renew", "--lab", str(lab.folder)])
    assert done.exit_code == 0 and f"{unit}.before" in done.output.replace("\n", "")
    assert unit.read_text() == written and unit.with_suffix(".service.before").read_text() == older
    assert [call[1] for call in called if call[1] != "is-active" and call[1] != "is-enabled"] == [
        "daemon-reload",
        "try-restart",
    ]
    # whichever Python it names, it is up to date
    unit.write_text(written.replace(sys.executable, "/opt/labref/current/bin/python"))
    assert not is_outdated(lab)
    unit.write_text(written.replace(str(lab.folder), "/srv/another"))
    assert not is_outdated(lab)
    with pytest.raises(LabError, match="is not the service of the lab"):
        list(renew(lab))
    list(remove(lab))
    assert list(unit.parent.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="systemd")
def test_a_unit_that_systemd_does_not_take_is_put_back(
    lab: Lab, called: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(install(lab, user="labref"))
    unit = tmp_path / "units" / f"{NAME}.service"
    older = unit.read_text().replace("Nice=5", "Nice=3")
    unit.write_text(older)
    real = registering._run

    def fails(command: Sequence[str], **how: Any) -> None:
        if "daemon-reload" in command:
            raise LabError("no")
        real(command, **how)

    monkeypatch.setattr(registering, "_run", fails)
    with pytest.raises(LabError, match="no"):
        list(renew(lab))
    assert unit.read_text() == older


@pytest.mark.skipif(sys.platform != "linux", reason="systemd")
def test_where_systemd_does_not_run_no_unit_is_left_behind(
    lab: Lab, called: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "System has not been booted with systemd as init system.\nFailed to connect to bus: Host is down\n"
    failed = SimpleNamespace(returncode=1, stdout="", stderr=said)
    monkeypatch.setattr(registering.subprocess, "run", lambda *_, **__: failed)
    monkeypatch.setattr(registering, "_is_root", lambda: True)
    with pytest.raises(LabError, match="init system.; Failed to connect to bus: Host is down. `journalctl") as refused:
        list(install(lab, user="labref"))
    assert "sudo" not in str(refused.value) and list((tmp_path / "units").iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="systemd")
def test_no_service_is_registered_beside_an_agent_that_runs(lab: Lab, called: list[list[str]]) -> None:
    with running_agent(lab):
        done = CliRunner().invoke(app, ["service", "install", "--lab", str(lab.folder), "--user", "labref"])
        assert done.exit_code == 1 and "runs on this lab already" in done.stderr
    assert [one for one in called if one[1] not in ("is-active", "is-enabled")] == []


def test_the_agent_may_write_backups_where_the_unit_names_a_folder_and_says_so_where_not(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["service", "install", "--lab", str(lab.folder), "--write", str(tmp_path / "out"), "--user", "labref"]
    more = ["--writable", str(tmp_path / "back up"), "--writable", "/mnt/50%"]
    done = CliRunner().invoke(app, [*words, *more])
    assert done.exit_code == 0, done.output
    unit = (tmp_path / "out" / f"{NAME}.service").read_text(encoding="utf-8")
    assert f'ReadWritePaths="{lab.folder}" "-{tmp_path / "back up"}" -/mnt/50%%\n' in unit

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(backup, "_FolderTarget", read_only)
    with lab.open_store() as store, pytest.raises(LabError, match="Read-only file system.*--writable FOLDER"):
        list(backup.write(lab, store, tmp_path / "backup"))


def test_windows_registers_by_winsw_and_by_task(
    lab: Lab, called: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registering, "_is_windows", lambda: True)
    (tmp_path / "WinSW-x64.exe").write_bytes(b"MZ")
    list(install(lab, user="LAB\\anna", winsw=tmp_path / "WinSW-x64.exe"))
    program = lab.folder / "service" / f"{NAME}.exe"
    assert called == [[str(program), "install"], [str(program), "start"]]
    assert program.read_bytes() == b"MZ" and program.with_suffix(".xml").exists()
    assert registered(lab).kind == "winsw"
    xml = program.with_suffix(".xml")
    written = xml.read_bytes()
    xml.write_bytes(written.replace(b"120 sec", b"15 sec"))
    assert is_outdated(lab) and "written anew" in "".join(renew(lab))
    assert xml.read_bytes() == written and not is_outdated(lab)
    called.clear()
    list(remove(lab))
    assert [one[1] for one in called if one[1] != "status"] == ["stop", "uninstall"]
    assert list(program.parent.iterdir()) == []
    called.clear()
    list(install(lab, user="LAB\\anna"))
    assert called[0][:5] == ["schtasks.exe", "/Create", "/F", "/TN", NAME] and called[0][-4:] == [
        "/RU",
        "LAB\\anna",
        "/RP",
        "*",
    ]
    assert called[1] == ["schtasks.exe", "/Run", "/TN", NAME]
    assert registered(lab).kind == "task"
    with pytest.raises(LabError, match="wants the user's password.*service install"):
        list(renew(lab))
    called.clear()
    list(remove(lab))
    assert [one[1] for one in called if one[1] != "/Query"] == ["/End", "/Delete"]
    with pytest.raises(LabError, match="cannot be copied"):
        list(install(lab, winsw=tmp_path / "nowhere.exe"))


def test_what_the_system_refuses_is_said_in_its_words(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registering, "_UNITS", tmp_path / "units")
    monkeypatch.setattr(registering, "_is_root", lambda: False)
    monkeypatch.setattr(registering, "_uid", lambda name: lab.folder.stat().st_uid)
    outcomes: list[Callable[[], SimpleNamespace]] = [
        lambda: SimpleNamespace(returncode=1, stdout="", stderr="Access denied"),
        lambda: (_ for _ in ()).throw(FileNotFoundError(2, "No such file")),
        lambda: (_ for _ in ()).throw(subprocess.TimeoutExpired("systemctl", 1)),
    ]
    for outcome, words in zip(
        outcomes, ["Access denied.*sudo", "there is no systemctl.*--write", "timed out"], strict=True
    ):
        monkeypatch.setattr(registering.subprocess, "run", lambda *_, outcome=outcome, **__: outcome())
        with pytest.raises(LabError, match=words):
            list(install(lab, user="labref"))
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(registering, "_UNITS", tmp_path / "file")
    with pytest.raises(LabError, match="cannot be written"):
        list(install(lab, user="labref"))


def test_the_command_writes_the_file_only_and_says_that_nothing_is_registered(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registering, "_UNITS", tmp_path / "units")
    monkeypatch.setattr(registering, "_said", lambda command: "")
    done = CliRunner().invoke(app, ["service", "install", "--lab", str(lab.folder), "--write", str(tmp_path / "out")])
    assert done.exit_code == 0 and "nothing is registered" in done.stdout
    assert len(list((tmp_path / "out").iterdir())) == 1
    done = CliRunner().invoke(app, ["service", "status", "--json", "--lab", str(lab.folder)])
    assert done.exit_code == 1 and '"kind": null' in done.stdout
    done = CliRunner().invoke(app, ["service", "remove", "--lab", str(lab.folder)])
    assert done.exit_code == 1 and "nothing to remove" in done.stderr


# what the agent tells systemd


@pytest.mark.skipif(sys.platform == "win32", reason="systemd")
def test_the_agent_says_that_it_is_ready_at_work_and_ending(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(0.05)

        def heard(line: str) -> bool:
            try:
                while True:
                    told.extend(systemd.recv(4096).decode().splitlines())
            except TimeoutError:
                return line in told

        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "200000")
        with running_agent(lab, passed=["NOTIFY_SOCKET", "WATCHDOG_USEC"]):
            wait_until(lambda: heard("WATCHDOG=1"))
        wait_until(lambda: heard("STOPPING=1"))
    assert told[0] == "READY=1" and told[-1] == "STOPPING=1"


@pytest.mark.skipif(sys.platform != "linux", reason="an abstract socket")
def test_an_agent_that_hangs_says_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0labref-test-notify")
        systemd.settimeout(0.5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@labref-test-notify")
        monkeypatch.setenv("WATCHDOG_USEC", "100000")
        with notify.watched(lambda: False):
            assert systemd.recv(100) == b"READY=1"
            with pytest.raises(TimeoutError):
                systemd.recv(100)
        assert systemd.recv(100) == b"STOPPING=1"
    assert not notify.tell("READY=1")  # nobody listens any more
    monkeypatch.delenv("NOTIFY_SOCKET")
    with notify.watched(lambda: True):
        pass


# --- the container: never run here, as there is no Docker; its definition is read ---

CONTAINER = Path(registering.__file__).parent / "container"


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_the_dockerfile_is_clean_and_runs_as_nobody_else_with_a_health_check(name: str) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, CONTAINER / name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    text = (CONTAINER / name).read_text(encoding="utf-8")
    last = text.rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (.*)$", last, re.MULTILINE) == ["10001:10001"]
    assert "\nHEALTHCHECK " in last and "\nSTOPSIGNAL SIGTERM" in last and '\nVOLUME ["/lab", "/backup"]' in last
    assert re.search(r'^ENTRYPOINT \["labref"\]\nCMD \["agent"\]$', last, re.MULTILINE)
    assert ("NVIDIA_VISIBLE_DEVICES" in last) == (name == "Dockerfile.cuda")
    assert not re.search(r"^FROM \S*[./]\S*/", text, re.MULTILINE), "no address of a registry"
    for source in re.findall(r"^COPY (container/\S+)", text, re.MULTILINE):
        assert (CONTAINER.parent / source).is_file()


def test_the_container_gets_its_folders_and_nothing_else() -> None:
    def agent(name: str) -> Any:
        (service,) = yaml.safe_load((CONTAINER / name).read_text(encoding="utf-8"))["services"].values()
        return service

    cpu, gpu = agent("compose.yaml"), agent("compose.cuda.yaml")
    assert cpu["read_only"] is True and cpu["cap_drop"] == ["ALL"] and cpu["user"] == "10001:10001"
    assert cpu["security_opt"] == ["no-new-privileges:true"] and "privileged" not in cpu
    mounted = {volume.split(":")[1]: volume.split(":")[2:] for volume in cpu["volumes"]}
    assert mounted == {"/lab": [], "/backup": [], "/export": ["ro"]}
    for service in (cpu, gpu):
        assert (CONTAINER.parent / service["build"]["dockerfile"]).is_file()
    assert gpu["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_the_containers_health_is_the_agents(lab: Lab, tmp_path: Path) -> None:
    def health() -> tuple[int, str]:
        command = [sys.executable, "-I", str(CONTAINER / "healthcheck.py")]
        environment = {**os.environ, "LABREF_LAB": str(lab.folder)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout.strip() or done.stderr.strip()

    code, said = health()
    assert code == 1 and "does not answer" in said
    with running_agent(lab):
        assert health() == (0, "ok")
        (tmp_path / "export").rename(tmp_path / "elsewhere")
        wait_until(lambda: health() == (1, "folder"))


def test_the_definition_is_written_into_a_sticks_folder(tmp_path: Path) -> None:
    def written(platform: str) -> Any:
        (tmp_path / "stick.json").write_text(json.dumps({"platform": platform}), encoding="utf-8")
        return CliRunner().invoke(app, ["service", "container", str(tmp_path)])

    assert written("win_amd64").exit_code == 1
    assert written("manylinux").exit_code == 0
    for file in CONTAINER.iterdir():
        if file.is_file():
            assert (tmp_path / "container" / file.name).read_bytes() == file.read_bytes()
    (tmp_path / "stick.json").unlink()
    assert CliRunner().invoke(app, ["service", "container", str(tmp_path)]).exit_code == 1
