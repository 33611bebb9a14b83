"""Second bundles for tests: the starter with another latent space and another name for one of its classes; the starter
with an atlas."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx

from labref.bundles import bundle as shipped
from labref.bundles.atlas import AtlasCell, AtlasSource, write
from labref.bundles.bundle import Bundle, Manifest, manifest_bytes, pack
from labref.bundles.inference import Embedder
from labref.bundles.schema import WITH_ATLAS
from labref.bundles.signing import SIGNATURE_FILE
from labref.cells.image import prepare

__all__ = ["RENAMED", "SOURCE", "another", "carrying", "describe", "read_manifest"]

RENAMED = ("ig", "immature granulocyte")
"""A class of the starter, and what another bundle calls it."""

SOURCE = AtlasSource("Drawn cells of labref, tests/conftest.py", "Apache-2.0")
"""Where the cells of `carrying` are from."""


def carrying(starter: Bundle, folder: Path, cells: Mapping[str, Sequence[Path]]) -> Path:
    """A bundle file in `folder`: the starter with an atlas of these pictures, by class."""
    draft = Path(shutil.copytree(starter.folder, folder / "carrying-draft"))
    named = [(label, path.read_bytes()) for label, paths in cells.items() for path in paths]
    with Embedder.open(starter, device="cpu", precision="full") as embedder:
        latents = embedder.embed(np.stack([prepare(data).crop for _, data in named])).latents
    entry = write(
        draft,
        [AtlasCell(latent, label, 0, data) for latent, (label, data) in zip(latents, named, strict=True)],
        labels=starter.manifest.labels,
        sources=[SOURCE],
        how="all of them",
    )
    shipped.describe(draft, replace(starter.manifest, name="carrying", format_version=WITH_ATLAS, atlas=entry))
    out = folder / "carrying.labref"
    pack(draft, out)
    shutil.rmtree(draft)
    return out


def describe(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of the files in a bundle's folder, and leave the files as they are."""
    files = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        for path in folder.iterdir()
        if path.name not in ("manifest.json", SIGNATURE_FILE)
    }
    (folder / "manifest.json").write_bytes(manifest_bytes(replace(manifest, files=files)))


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a bundle's folder."""
    return Manifest.from_json(json.loads((folder / "manifest.json").read_bytes()))


def another(
    starter: Bundle,
    folder: Path,
    *,
    name: str = "other",
    latent_size: int = 40,
    seed: int = 1,
    preparation: Mapping[str, Any] | None = None,
) -> Path:
    """A bundle file in `folder`: latents of the starter, mixed at random into `latent_size` numbers; true golden
    outputs.

    preparation : what the manifest says of it, other than the starter's; only a labref that prepares so will use it.
    """
    draft = folder / f"{name}-draft"
    shutil.copytree(starter.folder, draft)
    model = onnx.load(draft / "encoder.onnx")
    last = next(node for node in model.graph.node if "latent" in node.output)
    last.output[list(last.output).index("latent")] = "latent_before"
    mixing = np.random.default_rng(seed).standard_normal((starter.manifest.latent_size, latent_size)).astype(np.float32)
    mixing *= np.geomspace(3.0, 0.1, starter.manifest.latent_size, dtype=np.float32)[:, None]
    model.graph.initializer.append(onnx.numpy_helper.from_array(mixing, "mixing"))
    model.graph.node.append(onnx.helper.make_node("MatMul", ["latent_before", "mixing"], ["latent"]))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = latent_size
    (draft / "encoder.onnx").write_bytes(model.SerializeToString())
    old, new = RENAMED
    was = starter.manifest
    stretched = float(np.square(mixing).sum() / latent_size)
    manifest = replace(
        was,
        name=name,
        labels=tuple(new if label == old else label for label in was.labels),
        class_ids={new if label == old else label: value for label, value in was.class_ids.items()},
        class_groups={new if label == old else label: value for label, value in was.class_groups.items()},
        preparation=was.preparation if preparation is None else preparation,
        latent_size=latent_size,
        latent_scale=was.latent_scale * stretched,
        novelty=replace(was.novelty, threshold=was.novelty.threshold * stretched),
    )
    golden = starter.golden()
    describe(draft, manifest)
    with Embedder.open(Bundle(draft, "0" * 64, read_manifest(draft)), device="cpu") as embedder:
        made = embedder.embed(golden.crops)
    with (draft / "golden.npz").open("wb") as file:
        np.savez(file, crops=golden.crops, probabilities=made.probabilities, latents=made.latents)
    tolerance = was.golden_tolerance * float(max(1.0, np.abs(mixing).sum(axis=0).max()))
    describe(draft, replace(manifest, golden_tolerance=tolerance))
    out = folder / f"{name}.labref"
    with patch("labref.bundles.bundle.PREPARATION", dict(manifest.preparation)):
        pack(draft, out)
    shutil.rmtree(draft)
    return out
