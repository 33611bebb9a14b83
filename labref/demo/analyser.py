"""A simulated analyser: its files, their places in the export folder, and the accidents of real export folders.

The layout is CellaVision's, with a folder for each analyser. Cells that a person has reviewed lie in
`<analyser>/<slide>/Signed slides/<class>/<CODE>_<n>.jpg`, other cells in
`<analyser>/<slide>/Unsigned slides/<slide>_<n>.jpg`.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Protocol

import numpy as np
from PIL import Image

from labref.demo.cells import LABELS, OPTICS, draw_cell, encode_jpeg, make_slides
from labref.errors import LabrefError

__all__ = ["LAYOUT", "Exported", "FolderSource", "Source", "Specimen", "SyntheticSource", "exports", "put"]

SLIDES: Final = 12
"""Number of smears that the demo's cells come from."""

LAYOUT: Final = """
# The demo's analysers write into one folder each, in CellaVision's layout
[[watch.layout]]
pattern = '(?P<analyser>[^/]+)/(?P<slide>[^/]+)/Signed slides/(?P<label>[^/]+)/[^/]+'
label_source = 'reviewed'

[[watch.layout]]
pattern = '(?P<analyser>[^/]+)/(?P<slide>[^/]+)/Unsigned slides/[^/]+'
label_source = 'predicted'
"""
"""The settings of the export folder in the demo's labref.toml."""

FEWEST_IMAGES: Final = 20
"""The fewest real images of a demo: with fewer there are too few references to show."""

_FOLDERS: Final = {  # class: (folder, file-name code) as CellaVision's software writes them
    "basophil": ("Basophil", "BA"),
    "eosinophil": ("Eosinophils", "EO"),
    "erythroblast": ("Erythroblast", "ERB"),
    "lymphocyte": ("Lymphocyte", "LY"),
    "monocyte": ("Monocyte", "MO"),
    "neutrophil": ("Segmented neutrophils", "SNE"),
}
_SIGNED_SHARE: Final = 0.6
_IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff"})


@dataclass(frozen=True)
class Specimen:
    """One cell: its class (as drawn, or from its folder's name; None where unknown), its origin, and its image file."""

    label: str | None
    analyser: str
    slide: str
    data: bytes
    suffix: str = ".jpg"


@dataclass(frozen=True)
class Exported:
    """One file that the analyser writes: its path (relative to the export folder), its content and its kind.

    kind : "cell", "copy" (byte-identical, under another name), "recapture" (the same cell imaged again), "truncated",
    "text" (no image), or "slow" (a cell whose file grows in pieces).
    """

    path: PurePosixPath
    data: bytes
    kind: str


class Source(Protocol):
    """Where the analyser's cells come from."""

    def take(self, n: int) -> Iterator[Specimen]:
        """The next `n` cells, made or read one at a time; fewer where there are no more."""


class SyntheticSource:
    """Drawn cells of all classes, in turn, from a dozen slides and both optics; same seed, same cells."""

    def __init__(self, *, seed: int) -> None:
        self._slides = make_slides(SLIDES, seed=seed)
        self._rng = np.random.default_rng([seed, 0xCE11])
        self._drawn = 0

    def take(self, n: int) -> Iterator[Specimen]:
        """The next `n` cells."""
        for _ in range(n):
            label = LABELS[self._drawn % len(LABELS)]
            slide = self._slides[int(self._rng.integers(len(self._slides)))]
            self._drawn += 1
            picture = draw_cell(label, OPTICS[slide.optics], slide, self._rng)
            yield Specimen(label, f"{slide.optics} optics", slide.name, encode_jpeg(picture))


class FolderSource:
    """Real images: a random sample of a folder, taken as evenly as possible from its class folders. The same seed gives
    the same sample.

    The class of an image is the name of its folder; images directly in `folder` have no class. Raises `LabrefError`
    where there are fewer than `FEWEST_IMAGES`.
    """

    def __init__(self, folder: Path, *, seed: int) -> None:
        rng = np.random.default_rng([seed, 0xF01D])
        by_class: dict[str | None, list[Path]] = {}
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in _IMAGE_SUFFIXES and path.is_file():
                by_class.setdefault(None if path.parent == folder else path.parent.name, []).append(path)
        self.found = sum(map(len, by_class.values()))
        if self.found < FEWEST_IMAGES:
            raise LabrefError(
                f"{self.found} images (JPEG, PNG, BMP, TIFF) in {folder}, the demo needs {FEWEST_IMAGES}. Give --images a "
                "folder with more, flat or one folder a class; without --images the demo draws its own."
            )
        order = [
            (place, int(rng.integers(1 << 30)), label, path)
            for label, paths in by_class.items()
            for place, path in enumerate(np.array(paths, dtype=object)[rng.permutation(len(paths))])
        ]
        order.sort(
            key=lambda item: item[:2]
        )  # first one image of every class, in random order, then a second of every class, and so on
        self._order = iter(order)
        self._rng = rng

    def take(self, n: int) -> Iterator[Specimen]:
        """The next `n` cells, fewer where the folder has no more."""
        for _, (_, _, label, path) in zip(range(n), self._order, strict=False):
            slide = f"S{int(self._rng.integers(SLIDES)) + 1:03d}"
            yield Specimen(label, "analyser", slide, path.read_bytes(), path.suffix)


def exports(specimens: Iterator[Specimen], *, seed: int) -> Iterator[Exported]:
    """The files that an analyser exports for some cells, in the order in which it writes them.

    Most cells give one file. There are also byte-identical copies (an unsigned cell that is then signed), a cell
    captured twice, a truncated file, a text file named .jpg, and a file that is written slowly. With six cells or more,
    each of these occurs at least once.
    """
    rng = np.random.default_rng([seed, 0xE8])
    for i, specimen in enumerate(specimens):
        signed = specimen.label is not None and rng.random() < _SIGNED_SHARE
        path = _path(specimen, i, signed)
        yield Exported(path, specimen.data, "slow" if i == 5 else "cell")
        accident = i % 40
        if accident == 1:
            copied = _path(specimen, i, not signed if specimen.label is not None else False, again=True)
            yield Exported(copied, specimen.data, "copy")
        elif accident == 2:
            again = _path(specimen, i, signed, again=True).with_suffix(".jpg")
            yield Exported(again, _recaptured(specimen.data), "recapture")
        elif i == 3:
            yield Exported(
                _path(specimen, i, signed, again=True), specimen.data[: len(specimen.data) // 3], "truncated"
            )
        elif i == 4:
            text = b"The analyser's own notes: this is no image.\n"
            yield Exported(path.with_name("notes.jpg"), text, "text")


def put(exported: Exported, folder: Path, *, pieces: int = 8, pause_s: float = 0.4) -> Path:
    """Write one file as an analyser does; a slow file in `pieces`, with `pause_s` seconds between. Returns its path."""
    path = folder / exported.path
    path.parent.mkdir(parents=True, exist_ok=True)
    if exported.kind != "slow":
        path.write_bytes(exported.data)
        return path
    step = -(-len(exported.data) // pieces)
    with path.open("wb", buffering=0) as out:
        for start in range(0, len(exported.data), step):
            if start:
                time.sleep(pause_s)
            out.write(exported.data[start : start + step])
    return path


def _path(specimen: Specimen, number: int, signed: bool, *, again: bool = False) -> PurePosixPath:
    order = PurePosixPath(specimen.analyser, specimen.slide)
    number = 100_000 + 10 * number + (1 if again else 0)
    if signed and specimen.label is not None:
        folder, code = _FOLDERS.get(specimen.label, (specimen.label, specimen.label[:3].upper()))
        return order / "Signed slides" / folder / f"{code}_{number}{specimen.suffix}"
    return order / "Unsigned slides" / f"{specimen.slide}_{number}{specimen.suffix}"


def _recaptured(data: bytes) -> bytes:
    """The same cell captured again: a little brighter, and compressed again. Bytes that cannot be decoded are returned
    unchanged."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            picture = np.asarray(opened.convert("RGB"), np.float32)
    except OSError:
        return data
    return encode_jpeg(np.clip(picture * 1.01, 0, 255).astype(np.uint8), quality=88)
