"""The folder from which a lab installs without internet: it is made, and labref installed from it with the network off,
as a lab's IT does it, to the first reference. What needs a Windows or a service has stubs of the system's programs."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from packaging.utils import parse_wheel_filename

from labref.demo.cells import LABELS, OPTICS, draw_cell, encode_jpeg, make_slides
from labref.store.duckdb.migrations import latest_version

ROOT = Path(__file__).parents[1]
STICK = ROOT / "deploy" / "stick"
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


def module(name: str) -> ModuleType:
    """A program of deploy/stick, which is no package."""
    spec = importlib.util.spec_from_file_location(f"stick_{name}", STICK / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


make, installer = module("make"), module("install")
_DENSE = {"pydantic-core", "pillow", "minisom"}


@pytest.fixture(scope="module")
def stick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for this very system and Python, without a GPU. Some of its wheels are packed densely: all of them
    take four minutes."""
    folder: Path = make.make("manylinux", HERE, "cpu", tmp_path_factory.mktemp("dist"), dense=_DENSE)
    return folder


def without_network() -> tuple[list[str], dict[str, str]]:
    """What a command begins with so that it has no network, and its variables: a namespace of its own where that is
    allowed, else no way to an index."""
    for words in (["unshare", "-n"], ["unshare", "-rn"]):
        if (
            shutil.which("unshare")
            and subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0
        ):
            return words, {}
    nobody = "http://127.0.0.1:9"  # the port of discard
    return [], {
        "PIP_NO_INDEX": "1",
        "HTTP_PROXY": nobody,
        "HTTPS_PROXY": nobody,
        "http_proxy": nobody,
        "https_proxy": nobody,
    }


@pytest.mark.skipif(sys.platform != "linux", reason="the folder is made for Linux")
def test_without_a_network_the_stick_leads_to_the_first_reference_within_five_minutes(
    stick: Path, tmp_path: Path
) -> None:
    offline, variables = without_network()
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path / "no home"), "LANG": "C.UTF-8", **variables}

    def done(*words: str | Path, **more: str) -> str:
        command = [*offline, *map(str, words)]
        ran = subprocess.run(command, env=environment | more, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    export = tmp_path / "export"
    rng = np.random.default_rng(0)
    for i, slide in enumerate(make_slides(9)):
        file = export / LABELS[i % 2] / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_jpeg(draw_cell(file.parent.name, next(iter(OPTICS.values())), slide, rng)))
    began = time.monotonic()
    base = getattr(sys, "_base_executable", sys.executable)
    said = done("sh", stick / "install.sh", "--to", tmp_path / "lab ref", PYTHON=base)
    labref = tmp_path / "lab ref" / "labref"
    assert f"'{labref}' init" in said
    assert "service install" in said
    lab = tmp_path / "lab"
    done(labref, "init", lab, "--watch", export)
    done(labref, "agent", "--once", "--lab", lab)
    answer = json.loads(done(labref, "query", export / LABELS[1] / "1.jpg", "--lab", lab, "--json"))
    assert time.monotonic() - began < 300
    assert len(answer["references"]) == 8
    nowhere = ["query", export / LABELS[1] / "1.jpg", "--lab", lab, "--json", "--shared", "all"]
    said = done(labref, *nowhere, LABREF_SHARED__URL="postgresql://lab@127.0.0.1:9/labref")
    assert "cannot be reached" in json.loads(said)["shared"]["problem"], "psycopg is there"
    site = next((tmp_path / "lab ref" / "current" / "lib").glob("*/site-packages"))
    listed = {folder.name.partition("-")[0] for folder in site.glob("*.dist-info")}
    assert "onnxruntime" in listed
    assert not {"onnxruntime_gpu", "pip", "tensorflow"} & listed


def test_every_wheel_on_the_stick_is_listed_with_its_digest_and_fits_the_lab(stick: Path) -> None:
    listed = (stick / "requirements.txt").read_text(encoding="utf-8")
    assert "://" not in listed
    pinned = {tuple(line.split(" ")[0].split("==")): line.split("sha256:")[1] for line in listed.splitlines()}
    wheels = {}
    for wheel in (stick / "wheels").iterdir():
        name, version, _, tags = parse_wheel_filename(wheel.name)
        wheels[str(name), str(version)] = make._sha256(wheel)
        assert any(tag.platform == "any" or tag.platform.endswith("x86_64") for tag in tags), wheel.name
    assert pinned == wheels
    assert {"minisom", "onnxruntime"} <= {name for name, _ in wheels}
    (version,) = (version for name, version in wheels if name == "labref")
    assert version.endswith("cpu"), "it asks for another package than the wheel for all"
    described = json.loads((stick / "stick.json").read_text(encoding="utf-8"))
    assert (described["schema"], described["python"]) == (str(latest_version()), HERE)
    ours = ROOT / "labref" / "starter"
    (wheel,) = (stick / "wheels").glob("labref-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in ("starter.labref", "starter.labref.sig", "starter.pub"):
            assert archive.read(f"labref/starter/{name}") == (ours / name).read_bytes()
    large = [file for file in stick.rglob("*") if file.is_file() and file.stat().st_size > 100_000]
    assert len({make._sha256(file) for file in large}) == len(large), "nothing large is there twice"
    assert not list(stick.rglob("starter*")), "it is in labref's wheel, with its signature and key"


def test_wheels_are_packed_densely_and_hold_what_the_index_has(stick: Path) -> None:
    bill = json.loads((stick / "bill-of-materials.cdx.json").read_text(encoding="utf-8"))
    before = {
        part["name"]: one["value"]
        for part in bill["components"]
        for one in part.get("properties", [])
        if one["name"] == "labref:sha256-as-published"
    }
    pinned = {each.name: each.hashes for each in make.pinned(ROOT / "constraints.txt", "manylinux", HERE, "cpu")}
    assert set(before) == _DENSE - {"minisom"}, "the index has no wheel of that"
    assert all(f"sha256:{before[name]}" in pinned[name] for name in ("pydantic-core", "pillow"))
    for wheel in sorted((stick / "wheels").iterdir()):
        with zipfile.ZipFile(wheel) as archive:
            methods = {member.compress_type for member in archive.infolist() if member.file_size}
            assert (methods == {zipfile.ZIP_LZMA}) == (parse_wheel_filename(wheel.name)[0] in _DENSE), wheel.name
            (record,) = (name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
            listed = list(csv.reader(archive.read(record).decode().splitlines()))
            assert {name for name in archive.namelist() if not name.endswith("/")} == {name for name, _, _ in listed}
            for name, digest, _ in listed[:: 1 + len(listed) // 40]:
                kind, _, wanted = digest.partition("=")
                if kind:
                    found = hashlib.new(kind, archive.read(name)).digest()
                    assert base64.urlsafe_b64encode(found).decode().rstrip("=") == wanted, (wheel.name, name)


def test_a_python_that_cannot_unpack_them_is_told(stick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(installer.InstallError, match="was built without lzma"):
        installer.Stick(stick).check_computer()


def test_the_bill_of_materials_is_one_and_names_all_that_ships_with_its_licence(stick: Path) -> None:
    # imported by this test alone: every worker of a run imports this file, and this takes 4 s of a core
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (stick / "bill-of-materials.cdx.json").read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    digests = {part["bom-ref"]: part["hashes"][0]["content"] for part in bill["components"]}
    shipped = [*(stick / "wheels").iterdir(), *(stick / "installer").glob("*.whl")]
    assert digests == {file.name: make._sha256(file) for file in shipped}
    assert [part["name"] for part in bill["components"] if not part.get("licenses")] == []
    (own,) = (part for part in bill["components"] if part["name"] == "labref")
    carried = {part["name"] for part in own["components"]}
    assert "starter.labref" in carried
    if (ROOT / "labref/web/static/vendor/openseadragon.min.js").exists():
        assert "openseadragon" in carried
        assert (stick / "licences" / "labref" / "labref/web/static/vendor/openseadragon.LICENSE.txt").is_file()
    (needed,) = (each["dependsOn"] for each in bill["dependencies"] if each["ref"] == own["bom-ref"])
    assert any(file.startswith("psycopg-") for file in needed), "what a shared store needs"
    within = {inner["name"] for part in bill["components"] for inner in part.get("components", [])}
    assert "openssl" in within, "what wheels say that they carry of others"
    page = (stick / "licences.html").read_text(encoding="utf-8")
    for link in re.findall(r'href="([^"]+)"', page):
        assert (stick / link).is_file(), link
    for part in bill["components"]:
        assert f"<td>{part['name']}</td><td>{part['version']}</td>" in page


def test_the_pages_for_people_are_on_the_stick_with_all_that_they_link_to(stick: Path) -> None:
    pages = stick / "pages"
    assert {"install.md", "troubleshooting.md", "daily-use.md", "labref.example.toml"} <= {
        f.name for f in pages.iterdir()
    }
    for page in pages.glob("*.md"):
        for link in re.findall(r"\]\(([^)#:]+)[)#]", page.read_text(encoding="utf-8")):
            assert (pages / link).exists(), (page.name, link)


def test_the_page_and_the_script_name_what_is_there(stick: Path) -> None:
    page = (stick / "README.html").read_text(encoding="utf-8")
    assert "$" not in page
    for link in re.findall(r'href="([^"]+)"', page):
        assert (stick / link).is_file(), link
    assert f"python{HERE} --version" in page
    windows = (STICK / "page-win_amd64.html").read_text(encoding="utf-8")
    for link in re.findall(r'href="(pages/[^"]+)"', windows):
        assert (stick / link).is_file(), link
    script = (stick / "install.sh").read_text(encoding="utf-8")
    assert "@" not in script.replace('"$@"', "")
    assert subprocess.run(["sh", "-n", str(stick / "install.sh")], check=False).returncode == 0


@pytest.mark.parametrize("name", ["installer/install.py", "requirements.txt", "wheels"])
def test_a_stick_that_was_changed_or_damaged_installs_nothing(
    stick: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "stick"
    shutil.copytree(stick, copy, copy_function=os.link)
    file = copy / name if name != "wheels" else next((copy / name).glob("h11-*.whl"))
    changed = bytearray(file.read_bytes())
    changed[len(changed) // 2] ^= 1
    file.unlink()
    file.write_bytes(changed)
    monkeypatch.setattr(installer, "_HERE", copy / "installer")
    assert installer.main(["--to", str(tmp_path / "labref")]) == 1
    said = capsys.readouterr().err
    assert f"{file.relative_to(copy).as_posix()} is not what it was" in said
    assert not (tmp_path / "labref" / "current").exists()
    assert installer.main(["--check"]) == 1
    shutil.copy(stick / file.relative_to(copy), file)
    assert installer.main(["--check"]) == 0


# what a computer needs, of the versions that are written down


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("runtime", ["cpu", "cuda"])
@pytest.mark.parametrize("platform", ["win_amd64", "manylinux"])
def test_each_system_gets_its_own_packages(platform: str, runtime: str, python: str) -> None:
    constraints = ROOT / ("constraints.txt" if runtime == "cpu" else "constraints-cuda.txt")
    found = list(make.pinned(constraints, platform, python, runtime))
    names = [each.name for each in found]
    assert len(names) == len(set(names)), "one version of each"
    assert all(each.hashes and re.fullmatch(r"[\w.-]+==[\w.]+", each.line) for each in found)
    assert ("colorama" in names) == (platform == "win_amd64")
    assert {"psycopg", "psycopg-binary"} <= set(names), "a lab without internet can share references too"
    assert ("onnxruntime" in names, "onnxruntime-gpu" in names) == (runtime == "cpu", runtime == "cuda")
    assert ("nvidia-cudnn-cu13" in names) == (runtime == "cuda")
    older = {each.name: each.line for each in make.pinned(constraints, platform, "3.11", runtime)}
    numpy = {each.name: each.line for each in found}["numpy"]
    assert (numpy == older["numpy"]) == (python == "3.11"), "the newest that this Python has"


# the installer, without an environment


@pytest.fixture
def sticks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes sticks without wheels: `sticks("0.2.0", schema=30)`. Their environments are empty folders."""

    def made(version: str, schema: int = 26, **other: str) -> Path:
        folder = tmp_path / f"stick {version}"
        (folder / "installer").mkdir(parents=True)
        shutil.copy(STICK / "install.py", folder / "installer" / "install.py")
        for name in ("install.sh", "install.cmd"):
            shutil.copy(STICK / name, folder / name)
        described = {
            "labref": version,
            "python": HERE,
            "platform": "manylinux",
            "runtime": "cpu",
            "schema": str(schema),
        }
        (folder / "stick.json").write_text(json.dumps(described | other), encoding="utf-8")
        (folder / "requirements.txt").write_text(f"labref=={version}\n", encoding="utf-8")
        make._digests(folder)
        return folder

    def build(self: SimpleNamespace, stick: SimpleNamespace) -> None:
        self.environment(stick.name).mkdir(parents=True)
        shutil.copy(stick.folder / "stick.json", self.environment(stick.name))

    monkeypatch.setattr(installer.Installed, "build", build)
    monkeypatch.setattr(installer, "_lab_of_service", lambda: None)
    return made


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the system's programs were called with; the service runs."""
    calls: list[list[str]] = []

    def run(command: Sequence[str], **_: object) -> SimpleNamespace:
        calls.append(list(command))
        return SimpleNamespace(returncode=0, stdout="        STATE              : 4  RUNNING\n", stderr="")

    monkeypatch.setattr(installer.subprocess, "run", run)
    return calls


def call(monkeypatch: pytest.MonkeyPatch, stick: Path, into: Path, *words: str) -> int:
    monkeypatch.setattr(installer, "_HERE", stick / "installer")
    code: int = installer.main(["--to", str(into), *words])
    return code


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="sticks for Linux")


@LINUX
def test_an_upgrade_stops_the_agent_switches_and_starts_it_and_can_be_undone(
    tmp_path: Path,
    sticks: Callable[..., Path],
    service: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    into = tmp_path / "labref"
    assert call(monkeypatch, sticks("0.1.0"), into) == 0
    first = (into / "current").resolve().name
    assert first.startswith("0.1.0-")
    assert service == [], "a first installation stops nothing"
    assert call(monkeypatch, sticks("0.2.0"), into) == 0
    assert (into / "current").resolve().name.startswith("0.2.0-")
    verbs = [words[1] for words in service]
    assert verbs == ["is-active", "stop", "start"]
    assert "--back" in capsys.readouterr().out
    service.clear()
    assert call(monkeypatch, tmp_path / "stick 0.2.0", into, "--back") == 0
    assert (into / "current").resolve().name == first
    assert [words[1] for words in service] == ["is-active", "stop", "start"]
    assert call(monkeypatch, tmp_path / "stick 0.2.0", into, "--back") == 0
    assert (into / "current").resolve().name.startswith("0.2.0-")
    assert call(monkeypatch, sticks("0.3.0"), into) == 0
    kept = sorted(folder.name.partition("-")[0] for folder in (into / "versions").iterdir())
    assert kept == ["0.2.0", "0.3.0"]
    assert (into / "installer" / "install.py").exists(), "the way back needs no stick"


@LINUX
def test_an_upgrade_and_the_way_back_have_the_services_file_written_anew(
    tmp_path: Path,
    sticks: Callable[..., Path],
    service: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    into, python = tmp_path / "labref", str(tmp_path / "labref" / "current" / "bin" / "python")
    call(monkeypatch, sticks("0.1.0"), into)
    monkeypatch.setattr(installer, "_is_registered", lambda: True)
    monkeypatch.setattr(installer, "_lab_of_service", lambda: Path("/srv/the lab"))
    renewed = [python, "-I", "-m", "labref", "service", "renew", "--lab", "/srv/the lab"]
    for words in (("0.2.0",), ("0.2.0", "--back")):
        stick = tmp_path / f"stick {words[0]}"
        service.clear()
        assert call(monkeypatch, stick if stick.exists() else sticks(words[0]), into, *words[1:]) == 0
        assert [one for one in service if one[0] == python] == [renewed]
        assert service[-2:] == [renewed, ["systemctl", "start", "labref-agent"]], "the agent starts with it"

    def refuses(command: Sequence[str], **_: object) -> SimpleNamespace:
        return SimpleNamespace(returncode=int(command[0] == python), stdout="", stderr="it is another lab's")

    monkeypatch.setattr(installer.subprocess, "run", refuses)
    assert call(monkeypatch, tmp_path / "stick 0.2.0", into) == 0, "the old file serves the new version too"
    assert "it is another lab's" in capsys.readouterr().out


@LINUX
@pytest.mark.parametrize("words", [("0.2.0",), ("0.1.0", "--remove", "--yes")])
def test_what_somebody_started_by_hand_is_named_and_nothing_is_changed(
    words: tuple[str, ...],
    tmp_path: Path,
    sticks: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    into = tmp_path / "labref"
    call(monkeypatch, sticks("0.1.0"), into)
    first = (into / "current").resolve().name
    python = into / "current" / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    (tmp_path / "labref.py").write_text("import time\ntime.sleep(60)\n")
    program = [str(python), "-m", "labref", "agent", "--lab", "/srv/lab"]
    with subprocess.Popen(program, cwd=tmp_path, env={"PATH": "/usr/bin"}) as agent:
        try:
            stick = tmp_path / f"stick {words[0]}"
            deadline = time.monotonic() + 60
            while not installer.Installed(
                into
            ).at_work():  # until it is what was asked for, and no more the tests' copy
                assert time.monotonic() < deadline
            assert call(monkeypatch, stick if stick.exists() else sticks(words[0]), into, *words[1:]) == 1
            assert f"process {agent.pid} (labref agent --lab /srv/lab)" in capsys.readouterr().err
            assert (into / "current").resolve().name == first
        finally:
            agent.kill()
    assert call(monkeypatch, tmp_path / f"stick {words[0]}", into, *words[1:]) == 0


@LINUX
def test_a_stick_for_a_gpu_lets_the_service_reach_it(
    tmp_path: Path, sticks: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for runtime, line in (("cpu", "--user labref\n"), ("cuda", "--user labref --gpu\n")):
        assert call(monkeypatch, sticks(f"0.1.0+{runtime}", runtime=runtime), tmp_path / runtime) == 0
        assert line in capsys.readouterr().out


@LINUX
def test_where_the_store_gets_newer_a_backup_is_asked_for_and_the_way_back_says_what_to_do(
    tmp_path: Path,
    sticks: Callable[..., Path],
    service: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    into = tmp_path / "labref"
    call(monkeypatch, sticks("0.1.0", schema=26), into)
    newer = sticks("0.2.0", schema=28)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False))
    assert call(monkeypatch, newer, into, "--lab", "/srv/the lab") == 1
    said = capsys.readouterr()
    assert "store backup BACKUP --lab '/srv/the lab'" in said.out
    assert "--yes" in said.err
    assert (into / "current").resolve().name.startswith("0.1.0-")
    assert service == [], "the agent goes on"
    assert call(monkeypatch, newer, into, "--yes") == 0
    service.clear()
    capsys.readouterr()
    assert call(monkeypatch, newer, into, "--back", "--lab", "/srv/the lab", "--yes") == 0
    said = capsys.readouterr()
    assert "store restore BACKUP '/srv/the lab'" in said.out
    assert "systemctl start labref-agent" in said.out
    assert [words[1] for words in service] == ["is-active", "stop"], "the old agent would not open the store"
    assert (into / "current").resolve().name.startswith("0.1.0-")


@LINUX
def test_an_older_stick_is_no_upgrade_where_it_does_not_open_the_store(
    tmp_path: Path,
    sticks: Callable[..., Path],
    service: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    into = tmp_path / "labref"
    call(monkeypatch, sticks("0.2.0", schema=28), into)
    assert call(monkeypatch, sticks("0.1.0", schema=26), into, "--yes") == 1
    assert "--back" in capsys.readouterr().err
    assert (into / "current").resolve().name.startswith("0.2.0-")


@LINUX
def test_what_was_interrupted_is_made_anew_and_an_agent_that_does_not_start_is_told(
    tmp_path: Path,
    sticks: Callable[..., Path],
    service: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    into, first, second = tmp_path / "labref", sticks("0.1.0"), sticks("0.2.0")
    whole = installer.Installed.build

    def broken(self: SimpleNamespace, stick: SimpleNamespace) -> None:
        self.environment(stick.name).mkdir(parents=True)
        raise OSError(28, "No space left on device")

    call(monkeypatch, first, into)
    monkeypatch.setattr(installer.Installed, "build", broken)
    assert call(monkeypatch, second, into) == 1
    assert "No space left" in capsys.readouterr().err
    assert (into / "current").resolve().name.startswith("0.1.0-")
    assert service == []
    shutil.rmtree(next((into / "versions").glob("0.2.0-*")))
    monkeypatch.setattr(installer.Installed, "build", whole)

    def fails(command: Sequence[str], **_: object) -> SimpleNamespace:
        code = 1 if command[1] == "start" else 0
        return SimpleNamespace(returncode=code, stdout="", stderr="Job failed")

    monkeypatch.setattr(installer.subprocess, "run", fails)
    assert call(monkeypatch, second, into) == 1
    said = capsys.readouterr().err
    assert "did not start" in said
    assert "--back" in said
    assert "Job failed" in said


@LINUX
def test_taking_it_off_waits_for_the_service_and_leaves_what_is_not_its_own(
    tmp_path: Path, sticks: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    into = tmp_path / "labref"
    call(monkeypatch, sticks("0.1.0"), into)
    (into / "notes.txt").write_text("mine", encoding="utf-8")
    monkeypatch.setattr(installer, "_is_registered", lambda: True)
    assert call(monkeypatch, tmp_path / "stick 0.1.0", into, "--remove", "--yes") == 1
    assert "service remove" in capsys.readouterr().err
    monkeypatch.setattr(installer, "_is_registered", lambda: False)
    assert call(monkeypatch, tmp_path / "stick 0.1.0", into, "--remove", "--yes") == 0
    assert [file.name for file in into.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("other", "words"),
    [({"python": "3.8"}, "this stick is for Python 3.8"), ({"platform": "win_amd64"}, "this stick is for Windows")],
)
@LINUX
def test_a_stick_for_another_computer_says_so(
    tmp_path: Path,
    sticks: Callable[..., Path],
    other: dict[str, str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, sticks("0.1.0", **other), tmp_path / "labref") == 1
    assert words in capsys.readouterr().err


def test_on_windows_the_service_is_stopped_by_windows_programs_and_a_junction_leads_to_the_version(
    tmp_path: Path, service: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installer, "_WINDOWS", True)
    with installer._stopped(installer.Installed(tmp_path / "labref")):
        service.append(["switch"])
    assert [words[:2] for words in service if words[0] != "sc.exe"] == [
        ["net.exe", "stop"],
        ["powershell.exe", "-NoProfile"],
        ["switch"],
        ["net.exe", "start"],
    ]
    installer._link(tmp_path / "current", tmp_path / "versions" / "0.2.0")
    assert service[-1] == ["cmd.exe", "/c", "mklink", "/J", str(tmp_path / "current"), str(tmp_path / "versions/0.2.0")]


def test_on_windows_what_was_started_by_hand_is_found_by_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    said = (
        '4711 "C:\\Program Files\\labref\\current\\Scripts\\python.exe" -m labref agent --lab "D:\\a lab"\r\n'
        '4712 "C:\\Program Files\\labref\\current\\Scripts\\python.exe" -m labref.cells.decoding_worker\r\n'
        "4713 C:\\Python312\\python.exe -m labref agent\r\n"
    )
    monkeypatch.setattr(installer, "_WINDOWS", True)
    monkeypatch.setattr(installer, "_asked", lambda _: SimpleNamespace(stdout=said, returncode=0))
    into = installer.Installed(Path("C:\\Program Files\\labref"))
    assert into.at_work() == [(4711, "labref agent --lab D:\\a lab")]


def test_the_lab_of_a_windows_service_is_found_by_its_program(monkeypatch: pytest.MonkeyPatch) -> None:
    said = '        BINARY_PATH_NAME   : "D:\\a lab\\service\\labref-agent.exe"\r\n        START_TYPE : 2\r\n'
    monkeypatch.setattr(installer, "_WINDOWS", True)
    monkeypatch.setattr(installer, "_asked", lambda _: SimpleNamespace(stdout=said, returncode=0))
    assert str(installer._lab_of_service()) == "D:\\a lab"


def test_the_installers_need_nothing_but_python(tmp_path: Path) -> None:
    """It runs before any package is there."""
    text = (STICK / "install.py").read_text(encoding="utf-8")
    imported = set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE))
    assert imported <= set(sys.stdlib_module_names) | {"__future__"}
    for name in ("install.cmd", "install.sh"):
        assert r"installer" in (STICK / name).read_text(encoding="utf-8")
