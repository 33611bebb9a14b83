"""A pool holds what labs gave and nothing else: what is forged or changed is refused, one cell is there once, and a lab
that withdraws is gone."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from filelock import FileLock
from PIL import Image, ImageFilter
from typer.testing import CliRunner

from labref import failpoints
from labref.cells.image import prepare, prepare_pixels
from labref.demo.cells import OPTICS, draw_cell, make_slides
from labref.errors import PackError
from labref.packs import CELLS, REMOVED, picture_of
from tests.packs import Given, GivingLab, members, sealed, with_manifest, zipped
from training.cli.app import app
from training.config import RunConfig
from training.data import comparing
from training.data import ingest as pools
from training.data.images import cache_crops, cache_of, list_images, make_split
from training.data.ingest import MissingPackError, ingest, labs, refresh, trust, withdraw
from training.data.pool import INDEX, PACKS, Pool, is_pool, name_in_pool
from training.run import Run, RunError

LABELS = ("basophil", "eosinophil", "lymphocyte", "monocyte", "neutrophil")


def no_steps(_: str, __: int) -> Callable[[int], None]:
    return lambda _: None


def cell_name(lab: str, number: int) -> str:
    return f"{lab}{number:015x}"[:16]


@pytest.fixture(scope="module")
def crops() -> list[Any]:
    """Crops of twelve drawn cells, of different classes, slides and sizes."""
    slides = make_slides(4, seed=11)
    return [
        prepare_pixels(
            np.asarray(
                draw_cell(LABELS[i % 5], OPTICS[slides[i % 4].optics], slides[i % 4], np.random.default_rng([5, i]))
            )
        ).crop
        for i in range(12)
    ]


@pytest.fixture(scope="module")
def lund() -> GivingLab:
    return GivingLab("Lund")


@pytest.fixture(scope="module")
def oslo() -> GivingLab:
    return GivingLab("Oslo")


@pytest.fixture
def pool(tmp_path: Path, lund: GivingLab, oslo: GivingLab) -> Path:
    """An empty pool that trusts both."""
    for lab in (lund, oslo):
        trust(tmp_path / "pool", lab.public(tmp_path))
    return tmp_path / "pool"


def of(crops: list[Any], numbers: range | list[int], lab: str = "a", **more: Any) -> list[Given]:
    return [Given(cell_name(lab, i), LABELS[i % 5], crops[i], **more) for i in numbers]


def takes(pool: Path, pack: Path) -> pools.Ingested:
    return ingest(pool, pack, no_steps)


def left(folder: Path) -> list[str]:
    """All files of a pool but those of its state and its lock."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".lock", "pool.json")
    )


def training(*words: object, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, (done.output, done.exception)
    return done


# what comes in


def test_packs_of_two_labs_become_domains_that_training_reads(
    pool: Path, lund: GivingLab, oslo: GivingLab, crops: list[Any], tmp_path: Path
) -> None:
    lund.pack(tmp_path / "1.pack", of(crops, range(4)), consent="research: ethics 2026/17")
    two = [*of(crops, range(4, 6), "b"), *of(crops, range(6, 8), "b", optics="ba9876543210")]
    oslo.pack(tmp_path / "2.pack", two)
    told = json.loads(training("ingest", tmp_path / "1.pack", tmp_path / "2.pack", "--into", pool, "--json").stdout)
    assert [(row["lab"], row["cells"], row["known"], row["error"]) for row in told["packs"]] == [
        (lund.id, 4, False, None),
        (oslo.id, 4, False, None),
    ]
    listed = json.loads(training("pool", pool, "--json").stdout)
    one, other = sorted(listed["labs"], key=lambda lab: lab["name"])
    assert (one["name"], one["packs"][0]["consent"], one["state"]) == ("Lund", "research: ethics 2026/17", "trusted")
    assert one["domains"] == {f"{lund.id[:8]}-01234567": 4} and listed["cells"] == 8
    assert other["domains"] == {f"{oslo.id[:8]}-01234567": 2, f"{oslo.id[:8]}-ba987654": 2}
    opened = Pool.open(pool)
    assert opened.domains == tuple(sorted([*one["domains"], *other["domains"]]))
    items = list_images(pool)
    assert len(items) == 8 and {item.label for item in items} == set(LABELS)
    assert len(list_images(pool, [opened.domains[0]])) in (2, 4)
    assert {item.label for item in list_images(pool, (), {"basophil": "BA"})} == {"BA", *LABELS[1:]}
    with pytest.raises(ValueError, match="no cells of elsewhere"):
        list_images(pool, ["elsewhere"])
    made, good = cache_crops(pool, items, 256, cache_of(pool, tmp_path / "none"))
    by_name = {name_in_pool(lund.id, cell_name("a", i)): i for i in range(4)}
    by_name |= {name_in_pool(oslo.id, cell_name("b", i)): i for i in range(4, 8)}
    assert good.all() and not (tmp_path / "none").exists()
    for item, crop in zip(items, made, strict=True):
        np.testing.assert_array_equal(crop, crops[by_name[Path(item.path).stem]])


def test_a_run_has_the_domains_of_its_pool(
    pool: Path, lund: GivingLab, oslo: GivingLab, crops: list[Any], tmp_path: Path
) -> None:
    lund.pack(tmp_path / "1.pack", of(crops, range(6)))
    oslo.pack(tmp_path / "2.pack", of(crops, range(6, 12), "b"))
    for number in (1, 2):
        takes(pool, tmp_path / f"{number}.pack")
    config = RunConfig(holdout=0.3, validation=0.2)
    run = Run.create(tmp_path / "runs" / "mine", pool, config)
    assert run.config.domains == Pool.open(pool).domains and len(run.config.domains) == 2
    assert run.cache == pool / "cache"
    assert Run.create(tmp_path / "runs" / "mine", pool, config).split == run.split, "the same command goes on"
    assert Run.repeat(run.folder, tmp_path / "runs" / "again").split.digest == run.split.digest
    withdraw(pool, oslo.id)
    with pytest.raises(RunError, match="other settings"):
        Run.create(tmp_path / "runs" / "mine", pool, config)


def test_a_pool_of_the_same_packs_is_the_same_in_any_order(
    lund: GivingLab, oslo: GivingLab, crops: list[Any], tmp_path: Path
) -> None:
    first = lund.pack(tmp_path / "1.pack", of(crops, range(3)))
    second = lund.pack(tmp_path / "2.pack", of(crops, [3]), number=2, follows=first)
    lund.pack(tmp_path / "3.pack", of(crops, [4]), number=3, follows=second, gone=[cell_name("a", 0)])
    pool = tmp_path / "pool"
    trust(pool, lund.public(tmp_path))
    with pytest.raises(MissingPackError, match="builds on a pack of the lab .* Bring that first"):
        takes(pool, tmp_path / "2.pack")
    training("ingest", *(tmp_path / f"{n}.pack" for n in (3, 2, 1)), "--into", pool)
    found = {cell.cell for cell in Pool.open(pool).cells.values()}
    assert found == {cell_name("a", i) for i in (1, 2, 3, 4)}
    again = training("ingest", *(tmp_path / f"{n}.pack" for n in (1, 2, 3)), "--into", pool)
    assert again.stdout.count("is in the pool already") == 3


# what is refused


def refused(pool: Path, pack: Path, why: str) -> None:
    before = left(pool)
    with pytest.raises(PackError, match=why):
        takes(pool, pack)
    assert left(pool) == before, "nothing of it is kept"


def test_nothing_of_a_pack_is_believed_before_a_trusted_lab_s_signature(
    pool: Path, lund: GivingLab, oslo: GivingLab, crops: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "1.pack"
    lund.pack(file, of(crops, range(2)))
    data = file.read_bytes()
    stranger = GivingLab("stranger")
    bare = zipped(members(file))
    looked: list[object] = []
    monkeypatch.setattr("labref.packs._unpack", lambda *of: looked.append(of))
    wrong = tmp_path / "wrong.pack"
    for made, why in (
        (bare, "is not signed"),
        (stranger.seals(bare), "which nobody here trusts"),
        (sealed(bare, json.dumps({"kind": "labref pack signature 1"}).encode()), "holds no labref pack signature"),
        (sealed(bare, stranger.seals(bare)[len(bare) :].replace(stranger.id.encode(), lund.id.encode())), "forged"),
        (sealed(bare, data[-300:]), "holds no labref pack signature|not the digest|does not have the digest"),
        (sealed(bare, zipfile.ZipFile(file).comment), "changed after it was signed"),
        (b"", "is no whole pack"),
        (os.urandom(5000), "is no whole pack"),
    ):
        wrong.write_bytes(made)
        refused(pool, wrong, why)
    signed_by = {**json.loads(zipfile.ZipFile(file).comment), "kind": "labref bundle signature 1"}
    wrong.write_bytes(sealed(bare, json.dumps(signed_by, sort_keys=True, separators=(",", ":")).encode() + b"\n"))
    refused(pool, wrong, "holds no labref pack signature")
    with pytest.raises(PackError, match="cannot be read"):
        takes(pool, tmp_path / "none.pack")
    with pytest.raises(PackError, match="it is a folder"):
        takes(pool, tmp_path)
    assert looked == []


def test_every_kind_of_changed_byte_is_refused(pool: Path, lund: GivingLab, crops: list[Any], tmp_path: Path) -> None:
    file, wrong = tmp_path / "1.pack", tmp_path / "wrong.pack"
    lund.pack(file, of(crops, range(2)))
    data = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        headers = [info.header_offset for info in archive.infolist()]
        directory, comment = archive.start_dir, len(archive.comment)
    rng, before = random.Random(1), left(pool)
    places = {
        "local headers": [at + offset for at in headers for offset in (0, 6, 8, 18, 26, 30)],
        "members": [rng.randrange(headers[0] + 60, directory) for _ in range(24)],
        "directory": list(range(directory, len(data) - comment - 22, 11)),
        "end": list(range(len(data) - comment - 22, len(data) - comment)),
        "signature": list(range(len(data) - comment, len(data), 7)),
    }
    for kind, positions in places.items():
        for place in positions:
            wrong.write_bytes(data[:place] + bytes([data[place] ^ rng.randint(1, 255)]) + data[place + 1 :])
            with pytest.raises(PackError):
                takes(pool, wrong)
            assert left(pool) == before, (kind, place)
    for cut in (1, 2, comment, comment + 10, len(data) // 2, len(data) - 1):
        wrong.write_bytes(data[:-cut])
        refused(pool, wrong, "is no whole pack|holds no labref pack signature|is not signed")
    for more in (b"\0", b"PK\5\6" + bytes(18), data):
        for changed in (data + more, more + data):
            wrong.write_bytes(changed)
            with pytest.raises(PackError):
                takes(pool, wrong)
    assert takes(pool, file).cells == 2, "the pack itself is well"


def test_what_a_lab_signs_is_still_not_unpacked_anywhere_else(
    pool: Path, lund: GivingLab, oslo: GivingLab, crops: list[Any], tmp_path: Path
) -> None:
    file, wrong = tmp_path / "1.pack", tmp_path / "wrong.pack"
    lund.pack(file, of(crops, range(2)))
    parts = members(file)

    def linked(entry: zipfile.ZipInfo) -> None:
        if entry.filename == REMOVED:
            entry.external_attr = 0o120777 << 16

    def packed(entry: zipfile.ZipInfo) -> None:
        entry.compress_type = zipfile.ZIP_DEFLATED

    without = {name: data for name, data in parts.items() if name != REMOVED}
    for archive, why in (
        (zipped({**parts, "../../evil": b"x"}), "holds other files"),
        (zipped({**without, f"/{REMOVED}": b"x"}), "holds other files"),
        (zipped({**without, f"x/../{REMOVED}": b"x"}), "holds other files"),
        (zipped({**without, REMOVED.upper(): parts[REMOVED]}), "holds other files"),
        (zipped(without), "holds other files"),
        (zipped(parts, linked), "is a link in it"),
        (zipped(parts, packed), "is not stored as it is"),
        (zipped({**parts, CELLS: parts[CELLS] + b"x"}), "not what its manifest says"),
        (zipped(with_manifest(parts, lab=oslo.id)), "says that it is of the lab"),
        (zipped(with_manifest(parts, format=2)), "format 2.*upgrade labref"),
        (zipped(with_manifest(parts, kind="other")), "not that of a pack"),
        (zipped(with_manifest(parts, cells=3)), "counts do not agree"),
        (zipped(with_manifest(parts, classes={"a\nb": 2})), "no usable manifest"),
        (zipped(with_manifest(parts, consent="")), "no usable manifest: consent"),
        (zipped(with_manifest(parts, more=1)), "no usable manifest: more"),
        (zipped({**parts, "manifest.json": b"{" * 900_000}), "no usable manifest"),
        (zipped({**parts, "manifest.json": b" " * 1_000_001}), "longer than 1 MB"),
    ):
        wrong.write_bytes(lund.seals(archive))
        refused(pool, wrong, why)
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize(
    ("table", "changed"),
    [
        ("SELECT * REPLACE ('../x' AS cell) FROM cells", {}),
        ("SELECT * REPLACE (cells.cell[:15] || '0' AS cell) FROM cells", {}),
        ("SELECT * REPLACE (['nan'::FLOAT, 1]::FLOAT[] AS latent) FROM cells", {}),
        ("SELECT * REPLACE ([1]::FLOAT[] AS latent) FROM cells", {}),
        ("SELECT * REPLACE ('inf'::FLOAT AS focus) FROM cells", {}),
        ("SELECT * REPLACE (-1 AS decisions) FROM cells", {}),
        ("SELECT * REPLACE ('predicted' AS label_source) FROM cells", {}),
        ("SELECT * REPLACE (NULL::VARCHAR AS label) FROM cells", {}),
        ("SELECT * REPLACE ('other' AS label) FROM cells", {}),
        ("SELECT * REPLACE ('x.y' AS optics) FROM cells", {}),
        ("SELECT *, 'Karin' AS slide FROM cells", {}),
        ("SELECT * EXCLUDE (history) FROM cells", {}),
        ("FROM cells LIMIT 1", {}),
        ("FROM cells UNION ALL FROM cells", {}),
        ("SELECT * REPLACE ('x'::BLOB AS crop) FROM cells", {}),
        ("FROM cells", {"preparation": 1}),
        ("FROM cells", {"dates": "shifted"}),
        ("FROM cells", {"removed": 4}),
        ("FROM cells", {"latent_size": 3}),
    ],
)
def test_tables_that_no_lab_writes_are_refused(
    pool: Path, lund: GivingLab, crops: list[Any], tmp_path: Path, table: str, changed: dict[str, Any]
) -> None:
    lund.pack(tmp_path / "1.pack", of(crops, range(2)), table=table, **changed)
    refused(pool, tmp_path / "1.pack", "is no pack|holds cells of preparation")


def test_a_picture_that_holds_more_than_its_pixels_is_refused(
    pool: Path, lund: GivingLab, crops: list[Any], tmp_path: Path
) -> None:
    data, exif, told = picture_of(crops[0]), Image.Exif(), io.BytesIO()
    exif[0x010E] = "Karin Sjövall"
    Image.fromarray(crops[0]).save(told, "WEBP", lossless=True, exif=exif)
    for number, wrong in enumerate((told.getvalue(), data + b"EXIFKarin", data[:-9], b"\x89PNG" + data)):
        cells = [*of(crops, [1]), Given(cell_name("a", 0), "basophil", wrong)]
        lund.pack(tmp_path / f"{number}.pack", cells)
        refused(pool, tmp_path / f"{number}.pack", "the picture of its cell a000000000000000")


def test_a_removed_cell_that_is_given_too_is_refused(
    pool: Path, lund: GivingLab, crops: list[Any], tmp_path: Path
) -> None:
    lund.pack(tmp_path / "1.pack", of(crops, range(2)), gone=[cell_name("a", 0)])
    refused(pool, tmp_path / "1.pack", "hold values, or counts")


def test_an_older_pack_is_not_taken_in_again(pool: Path, lund: GivingLab, crops: list[Any], tmp_path: Path) -> None:
    first = lund.pack(tmp_path / "1.pack", of(crops, range(3)), number=10)
    lund.pack(tmp_path / "2.pack", of(crops, [3]), number=11, follows=first, gone=[cell_name("a", 1)])
    lund.pack(tmp_path / "other.pack", of(crops, [1, 5]), number=9)
    lund.pack(tmp_path / "same.pack", of(crops, [1, 5]), number=11)
    lund.pack(tmp_path / "all.pack", of(crops, [0, 2, 3]), number=12)
    for name in ("1", "2"):
        assert not takes(pool, tmp_path / f"{name}.pack").known
    assert takes(pool, tmp_path / "1.pack").known and takes(pool, tmp_path / "2.pack").known
    for name in ("other", "same"):
        refused(pool, tmp_path / f"{name}.pack", "an older pack, or one that was withdrawn")
    takes(pool, tmp_path / "all.pack")
    refused(pool, tmp_path / "1.pack", "an older pack")  # what it gave, and took back, does not come again
    assert {cell.cell for cell in Pool.open(pool).cells.values()} == {cell_name("a", i) for i in (0, 2, 3)}
    assert [path.parent.name for path in pool.glob("packs/*/*")] == [lund.id], "what does not count is deleted"


# one picture of each cell


def recapture(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The same cell, captured again: moved by up to 3 pixels, its colours by 4 %, less sharp."""
    across, down = (float(value) for value in rng.uniform(-3, 3, 2))
    edge = tuple(np.asarray(picture)[0, 0].tolist())
    moved = picture.transform(
        picture.size, Image.Transform.AFFINE, (1, 0, across, 0, 1, down), Image.Resampling.BILINEAR, fillcolor=edge
    )
    gains = np.asarray(moved).astype(float) * rng.uniform(0.96, 1.04, 3)
    return Image.fromarray(np.clip(gains, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.5))


def test_recaptures_within_and_across_labs_are_trained_on_once(
    pool: Path, lund: GivingLab, oslo: GivingLab, real_cells: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(4)
    files = [
        file
        for label in ("basophil", "monocyte", "neutrophil")
        for file in sorted((real_cells / "pbc" / label).iterdir())[40:48]
    ]
    pictures = [Image.open(file).convert("RGB") for file in files]
    plain = [prepare(file.read_bytes()).crop for file in files]
    again = [prepare_pixels(np.asarray(recapture(picture, rng))).crop for picture in pictures]
    label = [file.parent.name for file in files]
    own = [Given(cell_name("a", i), label[i], plain[i]) for i in range(16)]
    own += [Given(cell_name("c", i), label[i], again[i]) for i in range(4)]
    theirs = [Given(cell_name("a", i), label[i], again[i]) for i in range(8, 16)]  # the same pseudonyms, in another lab
    theirs += [Given(cell_name("b", i), label[i], plain[i]) for i in range(16, 24)]
    theirs += [Given(cell_name("d", 4), label[4], plain[4])]  # the very same picture
    lund.pack(tmp_path / "1.pack", own)
    oslo.pack(tmp_path / "2.pack", theirs)
    assert takes(pool, tmp_path / "1.pack").recaptures == 4
    assert takes(pool, tmp_path / "2.pack").recaptures == 9
    kept = Pool.open(pool).cells.values()
    assert len(kept) == 24 and sum(cell.lab == lund.id for cell in kept) == 16
    one, other = sorted(labs(pool), key=lambda lab: lab.key.name)
    assert (one.left_out, other.left_out) == ({"recapture": 4}, {"recapture": 9})
    split = make_split(list_images(pool), holdout=0.4, validation=0.0)
    assert len(split.train) + len(split.holdout) == 24, "no cell is on both sides"
    withdraw(pool, lund.id)  # then the other's pictures of the same cells count
    assert {(cell.lab, cell.cell) for cell in Pool.open(pool).cells.values()} == {(oslo.id, one.cell) for one in theirs}


def test_a_cell_whose_labels_disagree_is_not_trained_on(
    pool: Path, lund: GivingLab, oslo: GivingLab, crops: list[Any], tmp_path: Path
) -> None:
    lund.pack(
        tmp_path / "1.pack",
        [Given(cell_name("a", 0), "Basophil", crops[0]), Given(cell_name("a", 1), "Monocyte", crops[1])],
    )
    oslo.pack(
        tmp_path / "2.pack",
        [Given(cell_name("b", 0), "basophils", crops[0]), Given(cell_name("b", 1), "blast", crops[1])],
    )
    for number in (1, 2):
        takes(pool, tmp_path / f"{number}.pack")
    (kept,) = Pool.open(pool).cells.values()
    assert (kept.lab, kept.label) == (lund.id, "basophil"), "written in two ways, it is one class"
    assert [lab.left_out.get("labels disagree") for lab in labs(pool)] == [1, 1]
    # the lab looks again, and gives it another label
    oslo.pack(tmp_path / "3.pack", [Given(cell_name("b", 1), "monocyte", crops[1])], number=2)
    takes(pool, tmp_path / "3.pack")
    assert {cell.label for cell in Pool.open(pool).cells.values()} == {"basophil", "monocyte"}


# what is taken back


def rows_of(query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect() as database:
        return database.execute(query).fetchall()


def holds(folder: Path, crop: Any) -> list[str]:
    """Where in a pool a picture can still be found, in whatever form."""
    found, data = [], picture_of(crop)
    for file in folder.rglob("*"):
        if not file.is_file():
            continue
        raw = file.read_bytes()
        if file.name == CELLS and file.parent != folder:
            raw += b"".join(picture for (picture,) in rows_of(f"SELECT crop FROM '{file}'"))
        if data in raw or crop[100:140].tobytes() in raw:
            found.append(str(file.relative_to(folder)))
    return found


def test_what_a_lab_takes_back_is_deleted_with_its_bytes(
    pool: Path, lund: GivingLab, crops: list[Any], tmp_path: Path
) -> None:
    first = lund.pack(tmp_path / "1.pack", of(crops, range(4)))
    takes(pool, tmp_path / "1.pack")
    assert all(holds(pool, crops[i]) for i in range(4))
    relabelled = Given(cell_name("a", 1), "monocyte", crops[1])
    lund.pack(tmp_path / "2.pack", [relabelled], number=2, follows=first, gone=[cell_name("a", 0)])
    takes(pool, tmp_path / "2.pack")
    assert [len(holds(pool, crops[i])) for i in range(4)] == [0, 1, 1, 1]
    assert {(cell.cell, cell.label) for cell in Pool.open(pool).cells.values()} == {
        (cell_name("a", 1), "monocyte"),
        *((cell_name("a", i), LABELS[i]) for i in (2, 3)),
    }


def test_a_lab_that_withdraws_is_gone_with_its_bytes_and_stays_away(
    pool: Path, lund: GivingLab, oslo: GivingLab, crops: list[Any], tmp_path: Path
) -> None:
    lund.pack(tmp_path / "1.pack", of(crops, range(3)))
    oslo.pack(tmp_path / "2.pack", of(crops, range(3, 6), "b"))
    training("ingest", tmp_path / "1.pack", tmp_path / "2.pack", "--into", pool)
    training("split", pool, "--out", tmp_path / "held", code=1)  # it has no files of pictures
    assert not (tmp_path / "held").exists()
    cache_crops(pool, list_images(pool), 256, cache_of(pool, tmp_path))
    assert len(holds(pool, crops[0])) == 2, "in its pack, and in the cache"
    run = Run.create(tmp_path / "run", pool, RunConfig())
    (pool / ".incoming-0123456789abcdef").mkdir()  # of a pack that was cut off
    training("pool", pool, "--withdraw", lund.id[:10])
    assert not any(holds(pool, crops[i]) for i in range(3)) and all(holds(pool, crops[i]) for i in range(3, 6))
    assert not list(pool.glob(".incoming-*")) and not list(pool.glob(".going-*"))
    assert {cell.lab for cell in Pool.open(pool).cells.values()} == {oslo.id}
    with pytest.raises(PackError, match="3 of these cells no more.*a lab withdrew"):
        every = [*run.split.train, *run.split.validation, *run.split.holdout]  # the labs' keys say which is which
        cache_crops(pool, every, 256, cache_of(pool, tmp_path))
    listed = training("pool", pool).stdout
    assert f"Lund ({lund.id}): withdrawn" in listed and "3 cells of 1 lab\n" in listed
    refused(pool, tmp_path / "1.pack", "whose lab was withdrawn here")
    training("pool", pool, "--withdraw", "ffff", code=1)
    with pytest.raises(PackError, match="was withdrawn here"):
        trust(pool, lund.public(tmp_path))
    training("pool", pool, "--trust", lund.public(tmp_path), "--again")
    refused(pool, tmp_path / "1.pack", "an older pack, or one that was withdrawn")
    lund.pack(tmp_path / "3.pack", of(crops, range(2)), number=2)
    assert takes(pool, tmp_path / "3.pack").cells == 2


# cut off, and two at once

SCRIPT = """
import json, os, sys
from pathlib import Path
from labref import failpoints
from training.data import comparing, ingest as pools
comparing._AT_ONCE = 1
for line in sys.stdin:
    point, pool, what, *words = json.loads(line)
    if os.fork() == 0:
        failpoints.arm(point)
        if what == "withdraw":
            pools.withdraw(Path(pool), *words)
        else:
            for pack in words:
                pools.ingest(Path(pool), Path(pack), lambda *_: lambda _: None)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""
Killed = Callable[..., None]


@pytest.fixture(scope="module")
def killed() -> Iterator[Killed]:
    """Does it in a process that is killed at a failpoint; forked from one that has imported all."""
    if not hasattr(os, "fork"):
        pytest.skip("processes are not forked here")
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    ) as process:
        assert process.stdin is not None and process.stdout is not None

        def kill(point: str, pool: Path, *words: object) -> None:
            assert process.stdin is not None and process.stdout is not None
            told = [point if "=" in point else f"{point}=kill@1", str(pool), *map(str, words)]
            process.stdin.write(json.dumps(told) + "\n")
            process.stdin.flush()
            assert int(process.stdout.readline()) == failpoints.KILLED

        yield kill
        process.stdin.close()


def content(pool: Path) -> Any:
    rows = rows_of(f"SELECT * EXCLUDE (taken) FROM '{pool / 'cells.parquet'}' ORDER BY name")
    state = json.loads((pool / "index.json").read_text())
    # of the moments at which packs were taken in, too
    assert state.pop("index") == hashlib.sha256((pool / "cells.parquet").read_bytes()).hexdigest()
    return rows, state, [name for name in left(pool) if not name.startswith("labs/")]


@pytest.mark.parametrize(
    "point", ["pool.compared", "pool.rename", "pool.renamed", "pool.index", "pool.forget", "pool.delete"]
)
def test_a_pack_that_was_cut_off_comes_in_whole_the_next_time(
    pool: Path, lund: GivingLab, crops: list[Any], tmp_path: Path, point: str, killed: Killed
) -> None:
    first = lund.pack(tmp_path / "1.pack", of(crops, range(2)))
    removed = [cell_name("a", 0)]
    follows = None if point == "pool.delete" else first  # one that follows none takes the place of the one before
    lund.pack(tmp_path / "2.pack", of(crops, range(2, 4)), number=2, follows=follows, gone=removed)
    takes(pool, tmp_path / "1.pack")
    before = content(pool)
    shutil.copytree(pool, tmp_path / "undisturbed")
    takes(tmp_path / "undisturbed", tmp_path / "2.pack")
    killed(point, pool, "ingest", tmp_path / "2.pack")
    if point in ("pool.compared", "pool.rename"):
        assert {row[0] for row in before[0]} == {cell.name for cell in Pool.open(pool).cells.values()}, "as it was"
    else:
        with pytest.raises(PackError, match="was cut off while it was changed"):
            Pool.open(pool)
    done = takes(pool, tmp_path / "2.pack")
    assert done.known is (point not in ("pool.compared", "pool.rename"))
    assert content(pool) == content(tmp_path / "undisturbed")
    assert not list(pool.glob(".incoming-*"))


def test_what_was_compared_is_not_compared_again(
    pool: Path,
    lund: GivingLab,
    oslo: GivingLab,
    crops: list[Any],
    tmp_path: Path,
    killed: Killed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lund.pack(tmp_path / "1.pack", of(crops, range(3)))
    oslo.pack(tmp_path / "2.pack", of(crops, [0], "b"))
    monkeypatch.setattr(comparing, "_AT_ONCE", 1)
    killed("pool.compared=kill@2", pool, "ingest", tmp_path / "1.pack")
    seen: list[str] = []
    search_marks = comparing._search_marks

    def counted(*given: Any) -> Any:
        seen.extend(given[2])
        return search_marks(*given)

    monkeypatch.setattr(comparing, "_search_marks", counted)
    kept = shutil.copytree(pool, tmp_path / "kept")
    takes(pool, tmp_path / "1.pack")
    assert len(seen) == 1
    # where another pack came in between, its cells have not been compared with those
    takes(kept, tmp_path / "2.pack")
    seen.clear()
    assert takes(kept, tmp_path / "1.pack").recaptures == 1 and len(seen) == 3


def test_a_withdrawal_that_was_cut_off_is_finished(
    pool: Path, lund: GivingLab, crops: list[Any], tmp_path: Path, killed: Killed
) -> None:
    lund.pack(tmp_path / "1.pack", of(crops, range(2)))
    takes(pool, tmp_path / "1.pack")
    for point in ("pool.withdrawn", "pool.index", "pool.delete"):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        copy = Path(shutil.copytree(pool, tmp_path / "copy"))
        killed(point, copy, "withdraw", lund.id)
        training("pool", copy)
        assert not holds(copy, crops[0]) and not Pool.open(copy).cells


def test_a_full_disk_leaves_the_pool_as_it_was(pool: Path, lund: GivingLab, crops: list[Any], tmp_path: Path) -> None:
    lund.pack(tmp_path / "1.pack", of(crops, range(2)))
    before = left(pool)
    failpoints.arm("pool.rename=enospc@1")
    try:
        done = training("ingest", tmp_path / "1.pack", "--into", pool, code=1)
    finally:
        failpoints.disarm()
    assert (
        "No space left" in done.output and [name for name in left(pool) if not name.startswith(".incoming")] == before
    )
    assert takes(pool, tmp_path / "1.pack").cells == 2


def test_one_command_at_a_time_changes_a_pool(pool: Path, lund: GivingLab, crops: list[Any], tmp_path: Path) -> None:
    lund.pack(tmp_path / "1.pack", of(crops, range(2)))
    with FileLock(pool / ".lock"):
        for act in (
            lambda: takes(pool, tmp_path / "1.pack"),
            lambda: withdraw(pool, lund.id),
            lambda: trust(pool, lund.public(tmp_path)),
        ):
            with pytest.raises(PackError, match="another command changes"):
                act()
    assert takes(pool, tmp_path / "1.pack").cells == 2


def test_a_folder_of_pictures_is_no_pool(tmp_path: Path, lund: GivingLab, real_cells: Path) -> None:
    assert not is_pool(real_cells / "chula")
    for act in (lambda: refresh(tmp_path), lambda: labs(tmp_path), lambda: withdraw(tmp_path, lund.id)):
        with pytest.raises(PackError, match="is no pool. Make one"):
            act()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(PackError, match="is not empty, and no pool"):
        trust(tmp_path / "full", lund.public(tmp_path))
    (tmp_path / "bad.pub").write_text("{}")
    with pytest.raises(PackError, match="holds no labref public key"):
        trust(tmp_path / "pool", tmp_path / "bad.pub")


def test_a_pool_may_have_signs_in_its_name_that_are_patterns_elsewhere(
    lund: GivingLab, crops: list[Any], tmp_path: Path
) -> None:
    pool = tmp_path / "pool [1] of 'labs'"
    trust(pool, lund.public(tmp_path))
    lund.pack(tmp_path / "1.pack", of(crops, range(2)))
    assert takes(pool, tmp_path / "1.pack").cells == 2
    items = list_images(pool)
    assert cache_crops(pool, items, 256, cache_of(pool, tmp_path))[1].all() and len(items) == 2


@pytest.mark.parametrize("name", ["site=lund", "a=1/b=2", "{a,b}", "~", "100%=x?"])
def test_a_folder_above_a_pool_is_no_column_of_its_tables(
    lund: GivingLab, crops: list[Any], tmp_path: Path, name: str
) -> None:
    pool = tmp_path / name / "pool"
    trust(pool, lund.public(tmp_path))
    lund.pack(tmp_path / "1.pack", of(crops, range(2)))
    assert takes(pool, tmp_path / "1.pack").cells == 2
    items = list_images(pool)
    assert cache_crops(pool, items, 256, cache_of(pool, tmp_path))[1].all() and len(items) == 2


# what is damaged, and what cannot be deleted


def resigned(lab: GivingLab, pack: Path, cells: bytes) -> None:
    """A pack with other bytes as its table of cells, which the lab signs all the same."""
    parts = {**members(pack), CELLS: cells}
    files = json.loads(parts["manifest.json"])["files"]
    files[CELLS] = {"sha256": hashlib.sha256(cells).hexdigest(), "bytes": len(cells)}
    pack.write_bytes(lab.seals(zipped(with_manifest(parts, files=files))))


def test_a_table_that_is_damaged_beneath_a_signature_is_refused(
    pool: Path, lund: GivingLab, crops: list[Any], tmp_path: Path
) -> None:
    lund.pack(tmp_path / "1.pack", of(crops, range(2)))
    whole = members(tmp_path / "1.pack")[CELLS]
    pages = [found.start() for found in re.finditer(re.escape(b"\x28\xb5\x2f\xfd"), whole)]  # each begins as zstd does
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    assert len(pages) > 5
    for place in [*pages[:3], *pages[-3:], footer, len(whole) - 8, len(whole) - 1]:
        resigned(lund, tmp_path / "1.pack", whole[:place] + b"\xff" + whole[place + 1 :])
        refused(pool, tmp_path / "1.pack", "is no pack")
    for cut in (0, 4, len(whole) // 2):
        resigned(lund, tmp_path / "1.pack", whole[:cut])
        refused(pool, tmp_path / "1.pack", "is no pack")


def test_a_table_that_would_fill_the_memory_is_refused_before_it_is_read(
    pool: Path, lund: GivingLab, tmp_path: Path
) -> None:
    file, rows = tmp_path / "1.pack", 400_000
    flat = Given(cell_name("a", 0), "basophil", np.full((256, 256, 3), 200, np.uint8))
    lund.pack(file, [flat], table=f"SELECT cells.* FROM cells, range({rows})")
    file.write_bytes(lund.seals(zipped(with_manifest(members(file), cells=rows, classes={"basophil": rows}))))
    assert file.stat().st_size < rows * 4
    refused(pool, file, "more or fewer rows than it says")
    file.unlink()
    lund.pack(file, [flat], table="SELECT * REPLACE (repeat('x', 300000)::BLOB AS crop) FROM cells")
    refused(pool, file, "hold values")


def test_a_file_of_the_pool_that_is_damaged_or_lost_is_named_and_nothing_is_deleted(
    pool: Path, lund: GivingLab, oslo: GivingLab, crops: list[Any], tmp_path: Path
) -> None:
    lund.pack(tmp_path / "1.pack", of(crops, range(2)))
    oslo.pack(tmp_path / "2.pack", of(crops, range(2, 4), "b"))
    takes(pool, tmp_path / "1.pack")
    key = pool / "labs" / f"{lund.id}.json"
    told = key.read_bytes()
    (taken,) = pool.glob("packs/*/*/taken.json")
    before = left(pool)
    for file, data, why in (
        (key, b"", "is damaged. Restore it"),
        (key, told[:-20], "is damaged. Restore it"),
        (key, b"[]", "is damaged. Restore it"),
        (key, told.replace(b"trusted", b"other"), "is damaged. Restore it"),
        (key, None, "its key, is missing. Restore it"),
        (taken, b"{}", "when a pack came in, is damaged"),
    ):
        kept = file.read_bytes()
        if data is None:
            file.unlink()
        else:
            file.write_bytes(data)
        for words in (["ingest", tmp_path / "2.pack", "--into", pool], ["pool", pool]):
            if file == taken and words[0] == "pool":
                (pool / "index.json").unlink()
            done = training(*words, code=1)
            assert why in " ".join(done.output.split()), (file.name, data, done.output)
        assert {path for path in left(pool) if path.startswith("packs")} >= {
            path for path in before if path.startswith("packs")
        }
        file.write_bytes(kept)
        training("pool", pool)
        shutil.rmtree(pool / "packs" / oslo.id, ignore_errors=True)
        training("pool", pool)
    key.unlink()
    training("pool", pool, "--trust", lund.public(tmp_path))
    assert {cell.lab for cell in Pool.open(pool).cells.values()} == {lund.id}
    assert takes(pool, tmp_path / "1.pack").known


@pytest.mark.parametrize("damage", ["lost", "cut off", "a byte", "state"])
def test_what_a_pool_says_of_its_cells_is_made_again_where_it_is_damaged(
    pool: Path, lund: GivingLab, crops: list[Any], tmp_path: Path, damage: str
) -> None:
    lund.pack(tmp_path / "1.pack", of(crops, range(3)))
    takes(pool, tmp_path / "1.pack")
    index = pool / INDEX
    whole = index.read_bytes()
    if damage == "lost":
        index.unlink()
    elif damage == "state":
        (pool / "index.json").write_text("[]")
    else:
        index.write_bytes(
            whole[: len(whole) // 2] + (b"" if damage == "cut off" else b"\0" + whole[len(whole) // 2 + 1 :])
        )
    with pytest.raises(PackError, match="python -m training pool"):
        Pool.open(pool)
    assert "3 cells of 1 lab" in training("pool", pool).stdout
    assert len(Pool.open(pool).cells) == 3


def test_a_lab_withdraws_although_what_it_or_another_lab_gave_is_damaged(
    pool: Path, lund: GivingLab, oslo: GivingLab, crops: list[Any], tmp_path: Path
) -> None:
    lund.pack(tmp_path / "1.pack", of(crops, range(2)))
    oslo.pack(tmp_path / "2.pack", of(crops, range(2, 4), "b"))
    training("ingest", tmp_path / "1.pack", tmp_path / "2.pack", "--into", pool)
    cache_crops(pool, list_images(pool), 256, cache_of(pool, tmp_path))
    (of_lund,), (of_oslo,) = ((pool / PACKS / lab.id).glob("*/manifest.json") for lab in (lund, oslo))
    whole = of_oslo.read_bytes()
    of_lund.write_bytes(b"{")
    of_oslo.write_bytes(whole[:-9])
    told = " ".join(training("pool", pool, code=1).output.split())
    assert f"--withdraw {lund.id}" in told or f"--withdraw {oslo.id}" in told
    told = " ".join(training("pool", pool, "--withdraw", lund.id, code=1).output.split())
    assert "no usable manifest" in told and oslo.id in told, "the other lab's is said"
    assert not holds(pool, crops[0]) and not (pool / INDEX).exists()
    of_oslo.write_bytes(whole)
    listed = training("pool", pool).stdout
    assert f"Lund ({lund.id}): withdrawn" in listed and "2 cells of 1 lab" in listed


def test_of_the_very_same_picture_of_three_labs_one_counts_when_the_first_withdraws(
    pool: Path, lund: GivingLab, oslo: GivingLab, crops: list[Any], tmp_path: Path
) -> None:
    bergen = GivingLab("Bergen")
    trust(pool, bergen.public(tmp_path))
    for number, lab in enumerate((lund, oslo, bergen)):
        lab.pack(tmp_path / f"{number}.pack", of(crops, range(2), "abc"[number]))
        takes(pool, tmp_path / f"{number}.pack")
    assert len(Pool.open(pool).cells) == 2
    withdraw(pool, lund.id)
    assert {cell.lab for cell in Pool.open(pool).cells.values()} == {oslo.id} and len(Pool.open(pool).cells) == 2
    left_out = {lab.key.name: lab.left_out for lab in labs(pool)}
    assert left_out["Bergen"] == {"recapture": 2}


def test_a_pack_that_was_cut_off_does_not_outlive_the_one_that_took_its_cells_back(
    pool: Path, lund: GivingLab, crops: list[Any], tmp_path: Path, killed: Killed
) -> None:
    first = lund.pack(tmp_path / "1.pack", of(crops, range(2)))
    lund.pack(tmp_path / "2.pack", of(crops, [2]), number=2, follows=first)
    lund.pack(tmp_path / "3.pack", of(crops, range(2)), number=3)
    takes(pool, tmp_path / "1.pack")
    killed("pool.compared", pool, "ingest", tmp_path / "2.pack")
    assert holds(pool, crops[2])
    takes(pool, tmp_path / "3.pack")
    assert not holds(pool, crops[2]) and not list(pool.glob(".incoming-*"))


def test_what_cannot_be_deleted_is_not_called_gone(
    pool: Path, lund: GivingLab, crops: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lund.pack(tmp_path / "1.pack", of(crops, range(2)))
    takes(pool, tmp_path / "1.pack")
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a folder without rights; root has them all
    done = training("pool", pool, "--withdraw", lund.id, code=1)
    assert "cannot be deleted whole" in done.output and "are deleted" not in done.output
    assert "cannot be deleted whole" in training("pool", pool, code=1).output
    monkeypatch.undo()
    training("pool", pool)
    assert not holds(pool, crops[0])


if sys.platform == "linux":

    @pytest.fixture
    def small(tmp_path: Path) -> Iterator[Path]:
        """A disk of 1 MB, where this system lets a test mount one."""
        folder = tmp_path / "small"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "labref-test", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("only root of a Linux that allows it can mount a small disk")
        yield folder
        subprocess.run(["umount", "-l", str(folder)], check=True)

    def test_a_disk_that_is_full_in_truth_leaves_a_pool_that_goes_on(
        small: Path, lund: GivingLab, crops: list[Any], tmp_path: Path
    ) -> None:
        pool = small / "pool"
        trust(pool, lund.public(tmp_path))
        first = lund.pack(tmp_path / "1.pack", of(crops, range(2)))
        lund.pack(tmp_path / "2.pack", of(crops, range(2, 5)), number=2, follows=first)
        takes(pool, tmp_path / "1.pack")
        free = os.statvfs(small).f_bavail * os.statvfs(small).f_frsize
        need = (tmp_path / "2.pack").stat().st_size
        filler = small / "filler"
        for spare in range(0, 4 * need, need // 4):
            filler.write_bytes(bytes(max(0, free - spare)))
            done = CliRunner().invoke(app, ["ingest", str(tmp_path / "2.pack"), "--into", str(pool)])
            assert done.exit_code in (0, 1) and not isinstance(done.exception, duckdb.Error), (spare, done.exception)
            if done.exit_code == 0:
                break
            filler.unlink()
            training("pool", pool)
            assert len(Pool.open(pool).cells) in (2, 5)
        else:
            pytest.fail("it never came in")
        assert spare > 0
        filler.unlink()
        assert takes(pool, tmp_path / "2.pack").known and len(Pool.open(pool).cells) == 5
