"""Bytes of one cell image → a prepared crop: decoded safely, background fixed, nucleus centred, 256×256.

The very same code prepares a cell for training and in the lab. The order is: decode to 8-bit RGB; measure the smear's
background and bring it to `BACKGROUND` in every channel (a gain per channel, so optical densities are kept:
Beer–Lambert); find the cell at the image's middle (`labref.cells.segmentation`) by its optical density in red light,
where the azure dyes of every Romanowsky stain absorb and red cells do not; cut `CROP_SIZE` pixels around it at the
analyser's own scale, padded with background beyond the image's edge; fade to the background what belongs to other
cells.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy  # its parts load when they are first used: a command that looks at no picture starts faster
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from labref.cells.completeness import require_complete
from labref.cells.meaning import choose_page, depth_of, read_colours, to_rgb
from labref.cells.segmentation import segment
from labref.errors import DecodingLimitError, UnreadableImageError

__all__ = [
    "BACKGROUND",
    "CROP_SIZE",
    "HOLDS_NOTHING",
    "MAX_PIXELS",
    "MIN_SIDE",
    "PREPARATION",
    "CellImage",
    "as_picture",
    "colour_densities",
    "cut",
    "decode",
    "measure_background",
    "nuclear_density",
    "opened",
    "prepare",
    "prepare_pixels",
    "prepare_seen",
    "reduced",
    "require_content",
]

CROP_SIZE = 256
"""Side of a crop in pixels (the thesis' 256×256 around the nucleus)."""
BACKGROUND = 240
"""Intensity, 0 to 255, that the smear's background gets in every channel."""
MIN_SIDE = 32
"""An image with a shorter side (pixels) holds no cell and is refused."""
MAX_PIXELS = 64_000_000
"""An image with more pixels is refused before it is decoded: no analyser writes one, a decompression bomb does."""
HOLDS_NOTHING = "holds nothing"
"""What the reason for refusing a picture without a cell begins with; a person may have it taken in all the same."""
PREPARATION = {"version": 3, "crop_size": CROP_SIZE, "background": BACKGROUND}
"""What a bundle's manifest records of the preparation; a bundle made with another is refused."""

_ORIENTATION = 0x0112  # EXIF
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF")
_BEGINNINGS = {
    "BMP": (b"BM",),
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
_EXPORT = "export it as one of 8 bits"
_NOT_READ = ("unsupported", "unknown", "cannot handle")  # Pillow's words for a kind of picture that it does not read
_LONGEST_WORDS = 80  # characters of Pillow's
_REDUCE = 4  # background and nucleus are looked for in the image at a quarter of its scale
_GAIN_LIMITS = (0.75, 4.0)
_COEFFICIENT_BYTES = 6  # of a pixel
_LEAST_RANGE = 12.0  # grey values
_LEAST_RANGE_AROUND = 9.0  # grey values, around the best polynomials of `_EVEN_DEGREE`
_EVEN_DEGREE = 5
_OUTER_SHARE = 0.45  # of the brightnesses of a radial gradient lie in the outer half of its rings; a cell's do not
_STEEPEST = 4.0  # times as steep as on the whole is a radial gradient at most anywhere; a disc's edge is steeper
_LEAST_ALIKE = 0.5  # correlation of neighbouring pixels

# Pillow warns of damaged EXIF on stderr, once a file; the picture is used all the same
warnings.filterwarnings("ignore", "(Possibly corrupt|Corrupt) EXIF data", UserWarning)
_LOG = np.log(np.arange(256, dtype=np.float32) + 1.0)

_BLANK = Image.new("RGB", (CROP_SIZE, CROP_SIZE), (BACKGROUND,) * 3)

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]


@dataclass(frozen=True)
class CellImage:
    """One prepared cell.

    crop : uint8[256, 256, 3], RGB, background at `BACKGROUND`, the cell in the middle, other cells faded to the
    background: what the networks see.
    surroundings : uint8[256, 256, 3], the same piece of the image with everything in it: what pictures are compared by.
    centre : (row, column) of the crop's centre in the decoded image, pixels.
    others : (row, column) of the centres of other nucleated cells in the decoded image, pixels, nearest first.
    size : (height, width) of the decoded image, pixels.
    background : intensity of the smear's background per channel (R, G, B) as measured, 0 to 255.
    nucleus_found : False where nothing within reach of the image's middle absorbed enough red light, and that middle
    was taken.
    """

    crop: U8
    surroundings: U8
    centre: tuple[float, float]
    others: tuple[tuple[float, float], ...]
    size: tuple[int, int]
    background: tuple[float, float, float]
    nucleus_found: bool


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> U8:
    """Decode JPEG, PNG, BMP or TIFF bytes to RGB as a person would see them.

    EXIF orientation is applied, transparency laid over white, 16-bit and grey brought to 8-bit RGB, CMYK converted; of
    the pages of a TIFF the largest is taken. What was not completely written is refused, see
    `labref.cells.completeness`.

    max_pixels : a larger image is refused by `DecodingLimitError`. Returns uint8[height, width, 3]. Raises
    `UnreadableImageError` whose message is a reason fit for the ledger, and MemoryError.
    """
    return np.asarray(opened(data, max_pixels))


def opened(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """As `decode`: the picture itself, of mode RGB."""
    if not data:
        raise UnreadableImageError("the file is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            choose_page(image, data)
            width, height = image.size
            if width * height > max_pixels:
                raise _too_large(width, height, max_pixels)
            if min(width, height) < MIN_SIDE:
                raise UnreadableImageError(
                    f"too small to hold a cell: {width}×{height} px, at least {MIN_SIDE}×{MIN_SIDE} is needed"
                )
            depth = depth_of(image, data)
            read_colours(image)
            try:
                image.load()
            except OSError as error:
                # libjpeg's word also where it got no memory for the coefficients of a progressive picture
                if "broken data stream" in str(error) and image.info.get("progressive"):
                    bytearray(_COEFFICIENT_BYTES * width * height)
                raise
            require_complete(data, image)
            return to_rgb(ImageOps.exif_transpose(image) if _lies_turned(image) else image, depth)
    except UnreadableImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(*_png_or_unknown_size(data), max_pixels) from None
    except UnidentifiedImageError:
        if (kind := _kind(data)) is not None:
            raise UnreadableImageError(f"a {kind} image of a kind that is not read, or damaged; {_EXPORT}") from None
        raise UnreadableImageError(
            "not an image: the content is no JPEG, PNG, BMP or TIFF, whatever its name says"
        ) from None
    except (
        OSError,
        ValueError,
        SyntaxError,
        struct.error,
        EOFError,
        IndexError,
        KeyError,
        TypeError,
        OverflowError,
    ) as error:
        text = _words_of(error)
        if "out of memory" in text.lower():  # Pillow's word for what its decoders could not get
            raise MemoryError from None
        if "truncated" in text.lower() or "unexpected end" in text.lower():
            raise UnreadableImageError(f"truncated: the image ends before it is complete ({len(data)} bytes)") from None
        if text.lower().startswith(_NOT_READ):
            raise UnreadableImageError(
                f"a {_kind(data)} image of a kind that is not read ({text}); {_EXPORT}"
            ) from None
        raise UnreadableImageError(f"damaged image: {text}") from None


def _words_of(error: Exception) -> str:
    """Why Pillow gave up, in its words. In the place of others, which may hold any part of the file and what it says of
    a patient, stands the error's name."""
    words = str(error).split("\n", 1)[0]
    if isinstance(error, OSError | ValueError | SyntaxError) and 0 < len(words) <= _LONGEST_WORDS and "'" not in words:
        return words
    return f"a part of it is not what it should be ({type(error).__name__})"


def _kind(data: bytes) -> str | None:
    """The format that the first bytes of a file are those of, None where they are of no format that is read."""
    return next((kind for kind, beginnings in _BEGINNINGS.items() if data.startswith(beginnings)), None)


def _lies_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    except Exception:  # whatever Pillow makes of damaged EXIF: the pixels are sound, and they are what counts
        return False


def _too_large(width: int | None, height: int | None, max_pixels: int) -> DecodingLimitError:
    size = f": {width}×{height} px" if width and height else ""
    most = f"{max_pixels / 1e6:g} million pixels"
    return DecodingLimitError(f"too large{size}, at most {most} are decoded (a decompression bomb?)")


def _png_or_unknown_size(data: bytes) -> tuple[int | None, int | None]:
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return int(width), int(height)
    return None, None


def as_picture(pixels: U8 | Image.Image) -> Image.Image:
    """uint8[h, w, 3] as an RGB picture."""
    return pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)


def reduced(pixels: U8 | Image.Image) -> U8:
    """A picture uint8[h, w, 3] at a quarter of its scale: uint8[round(h / 4), round(w / 4), 3]."""
    picture = as_picture(pixels)
    # not Image.reduce: its grid begins at one corner, so that a mirrored image would be cut elsewhere
    scaled = (round(picture.width / _REDUCE), round(picture.height / _REDUCE))
    return np.asarray(picture.resize(scaled, Image.Resampling.BOX))


def require_content(small: U8) -> None:
    """Raise `UnreadableImageError` where a picture is of one colour, changes its brightness evenly without anything in
    it, or is of noise alone.

    small : uint8[h, w, 3], the picture as `reduced` gives it; it is looked at in grey. None of the 10,694 pictures of
    the five real sets is near a limit: they span 35.7 grey values and more, 17.2 and more around the best even change,
    and their neighbouring pixels correlate by 0.806 and more.
    """
    grey = _grey(small)
    if float(grey.max() - grey.min()) < _LEAST_RANGE:
        raise UnreadableImageError(f"{HOLDS_NOTHING}: the picture is of a single colour")
    off = grey - grey.mean()
    variance = float((off * off).mean())
    alike = min(float((off[1:] * off[:-1]).mean()), float((off[:, 1:] * off[:, :-1]).mean())) / variance
    if alike < _LEAST_ALIKE:
        raise UnreadableImageError(f"{HOLDS_NOTHING}: the picture is noise, without anything in it")
    rows, columns = _even_changes(grey.shape[0]), _even_changes(grey.shape[1])
    around = scipy.ndimage.uniform_filter(grey - rows @ (rows.T @ grey @ columns) @ columns.T, 3)
    if float(around.max() - around.min()) < _LEAST_RANGE_AROUND or _is_radial_gradient(grey):
        raise UnreadableImageError(f"{HOLDS_NOTHING}: the picture's brightness changes evenly, without anything in it")


def _grey(small: U8) -> F32:
    """The mean of the three colours, float32[h, w]."""
    red, green, blue = np.moveaxis(small.astype(np.float32), 2, 0)
    return np.asarray((red + green + blue) / np.float32(3))


def _is_radial_gradient(grey: F32) -> bool:
    """Whether the picture float32[h, w] is equally bright along each ring around its middle, and becomes steadily
    brighter or darker from the middle to its edge. A spot on an even ground does not: around it nothing changes."""
    height, width = grey.shape
    around = scipy.ndimage.uniform_filter(grey, 3)
    # two opposite pixels lie on one ring, and each may differ from it by less than the range
    if float((around - around[::-1, ::-1]).max()) > _LEAST_RANGE_AROUND + 1.0:
        return False
    half_height, half_width = (height - 1) / 2, (width - 1) / 2
    y, x = np.ogrid[-half_height : half_height + 0.5, -half_width : half_width + 0.5]
    most = int(min(half_height, half_width))
    shapes = {(1.0, 1.0), (most / half_height, most / half_width)}  # circles, and ellipses that fit the picture
    for stretched_y, stretched_x in shapes:
        radius = np.hypot(y * stretched_y, x * stretched_x)
        rings = np.rint(radius).astype(np.intp)
        count = np.bincount(rings.ravel())
        hit = np.flatnonzero(count)  # the middle may lie between pixels
        means = np.bincount(rings.ravel(), grey.ravel())[hit] / count[hit]
        profile = np.interp(np.arange(len(count)), hit, means)
        off = scipy.ndimage.uniform_filter(grey - np.interp(radius, hit, means), 3)
        inner, whole = profile[most // 2] - profile[0], profile[most] - profile[0]
        steps = np.diff(profile[: most + 1])
        if (
            float(off.max() - off.min()) < _LEAST_RANGE_AROUND
            and abs(whole - inner) > _OUTER_SHARE * abs(whole)
            and abs(steps).max() < _STEEPEST * abs(whole) / most
        ):
            return True
    return False


@lru_cache
def _even_changes(length: int) -> F32:
    """Polynomials along so many pixels, float32[length, 6], orthonormal."""
    powers = np.vander(np.linspace(-1.0, 1.0, length), _EVEN_DEGREE + 1)
    return np.linalg.qr(powers).Q.astype(np.float32)


def measure_background(small: U8) -> tuple[float, float, float]:
    """Intensity of the smear's background, R, G, B, 0 to 255.

    small : uint8[h, w, 3], an image at reduced scale. The background is the brightest mode of the image's grey values
    that holds at least 3 % of it; where a field is too crowded to show one, the 98th percentile stands in.
    """
    flat = small.reshape(-1, 3)
    grey = (flat[:, 0].astype(np.uint16) + flat[:, 1] + flat[:, 2]) // 3
    histogram = np.bincount(grey, minlength=256).astype(np.float64)
    kernel = np.exp(-0.5 * (np.arange(-9, 10) / 3.0) ** 2)
    smooth = np.convolve(histogram, kernel / kernel.sum(), mode="same")
    window = np.convolve(histogram, np.ones(17), mode="same")
    is_mode = np.zeros(256, dtype=bool)
    is_mode[1:-1] = (smooth[1:-1] >= smooth[:-2]) & (smooth[1:-1] > smooth[2:])
    is_mode[-1] = smooth[-1] > smooth[-2]
    modes = np.flatnonzero(is_mode & (window >= max(0.03 * len(flat), 0.25 * window.max())))
    brightest = int(modes[-1]) if modes.size else int(np.percentile(grey, 98))
    near = np.flatnonzero((grey + 8 >= brightest) & (grey <= brightest + 8))
    chosen = flat[near] if near.size else flat
    red, green, blue = (_median(np.bincount(chosen[:, channel], minlength=256)) for channel in range(3))
    return red, green, blue


def _median(counts: NDArray[np.intp]) -> float:
    """The median of values of which each, 0 to 255, occurs so often."""
    up_to = np.cumsum(counts)
    total = int(up_to[-1])
    low, high = np.searchsorted(up_to, [(total - 1) // 2, total // 2], side="right")
    return float(low + high) / 2


def _gain_table(background: tuple[float, float, float]) -> U8:
    """Look-up table uint8[3, 256] that brings `background` to `BACKGROUND` in each channel."""
    gains = np.clip(BACKGROUND / np.maximum(background, 1.0), *_GAIN_LIMITS)
    return np.clip(np.rint(np.arange(256)[None, :] * gains[:, None]), 0, 255).astype(np.uint8)


def _illumination(score: F32) -> F32:
    """Plane float32[h, w] of uneven illumination under a density map, fitted to the lighter half of its pixels."""
    height, width = score.shape
    y = np.linspace(-1.0, 1.0, height, dtype=np.float32)
    x = np.linspace(-1.0, 1.0, width, dtype=np.float32)
    by_powers_of_y, by_powers_of_x = np.stack([np.ones_like(y), y, y**2]), np.stack([np.ones_like(x), x, x**2], axis=1)
    half = score.size // 2
    level, by_row, by_column = float(np.partition(score, half, axis=None)[half]), 0.0, 0.0
    for _ in range(4):
        residual = score - (by_row * y[:, None] + (by_column * x + level))
        light = (residual <= np.partition(residual, half, axis=None)[half]).astype(np.float32)
        (count, sum_x, sum_xx), (sum_y, sum_xy, _), (sum_yy, _, _) = (by_powers_of_y @ light @ by_powers_of_x).tolist()
        (values, values_x), (values_y, _) = (by_powers_of_y[:2] @ (light * score) @ by_powers_of_x[:, :2]).tolist()
        # a little ridge keeps the slopes at zero where the lighter pixels lie on one side only
        sum_yy, sum_xx = sum_yy + 0.02 * count, sum_xx + 0.02 * count
        normal = [[count, sum_y, sum_x], [sum_y, sum_yy, sum_xy], [sum_x, sum_xy, sum_xx]]
        level, by_row, by_column = np.linalg.solve(normal, [values, values_y, values_x]).tolist()
    slope: F32 = (by_row * y[:, None] + by_column * x).astype(np.float32)
    return slope


def colour_densities(small: U8, background: tuple[float, float, float]) -> F32:
    """Optical density in red, green and blue light, float32[h, w, 3].

    small : uint8[h, w, 3] at a quarter of the analyser's scale.  background : its intensity, R, G, B.
    """
    densities: F32 = np.log(np.asarray(background, dtype=np.float32) + 1.0) - _LOG.take(small)
    return densities


def nuclear_density(colours: F32) -> F32:
    """Optical density of the nuclear stain, float32[h, w], uneven light taken out, smoothed over 3×3 pixels.

    colours : float32[h, w, 3], as `colour_densities` gives them.
    """
    # red light finds the nucleus; a little green keeps pale, eosin-rich platelets and washed-out stains in sight
    score = colours[:, :, 0] + 0.15 * colours[:, :, 1]
    score = np.clip(score - _illumination(score), 0.0, 2.0)
    smooth: F32 = scipy.ndimage.uniform_filter(score, 3, mode="nearest")
    return smooth


def cut(picture: Image.Image, centre: tuple[float, float], fill: U8) -> Image.Image:
    """Crop of 256×256 pixels of an RGB picture around `centre` (row, column), which lies in it, `fill` uint8[3] beyond
    its edges."""
    top, left = (round(at - (CROP_SIZE - 1) / 2) for at in centre)
    inner = (max(left, 0), max(top, 0), min(left + CROP_SIZE, picture.width), min(top + CROP_SIZE, picture.height))
    piece = picture.crop(inner)
    if piece.size == (CROP_SIZE, CROP_SIZE):
        return piece
    crop = Image.new("RGB", (CROP_SIZE, CROP_SIZE), tuple(fill.tolist()))
    crop.paste(piece, (inner[0] - left, inner[1] - top))
    return crop


def prepare(data: bytes, max_pixels: int = MAX_PIXELS) -> CellImage:
    """Prepare the cell in `data`, the bytes of one image file of at most `max_pixels`.

    Raises `UnreadableImageError` whose message is a reason fit for the ledger.
    """
    return prepare_pixels(opened(data, max_pixels))


def prepare_pixels(pixels: U8 | Image.Image) -> CellImage:
    """Prepare a cell that is already decoded: an RGB picture, or uint8[h, w, 3]. `prepare` is this after `decode`."""
    return prepare_seen(pixels, reduced(pixels))[0]


def prepare_seen(pixels: U8 | Image.Image, small: U8) -> tuple[CellImage, F32]:
    """`prepare_pixels`, and the densities that the cell was found by, as `colour_densities` gives them.

    small : the picture as `reduced` gives it.
    """
    picture = as_picture(pixels)
    width, height = picture.size
    background = measure_background(small)
    colours = colour_densities(small, background)
    found = segment(nuclear_density(colours), colours)
    scale = (height / small.shape[0], width / small.shape[1])

    def in_picture(place: tuple[float, float]) -> tuple[float, float]:
        return (place[0] + 0.5) * scale[0] - 0.5, (place[1] + 0.5) * scale[1] - 0.5

    centre = ((height - 1) / 2, (width - 1) / 2) if found is None else in_picture(found.centre)
    table = _gain_table(background)
    # the fill goes through the same table as the pixels, so it comes out as the background does
    fill = np.rint(background).astype(np.uint8)
    surroundings = np.asarray(cut(picture, centre, fill).point(table.ravel().tolist()))
    cell = CellImage(
        crop=surroundings if found is None else _faded(surroundings, found.keep, centre, (height, width)),
        surroundings=surroundings,
        centre=centre,
        others=() if found is None else tuple(map(in_picture, found.others)),
        size=(height, width),
        background=background,
        nucleus_found=found is not None,
    )
    return cell, colours


def _faded(crop: U8, keep: F32, centre: tuple[float, float], size: tuple[int, int]) -> U8:
    """The crop uint8[256, 256, 3] around `centre` with all that `keep`, a map of the whole image, says is another
    cell's faded to the background; the crop itself where that is nothing."""
    if float(keep.min()) > 0.99:
        return crop
    # in pixels of the map; beyond its edges what is at the edge goes on
    scale = [len_map / len_image for len_map, len_image in zip(keep.shape, size, strict=True)]
    margin = CROP_SIZE // 2
    laid = np.pad(np.rint(255 * keep).astype(np.uint8), margin, mode="edge")
    top, left = (round(at - (CROP_SIZE - 1) / 2) * step + margin for at, step in zip(centre, scale, strict=True))
    part = (left, top, left + CROP_SIZE * scale[1], top + CROP_SIZE * scale[0])
    mask = Image.fromarray(laid).resize((CROP_SIZE, CROP_SIZE), Image.Resampling.BILINEAR, box=part)
    return np.asarray(Image.composite(Image.fromarray(crop), _BLANK, mask))
