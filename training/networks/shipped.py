"""A bundle as it was shipped: its manifest and files, whatever preparation it was made with. It loads no TensorFlow."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from labref.bundles.bundle import FORMAT_VERSION, MAX_BYTES, NO_ARCHIVE, Manifest
from labref.errors import BundleError

__all__ = ["Shipped", "read_bundle"]

_NEEDED = ("trunk.onnx", "encoder.onnx", "golden.npz")
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Shipped:
    """A bundle as it was shipped, of any preparation. digest : SHA-256 of its manifest.  files : bytes of each file by
    name."""

    manifest: Manifest
    digest: str
    files: Mapping[str, bytes]


def read_bundle(source: Path) -> Shipped:
    """Read a bundle, a `.labref` file or a folder, each file verified by its digest, whatever preparation it was made
    with.

    Its networks are not run. A lab's `Bundle.open` checks more. Raises `BundleError`.
    """
    try:
        if source.is_dir():
            raw = {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()}
        else:
            with zipfile.ZipFile(source) as archive:
                if sum(info.file_size for info in archive.infolist()) > MAX_BYTES:
                    raise BundleError(f"{source} is no labref bundle: it unpacks to more than {MAX_BYTES // 10**9} GB")
                raw = {name: archive.read(name) for name in archive.namelist()}
        manifest_json = raw[_MANIFEST]
    except OSError as error:
        raise BundleError(f"no bundle at {source}: {error.strerror or error}") from None
    except NO_ARCHIVE as error:
        raise BundleError(f"{source} is no labref bundle, or is damaged: {error}. Fetch it again.") from None
    try:
        values = json.loads(manifest_json)
        if int(values["format_version"]) > FORMAT_VERSION:
            raise BundleError(f"{source} has a newer format than this labref knows. Upgrade labref.")
        manifest = Manifest.from_json(values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{source} has no usable manifest: {type(error).__name__} {error}") from None
    for name in {*manifest.files, *_NEEDED}:
        entry = manifest.files.get(name, {})
        if name not in raw or hashlib.sha256(raw[name]).hexdigest() != entry.get("sha256"):
            raise BundleError(f"{source} is damaged: {name} is missing or does not have its digest. Fetch it again.")
    files = {name: raw[name] for name in manifest.files}
    return Shipped(manifest, hashlib.sha256(manifest_json).hexdigest(), files)
