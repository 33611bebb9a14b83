"""Pictures of one cell for a browser, from the bytes of its file.

Every view is JPEG or PNG of 8 bits, which each browser shows alike. Views of the cell alone are the same piece,
`CROP_SIZE` pixels around the cell, so that they can be laid beside and over each other.

The thesis' technologist missed the details of dark nuclei in pictures that were normalised by their background alone;
the analyser's own program brightens the nucleus. `nucleus_brightened` does so: where the stain is dense, the density
that neighbouring pixels share is compressed, and what distinguishes them, the chromatin's texture, is kept. It works on
optical densities and scales the three colours of a pixel alike, so that the stain keeps its hue.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import scipy  # its parts load when they are first used: a command that looks at no picture starts faster
from numpy.typing import NDArray
from PIL import Image

from labref.cells.image import BACKGROUND, U8, CellImage, as_picture, cut, decode, prepare_pixels

__all__ = ["RENDERERS", "THUMB_SIZE", "nucleus_brightened"]

THUMB_SIZE: Final = 160
"""Side of a thumbnail, pixels."""
_THUMB_QUALITY: Final = 85
_QUALITY: Final = 95
_MOST_LOSSLESS: Final = 2_000_000  # pixels; a larger picture as PNG would be many megabytes
_PLAIN: Final = {"JPEG": ("RGB", "L"), "PNG": ("RGB", "L")}  # what browsers show as `decode` does
_WORDLESS: Final = frozenset({"APP0", "APP2", "APP14"})  # JFIF, colour profile, Adobe's way to keep colours
_WORDLESS_CHUNKS: Final = frozenset(
    {b"IHDR", b"PLTE", b"IDAT", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"pHYs", b"bKGD"}
)

# optical density (natural logarithm) in red light, where the nuclear stain absorbs
_DENSE: Final = 0.30  # from here on it is compressed: above cytoplasm and red cells
_KEPT: Final = 0.42  # so much of the density above stays
_TEXTURE: Final = 1.5  # the chromatin's own differences grow by this
_COARSE: Final = 5.0  # σ in pixels of what neighbouring pixels share
_MASK: Final = 0.10  # density over which the effect sets in


def nucleus_brightened(crop: U8) -> U8:
    """A normalised crop uint8[h, w, 3], background at `BACKGROUND`, with its dense nuclei brighter: uint8[h, w, 3]."""
    density = np.log((BACKGROUND + 1.0) / (crop.astype(np.float32) + 1.0)).clip(0.0)
    red = density[:, :, 0]
    coarse = scipy.ndimage.gaussian_filter(red, _COARSE, mode="nearest")
    # the nucleus' edge must not glow: what neighbours share is measured within the nucleus
    inside = np.clip((red - _DENSE) / _MASK, 0.0, 1.0)
    weight = scipy.ndimage.gaussian_filter(inside, _COARSE, mode="nearest")
    shared = scipy.ndimage.gaussian_filter(red * inside, _COARSE, mode="nearest") / np.maximum(weight, 1e-3)
    shared = np.where(weight > 1e-3, shared, coarse)
    level = _DENSE + _KEPT * np.maximum(shared - _DENSE, 0.0)
    # not below what is left as it is, or the edge would be lighter than what lies beside it
    wanted = np.maximum(level + _TEXTURE * _KEPT * (red - shared), _DENSE)
    factor = 1.0 + inside * (np.minimum(wanted / np.maximum(red, _DENSE), 1.0) - 1.0)
    bright = np.rint((BACKGROUND + 1.0) * np.exp(-density * factor[:, :, None]) - 1.0)
    return np.where(inside[:, :, None] > 0.0, np.clip(bright, 0, 255), crop).astype(np.uint8)


def _around(pixels: U8, cell: CellImage) -> U8:
    """The piece around the cell as it was captured: uint8[256, 256, 3]."""
    return np.asarray(cut(as_picture(pixels), cell.centre, np.rint(cell.background).astype(np.uint8)))


def _captured(data: bytes, max_pixels: int) -> bytes:
    pixels = decode(data, max_pixels)
    if _is_plain(data):
        return data
    if pixels.shape[0] * pixels.shape[1] > _MOST_LOSSLESS:
        return _jpeg(pixels, _QUALITY)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=4)
    return file.getvalue()


def _cell(data: bytes, max_pixels: int) -> bytes:
    pixels = decode(data, max_pixels)
    return _jpeg(_around(pixels, prepare_pixels(pixels)), _QUALITY)


def _thumb(data: bytes, max_pixels: int) -> bytes:
    pixels = decode(data, max_pixels)
    piece = Image.fromarray(_around(pixels, prepare_pixels(pixels)))
    return _jpeg(np.asarray(piece.resize((THUMB_SIZE, THUMB_SIZE), Image.Resampling.LANCZOS)), _THUMB_QUALITY)


def _normalised(data: bytes, max_pixels: int) -> bytes:
    return _jpeg(prepare_pixels(decode(data, max_pixels)).surroundings, _QUALITY)


def _nucleus(data: bytes, max_pixels: int) -> bytes:
    return _jpeg(nucleus_brightened(prepare_pixels(decode(data, max_pixels)).surroundings), _QUALITY)


def _is_plain(data: bytes) -> bool:
    """Whether a browser shows a file, which was decoded before, as labref does."""
    if not data.startswith((b"\xff\xd8", b"\x89PNG")):
        return False
    with Image.open(io.BytesIO(data), formats=tuple(_PLAIN)) as opened:
        return (
            opened.mode in _PLAIN.get(opened.format or "", ())
            and "transparency" not in opened.info
            and not getattr(opened, "is_animated", False)
            and not _says_more(data, opened)
        )


def _says_more(data: bytes, opened: Image.Image) -> bool:
    """Whether a JPEG or PNG holds words beside its pixels, as EXIF, XMP and comments are: a patient's name may be among
    them, and goes wherever the picture is saved."""
    if opened.format == "JPEG":
        parts = {name for name, _ in getattr(opened, "applist", ())}
        return not parts <= _WORDLESS or not data.endswith(b"\xff\xd9")
    at = 8
    while at + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        at += size + 12
        if kind == b"IEND":
            return bool(at != len(data))
        if kind not in _WORDLESS_CHUNKS:
            return True
    return True


def _jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    file = io.BytesIO()
    # colours at full resolution: of a red granule one pixel wide nothing else would be left
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()


RENDERERS: Final[Mapping[str, Callable[[bytes, int], bytes]]] = {
    "captured": _captured,
    "cell": _cell,
    "thumb": _thumb,
    "normalised": _normalised,
    "nucleus": _nucleus,
}
"""By name of the view: (bytes of a file, most pixels) → JPEG or PNG. captured : the whole picture, without the
words that its file holds.  cell : the piece around the cell, as captured.  thumb : that, small.  normalised : the piece
with its background as the networks get it, other cells included.  nucleus : that, with dense nuclei brightened. Each
raises `UnreadableImageError`."""
