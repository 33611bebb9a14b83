"""What the values of an opened picture mean: which page, how deep, how transparent. What every viewer shows, as RGB of
8 bits, or a refusal with the reason.

Each kind of picture that Pillow opens is decided in the table of tests/test_picture_meaning.py.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImagePalette, TiffImagePlugin

from labref.errors import UnreadableImageError

__all__ = ["Depth", "choose_page", "depth_of", "read_colours", "to_rgb"]

_OS2_HEADER = 12  # bytes
_MOST_PAGES = 64  # of a TIFF are looked at
_MASKS_AND_COPIES = 0b101  # of NewSubfileType: bit 0 is a reduced copy, bit 2 a mask of transparency
_LEAST_HIGH_BYTE = 64  # of 16 bits: the picture of a 14-bit camera lies below
_LEAST_BRIGHT = 48  # of 255; half of the pixels of each of the 10,694 real pictures are above 58
_BRIGHT_SHARE = 0.4  # of the pixels are brighter than that
_FOREIGN_SHARE = 0.2  # of the pixels may be none of the camera's: hot ones, a scale bar, writing
_NEAR_SHARE = 0.005  # of the pixels may lie just above what the camera can give
_HOT_SHARE = 0.001  # of the pixels may be hot
_CELL_SHARE = 0.05  # of the pixels are a cell's at least
_HIDDEN_SHARE = 0.02  # of the pixels; an alpha that hides more of a picture is none
_ONE_COLOUR = 12  # grey values by which pixels of one colour differ at most
_SCREEN_GAMMA = 2.2
_GAMMAS = (0.1, 4.0)  # what a gAMA says beyond these is nonsense
_LEAST_GAMMA = 0.05  # by which the exponent differs from 1; libpng, too, leaves less alone
_FULL_RANGE = (0, 255, 128, 255, 128, 255)  # of YCbCr: black and white of each

F64 = NDArray[np.float64]


def choose_page(image: Image.Image, data: bytes) -> None:
    """Go to the picture of a TIFF: the largest page that is no reduced copy and no mask by its tags, one in colour
    before one in grey.

    data : the bytes that `image` was opened from. Raises `UnreadableImageError` where another page is about as large:
    a stack, channels, or several cells.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    pages = _pages(data)
    most = max((size for _, size, _ in pages), default=0)
    large = [(colour, page) for page, size, colour in pages if 2 * size > most]
    chosen = [page for colour, page in large if colour or not any(colour for colour, _ in large)]
    if len(chosen) > 1:
        raise UnreadableImageError(
            f"holds {len(chosen)} pictures (pages of the TIFF), of which nobody can say which is the cell; export each "
            "as a file of its own"
        )
    if chosen and chosen[0]:
        image.seek(chosen[0])


def _pages(data: bytes) -> list[tuple[int, int, bool]]:
    """The pages of a TIFF that may be its picture: number, pixels, whether it is in colour. All, where the tags leave
    none."""
    pages: list[tuple[int, int, bool]] = []
    aside: list[tuple[int, int, bool]] = []
    # opened once more: where a page is damaged, Pillow does not go back to one that is sound
    with Image.open(io.BytesIO(data), formats=("TIFF",)) as looked_at:
        assert isinstance(looked_at, TiffImagePlugin.TiffImageFile)
        for page in range(_MOST_PAGES):
            try:
                looked_at.seek(page)
                tags = looked_at.tag_v2
                # of SubfileType, which is older, 2 is a reduced copy
                is_aside = int(tags.get(254, 0)) & _MASKS_AND_COPIES or tags.get(255) == 2
                colour = tags.get(262, 0) not in (0, 1, 4)
                (aside if is_aside else pages).append((page, looked_at.width * looked_at.height, colour))
            except EOFError:
                break
            except Exception:  # whatever Pillow makes of a damaged page: those before it are sound
                break
    return pages or aside


@dataclass(frozen=True)
class Depth:
    """What a file says of the values of its pixels.

    format : of the file, as Pillow names it.  bits : of each value.  largest : value that means full intensity, None
    where the file does not say.  inverted : 0 is white, and Pillow has not seen to it.  exponent : power by which a
    share of the full intensity becomes the one that a screen is given.
    """

    format: str | None
    bits: int
    largest: float | None = None
    inverted: bool = False
    exponent: float = 1.0


def depth_of(image: Image.Image, data: bytes) -> Depth:
    """The depth of an opened picture, before it is loaded. data : the bytes that it was opened from.

    Raises `UnreadableImageError` where its values are of a kind that Pillow takes for another.
    """
    if image.format == "PNG":
        return Depth(image.format, data[24], exponent=_exponent(image))
    if image.format == "BMP":
        bits_a_pixel = struct.unpack_from("<H", data, 24 if data[14] == _OS2_HEADER else 28)[0]
        return Depth(image.format, min(bits_a_pixel, 8))
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return Depth(image.format, 8)
    tags = image.tag_v2
    kinds = tags.get(339, 1)  # SampleFormat: 1 is without a sign
    if image.mode not in ("I", "F") and {*(kinds if isinstance(kinds, tuple) else (kinds,))} != {1}:
        raise UnreadableImageError(
            "its pixels are numbers with a sign, or of another kind that is not read; export it with 8 bits without a sign"
        )
    bits = max(int(value) for value in tags.get(258, (1,)))
    _require_readable(image, bits)
    stated = tags.get(281, tags.get(341))  # MaxSampleValue, SMaxSampleValue
    stated = stated[0] if isinstance(stated, tuple) else stated
    # the largest value there is says nothing: writers put it there when they know no better
    largest = float(stated) if stated is not None and 1 < float(stated) < 2**bits - 1 else None
    if largest is None and bits in (10, 12, 14):
        largest = 2.0**bits - 1
    return Depth(image.format, bits, largest, tags.get(262) == 0 and bits > 8)


def _exponent(image: Image.Image) -> float:
    """Of a PNG, by its gAMA, as browsers do: sRGB and a colour profile stand above it."""
    gamma = image.info.get("gamma")
    if gamma is None or "srgb" in image.info or "icc_profile" in image.info or not _GAMMAS[0] <= gamma <= _GAMMAS[1]:
        return 1.0
    exponent = 1 / (gamma * _SCREEN_GAMMA)
    return exponent if abs(exponent - 1) > _LEAST_GAMMA else 1.0


def _require_readable(image: TiffImagePlugin.TiffImageFile, bits: int) -> None:
    """Raise where Pillow would give other values of a TIFF than it holds."""
    tags = image.tag_v2
    planes = int(tags.get(277, 1)) if tags.get(284) == 2 else 1  # SamplesPerPixel, PlanarConfiguration
    unpacked = tags.get(259, 1) == 1  # Compression
    if unpacked:
        parts = [part.extents or (0, 0, 0, 0) for part in image.tile]
        named = sum((right - left) * (bottom - top) for left, top, right, bottom in parts)
        if named < planes * image.width * image.height:
            raise UnreadableImageError(
                "truncated: parts of the picture are named nowhere in the TIFF, and would be black"
            )
    if unpacked and bits > 8 and planes > 1:
        raise UnreadableImageError(
            f"its colours lie in planes of {bits} bits, which is not read; export it with 8 bits"
        )
    if tags.get(262) != 6:  # PhotometricInterpretation: YCbCr
        return
    if unpacked and tuple(tags.get(530, (2, 2))) != (1, 1):
        raise UnreadableImageError(
            "its colours (YCbCr) are stored for several pixels together without compression, which is not read; export "
            "it as RGB"
        )
    if tuple(round(float(value)) for value in tags.get(532, _FULL_RANGE)) != _FULL_RANGE:
        raise UnreadableImageError(
            "its black and white (ReferenceBlackWhite) are other values than 0 and 255, which is not read; export it as "
            "RGB"
        )


def read_colours(image: Image.Image) -> None:
    """Give an opened TIFF of a palette the colours that viewers show: some programs write them with 8 bits where 16
    belong, and they would all be black."""
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.mode in ("P", "PA"):
        colours = image.tag_v2.get(320, ())  # ColorMap: all red, all green, all blue
        if colours and max(colours) < 256:
            image.palette = ImagePalette.raw("RGB;L", bytes(colours))


def to_rgb(image: Image.Image, depth: Depth) -> Image.Image:
    """The loaded picture as RGB of 8 bits.

    Raises `UnreadableImageError` where nobody can say how bright its pixels are, or they are not those of a picture.
    """
    if depth.bits == 1:
        raise UnreadableImageError(
            "holds two colours alone (1 bit a pixel): a mask or writing, no picture of a cell; export it with 8 bits"
        )
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _grey_of_wide(image, depth)
    has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La")
    if depth.bits > 8:
        _require_upper_bits(image, has_alpha=has_alpha)
    if image.mode in ("RGBa", "La"):
        image = _unmultiplied(image)
    if has_alpha or "transparency" in image.info:
        return _without_alpha(_as_shown(image.convert("RGBA"), depth), depth.format)
    return _as_shown(image if image.mode == "RGB" else image.convert("RGB"), depth)


def _as_shown(image: Image.Image, depth: Depth) -> Image.Image:
    """An RGB or RGBA picture as a screen is given it."""
    if depth.exponent == 1:
        return image
    shown = [round(255 * (value / 255) ** depth.exponent) for value in range(256)]
    return image.point(3 * shown + list(range(256)) * (image.mode == "RGBA"))


def _require_upper_bits(image: Image.Image, *, has_alpha: bool) -> None:
    """Raise where the upper 8 of 16 bits, which Pillow has kept, hold too little."""
    if image.mode == "CMYK":
        raise UnreadableImageError("its colours are CMYK of 16 bits, which no camera gives; export it as RGB of 8 bits")
    bands = np.atleast_3d(np.asarray(image))
    brightest = (bands[..., :-1] if has_alpha else bands).max(axis=2)
    if (brightest >= _LEAST_HIGH_BYTE).mean() < _BRIGHT_SHARE:
        raise UnreadableImageError(
            "its colours have 16 bits, of which only the lower ones are used (a 10, 12 or 14-bit camera?): it would "
            "be almost black; export it with 8 bits"
        )


def _unmultiplied(image: Image.Image) -> Image.Image:
    """A picture whose colours are multiplied by its alpha (RGBa, La) as RGBA; its colours as they stand where that is 0
    everywhere."""
    *colours, alpha = image.split()
    if alpha.getextrema() == (0, 0):
        return Image.merge("RGB", colours * (3 // len(colours)))
    return Image.merge("RGBa", [*colours * (3 // len(colours)), alpha]).convert("RGBA")


def _without_alpha(image: Image.Image, file_format: str | None) -> Image.Image:
    """An RGBA picture as RGB: laid over white, or its alpha ignored where it says nothing."""
    pixels = np.asarray(image)
    alpha = pixels[..., 3]
    # Windows shows a BMP without it, and cameras leave anything in it; what hides the whole picture was never filled in
    if alpha.min() == 255 or file_format == "BMP" or not alpha.any():
        return image.convert("RGB")
    if file_format == "TIFF":
        hidden = pixels[alpha < 255][:, :3]
        off = np.abs(hidden - np.median(hidden, axis=0)).max(axis=1)
        if (off > _ONE_COLOUR).sum() > _HIDDEN_SHARE * alpha.size:
            return image.convert("RGB")
    elif np.ptp(pixels[alpha > 0][:, :3], axis=0).max() <= _ONE_COLOUR:
        raise UnreadableImageError("holds nothing: all but a single colour is transparent")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def _grey_of_wide(image: Image.Image, depth: Depth) -> Image.Image:
    """Grey values of more than 8 bits as RGB."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise UnreadableImageError("damaged image: pixel values that are no numbers")
    if values.min(initial=0.0) < 0:
        raise UnreadableImageError(
            "its pixels have values below 0, of which no brightness is known; export it with 8 bits"
        )
    full = _full_intensity(values, depth, is_float=image.mode == "F")
    grey = np.rint(255 * np.clip(values / full, 0, 1) ** depth.exponent).astype(np.uint8)
    if depth.inverted:
        grey = 255 - grey
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    if (grey >= _LEAST_BRIGHT).mean() < _BRIGHT_SHARE:
        raise UnreadableImageError(
            f"almost black: most of its pixels are darker than {_LEAST_BRIGHT} of 255; export it with 8 bits, as bright as it "
            "is seen"
        )
    return Image.fromarray(grey).convert("RGB")


def _full_intensity(values: F64, depth: Depth, *, is_float: bool) -> float:
    """The value that means full intensity: what the file says, or else the least of 8, 10, 12, 14 and 16 bits (of
    floats also 1) that holds the values.

    A smear's background is bright, so that nearly all steps are told apart by it. Some pixels may lie above: hot ones,
    and what was written into the picture. A stated value that makes the background dark was the largest of those.
    """
    stated = depth.largest
    if stated is not None and _holds(values, stated, _FOREIGN_SHARE):
        bright = float(np.quantile(values, 1 - _FOREIGN_SHARE))
        if depth.inverted or 255 * bright >= _LEAST_BRIGHT * stated:
            return stated
    steps = [1.0] * is_float + [2.0**bits - 1 for bits in (8, 10, 12, 14, 16)]

    def least(share: float) -> float | None:
        return next((step for step in steps if _holds(values, step, share)), None)

    if depth.inverted:  # the background is not bright, and says nothing; the cell is
        found = least(_HOT_SHARE)
        found = found if found == least(_CELL_SHARE) else None
    else:
        found = least(_FOREIGN_SHARE)
    if found is None:
        raise UnreadableImageError(
            f"its pixels have values up to {float(values.max()):.6g}, of which no full brightness is known; export it "
            "with 8 bits"
        )
    return found


def _holds(values: F64, full: float, share: float) -> bool:
    """Whether the values are those of a camera that gives `full` at most; `share` of them may be foreign."""
    above = values > full
    return bool(above.mean() <= share and (above & (values <= 2 * full)).mean() <= _NEAR_SHARE)
