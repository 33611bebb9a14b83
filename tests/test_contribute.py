"""A pack for the centre holds the reviewed cells and nothing that names a patient, and is whole or not there."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import stat
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from typer.testing import CliRunner

from labref import failpoints
from labref.bundles.bundle import Bundle
from labref.bundles.signing import KnownKey, read_public_key
from labref.cells.image import prepare
from labref.cli import app
from labref.demo.cells import OPTICS, draw_cell, make_slides
from labref.errors import KeyFileError, LabError, LabrefError
from labref.lab import Lab
from labref.lab.contributing import Given, Pseudonyms, own_key
from labref.packs import CELLS, COLUMNS, MANIFEST, REMOVED, Pack, crop_in, picture_of, take_in
from labref.web.desk import Desk, run
from labref.words import MEASURES
from tests.benchmarks.exports import labref_process
from tests.labs import make_lab, once, running_agent

PATIENTS = ("Sjövall-Karin 19500203-1234", "ÅKESSON_BENGT")
ORDER, ANALYSER, SERIAL = "Remiss 4711-ABC", "DC-1 Rum Wedenoja", "SN0099871"
REVIEWERS = ("Dr Östen Wallqvist", "B. Lindskoug")
CLASSES = {"Segmented neutrophils": "neutrophil", "Basophil": "basophil", "Monocyte": "monocyte"}
PLANTED = "Patienten Sjövall-Karin, bild av B. Lindskoug"


def picture_bytes(label: str, number: int, kind: str) -> bytes:
    """A drawn cell as JPEG or PNG, with a patient's name in its EXIF, its comment and its text."""
    slide = make_slides(1, seed=number)[0]
    picture = Image.fromarray(
        np.asarray(draw_cell(label, OPTICS[slide.optics], slide, np.random.default_rng([number])))
    )
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x010E] = exif[0x9286] = PLANTED
    exif[0x0132] = "2024:03:17 11:22:33"
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text("Comment", PLANTED)
        text.add_itxt("Patient", PLANTED)
        picture.save(out, "PNG", pnginfo=text, exif=exif)
    else:
        picture.save(out, "JPEG", quality=95, exif=exif, comment=PLANTED.encode())
    return out.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, starter: Bundle) -> Lab:
    """A lab of ten cells that people reviewed in the analyser, two that nobody did, and one whose class nobody
    declared."""
    root = tmp_path_factory.mktemp("given")
    export = root / "Exporten Hjortsberg"
    number = 0
    for patient in PATIENTS:
        for folder, label in CLASSES.items():
            for kind in ("JPEG", "PNG")[: 2 if folder != "Monocyte" else 1]:
                number += 1
                target = export / patient / ORDER / "Signed slides" / folder / f"{SERIAL}_{number}.{kind.lower()}"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(picture_bytes(label, number, kind))
    for patient in PATIENTS:
        number += 1
        target = export / patient / ORDER / "Unsigned slides" / f"Glas-77123_{number:03d}.jpg"
        target.parent.mkdir(parents=True)
        target.write_bytes(picture_bytes("eosinophil", number, "JPEG"))
    stray = export / "Signed slides" / "Fredrika Tornhjelm" / "1.jpg"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(picture_bytes("lymphocyte", 99, "JPEG"))
    lab = make_lab(root / "Labbet i Kristineberg", export, starter, analyser=ANALYSER)
    once(lab)
    run_all(lab, "key.own", name="Laboratoriet Kristineberg")
    return lab


@pytest.fixture
def lab(made: Lab, tmp_path: Path) -> Lab:
    """A copy of it, to be changed."""
    shutil.copytree(made.folder, tmp_path / made.folder.name)
    return replace(made, folder=tmp_path / made.folder.name)


@pytest.fixture(autouse=True)
def _no_traps() -> Iterator[None]:
    yield
    failpoints.disarm()


def run_all(lab: Lab, operation: str, /, **parameters: Any) -> list[dict[str, Any]]:
    return [row for row in run(lab, operation, **parameters) if "progress" not in row]


def give(lab: Lab, out: Path, **how: Any) -> dict[str, Any]:
    (row,) = run_all(lab, "contribute.write", target=str(out), consent="CC BY 4.0", **how)
    return row


def opened(lab: Lab, pack: Path, folder: Path) -> Pack:
    """A pack, as the centre takes it in that trusts the lab."""
    folder.mkdir()
    key = own_key(lab)[0].public
    return take_in(pack, {key.id: KnownKey(key, "trusted")}, folder)


def cells_in(pack: Pack) -> list[dict[str, Any]]:
    found = duckdb.sql(f"FROM '{pack.folder / CELLS}'")
    return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def removed_in(pack: Pack) -> list[str]:
    return [cell for (cell,) in duckdb.sql(f"FROM '{pack.folder / REMOVED}'").fetchall()]


def ids(lab: Lab) -> dict[str, str]:
    """The lab's cells by the name of their file."""
    return {Path(row["path"]).name: row["cell_id"] for row in run(lab, "ledger") if row["cell_id"]}


def label(lab: Lab, file: str, to: str, who: str = REVIEWERS[0]) -> None:
    run_all(lab, "label.set", cell=ids(lab)[file], label=to, who=who)


def names_of(lab: Lab) -> set[str]:
    """Everything in the lab that could name a patient, a person or a file: each part of each path, and its words."""
    found = {ANALYSER, *REVIEWERS, PLANTED, lab.folder.name, "Laboratoriet Kristineberg", lab.token()}
    with lab.open_store() as store:
        for digest in store.digests():
            found |= {digest, digest[:16]}
        for row in store.ledger():
            found |= {*Path(row.path).parts[1:], Path(row.path).stem, row.slide or "", row.cell_id or ""}
    found.discard("")
    words = {word for name in found for word in re.split(r"[\W_]+", name)}
    declared = {word.casefold() for name in (*CLASSES, *CLASSES.values()) for word in (name, *name.split())}
    plain = {"images", "image", "slides", "signed", "unsigned", "given", "jpeg", "http"}
    return {
        name
        for name in found | words
        if len(name) >= 5 and name.casefold() not in declared | plain and not name.isdecimal()
    } | {"19500203", "77123", "0099871", "4711-ABC"}


def everything_in(pack: Path, scratch: Path) -> dict[str, bytes]:
    """All bytes of a pack: as they lie, of each member, of its tables and pictures without their compression, and each
    text in them."""
    found = {"pack": pack.read_bytes()}
    with zipfile.ZipFile(pack) as archive:
        found |= {name: archive.read(name) for name in archive.namelist()} | {"comment": archive.comment}
    for name in (CELLS, REMOVED):
        (scratch / name).write_bytes(found[name])
        plain = scratch / f"plain-{name}"
        duckdb.sql(f"COPY (FROM '{scratch / name}') TO '{plain}' (FORMAT parquet, COMPRESSION uncompressed)")
        found[f"plain {name}"] = plain.read_bytes()
        told = duckdb.sql(f"SELECT * EXCLUDE (file_name) FROM parquet_kv_metadata('{scratch / name}')").fetchall()
        found[f"metadata {name}"] = repr(
            (told, duckdb.sql(f"SELECT * EXCLUDE (file_name) FROM parquet_schema('{scratch / name}')").fetchall())
        ).encode()
    pictures = duckdb.sql(f"SELECT crop FROM '{scratch / CELLS}'").fetchall()
    found["pixels"] = b"".join(crop_in(picture).tobytes() for (picture,) in pictures)
    return found


def test_nothing_in_a_pack_names_a_patient_a_person_or_a_file(lab: Lab, tmp_path: Path) -> None:
    label(lab, f"{SERIAL}_1.jpeg", "basophil", REVIEWERS[0])
    label(lab, f"{SERIAL}_1.jpeg", "monocyte", REVIEWERS[1])
    names = names_of(lab)
    for name in ("Sjövall-Karin 19500203-1234", "BENGT", "Östen", "Lindskoug", f"{SERIAL}_1", "Glas-77123", "Wedenoja"):
        assert name in names, "the scan knows what to look for"
    give(lab, tmp_path / "1.pack", shift_dates=True)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    parts = everything_in(tmp_path / "1.pack", scratch)
    for where, data in parts.items():
        small = data.lower()
        for name in names:
            for spelt in (name, name.casefold(), name.upper()):
                for encoding in ("utf-8", "latin-1", "utf-16-le"):
                    assert spelt.encode(encoding, "ignore").lower() not in small, (where, name)
        assert b"2024:03:17" not in data and b"Exif" not in data and b"Comment" not in data, where
    # the same scan finds them in the lab's own identifying export
    run_all(lab, "store.export", target=str(tmp_path / "own.parquet"), thumbnails=False, identifying=True)
    duckdb.sql(
        f"COPY (FROM '{tmp_path / 'own.parquet'}') TO '{tmp_path / 'plain'}' (FORMAT parquet, COMPRESSION uncompressed)"
    )
    seen = (tmp_path / "plain").read_bytes()
    assert all(patient.encode() in seen for patient in PATIENTS)


def test_a_pack_holds_the_reviewed_cells_and_the_preview_says_so(lab: Lab, tmp_path: Path) -> None:
    (told,) = run_all(lab, "contribute.preview")
    assert not (lab.folder / "packs").exists()
    assert (told["cells"], told["again"], told["removed"], told["follows"]) == (10, 0, 0, None)
    assert told["classes"] == {"basophil": 4, "monocyte": 2, "neutrophil": 4}
    assert told["left_out"] == {"class_not_declared": 1, "not_reviewed": 2}
    row = give(lab, tmp_path / "1.pack")
    pack = opened(lab, tmp_path / "1.pack", tmp_path / "open")
    assert pack.digest == row["digest"] and pack.manifest.lab == row["lab"] == told["lab"]
    cells = cells_in(pack)
    assert [column["name"] for column in told["columns"]] == list(COLUMNS) == list(cells[0])
    assert pack.manifest.classes == told["classes"] == row["classes"]
    assert [cell["cell"] for cell in cells] == sorted(cell["cell"] for cell in cells), "their order says nothing"
    names = Pseudonyms(own_key(lab)[0])
    with lab.open_store() as store:
        by_name = {names.cell(digest[:16]): digest for digest in store.digests()}
        for cell in cells:
            digest = by_name[cell["cell"]]
            stored = store.cell(digest[:16])
            assert stored is not None and (stored.label, str(stored.label_source)) == (cell["label"], "reviewed")
            crop = prepare(lab.read_image(digest)).crop
            assert np.array_equal(crop_in(cell["crop"]), crop), "to the pixel"
            (latent,) = store.latents([digest[:16]], bundle=pack.manifest.bundle or "").values()
            np.testing.assert_array_equal(np.float32(cell["latent"]), latent)
            assert all(np.isfinite(cell[measure]) for measure in MEASURES)
    assert {cell["label_source"] for cell in cells} == {"export"} and {cell["decisions"] for cell in cells} == {0}
    assert {cell["optics"] for cell in cells} == {names.optics(ANALYSER)} == set(told["optics"])


def test_a_label_that_a_person_gave_in_labref_leaves_with_its_history_as_a_keyed_digest(
    lab: Lab, tmp_path: Path
) -> None:
    file = f"{SERIAL}_1.jpeg"
    give(lab, tmp_path / "1.pack")
    label(lab, file, "basophil")
    label(lab, "Glas-77123_011.jpg", "eosinophil")
    give(lab, tmp_path / "2.pack")
    first, second = (opened(lab, tmp_path / f"{n}.pack", tmp_path / f"open{n}") for n in (1, 2))
    name = Pseudonyms(own_key(lab)[0]).cell(ids(lab)[file])
    before = next(cell for cell in cells_in(first) if cell["cell"] == name)
    cells = {cell["cell"]: cell for cell in cells_in(second)}
    assert (
        len(cells) == 2 and second.manifest.follows == first.digest and second.manifest.number > first.manifest.number
    )
    after = cells[name]
    assert (after["label"], after["label_source"], after["decisions"]) == ("basophil", "labref", 1)
    assert after["history"] != before["history"] and len(after["history"]) == 32
    assert after["crop"] == before["crop"]


def test_only_what_is_new_or_relabelled_leaves_and_what_is_gone_is_named(lab: Lab, tmp_path: Path) -> None:
    first = give(lab, tmp_path / "1.pack")
    assert (first["cells"], first["again"], first["removed"]) == (10, 0, 0)
    again = give(lab, tmp_path / "2.pack")
    assert again["target"] is None and not (tmp_path / "2.pack").exists(), "nothing is new"
    label(lab, f"{SERIAL}_2.png", "basophil")
    label(lab, f"{SERIAL}_3.jpeg", "monocyte")
    files = ids(lab)
    stray = files["Glas-77123_011.jpg"]
    label(lab, "Glas-77123_011.jpg", "eosinophil")
    untouched = {files[f"{SERIAL}_4.png"], files[f"{SERIAL}_9.png"]}  # of one class: the one that came first may go
    with lab.open_store() as store:
        due = store.due(days=0, cells=1, at_least=0, reviewed=True, limit=99)
        (lost,) = [one.cell_id for one in due if one.cell_id in untouched][:1]
        assert store.remove([one for one in due if one.cell_id == lost]) == 1
    second = give(lab, tmp_path / "2.pack")
    assert (second["cells"], second["again"], second["removed"]) == (3, 2, 1)
    pack = opened(lab, tmp_path / "2.pack", tmp_path / "open")
    names = Pseudonyms(own_key(lab)[0])
    assert removed_in(pack) == [names.cell(lost)]
    assert names.cell(stray) in {cell["cell"] for cell in cells_in(pack)}
    run_all(lab, "label.undo", cell=stray)  # nobody calls it reviewed any more
    third = give(lab, tmp_path / "3.pack")
    assert (third["cells"], third["removed"]) == (0, 1)
    assert removed_in(opened(lab, tmp_path / "3.pack", tmp_path / "open3")) == [names.cell(stray)]
    whole = give(lab, tmp_path / "all.pack", everything=True)
    assert (whole["cells"], whole["removed"]) == (9, 0)
    assert opened(lab, tmp_path / "all.pack", tmp_path / "open4").manifest.follows is None


def test_no_more_leaves_than_was_looked_at(lab: Lab, tmp_path: Path) -> None:
    give(lab, tmp_path / "1.pack")
    label(lab, f"{SERIAL}_1.jpeg", "basophil")
    (told,) = run_all(lab, "contribute.preview")
    assert told["cells"] == 1
    label(lab, f"{SERIAL}_2.png", "basophil")  # while somebody looks at it
    label(lab, f"{SERIAL}_3.jpeg", "monocyte")
    row = give(lab, tmp_path / "2.pack", as_of=told["as_of"])
    assert (row["cells"], row["removed"], row["left_out"]["changed_since"]) == (1, 0, 2)
    assert give(lab, tmp_path / "3.pack")["cells"] == 2, "the next pack has it"


def test_a_picture_that_is_lost_stays_and_is_counted(lab: Lab, tmp_path: Path) -> None:
    give(lab, tmp_path / "1.pack")
    for file in (f"{SERIAL}_1.jpeg", f"{SERIAL}_2.png"):
        label(lab, file, "basophil")
    lost = ids(lab)[f"{SERIAL}_1.jpeg"]
    with lab.open_store() as store:
        stored = store.cell(lost)
    assert stored is not None
    lab.image_path(stored.digest).write_bytes(b"")
    row = give(lab, tmp_path / "2.pack")
    assert (row["cells"], row["again"], row["left_out"]["bytes_lost"], row["removed"]) == (1, 1, 1, 0)
    lab.image_path(stored.digest).unlink()
    shutil.copy(stored.path, lab.image_path(stored.digest))
    assert give(lab, tmp_path / "3.pack")["cells"] == 1, "it comes once its picture is back"


def test_dates_stay_unless_they_are_moved_by_what_only_the_key_knows(lab: Lab, tmp_path: Path) -> None:
    give(lab, tmp_path / "1.pack", shift_dates=True)
    pack = opened(lab, tmp_path / "1.pack", tmp_path / "open")
    names = Pseudonyms(own_key(lab)[0])
    with lab.open_store() as store:
        true = {
            names.cell(cell.cell_id): cell.captured_at
            for cell in store.cells([d[:16] for d in store.digests()]).values()
        }
    moved = set()
    for cell in cells_in(pack):
        at, captured = cell["captured_at"], true[cell["cell"]]
        assert isinstance(at, datetime) and captured is not None
        day = captured.replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0)
        moved.add(day - at)
    assert moved == {timedelta(days=names.days())} and 1 <= names.days() <= 3650
    assert pack.manifest.dates == "shifted"


def test_the_agent_gives_the_same(lab: Lab, tmp_path: Path) -> None:
    shutil.copytree(lab.folder, tmp_path / "copy")
    alone = give(replace(lab, folder=tmp_path / "copy"), tmp_path / "alone.pack")
    with running_agent(lab):
        done = CliRunner().invoke(
            app,
            [
                "contribute",
                "--out",
                str(tmp_path / "1.pack"),
                "--consent",
                "CC BY 4.0",
                "--lab",
                str(lab.folder),
                "--json",
            ],
        )
        assert done.exit_code == 0, done.output
        asked = json.loads(done.stdout)
    assert (asked["cells"], asked["lab"]) == (alone["cells"], alone["lab"]) == (10, alone["lab"])
    one, other = (
        cells_in(opened(lab, tmp_path / f"{name}.pack", tmp_path / f"open {name}")) for name in ("alone", "1")
    )
    assert one == other


def test_the_command_shows_what_leaves_and_asks(lab: Lab, tmp_path: Path) -> None:
    words = ["contribute", "--preview", "--sheet", tmp_path / "sheet.png", "--lab", lab.folder]
    words += ["--out", tmp_path / "1.pack", "--consent", "Samtycke: forskning, Skåne"]
    done = CliRunner().invoke(app, [str(word) for word in words], input="n\n")
    assert done.exit_code == 1 and not (tmp_path / "1.pack").exists()
    for column in COLUMNS:
        assert re.search(rf"^  {column} +[A-Z]+", done.stdout, re.MULTILINE), column
    assert "It would hold 10 cells.\n" in done.stdout and re.search(r"^ +4  basophil$", done.stdout, re.MULTILINE)
    assert re.search(r"^ +2  stay: no person gave its label$", done.stdout, re.MULTILINE)
    assert re.search(r"^ +1  stay: only the name of a folder says its class", done.stdout, re.MULTILINE)
    with Image.open(tmp_path / "sheet.png") as sheet:
        drawn = np.asarray(sheet.convert("RGB"))
    assert drawn.shape[0] > 600 and drawn.std() > 20
    done = CliRunner().invoke(app, [str(word) for word in words], input="y\n")
    assert done.exit_code == 0 and "10 cells" in done.stdout, done.output
    with zipfile.ZipFile(tmp_path / "1.pack") as archive:
        assert json.loads(archive.read(MANIFEST))["consent"] == "Samtycke: forskning, Skåne"
    kept = (tmp_path / "sheet.png").read_bytes()
    words = ["contribute", "--preview", "--sheet", str(tmp_path / "sheet.png"), "--lab", str(lab.folder)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and "No picture would leave" in done.stdout
    assert (tmp_path / "sheet.png").read_bytes() == kept, "what somebody agreed to is not drawn over with nothing"
    for more in ([], ["--out", "x.pack"]):
        done = CliRunner().invoke(app, ["contribute", *more, "--lab", str(lab.folder)])
        assert done.exit_code == 2
    for consent in ("", "Karin\nSjövall", "x" * 70, "ethics <b>vote</b> 7", " research", "forskning 中"):
        with pytest.raises(LabrefError, match=r"consent cannot be .*letters of western Europe, digits, spaces and"):
            run_all(lab, "contribute.write", target=str(tmp_path / "2.pack"), consent=consent)


def test_the_lab_is_told_which_of_its_analysers_a_pseudonym_is(lab: Lab) -> None:
    (shown,) = run_all(lab, "contribute.preview")
    names = Pseudonyms(own_key(lab)[0])
    assert set(shown["analysers"]) == set(shown["optics"]) and len(shown["analysers"]) >= 1
    assert all(names.optics(name) == pseudonym for pseudonym, name in shown["analysers"].items())


# whole, or not there


@pytest.mark.parametrize("point", ["pack.write", "pack.rename", "pack.state"])
def test_a_pack_that_fails_leaves_nothing_half(lab: Lab, tmp_path: Path, point: str) -> None:
    target = tmp_path / "out" / "1.pack"
    failpoints.arm(f"{point}=enospc@{2 if point == 'pack.state' else 1}")  # before the rename, and after it
    with pytest.raises(LabError, match="cannot be written: No space left"):
        give(lab, target)
    failpoints.disarm()
    left = [] if point != "pack.state" else ["1.pack"]
    assert [entry.name for entry in target.parent.iterdir()] == left
    assert not list((lab.folder / "packs").glob("*.part"))
    # the lab knows of no pack: the next one holds all of it again, and follows none
    row = give(lab, tmp_path / "2.pack")
    assert row["cells"] == 10 and opened(lab, tmp_path / "2.pack", tmp_path / "open").manifest.follows is None


@pytest.mark.parametrize("point", ["pack.rename", "pack.renamed", "pack.state"])
def test_a_pack_that_is_killed_is_whole_or_not_there(
    lab: Lab, tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(lab, tmp_path / "0.pack")
    label(lab, f"{SERIAL}_1.jpeg", "basophil")
    monkeypatch.setenv("LABREF_FAILPOINTS", f"{point}=kill@{2 if point == 'pack.state' else 1}")
    target = tmp_path / "out" / "1.pack"
    process = labref_process(
        *("contribute", "--out", target, "--consent", "research", "--lab", lab.folder), passed=["LABREF_FAILPOINTS"]
    )
    try:
        process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == failpoints.KILLED
    assert target.exists() is (point != "pack.rename")
    if target.exists():
        assert opened(lab, target, tmp_path / "open").manifest.cells == 1
    row = give(lab, tmp_path / "2.pack")
    before, after = (opened(lab, tmp_path / f"{n}.pack", tmp_path / f"open {n}") for n in (0, 2))
    assert row["cells"] == 1 and after.manifest.follows == before.digest
    if target.exists():
        assert after.manifest.number > opened(lab, target, tmp_path / "open again").manifest.number


def test_of_two_at_once_one_is_written(lab: Lab, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    with Desk.open(lab) as desk:

        def write(name: str) -> None:
            found = desk.run("contribute.write", target=str(tmp_path / name), consent="research")
            rows.extend(row for row in found if "progress" not in row)

        threads = [threading.Thread(target=write, args=(f"{number}.pack",)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(row["cells"] for row in rows) == [0, 0, 10]
    assert len(list(tmp_path.glob("*.pack"))) == 1


def test_no_file_is_replaced_and_nothing_is_written_into_an_export_or_a_lab(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "mine.pack").write_text("mine")
    places = (tmp_path / "mine.pack", lab.watched[0] / "1.pack", lab.folder / "key", lab.folder / "images" / "1.pack")
    for place in places:
        with pytest.raises(LabError):
            give(lab, place)
    assert (tmp_path / "mine.pack").read_text() == "mine" and not (lab.folder / "packs").exists()


# the lab's own key


def test_a_lab_has_one_key_of_its_own(made: Lab, lab: Lab, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["key", "own", "--out", str(tmp_path / "lab.pub"), "--lab", str(lab.folder), "--json"]
    )
    row = json.loads(done.stdout)
    assert (row["name"], row["made"]) == ("Laboratoriet Kristineberg", False)
    assert read_public_key((tmp_path / "lab.pub").read_bytes(), "x").id == row["id"] == own_key(made)[0].public.id
    if os.name != "nt":
        assert stat.S_IMODE((lab.folder / "key").stat().st_mode) == 0o600
    (renamed,) = run_all(lab, "key.own", name="Another")
    assert (renamed["name"], renamed["id"], renamed["made"]) == ("Another", row["id"], False)
    assert run_all(lab, "key.own") == [renamed] and read_public_key(renamed["document"].encode(), "x").name == "Another"
    with pytest.raises(KeyFileError, match="no name of a key"):
        run_all(lab, "key.own", name="two\nlines")
    assert run_all(lab, "key.own") == [renamed]
    (lab.folder / "key.pub").unlink()
    assert own_key(lab)[0].public.id == row["id"], "the public one is made of the private one"
    (lab.folder / "key").unlink()
    with pytest.raises(KeyFileError, match="is missing. Put it back"):
        run_all(lab, "contribute.preview")
    (lab.folder / "key.pub").unlink()
    new = run_all(lab, "key.own")[0]
    assert new["made"] and new["id"] != row["id"]


def test_another_key_gives_other_pseudonyms_and_begins_anew(lab: Lab, tmp_path: Path) -> None:
    give(lab, tmp_path / "1.pack")
    first = {cell["cell"] for cell in cells_in(opened(lab, tmp_path / "1.pack", tmp_path / "open"))}
    for name in ("key", "key.pub"):
        (lab.folder / name).unlink()
    assert give(lab, tmp_path / "2.pack")["cells"] == 10
    second = opened(lab, tmp_path / "2.pack", tmp_path / "open2")
    assert second.manifest.follows is None and not first & {cell["cell"] for cell in cells_in(second)}


def test_what_the_last_pack_held_is_not_believed_where_it_is_damaged(lab: Lab, tmp_path: Path) -> None:
    give(lab, tmp_path / "1.pack")
    (file,) = (lab.folder / "packs").iterdir()
    data = file.read_bytes()
    for damaged in (b"", data[:-100], b"x" * 200):
        file.write_bytes(damaged)
        with pytest.raises(LabError, match="delete it"):
            give(lab, tmp_path / "2.pack")
    file.unlink()
    assert Given.load(lab, "0" * 16).pack is None
    assert give(lab, tmp_path / "2.pack")["cells"] == 10


def test_a_picture_of_a_pack_holds_its_pixels_alone() -> None:
    crop = np.random.default_rng(1).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    data = picture_of(crop)
    assert np.array_equal(crop_in(data), crop)
    with_exif, larger, lossy = io.BytesIO(), io.BytesIO(), io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = PLANTED
    Image.fromarray(crop).save(with_exif, "WEBP", lossless=True, exif=exif)
    Image.fromarray(crop).resize((257, 256)).save(larger, "WEBP", lossless=True)
    Image.fromarray(crop).save(lossy, "WEBP")
    transparent = io.BytesIO()
    Image.fromarray(np.dstack([crop, crop[:, :, :1]])).save(transparent, "WEBP", lossless=True, exact=True)
    for wrong in (
        *(with_exif.getvalue(), larger.getvalue(), lossy.getvalue(), transparent.getvalue()),
        *(b"", data[:-1], data + b"\0", data + b"EXIF\x04\0\0\0karin", data[:40], data[:30] + bytes(len(data) - 30)),
    ):
        with pytest.raises(ValueError, match="it "):
            crop_in(wrong)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_lab_that_its_group_shares_has_a_key_for_the_group(lab: Lab) -> None:
    access = lab.config.access.model_copy(update={"group": True})
    shared = replace(lab, config=lab.config.model_copy(update={"access": access}))
    for name in ("key", "key.pub"):
        (lab.folder / name).unlink()
    made = own_key(shared)[0].public
    assert stat.S_IMODE((lab.folder / "key").stat().st_mode) == 0o660 and own_key(shared)[0].public == made
    with pytest.raises(KeyFileError, match="can be read by others"):
        own_key(lab)
    (lab.folder / "key").chmod(0o664)
    with pytest.raises(KeyFileError, match="can be read by others"):
        own_key(shared)


# what is left behind, and a stick that is full


def of_lab(*words: object, point: str, lab: Lab) -> None:
    """A command that is killed at a failpoint."""
    process = labref_process(*words, "--lab", lab.folder, passed=["LABREF_FAILPOINTS"])
    try:
        process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == failpoints.KILLED, point


@pytest.mark.parametrize(
    ("point", "words"),
    [("pack.rename", ["contribute", "--consent", "research", "--out"]), ("export.rename", ["store", "export"])],
)
def test_what_a_killed_command_left_on_a_stick_is_deleted_by_the_next(
    lab: Lab, tmp_path: Path, point: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stick = tmp_path / "stick"
    stick.mkdir()
    (stick / ".labref-pack-of another lab").mkdir()
    monkeypatch.setenv("LABREF_FAILPOINTS", f"{point}=kill@1")
    of_lab(*words, stick / "1.out", point=point, lab=lab)
    monkeypatch.delenv("LABREF_FAILPOINTS")
    assert len(list(stick.glob(".labref-*"))) == 2
    done = CliRunner().invoke(app, [*words, str(stick / "2.out"), "--lab", str(lab.folder)])
    assert done.exit_code == 0, done.output
    assert sorted(entry.name for entry in stick.iterdir()) == [".labref-pack-of another lab", "2.out"]


def test_two_exports_beside_each_other_leave_each_other_alone(lab: Lab, tmp_path: Path) -> None:
    with Desk.open(lab) as desk:
        first = desk.run("store.export", target=str(tmp_path / "1.parquet"))
        next(first)
        (other,) = (
            row for row in desk.run("store.export", target=str(tmp_path / "2.parquet")) if "progress" not in row
        )
        (one,) = (row for row in first if "progress" not in row)
    assert one["cells"] == other["cells"] == 13 and len(list(tmp_path.glob("*.parquet"))) == 2


if os.name == "posix":

    @pytest.fixture
    def stick(tmp_path: Path) -> Iterator[Path]:
        """A disk of 2 MB, where this system lets a test mount one."""
        folder = tmp_path / "stick"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=2m", "labref-test", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("only root of a Linux that allows it can mount a small disk")
        yield folder
        subprocess.run(["umount", "-l", str(folder)], check=True)

    def test_a_stick_that_is_full_in_truth_costs_the_running_agent_nothing(
        lab: Lab, stick: Path, tmp_path: Path
    ) -> None:
        """DuckDB writes to the stick what it reads from the store; what it makes of a full disk must not reach that."""
        free = os.statvfs(stick).f_bavail * os.statvfs(stick).f_frsize
        with running_agent(lab):
            whole = give(lab, tmp_path / "whole.pack", everything=True)
            assert whole["cells"] == 10
            failed = 0
            for spare in range(0, free, free // 9):
                filler = stick / "filler"
                filler.write_bytes(bytes(free - spare))
                try:
                    give(lab, stick / f"{spare}.pack", everything=True)
                except LabrefError as error:
                    failed += 1
                    assert str(stick) in str(error) and "restore" not in str(error), error
                    assert [entry.name for entry in stick.iterdir()] == ["filler"]
                label(lab, f"{SERIAL}_{1 + spare % 2}.{('jpeg', 'png')[spare % 2]}", "basophil")
                for path in stick.iterdir():
                    path.unlink()
            assert failed > 2
            assert run_all(lab, "contribute.preview", everything=True)[0]["cells"] == 10
        done = CliRunner().invoke(app, ["store", "check", "--lab", str(lab.folder)])
        assert done.exit_code == 0, done.output
