"""Second bundles for tests: the starter with another latent space and another name for one of its classes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx

from labref.bundles.bundle import Bundle, manifest_bytes, pack
from labref.bundles.inference import Embedder

__all__ = ["RENAMED", "another"]

RENAMED = ("ig", "immature granulocyte")
"""A class of the starter, and what another bundle calls it."""


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
    with Embedder.open(Bundle(draft, "0" * 64, manifest), device="cpu") as embedder:
        made = embedder.embed(golden.crops)
    with (draft / "golden.npz").open("wb") as file:
        np.savez(file, crops=golden.crops, probabilities=made.probabilities, latents=made.latents)
    tolerance = was.golden_tolerance * float(max(1.0, np.abs(mixing).sum(axis=0).max()))
    files = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        for path in draft.iterdir()
        if path.name != "manifest.json"
    }
    (draft / "manifest.json").write_bytes(manifest_bytes(replace(manifest, golden_tolerance=tolerance, files=files)))
    out = folder / f"{name}.labref"
    with patch("labref.bundles.bundle.PREPARATION", dict(manifest.preparation)):
        pack(draft, out)
    shutil.rmtree(draft)
    return out
