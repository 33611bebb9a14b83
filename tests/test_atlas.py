"""An atlas: cells of the central team's own that a bundle carries, chosen to cover their classes, refused where
anything about them is off."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from exporters.__main__ import app as exporters_app
from exporters.atlas import covering, trusted
from labref.bundles.atlas import ARRAYS, CENTRAL_ID, PICTURES
from labref.bundles.bundle import FORMAT_VERSION, Bundle, install, pack, starter_bundle
from labref.bundles.inference import Embedder
from labref.bundles.schema import WITH_ATLAS
from labref.cells.hashes import digest
from labref.cells.image import prepare
from labref.errors import BundleError
from tests.bundles import SOURCE, carrying, describe
from training.data.images import name_fraction


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, starter: Bundle, drawn_cells: Path) -> Bundle:
    """The starter with an atlas of two monocytes and one basophil."""
    folder = tmp_path_factory.mktemp("carrying")
    cells = {
        "monocyte": sorted((drawn_cells / "monocyte").glob("*.jpg"))[:2],
        "basophil": sorted((drawn_cells / "basophil").glob("*.jpg"))[:1],
    }
    return install(carrying(starter, folder, cells), folder / "bundles")


def test_an_atlas_says_of_each_cell_what_it_is_and_where_it_is_from(bundle: Bundle, drawn_cells: Path) -> None:
    atlas = bundle.atlas
    assert atlas is not None
    assert atlas.labels == ("monocyte", "monocyte", "basophil")
    assert set(atlas.sources) == {SOURCE}
    first = sorted((drawn_cells / "monocyte").glob("*.jpg"))[0].read_bytes()
    assert atlas.ids[0] == CENTRAL_ID + digest(first)[:16]
    assert atlas.picture(atlas.ids[0]) == first
    assert atlas.picture(CENTRAL_ID + "0" * 16) is None
    away = atlas.distances(atlas.latents[1])
    assert away[1] == 0 and away[0] == pytest.approx(np.mean((atlas.latents[0] - atlas.latents[1]) ** 2), rel=1e-5)
    assert bundle.manifest.atlas["classes"]["monocyte"] == 2


def test_a_bundle_without_an_atlas_is_what_it_was(starter: Bundle, tmp_path: Path) -> None:
    assert starter.atlas is None
    assert starter.manifest.format_version == 1 < FORMAT_VERSION
    assert "atlas" not in json.loads((starter.folder / "manifest.json").read_text(encoding="utf-8"))
    assert pack(starter.folder, tmp_path / "again.labref").digest == starter.digest


def test_a_labref_that_knows_no_atlas_says_to_upgrade(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labref.bundles.bundle.FORMAT_VERSION", 1)
    with pytest.raises(BundleError, match="has format 2, this labref knows up to 1. Upgrade labref"):
        Bundle.open(bundle.folder)


def test_the_same_cells_make_the_same_bundle(
    bundle: Bundle, starter: Bundle, drawn_cells: Path, tmp_path: Path
) -> None:
    paths = {label: sorted((drawn_cells / label).glob("*.jpg")) for label in ("monocyte", "basophil")}
    again = carrying(starter, tmp_path, {"monocyte": paths["monocyte"][:2], "basophil": paths["basophil"][:1]})
    assert install(again, tmp_path / "bundles").manifest.files[ARRAYS] == bundle.manifest.files[ARRAYS]


def arrays_changed(folder: Path, **changes: Callable[[np.ndarray], np.ndarray]) -> None:
    with np.load(folder / ARRAYS) as arrays:
        found = dict(arrays)
    np.savez(folder / ARRAYS, **{name: changes.get(name, lambda value: value)(value) for name, value in found.items()})


def put(value: float, at: Any) -> Callable[[np.ndarray], np.ndarray]:
    def changed(array: np.ndarray) -> np.ndarray:
        array[at] = value
        return array

    return changed


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: arrays_changed(folder, latents=put(np.nan, (0, 0))), "latents must be finite"),
        (lambda folder: arrays_changed(folder, latents=lambda a: a[:, :49]), r"latents must be float32\[3, 50\]"),
        (lambda folder: arrays_changed(folder, latents=lambda a: a.astype(np.float64)), "they are float64"),
        (lambda folder: arrays_changed(folder, classes=put(9, 0)), "classes must be rows of the manifest's 9"),
        (lambda folder: arrays_changed(folder, classes=put(-1, 0)), "classes must be rows"),
        (lambda folder: arrays_changed(folder, classes=put(1, 0)), "of other classes than the manifest says"),
        (lambda folder: arrays_changed(folder, sources=put(1, 0)), "sources must be rows of the manifest's 1"),
        (lambda folder: arrays_changed(folder, ends=put(2**40, 2)), "its pictures are not those"),
        (lambda folder: arrays_changed(folder, ends=put(0, 0)), "its pictures are not those"),
        (lambda folder: arrays_changed(folder, digests=lambda a: a[[0, 0, 1]]), "holds a picture twice"),
        (lambda folder: arrays_changed(folder, ends=lambda a: np.array([{}] * 3, dtype=object)), "cannot be used"),
        (lambda folder: (folder / ARRAYS).write_bytes(b"no archive"), "cannot be used"),
        (lambda folder: (folder / PICTURES).write_bytes(b""), "its pictures are not those"),
    ],
)
def test_an_atlas_that_is_none_is_not_installed(
    bundle: Bundle, tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    folder = Path(shutil.copytree(bundle.folder, tmp_path / "bundle"))
    spoil(folder)
    describe(folder, bundle.manifest)
    with pytest.raises(BundleError, match=says):
        install(folder, tmp_path / "bundles")
    assert not [entry for entry in (tmp_path / "bundles").iterdir() if not entry.name.startswith(".")]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cells": 4}, "the cells of its classes must add up to 4"),
        ({"classes": {"monocyte": 2, "unicorn": 1}}, "which is none of the classes"),
        ({"sources": []}, "at least 1 item"),
        ({"sources": [{"name": "x", "cells": 3}]}, "licence: missing"),
        ({"sources": [{"name": "two\nlines", "licence": "CC BY 4.0", "cells": 3}]}, "one line of printable text"),
        ({"cells": 30_000}, "less than or equal to 20000"),
        ({"more": 1}, "no such field"),
    ],
)
def test_what_a_manifest_says_of_an_atlas_is_checked(
    bundle: Bundle, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    folder = Path(shutil.copytree(bundle.folder, tmp_path / "bundle"))
    describe(folder, replace(bundle.manifest, atlas={**bundle.manifest.atlas, **change}))
    with pytest.raises(BundleError, match=says):
        Bundle.open(folder)


def test_an_atlas_has_its_files_its_format_and_no_others(bundle: Bundle, starter: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle.folder, tmp_path / "bundle"))
    describe(folder, replace(bundle.manifest, format_version=1))
    with pytest.raises(BundleError, match=f"has format_version {WITH_ATLAS}"):
        Bundle.open(folder)
    describe(folder, replace(bundle.manifest, atlas={}))
    with pytest.raises(BundleError, match=rf"files that no bundle has: {PICTURES}, {ARRAYS}"):
        Bundle.open(folder)
    (folder / PICTURES).unlink()
    describe(folder, bundle.manifest)
    with pytest.raises(BundleError, match="tells of an atlas that is not among its files"):
        Bundle.open(folder)


def test_a_picture_that_was_changed_after_the_bundle_was_opened_is_not_given(bundle: Bundle, tmp_path: Path) -> None:
    opened = install(bundle.folder, tmp_path / "bundles")
    atlas = opened.atlas
    assert atlas is not None and atlas.picture(atlas.ids[2]) is not None
    data = bytearray((opened.folder / PICTURES).read_bytes())
    data[-100] ^= 1
    (opened.folder / PICTURES).write_bytes(data)
    assert atlas.picture(atlas.ids[2]) is None
    assert atlas.picture(atlas.ids[0]) is not None
    (opened.folder / PICTURES).unlink()
    assert atlas.picture(atlas.ids[0]) is None


# which cells are chosen


def test_the_chosen_cells_cover_their_class() -> None:
    rng = np.random.default_rng(1)
    groups = rng.standard_normal((5, 10)).astype(np.float32) * 10
    latents = np.concatenate(
        [
            group + rng.standard_normal((size, 10)).astype(np.float32)
            for group, size in zip(groups, (200, 50, 20, 9, 4), strict=True)
        ]
    )
    labels = np.array(["monocyte"] * len(latents))
    of_group = np.repeat(np.arange(5), (200, 50, 20, 9, 4))
    chosen = covering(latents, labels, 5)
    assert sorted(of_group[chosen].tolist()) == [0, 1, 2, 3, 4], "each kind of the class has its cell"

    def cost(rows: list[int]) -> float:
        return float(np.sqrt(((latents[:, None] - latents[rows][None]) ** 2).sum(axis=2)).min(axis=1).mean())

    drawn = [cost(rng.choice(len(latents), 12, replace=False).tolist()) for _ in range(50)]
    assert cost(covering(latents, labels, 12)) < min(drawn)


def test_each_class_has_as_many_as_were_asked_for_or_all_it_has() -> None:
    rng = np.random.default_rng(2)
    labels = np.array(["a"] * 40 + ["b"] * 3)
    latents = rng.standard_normal((43, 6)).astype(np.float32)
    latents[1] = latents[0]
    chosen = covering(latents, labels, 10)
    assert len(set(chosen)) == len(chosen)
    assert labels[chosen].tolist() == ["a"] * 10 + ["b"] * 3


def test_a_cell_amid_another_class_is_not_trusted() -> None:
    rng = np.random.default_rng(3)
    latents = np.concatenate([rng.standard_normal((20, 6)), 20 + rng.standard_normal((20, 6))]).astype(np.float32)
    labels = np.array(["a"] * 20 + ["b"] * 20)
    labels[7] = "b"
    assert np.flatnonzero(~trusted(latents, labels)).tolist() == [7]
    labels[30:32] = "c"
    assert np.flatnonzero(~trusted(latents, labels)).tolist() == [7, 30, 31], (
        "two of a class are not borne out by others"
    )
    labels[30], labels[31] = "b", "c"
    assert np.flatnonzero(~trusted(latents, labels)).tolist() == [7], "the only one of its class has nobody to ask"


# the command


@pytest.fixture
def central(tmp_path: Path, drawn_cells: Path) -> Path:
    """A folder of the central team's: drawn cells of three classes, one of them twice and one that is no picture."""
    folder = tmp_path / "central"
    for label in ("monocyte", "basophil", "promyelocyte"):
        shutil.copytree(drawn_cells / ("ig" if label == "promyelocyte" else label), folder / "drawn" / label)
    first = sorted((folder / "drawn" / "monocyte").iterdir())[0]
    shutil.copyfile(first, first.with_name("copy.jpg"))
    for path in (folder / "drawn").rglob("*.jpg"):  # an analyser may write anything there
        with Image.open(path) as picture:
            picture.save(path, quality="keep", comment=b"Andersson 1912")
    (folder / "drawn" / "monocyte" / "broken.jpg").write_bytes(b"no picture")
    (folder / "atlas.toml").write_text(
        '[[source]]\nfolder = "drawn"\nname = "Drawn by labref"\nlicence = "Apache-2.0"\n', encoding="utf-8"
    )
    return folder


def ship(central: Path, out: Path, *more: str) -> Any:
    return CliRunner().invoke(
        exporters_app, ["atlas", str(starter_bundle()), "--cells", str(central), "--out", str(out), *more]
    )


def test_a_bundle_is_given_an_atlas_by_a_command(central: Path, starter: Bundle, tmp_path: Path) -> None:
    held_out = starter.manifest.training["config"]["holdout"]
    done = ship(central, tmp_path / "with.labref", "--per-class", "2")
    assert done.exit_code == 0, done.output
    made = install(tmp_path / "with.labref", tmp_path / "bundles")
    atlas = made.atlas
    assert atlas is not None
    assert f"an atlas of {len(atlas.ids)} cells" in " ".join(done.output.split())
    counts = made.manifest.atlas["classes"]
    assert all(counts[label] <= 2 for label in counts) and sum(counts.values()) == len(atlas.ids) > 0
    assert set(atlas.labels) <= {"monocyte", "basophil", "ig"}, "promyelocytes are ig, as the run's own aliases say"
    assert {source.licence for source in atlas.sources} == {"Apache-2.0"}
    assert "licence Apache-2.0" in made.model_card() and "only those of the" in made.model_card()
    assert made.manifest.version == starter.manifest.version, "the networks are the same"
    may = [
        path
        for path in (central / "drawn").rglob("*.jpg")
        if path.stem != "broken" and name_fraction(path.name, "labref-holdout") >= held_out
    ]
    with Embedder.open(starter, device="cpu", precision="full") as embedder:
        known = embedder.embed(np.stack([prepare(path.read_bytes()).crop for path in may])).latents
        for row, cell_id in enumerate(atlas.ids):
            assert np.abs(known - atlas.latents[row]).max(axis=1).min() < 1e-5, "what was held out is not in it"
            data = atlas.picture(cell_id)
            assert data is not None
            assert b"Andersson" not in data, "pixels only"
            with Image.open(io.BytesIO(data)) as opened:
                assert "comment" not in opened.info
                assert (opened.format, opened.size) == ("JPEG", (256, 256))
            # what is shown is what was embedded, but for JPEG
            again = embedder.embed(prepare(data).crop[None]).latents[0]
            assert np.mean((again - atlas.latents[row]) ** 2) < 0.1 * made.manifest.latent_scale
    # an atlas can be replaced
    done = CliRunner().invoke(
        exporters_app,
        [
            "atlas",
            str(tmp_path / "with.labref"),
            "--cells",
            str(central),
            "--out",
            str(tmp_path / "with.labref"),
            "--per-class",
            "1",
        ],
    )
    assert done.exit_code == 0, done.output
    replaced = install(tmp_path / "with.labref", tmp_path / "bundles").atlas
    assert replaced is not None and len(replaced.ids) < len(atlas.ids)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "names the source and the licence"),
        ("[[source]]\nfolder = 'drawn'\nname = 'x'\n", "source.0.licence: Field required"),
        ("[[source]]\nfolder = 'elsewhere'\nname = 'x'\nlicence = 'y'\n", "no images in class folders"),
        ("[[source]]\nfolder = '.'\nname = 'x'\nlicence = 'y'\n", "'drawn' is none of the bundle's classes"),
        ("[[source]", "cannot be read"),
    ],
)
def test_a_folder_that_does_not_say_what_it_holds_makes_no_atlas(
    central: Path, tmp_path: Path, text: str | None, says: str
) -> None:
    (central / "atlas.toml").unlink()
    if text is not None:
        (central / "atlas.toml").write_text(text, encoding="utf-8")
    done = ship(central, tmp_path / "no.labref")
    assert done.exit_code == 1 and says in " ".join(done.output.split()), done.output
    assert not (tmp_path / "no.labref").exists()
