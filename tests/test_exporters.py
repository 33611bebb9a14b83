"""Trunks of reduced precision: made from the full one, let in only where the references stay, taken by the device they
suit."""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from rich.progress import Progress

from exporters import precision as reduced
from labref.bundles.bundle import Bundle, Manifest, install, manifest_bytes, pack
from labref.bundles.inference import Embedder
from labref.bundles.signing import SIGNATURE_FILE
from labref.cells.image import prepare
from labref.errors import BundleError
from training.config import ClassifierConfig, VaeConfig


@pytest.fixture(scope="module")
def crops(drawn_cells: Path) -> np.ndarray:
    return np.stack([prepare(path.read_bytes()).crop for path in sorted(drawn_cells.rglob("*.jpg"))])


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory, crops: np.ndarray) -> Path:
    """A folder with trunk, encoder and golden outputs of a small network that was never trained."""
    import keras

    from exporters.graphs import convert
    from training.networks.architecture import build_classifier, build_trunk, build_vae_parts

    keras.utils.set_random_seed(1)
    folder = tmp_path_factory.mktemp("graphs")
    trunk = build_trunk(build_classifier(ClassifierConfig(width=0.125, input_size=64, middle_repeats=0), 8), 2)
    shape = trunk.output["features"].shape[1:]
    size = int(np.prod(shape))
    config = VaeConfig(latent_size=10, width=32, pooling="flatten")
    encoder, _, _ = build_vae_parts(shape, config, 8, np.zeros(size, "f4"), np.ones(size, "f4"))
    encoder = keras.Model(encoder.input, encoder.outputs[0])
    convert(trunk, "crops", np.uint8, ["probabilities", "features"], folder / "trunk.onnx")
    convert(encoder, "features", np.float32, ["latent"], folder / "encoder.onnx")
    probabilities, latents = reduced.run_trunk(
        reduced.open_sessions(folder / "trunk.onnx", folder / "encoder.onnx"), crops[:4]
    )
    np.savez(folder / "golden.npz", crops=crops[:4], probabilities=probabilities, latents=latents)
    return folder


def test_reduced_trunks_are_judged_and_bring_their_golden_outputs(
    graphs: Path, crops: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(graphs, tmp_path / "bundle"))
    monkeypatch.setattr(reduced, "LIMIT", 0.0)
    with Progress(disable=True) as progress:
        trunks = reduced.add_reduced(folder, reduced.PRECISIONS, crops[:8], crops[:8], crops[8:], 0.02, progress)
    by_name = {trunk.precision: trunk for trunk in trunks}
    assert set(by_name) == {"float16", "int8"} and all(trunk.admitted for trunk in trunks)
    assert by_name["float16"].agreement["own"]["value"] > 7
    with np.load(folder / "golden.npz") as golden:
        for name, trunk in by_name.items():
            proto = onnx.load(folder / trunk.file)
            kinds = {i.data_type for i in proto.graph.initializer}
            assert (onnx.TensorProto.FLOAT16 if name == "float16" else onnx.TensorProto.INT8) in kinds
            sessions = reduced.open_sessions(folder / trunk.file, folder / "encoder.onnx")
            probabilities, latents = reduced.run_trunk(sessions, golden["crops"])
            assert probabilities.dtype == latents.dtype == np.float32
            assert np.abs(latents - golden[f"latents_{name}"]).max() < trunk.golden_tolerance
            assert trunk.measured["difference_from_full_on_golden"] == pytest.approx(
                max(
                    float(np.abs(latents - golden["latents"]).max()),
                    float(np.abs(probabilities - golden["probabilities"]).max()),
                ),
                abs=1e-3,
            )
            assert trunk.measured["ms_per_cell_one_thread"] > 0
        assert set(golden) == {
            *("crops", "probabilities", "latents"),
            *(f"{what}_{name}" for what in ("probabilities", "latents") for name in by_name),
        }


def test_one_whose_references_move_is_not_shipped(graphs: Path, crops: np.ndarray, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(graphs, tmp_path / "bundle"))

    def noise(full: Path, precision: str, out: Path, _: np.ndarray) -> None:
        proto = onnx.load(full)
        rng = np.random.default_rng(1)
        for initializer in proto.graph.initializer:
            array = onnx.numpy_helper.to_array(initializer)
            if array.ndim == 4:
                changed = (array + rng.normal(0, array.std(), array.shape)).astype(array.dtype)
                initializer.CopyFrom(onnx.numpy_helper.from_array(changed, initializer.name))
        out.write_bytes(proto.SerializeToString())

    with pytest.MonkeyPatch.context() as patch, Progress(disable=True) as progress:
        patch.setattr(reduced, "reduce_trunk", noise)
        [trunk] = reduced.add_reduced(folder, ["int8"], crops[:4], crops[:8], crops[8:], 0.02, progress)
    assert not trunk.admitted and trunk.file == "" and trunk.agreement["own"]["value"] < reduced.LIMIT
    assert not (folder / "trunk.int8.onnx").exists()
    assert set(np.load(folder / "golden.npz")) == {"crops", "probabilities", "latents"}


def test_agreement_by_hand() -> None:
    rng = np.random.default_rng(2)
    full = reduced.Latents(rng.normal(size=(40, 6)).astype("f4"), rng.normal(size=(100, 6)).astype("f4"))
    same = reduced.agreement(full, full)
    assert {name: estimate.value for name, estimate in same.items()} == {"own": 8.0, "moved": 8.0, "mixed": 8.0}
    # a space moved as a whole agrees with itself, and with nobody else
    moved = reduced.Latents(full.queries + 9, full.references + 9)
    found = reduced.agreement(full, moved)
    assert found["own"].value > 7.99 and found["moved"].value < 4 and found["mixed"].value < 6


def test_weights_are_rounded_to_the_nearest() -> None:
    values = np.random.default_rng(3).normal(0, 10, 4000).astype(np.float32)
    assert np.array_equal(reduced.round_weights(values, 23), values)
    rounded = reduced.round_weights(values, 12)
    assert np.abs(rounded / values - 1).max() <= 2.0**-13
    assert not (rounded.view(np.uint32) & 0x7FF).any(), "the eleven lowest bits are zero, which is what packs"
    np.testing.assert_array_equal(reduced.round_weights(np.array([0.0, 1.0, -2.5], np.float32), 2), [0.0, 1.0, -2.5])
    assert reduced.round_weights(np.float32([1.375, -1.375]), 2).tolist() == [1.5, -1.5]
    with pytest.raises(ValueError, match="1 to 23"):
        reduced.round_weights(values, 0)


def test_a_rounded_graph_packs_smaller_and_gives_the_same(graphs: Path, crops: np.ndarray, tmp_path: Path) -> None:
    rounded = Path(shutil.copytree(graphs, tmp_path / "rounded"))
    before = (graphs / "trunk.onnx").read_bytes()
    reduced.round_graph(rounded / "trunk.onnx", 23)
    assert (rounded / "trunk.onnx").read_bytes() == before
    reduced.round_graph(rounded / "trunk.onnx", 13)
    after = (rounded / "trunk.onnx").read_bytes()
    assert len(zlib.compress(after)) < 0.85 * len(zlib.compress(before))
    found = [
        reduced.run_trunk(reduced.open_sessions(folder / "trunk.onnx", folder / "encoder.onnx"), crops[:8])
        for folder in (graphs, rounded)
    ]
    for full, close in zip(*found, strict=True):
        assert not np.array_equal(full, close)
        np.testing.assert_allclose(full, close, atol=1e-3)


Remade = Callable[[float], Bundle]


@pytest.fixture
def with_int8(starter: Bundle, tmp_path: Path) -> Remade:
    """The starter with a second trunk, called int8, whose golden outputs are off by what is asked for."""

    def make(off: float) -> Bundle:
        unsigned = shutil.ignore_patterns(SIGNATURE_FILE)
        folder = Path(shutil.copytree(starter.folder, tmp_path / f"off-{off}", ignore=unsigned))
        shutil.copyfile(folder / "trunk.onnx", folder / "trunk.int8.onnx")
        golden = dict(np.load(folder / "golden.npz"))
        golden |= {"probabilities_int8": golden["probabilities"], "latents_int8": golden["latents"] + np.float32(off)}
        np.savez_compressed(folder / "golden.npz", **golden)
        values = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        stay = {"value": 7.9, "low": 7.8, "high": 8.0, "n": 9, "how": "bootstrap"}
        values["trunks"] = [
            {
                "precision": "int8",
                "file": "trunk.int8.onnx",
                "admitted": True,
                "agreement": {"own": stay, "moved": stay, "mixed": stay},
                "golden_tolerance": 0.05,
                "measured": {"limit": 7.8},
            }
        ]
        for path in folder.iterdir():
            if path.name != "manifest.json":
                data = path.read_bytes()
                values["files"][path.name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        (folder / "manifest.json").write_text(json.dumps(values), encoding="utf-8")
        return Bundle.open(folder)

    return make


def test_the_cpu_takes_the_int8_trunk_and_can_be_kept_from_it(with_int8: Remade, crops: np.ndarray) -> None:
    bundle = with_int8(0.0)
    with Embedder.open(bundle, device="cpu") as auto, Embedder.open(bundle, device="cpu", precision="full") as full:
        assert (auto.precision, full.precision) == ("int8", "full")
        assert auto.provider_line.endswith("int8 trunk") and "int8" not in full.provider_line
        assert auto.golden_difference() < 1e-3 and auto.golden_tolerance == 0.05
        assert np.allclose(auto.embed(crops[:2]).latents, full.embed(crops[:2]).latents, atol=1e-4)


def test_a_computer_that_gets_it_wrong_uses_the_full_trunk(with_int8: Remade) -> None:
    with Embedder.open(with_int8(1.0), device="cpu") as opened:
        assert opened.precision == "full" and "does not give its golden outputs here" in opened.provider_line
        assert opened.golden_difference() < 1e-3


def test_a_bundle_with_trunks_ships_and_reads_back(with_int8: Remade, tmp_path: Path) -> None:
    bundle = with_int8(0.0)
    pack(bundle.folder, tmp_path / "a.labref")
    again = install(tmp_path / "a.labref", tmp_path / "bundles")
    assert again.digest == bundle.digest and again.manifest.trunk("int8") is not None
    assert again.manifest.trunk("float16") is None
    assert Manifest.from_json(json.loads(manifest_bytes(again.manifest))) == again.manifest
    values = json.loads((bundle.folder / "manifest.json").read_text())
    values["trunks"][0]["file"] = "elsewhere.onnx"
    (bundle.folder / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(BundleError, match="not among its files"):
        Bundle.open(bundle.folder)


def test_a_bundle_without_trunks_says_nothing_of_them(starter: Bundle) -> None:
    if not starter.manifest.trunks:
        assert b'"trunks"' not in manifest_bytes(starter.manifest)
    with Embedder.open(starter, device="cpu", precision="full") as opened:
        assert opened.precision == "full"
