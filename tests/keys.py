"""Keys of tests, and bundles that they sign: a tiny one, which no network could run, and any archive."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import TensorProto, helper

from labref.bundles.bundle import Bundle, pack
from labref.bundles.signing import KnownKey, PublicKey, Rotation, Signature, Trust, archive_parts, with_comment
from tests.bundles import describe

__all__ = ["TestKey", "graph_of", "plain_graph", "signed", "tiny", "trusting", "whatever", "zipped"]


@dataclass(frozen=True)
class TestKey:
    """A key pair that signs whatever it is given."""

    __test__ = False

    private: Ed25519PrivateKey
    public: PublicKey

    @staticmethod
    def make(name: str = "a test") -> TestKey:
        private = Ed25519PrivateKey.generate()
        return TestKey(private, PublicKey(private.public_key().public_bytes_raw(), name))

    def hands_over_to(self, new: TestKey) -> Rotation:
        """The record by which `new` takes over."""
        said = Rotation(self.public.id, new.public)
        return replace(said, value=self.private.sign(said.message()))

    def signs(
        self, archive: bytes, bundle: str, name: str, number: int = 1, rotations: Sequence[Rotation] = ()
    ) -> Signature:
        """What it says of an archive."""
        digest, _ = archive_parts(io.BytesIO(archive), len(archive))
        said = Signature(digest, bundle, name, number, self.public.id, tuple(rotations))
        return replace(said, value=self.private.sign(said.message()))


def trusting(*keys: TestKey, **more: Any) -> Trust:
    """A lab's trust in these keys."""
    return Trust({key.public.id: KnownKey(key.public, "trusted") for key in keys}, **more)


def graph_of(nodes: list[Any], initializer: Sequence[Any] = (), **more: Any) -> bytes:
    """An ONNX file with these operators, from `a` to `b`."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("a", "b")]
    made = helper.make_graph(nodes, "graph", ports[:1], ports[1:], initializer=list(initializer))
    data: bytes = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], **more).SerializeToString()
    return data


def plain_graph() -> bytes:
    """One operator."""
    return graph_of([helper.make_node("Relu", ["a"], ["b"])])


def tiny(starter: Bundle, folder: Path, **fields: Any) -> Path:
    """A bundle's folder of 3 kB: whole, and of no use. fields : of its manifest, other than the starter's."""
    folder.mkdir(parents=True)
    for name in ("trunk.onnx", "encoder.onnx"):
        (folder / name).write_bytes(plain_graph())
    np.savez(folder / "golden.npz", crops=np.zeros(1, np.uint8))
    (folder / "MODEL_CARD.md").write_text("# Model card\n", encoding="utf-8")
    was = starter.manifest
    labels = was.labels[:2]
    ids, groups = ({label: of[label] for label in labels} for of in (was.class_ids, was.class_groups))
    two = {"labels": labels, "class_ids": ids, "class_groups": groups}
    describe(folder, replace(was, training={}, figures={}, optics={}, **{"name": "tiny", **two, **fields}))
    return folder


def signed(folder: Path, out: Path, key: TestKey, number: int = 1, rotations: Sequence[Rotation] = ()) -> Path:
    """The bundle in `folder` packed as the file `out`, with its signature in it."""
    bundle = pack(folder, out)
    archive = out.read_bytes()
    made = key.signs(archive, bundle.digest, bundle.manifest.name, number, rotations)
    out.write_bytes(with_comment(archive, made.to_bytes()))
    return out


def zipped(files: Sequence[tuple[str | zipfile.ZipInfo, bytes]]) -> bytes:
    """An archive of these entries, in their order."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return packed.getvalue()


def whatever(archive: bytes, out: Path, key: TestKey) -> Path:
    """Any archive, signed as the bundle that its manifest is, or as none."""
    name, digest = "tiny", "0" * 64
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        if "manifest.json" in opened.namelist():
            raw = opened.read("manifest.json")
            digest, name = hashlib.sha256(raw).hexdigest(), str(json.loads(raw).get("name", name))
    out.write_bytes(with_comment(archive, key.signs(archive, digest, name).to_bytes()))
    return out
