"""A bundle is verified before use, shipped as one file, and refused with a reason when anything about it is off."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from labref.bundles.bundle import Bundle, Manifest, install, manifest_bytes, pack, starter_bundle
from labref.cells.image import PREPARATION
from labref.errors import BundleError


@pytest.fixture
def folder(starter: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(starter.folder, tmp_path / "bundle"))


def test_the_starter_says_what_it_is(starter: Bundle) -> None:
    manifest = starter.manifest
    assert manifest.labels == (
        "basophil",
        "blast",
        "eosinophil",
        "erythroblast",
        "ig",
        "lymphocyte",
        "monocyte",
        "neutrophil",
        "platelet",
    )
    assert manifest.latent_size == 50
    assert set(manifest.class_ids) == set(manifest.class_groups) == set(manifest.labels)
    assert manifest.preparation == PREPARATION
    assert manifest.novelty.threshold > 0 and manifest.novelty.k == 1
    assert starter_bundle().stat().st_size < 20_000_000
    card = (starter.folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    for needed in (
        "CC BY 4.0",
        "10.17632/snkd93bnjr.1",
        "10.7937/TCIA.AXH3-T579",
        "WBCAtt",
        "held out and never trained on",
        "class precision@8",
    ):
        assert needed in card
    assert manifest.figures["precision_at_8"]["macro"] >= 0.98
    assert manifest.optics["cells"] > 0


def test_pack_and_install_give_the_same_bundle(starter: Bundle, tmp_path: Path) -> None:
    packed = pack(starter.folder, tmp_path / "a.labref")
    assert packed.digest == starter.digest
    pack(starter.folder, tmp_path / "b.labref")
    assert (tmp_path / "a.labref").read_bytes() == (tmp_path / "b.labref").read_bytes()
    first = install(tmp_path / "a.labref", tmp_path / "bundles")
    again = install(first.folder, tmp_path / "bundles")
    assert first.digest == again.digest == starter.digest
    assert [p.name for p in (tmp_path / "bundles").iterdir()] == [starter.short]


def test_the_manifest_reads_back(starter: Bundle) -> None:
    assert Manifest.from_json(json.loads(manifest_bytes(starter.manifest))) == starter.manifest


@pytest.mark.parametrize("name", ["trunk.onnx", "encoder.onnx", "golden.npz", "MODEL_CARD.md"])
def test_one_changed_byte_is_found(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BundleError, match=name):
        Bundle.open(folder)


def test_missing_and_unknown_files_are_named(folder: Path) -> None:
    (folder / "more.bin").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"more\.bin"):
        Bundle.open(folder)
    (folder / "more.bin").unlink()
    (folder / "encoder.onnx").unlink()
    with pytest.raises(BundleError, match=r"encoder\.onnx"):
        Bundle.open(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format_version": 99}, "Upgrade labref"),
        ({"preparation": {"version": 7}}, "prepared"),
        ({"novelty": {}}, "no usable manifest"),
        ({"files": {}}, "must name"),
        ({"files": {"../../etc/x": {"sha256": "0" * 64, "bytes": 1}}}, "plain file names"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(folder: Path, change: dict[str, object], says: str) -> None:
    values = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(json.dumps({**values, **change}), encoding="utf-8")
    with pytest.raises(BundleError, match=says):
        Bundle.open(folder)


def test_no_bundle_and_no_zip(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle at"):
        install(tmp_path / "nothing.labref", tmp_path / "bundles")
    (tmp_path / "text.labref").write_text("no zip")
    with pytest.raises(BundleError, match="damaged"):
        install(tmp_path / "text.labref", tmp_path / "bundles")
    with zipfile.ZipFile(tmp_path / "evil.labref", "w") as archive:
        archive.writestr("manifest.json", "{}")
        archive.writestr("../outside", "x")
    with pytest.raises(BundleError, match="plain file names"):
        install(tmp_path / "evil.labref", tmp_path / "bundles")
    assert not (tmp_path / "outside").exists()
    assert list((tmp_path / "bundles").iterdir()) == []


@pytest.mark.parametrize("place", [100, 1_000, 50_000])
def test_a_bundle_damaged_on_its_way_is_refused(tmp_path: Path, place: int) -> None:
    """Wherever in a packed graph it was hit: zlib finds no sense in it, or the checksum differs."""
    data = bytearray(starter_bundle().read_bytes())
    with zipfile.ZipFile(starter_bundle()) as archive:
        start = archive.getinfo("trunk.onnx").header_offset + place
    data[start : start + 64] = bytes(byte ^ 0xA5 for byte in data[start : start + 64])
    (tmp_path / "hit.labref").write_bytes(data)
    with pytest.raises(BundleError, match=r"hit\.labref is no labref bundle, or is damaged: .*Fetch it again"):
        install(tmp_path / "hit.labref", tmp_path / "bundles")
    assert list((tmp_path / "bundles").iterdir()) == []


def test_a_damaged_installation_is_replaced(starter: Bundle, tmp_path: Path) -> None:
    target = install(starter.folder, tmp_path / "bundles").folder
    (target / "trunk.onnx").write_bytes(b"broken")
    assert install(starter.folder, tmp_path / "bundles").digest == starter.digest
    assert Bundle.open(target).digest == starter.digest


def test_golden_outputs_are_plain_arrays(starter: Bundle) -> None:
    golden = starter.golden()
    assert golden.crops.shape[1:] == (256, 256, 3) and golden.crops.dtype == np.uint8
    assert golden.latents.shape == (len(golden.crops), 50) and golden.latents.dtype == np.float32
    assert np.allclose(golden.probabilities.sum(axis=1), 1, atol=1e-4)
