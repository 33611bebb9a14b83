"""What the values of a picture mean, for each kind of picture that Pillow opens: what every viewer shows, or a refusal
with the reason, and never other pixels without a word.

| kind | decision |
|---|---|
| BMP with any alpha | the alpha is ignored: Windows shows none, and cameras leave anything in it |
| TIFF with alpha | laid over white, but ignored where it hides a picture (more than 2 % of it, not of one colour) |
| PNG with any alpha, `tRNS` | laid over white; refused where all but a single colour is transparent |
| TIFF grey of 10, 12, 14 bits | 1023, 4095, 16383 are white, if Pillow reads it |
| grey of 16 bits, TIFF or PNG | white is MaxSampleValue, else the least of 8, 10 … 16 bits that holds the values |
| what lies above it | hot pixels, a scale bar, writing: white, up to a fifth of the pixels |
| MaxSampleValue of 65535, or one that makes the background dark | says nothing |
| grey that is signed, of 32 bits or float | likewise, and for floats 1; refused below 0, above 65535, and no numbers |
| almost black all the same | refused |
| MINISWHITE | inverted, of 8 bits by Pillow, of more bits here; refused where hot pixels leave the depth open |
| colour of 16 bits, TIFF or PNG | the upper 8 bits; refused where only the lower are used (10, 12, 14-bit cameras) |
| CMYK of 16 bits | refused |
| TIFF of several pages | the largest that is no reduced copy and no mask, in colour before grey; two such: refused |
| one bit a pixel | refused: a mask |
| palette, CMYK, YCbCr | as Pillow converts them |
| palette of a TIFF with colours of 8 bits where 16 belong | as libtiff shows it, not black |
| PNG with gAMA, no sRGB and no profile | as browsers show it; a gAMA that cannot be is ignored |
| TIFF of uncompressed planes of 16 bits, or of fewer strips than its picture has | refused |
| YCbCr uncompressed, of several pixels together; with another black and white | refused |
| BMP with masks of other than 5, 6 or 8 bits, JPEG of 12 bits | refused as a kind that is not read, not as damaged |
| of a single colour, or of noise alone | refused by ingest and query |
| of brightness that changes evenly: a gradient, an empty field with vignetting | likewise; a blurred spot is not |
| zeros where a copy has not arrived yet | refused; a black frame, letterbox or eyepiece is not |
| TIFF of 8 bits with a sign, or of an unread kind | refused |
| JPEG cut off and closed with its end mark | refused: the blocks that are missing are of one grey |
| the same of several scans: progressive, or a scan for each colour | refused: scans are missing, or one breaks off |
| BMP filled up with one value where a copy ended | refused where it begins within a row; white, at a disk's block |
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from labref.bundles.bundle import Bundle
from labref.cells.image import decode, reduced, require_content
from labref.errors import UnreadableImageError
from labref.web.desk import ask
from tests.labs import ledger, make_lab, once

ROWS, COLUMNS = np.mgrid[:64, :64]
GREY = np.where((ROWS - 32) ** 2 + (COLUMNS - 32) ** 2 < 200, 70, 235).astype(np.uint8)
"""A dark disc on a bright ground, uint8[64, 64]."""
COLOUR = np.dstack([GREY, GREY // 2, GREY])


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def tiff(
    values: np.ndarray,
    *,
    photometric: int,
    bits: int,
    sample_format: int = 1,
    maximum: int | None = None,
    order: str = "<",
    planes: bool = False,
    **more: int,
) -> bytes:
    """An uncompressed TIFF with these very tags and the values; the names of `more` end in the number of a tag.

    order : "<" puts the lowest byte first, ">" the highest.  planes : a strip for each colour, instead of one.
    """
    samples = 1 if values.ndim == 2 else values.shape[2]
    strips = samples if planes else 1
    pixels = (np.moveaxis(values, 2, 0) if planes else values).astype(values.dtype.newbyteorder(order)).tobytes()
    size = len(pixels) // strips

    def before(start: int) -> bytes:
        """All but the values, which begin at `start`."""
        entries = [
            (256, 3, [values.shape[1]]),
            (257, 3, [values.shape[0]]),
            (258, 3, [bits] * samples),
            (259, 3, [1]),
            (262, 3, [photometric]),
            (273, 4, [start + size * strip for strip in range(strips)]),
            (277, 3, [samples]),
            *([] if "t278" in more else [(278, 3, [values.shape[0]])]),
            (279, 4, [size] * strips),
            *([(284, 3, [2])] if planes else []),
            *([] if maximum is None else [(281, 3, [maximum] * samples)]),
            (339, 3, [sample_format] * samples),
        ]
        entries += [(int(name[1:]), 3, [value]) for name, value in more.items()]
        entries.sort()
        after = 8 + 2 + 12 * len(entries) + 4
        extra, rows = b"", {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, len(entries))
        for tag, kind, found in entries:
            packed = struct.pack(order + {3: "H", 4: "I"}[kind] * len(found), *found)
            rows += struct.pack(order + "HHI", tag, kind, len(found))
            if len(packed) > 4:
                rows += struct.pack(order + "I", after + len(extra))
                extra += packed
            else:
                rows += packed.ljust(4, b"\0")
        return rows + bytes(4) + extra

    return before(len(before(0))) + pixels


def bmp_with_alpha(alpha: int | np.ndarray) -> bytes:
    """A 32-bit BMP with masks for all four channels."""
    plane = np.broadcast_to(np.asarray(alpha, np.uint8), (64, 64))
    pixels = np.dstack([COLOUR[::-1, :, ::-1], plane[::-1]]).tobytes()
    head = struct.pack("<IiiHHIIiiII", 108, 64, 64, 1, 32, 3, len(pixels), 2835, 2835, 0, 0)
    head += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(pixels), 0, 0, 14 + len(head)) + head + pixels


def png16(values: np.ndarray, *between: tuple[bytes, bytes]) -> bytes:
    """between : more chunks, kind and content of each."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    colour = {1: 0, 3: 2}[1 if values.ndim == 2 else values.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0))
    head += b"".join(chunk(*more) for more in between)
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def of_bits(grey: np.ndarray, bits: int, kind: Any = np.uint16) -> np.ndarray:
    """The picture as a camera of so many bits gives it; 250 of 255 is its brightest."""
    return np.rint(grey / 255.0 * (2**bits - 1)).astype(kind)


def linear(picture: np.ndarray, full: int) -> np.ndarray:
    """The picture with values that grow with the light, `full` for white."""
    return np.rint(full * (picture / 255.0) ** 2.2).astype(np.uint16)


LINEAR, SRGB = (b"gAMA", struct.pack(">I", 100_000)), (b"sRGB", b"\0")


def spoiled(values: np.ndarray, *, hot: int = 9, bar: bool = False) -> np.ndarray:
    """With hot pixels at 65535, and a scale bar of 6 % of the picture as bright as that."""
    made = values.copy()
    made.reshape(64, 64, -1)[1:63:7, 5][:hot] = 65535
    if bar:
        made[54:58, 2:62] = 65535
    return made


SEEN_GREY = {
    "12 bits in 16": tiff(of_bits(GREY, 12), photometric=1, bits=16),
    "10 bits in 16": tiff(of_bits(GREY, 10), photometric=1, bits=16),
    "14 bits in 16": tiff(of_bits(GREY, 14), photometric=1, bits=16),
    "16 bits": tiff(of_bits(GREY, 16), photometric=1, bits=16),
    "8 bits in 16": tiff(GREY.astype(np.uint16), photometric=1, bits=16),
    "12 bits in 16, inverted": tiff(of_bits(255 - GREY, 12), photometric=0, bits=16),
    "16 bits, inverted": tiff(of_bits(255 - GREY, 16), photometric=0, bits=16),
    "8 bits, inverted": tiff(255 - GREY, photometric=0, bits=8),
    "12 bits, dark, by its tag": tiff(of_bits(GREY // 5, 12), photometric=1, bits=16, maximum=819),
    "signed 16": tiff(of_bits(GREY, 12, np.int16), photometric=1, bits=16, sample_format=2),
    "32 bits": tiff(of_bits(GREY, 12, np.uint32), photometric=1, bits=32),
    "float to 1": tiff((GREY / 255).astype(np.float32), photometric=1, bits=32, sample_format=3),
    "float to 255": tiff(GREY.astype(np.float32), photometric=1, bits=32, sample_format=3),
    "PNG 12 bits in 16": png16(of_bits(GREY, 12)),
    "PNG 16 bits": png16(of_bits(GREY, 16)),
    "PNG 16 bits, linear": png16(linear(GREY, 65535), LINEAR),
    "PNG 12 bits in 16, linear": png16(linear(GREY, 4095), LINEAR),
    "PNG 16 bits, of a screen by its gAMA": png16(of_bits(GREY, 16), (b"gAMA", struct.pack(">I", 45_455))),
    "12 bits in 16, highest byte first": tiff(of_bits(GREY, 12), photometric=1, bits=16, order=">"),
    "12 bits in 16, tag of the largest there is": tiff(of_bits(GREY, 12), photometric=1, bits=16, maximum=65535),
}


@pytest.mark.parametrize("kind", SEEN_GREY)
def test_grey_of_any_depth_is_as_bright_as_it_was_taken(kind: str) -> None:
    seen = decode(SEEN_GREY[kind])
    assert np.abs(seen[..., 0].astype(int) - GREY).max() <= 3
    assert (seen[..., 0] == seen[..., 1]).all()


@pytest.mark.parametrize("bar", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_hot_pixels_and_a_scale_bar_do_not_say_how_bright_a_picture_is(bits: int, order: str, bar: bool) -> None:
    values = spoiled(of_bits(GREY, bits), bar=bar)
    own = values < 65535
    for data in (
        tiff(values, photometric=1, bits=16, order=order),
        tiff(values, photometric=1, bits=16, order=order, maximum=2**bits - 1),
        tiff(values, photometric=1, bits=16, order=order, maximum=60_000 if bits < 14 else None),
        tiff(values.astype(np.uint32), photometric=1, bits=32),
        tiff((values / (2**bits - 1)).astype(np.float32), photometric=1, bits=32, sample_format=3),
        png16(values),
    ):
        seen = decode(data)[..., 0].astype(int)
        assert np.abs(seen - GREY)[own].max() <= 3
        assert (seen[~own] == 255).all()


def test_real_cells_from_a_camera_of_12_bits_are_as_bright_as_they_were_taken(real_cells: Path) -> None:
    for folder in ("pbc", "chula", "bccd", "bonemarrow", "raabin"):
        for path in sorted((real_cells / folder).rglob("*.jpg"))[::700]:
            grey = np.asarray(Image.open(path).convert("L"))
            values = of_bits(grey, 12)
            values[:12] = 65535
            seen = decode(tiff(values, photometric=1, bits=16))
            assert np.abs(seen[12:, :, 0].astype(int) - grey[12:]).max() <= 1


SEEN_COLOUR = {
    "BMP, alpha that is a bar": bmp_with_alpha(np.where(ROWS < 8, 255, 0)),
    "BMP, alpha but for a bar": bmp_with_alpha(np.where(ROWS < 8, 0, 255)),
    "BMP, alpha half written": bmp_with_alpha(np.where(ROWS < 32, 0, 255)),
    "BMP, alpha 128": bmp_with_alpha(128),
    "BMP, alpha of noise": bmp_with_alpha(np.random.default_rng(1).integers(0, 256, (64, 64))),
    "TIFF, alpha that is a bar": encoded(
        Image.fromarray(np.dstack([COLOUR, np.where(ROWS < 8, 255, 0).astype(np.uint8)]), "RGBA"), "TIFF"
    ),
    "TIFF of 16 bits, highest byte first": tiff(COLOUR.astype(np.uint16) * 257, photometric=2, bits=16, order=">"),
    "BMP, alpha all 0": bmp_with_alpha(0),
    "BMP, alpha all 255": bmp_with_alpha(255),
    "TIFF, alpha all 0": encoded(Image.fromarray(np.dstack([COLOUR, np.zeros_like(GREY)]), "RGBA"), "TIFF"),
    "TIFF of 16 bits": tiff(COLOUR.astype(np.uint16) * 257, photometric=2, bits=16),
    "PNG of 16 bits": png16(COLOUR.astype(np.uint16) * 257),
    "PNG of 16 bits, linear": png16(linear(COLOUR, 65535), LINEAR),
    "PNG, linear but sRGB": png16(COLOUR.astype(np.uint16) * 257, SRGB, LINEAR),
    "PNG, gAMA that cannot be": png16(COLOUR.astype(np.uint16) * 257, (b"gAMA", struct.pack(">I", 1))),
    "TIFF of planes": tiff(COLOUR, photometric=2, bits=8, planes=True),
    "TIFF CMYK": encoded(Image.fromarray(COLOUR).convert("CMYK"), "TIFF"),
    "TIFF palette": encoded(Image.fromarray(COLOUR).quantize(16), "TIFF"),
    "TIFF, JPEG inside": encoded(Image.fromarray(COLOUR), "TIFF", compression="jpeg", quality=98),
    "TIFF, premultiplied": encoded(
        Image.fromarray(np.dstack([COLOUR, np.full_like(GREY, 255)]), "RGBA").convert("RGBa").convert("RGBA"), "TIFF"
    ),
}


@pytest.mark.parametrize("kind", SEEN_COLOUR)
def test_colours_are_those_that_a_viewer_shows(kind: str) -> None:
    assert np.abs(decode(SEEN_COLOUR[kind]).astype(int) - COLOUR).mean() <= 4


HIDDEN = np.zeros_like(GREY)
UNFILLED = {
    "PNG": (encoded(Image.fromarray(np.dstack([COLOUR, HIDDEN]), "RGBA"), "PNG"), COLOUR),
    "PNG of grey": (encoded(Image.fromarray(np.dstack([GREY, HIDDEN]), "LA"), "PNG"), GREY),
    "PNG of a palette": (encoded(Image.fromarray(GREY).convert("P"), "PNG", transparency=bytes(256)), GREY),
    "TIFF": (tiff(np.dstack([COLOUR, HIDDEN]), photometric=2, bits=8, t338=2), COLOUR),
    "TIFF of grey": (tiff(np.dstack([GREY, HIDDEN]), photometric=1, bits=8, t338=2), GREY),
    "TIFF of grey, multiplied": (tiff(np.dstack([GREY, HIDDEN]), photometric=1, bits=8, t338=1), GREY),
    "TIFF of grey, multiplied by 1": (tiff(np.dstack([GREY, HIDDEN + 255]), photometric=1, bits=8, t338=1), GREY),
    "BMP": (bmp_with_alpha(0), COLOUR),
}


@pytest.mark.parametrize("kind", UNFILLED)
def test_an_alpha_that_hides_the_whole_picture_is_ignored(kind: str) -> None:
    data, seen = UNFILLED[kind]
    assert np.array_equal(decode(data), seen if seen.ndim == 3 else np.dstack([seen] * 3))


def test_an_alpha_that_says_something_is_laid_over_white() -> None:
    alpha = np.where(GREY == 70, 255, 0).astype(np.uint8)
    seen = decode(encoded(Image.fromarray(np.dstack([COLOUR, alpha]), "RGBA"), "TIFF"))
    assert (seen[0, 0] == 255).all()
    assert (seen[32, 32] == COLOUR[32, 32]).all()


def bmp_of_bits(bits: int) -> bytes:
    """A 32-bit BMP with masks of `bits` for each colour."""
    values = sum(of_bits(COLOUR[..., 2 - at], bits, np.uint32) << bits * at for at in range(3))
    pixels = np.asarray(values, np.uint32)[::-1].tobytes()
    masks = [(2**bits - 1) << bits * at for at in (2, 1, 0)]
    head = struct.pack("<IiiHHIIiiII", 40, 64, 64, 1, 32, 3, len(pixels), 0, 0, 0, 0) + struct.pack("<III", *masks)
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(pixels), 0, 0, 14 + len(head)) + head + pixels


def jpeg_of_12_bits() -> bytes:
    data = bytearray(encoded(Image.fromarray(COLOUR), "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12
    return bytes(data)


YCBCR = np.asarray(Image.fromarray(COLOUR).convert("YCbCr"))
REFUSED = {
    **{
        f"BMP with masks of {bits} bits": (bmp_of_bits(bits), "^a BMP image of a kind that is not read .*bitfields")
        for bits in (4, 10)
    },
    "JPEG of 12 bits": (jpeg_of_12_bits(), "^a JPEG image of a kind that is not read"),
    "TIFF of planes of 16 bits": (
        tiff(COLOUR.astype(np.uint16) * 257, photometric=2, bits=16, planes=True),
        "planes of 16 bits",
    ),
    "TIFF of planes, of which two are missing": (tiff(COLOUR, photometric=2, bits=8, t284=2), "named nowhere"),
    "TIFF of strips, of which some are missing": (tiff(COLOUR, photometric=2, bits=8, t278=40), "named nowhere"),
    "TIFF of grey and alpha in planes": (
        tiff(np.dstack([GREY, GREY]), photometric=1, bits=8, planes=True, t338=2),
        "^a TIFF image of a kind that is not read",
    ),
    "YCbCr, four pixels together": (tiff(YCBCR, photometric=6, bits=8), "several pixels together"),
    "12 bits in colour of 16": (tiff(of_bits(COLOUR, 12), photometric=2, bits=16), "only the lower ones are used"),
    "10 bits in colour of 16": (tiff(of_bits(COLOUR, 10), photometric=2, bits=16), "only the lower ones are used"),
    "14 bits in colour of 16": (tiff(of_bits(COLOUR, 14), photometric=2, bits=16), "only the lower ones are used"),
    "PNG, 12 bits in colour": (png16(of_bits(COLOUR, 12)), "only the lower ones are used"),
    "12 bits in colour of 16, highest byte first": (
        tiff(of_bits(COLOUR, 12), photometric=2, bits=16, order=">"),
        "only the lower ones are used",
    ),
    "12 bits in colour of 16, hot pixels": (
        tiff(spoiled(of_bits(COLOUR, 12)), photometric=2, bits=16),
        "only the lower ones are used",
    ),
    "14 bits in colour of 16, scale bar": (
        tiff(spoiled(of_bits(COLOUR, 14), bar=True), photometric=2, bits=16),
        "only the lower ones are used",
    ),
    "PNG, 12 bits in colour, scale bar": (
        png16(spoiled(of_bits(COLOUR, 12), bar=True)),
        "only the lower ones are used",
    ),
    "CMYK of 16 bits": (
        tiff(np.dstack([of_bits(COLOUR, 12), of_bits(GREY, 12)]), photometric=5, bits=16),
        "CMYK of 16 bits",
    ),
    "16 bits, dark": (tiff(GREY.astype(np.uint16) // 8, photometric=1, bits=16), "almost black"),
    "16 bits, dark, with a bar": (
        tiff(spoiled(GREY.astype(np.uint16) // 8, bar=True), photometric=1, bits=16),
        "almost black",
    ),
    "PNG of 16 bits, dark": (png16(GREY.astype(np.uint16) // 8), "almost black"),
    "12 bits, inverted, hot pixels": (
        tiff(spoiled(of_bits(255 - GREY, 12), hot=9), photometric=0, bits=16),
        "no full brightness is known",
    ),
    "PNG of which a bar alone is to be seen": (
        encoded(Image.fromarray(np.dstack([COLOUR, np.where(ROWS < 8, 255, 0).astype(np.uint8)]), "RGBA"), "PNG"),
        "all but a single colour is transparent",
    ),
    **{
        f"{kind} of one bit": (encoded(Image.fromarray(GREY > 100), kind), "two colours alone")
        for kind in ("PNG", "BMP", "TIFF")
    },
    "PNG palette of one bit": (
        encoded(Image.fromarray(COLOUR).quantize(2), "PNG", bits=1),
        "two colours alone",
    ),
    "values below 0": (
        tiff(of_bits(GREY, 12, np.int16) - np.int16(2000), photometric=1, bits=16, sample_format=2),
        "values below 0",
    ),
    "values of 20 bits": (tiff(of_bits(GREY, 20, np.uint32), photometric=1, bits=32), "no full brightness is known"),
    "no numbers": (
        tiff(np.full((64, 64), np.nan, np.float32), photometric=1, bits=32, sample_format=3),
        "no numbers",
    ),
}


def palette_tiff(scale: int) -> bytes:
    """`COLOUR` as a TIFF of a palette whose colours are `scale` times those of 8 bits."""
    picture = Image.fromarray(COLOUR).quantize(16)
    data = bytearray(encoded(picture, "TIFF"))
    with Image.open(io.BytesIO(data)) as image:
        assert isinstance(image, TiffImagePlugin.TiffImageFile)
        colours = image.tag_v2[320]
    at = data.index(struct.pack(f"<{len(colours)}H", *colours))
    struct.pack_into(f"<{len(colours)}H", data, at, *(value // 256 * scale for value in colours))
    return bytes(data)


@pytest.mark.parametrize("scale", [1, 256, 257])
def test_a_palette_is_as_bright_whether_its_colours_have_8_bits_or_16(scale: int) -> None:
    assert np.array_equal(decode(palette_tiff(scale)), COLOUR)


def test_ycbcr_with_another_black_and_white_is_refused(tmp_path: Path) -> None:
    def made(*black_and_white: int) -> bytes:
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[532], tags[530] = tuple(map(float, black_and_white)), (1, 1)
        tags.tagtype[532] = 5
        return encoded(Image.fromarray(COLOUR).convert("YCbCr"), "TIFF", tiffinfo=tags)

    assert np.abs(decode(made(0, 255, 128, 255, 128, 255)).astype(int) - COLOUR).max() <= 3
    with pytest.raises(UnreadableImageError, match="other values than 0 and 255"):
        decode(made(16, 235, 128, 240, 128, 240))


@pytest.mark.parametrize("kind", REFUSED)
def test_values_of_which_no_brightness_is_known_are_refused_with_the_reason(kind: str) -> None:
    data, reason = REFUSED[kind]
    with pytest.raises(UnreadableImageError, match=reason):
        decode(data)


SMALL = tiff(COLOUR[::2, ::2], photometric=2, bits=8)
LARGE = tiff(COLOUR, photometric=2, bits=8)


def pages(*single: bytes) -> bytes:
    """One TIFF of the pages of several, all little-endian."""
    data, link = b"II*\0" + bytes(4), 4
    for page in single:
        count = struct.unpack_from("<H", page, 8)[0]
        moved = bytearray(page[8:])
        for entry in range(2, 2 + 12 * count, 12):
            tag, kind, number = struct.unpack_from("<HHI", moved, entry)
            if tag == 273 or {3: 2, 4: 4}[kind] * number > 4:
                at = struct.unpack_from("<I", moved, entry + 8)[0]
                struct.pack_into("<I", moved, entry + 8, at + len(data) - 8)
        data = data[:link] + struct.pack("<I", len(data)) + data[link + 4 :] + moved
        link = len(data) - len(moved) + 2 + 12 * count
    return data


PAGES = {
    "alone": [LARGE],
    "reduced copy first": [tiff(COLOUR[::2, ::2], photometric=2, bits=8, t254=1), LARGE],
    "reduced copy of the same size first": [tiff(COLOUR // 2, photometric=2, bits=8, t254=1), LARGE],
    "reduced copy first, by the older tag": [tiff(COLOUR // 2, photometric=2, bits=8, t255=2), LARGE],
    "mask first": [tiff(GREY, photometric=1, bits=8, t254=4), LARGE],
    "mask without a tag first": [tiff(GREY, photometric=1, bits=8), LARGE],
    "thumbnail without a tag first": [SMALL, LARGE],
    "thumbnail without a tag after": [LARGE, SMALL],
    "larger copies between": [SMALL, LARGE, tiff(COLOUR[::4, ::4], photometric=2, bits=8)],
    "page of a report": [tiff(COLOUR, photometric=2, bits=8, t254=2)],
}


@pytest.mark.parametrize("kind", PAGES)
def test_of_the_pages_of_a_tiff_the_picture_is_taken(kind: str) -> None:
    assert np.array_equal(decode(pages(*PAGES[kind])), COLOUR)


@pytest.mark.parametrize("after", [2, 11, len(LARGE), 2**31])
def test_a_damaged_page_after_the_picture_does_no_harm(after: int) -> None:
    link = 10 + 12 * struct.unpack_from("<H", LARGE, 8)[0]
    assert np.array_equal(decode(LARGE[:link] + struct.pack("<I", after) + LARGE[link + 4 :] + b"\xff" * 99), COLOUR)


@pytest.mark.parametrize(
    ("number", "several"),
    [
        (2, [LARGE, LARGE]),
        (2, [SMALL, LARGE, tiff(COLOUR[:60], photometric=2, bits=8)]),
        (3, [tiff(band, photometric=1, bits=8) for band in np.moveaxis(COLOUR, 2, 0)]),
    ],
    ids=["stack", "two cells", "channels"],
)
def test_a_tiff_of_several_pictures_is_refused(number: int, several: list[bytes]) -> None:
    with pytest.raises(UnreadableImageError, match=f"holds {number} pictures"):
        decode(pages(*several))


# what a copy has not brought yet

CUT = 0.501  # in the middle of a row
REAL = np.clip(
    COLOUR.repeat(3, 0).repeat(3, 1).astype(int) + np.random.default_rng(2).integers(-9, 9, (192, 192, 3)), 1, 255
)
FIELD = REAL.astype(np.uint8)
"""A disc of 192×192 pixels with the noise of a camera, in which nothing is 0."""


def bmp(pixels: np.ndarray, *, from_top: bool = False) -> bytes:
    data = encoded(Image.fromarray(pixels if not from_top else pixels[::-1]), "BMP")
    return data[:22] + struct.pack("<i", -len(pixels)) + data[26:] if from_top else data


def strip_of(data: bytes) -> bytes:
    """The bytes of the one strip of a TIFF."""
    with Image.open(io.BytesIO(data)) as image:
        assert isinstance(image, TiffImagePlugin.TiffImageFile)
        tags = image.tag_v2
        assert len(tags[273]) == 1
        return data[tags[273][0] :][: tags[279][0]]


def packed_tiff(compression: int, strip: bytes) -> bytes:
    """`FIELD` as a TIFF with its tags before its strip, as most writers make them."""
    data = tiff(FIELD, photometric=2, bits=8)[: -FIELD.nbytes]
    for tag, kind, value in ((259, 3, compression), (279, 4, len(strip))):
        at = data.index(struct.pack("<HHI", tag, kind, 1))
        data = data[: at + 8] + struct.pack("<I", value) + data[at + 12 :]
    return data + strip


WHOLE = {
    "BMP": bmp(FIELD),
    "BMP from the top": bmp(FIELD, from_top=True),
    "BMP of grey": bmp(FIELD[..., 0]),
    "TIFF": tiff(FIELD, photometric=2, bits=8),
    "TIFF, highest byte first": tiff(FIELD, photometric=2, bits=8, order=">"),
    "TIFF of 12 bits": tiff(of_bits(FIELD[..., 0], 12), photometric=1, bits=16),
    "TIFF of planes": tiff(FIELD, photometric=2, bits=8, planes=True),
    "TIFF, LZW": encoded(Image.fromarray(FIELD), "TIFF", compression="tiff_lzw"),
    "TIFF, deflate": encoded(Image.fromarray(FIELD), "TIFF", compression="tiff_adobe_deflate"),
    "TIFF, deflate, tags first": packed_tiff(8, zlib.compress(FIELD.tobytes())),
    "TIFF, LZW, tags first": packed_tiff(
        5, strip_of(encoded(Image.fromarray(FIELD), "TIFF", compression="tiff_lzw", strip_size=1 << 20))
    ),
    "PNG": encoded(Image.fromarray(FIELD), "PNG"),
    "JPEG": encoded(Image.fromarray(FIELD), "JPEG", quality=98),
}


def cut_to(data: bytes, share: float) -> bytes:
    return data[: int(share * len(data))].ljust(len(data), b"\0")


@pytest.mark.parametrize("kind", WHOLE)
def test_what_a_copy_has_not_brought_yet_is_no_picture(kind: str) -> None:
    data = WHOLE[kind]
    decode(data)
    half = int(CUT * len(data))
    for unfinished in (
        *(cut_to(data, share) for share in (0.1, 0.3, CUT, 0.9)),
        cut_to(data, 512 * (len(data) // 1024) / len(data)),
        bytes(half) + data[half:],
        data[:700] + bytes(half - 700) + data[half:],
        data[: half // 2] + bytes(half // 2) + data[half // 2 * 2 :],
    ):
        with pytest.raises(UnreadableImageError, match="written|truncated|damaged|not an image|not read"):
            decode(unfinished)


@pytest.mark.parametrize("rows", [0, 60, 96, 144, 150])
def test_a_copy_that_ends_between_two_rows_is_no_picture(rows: int) -> None:
    """The last quarter, or more, never came; a BMP begins with the lowest row."""
    for data in (WHOLE["BMP"], WHOLE["BMP from the top"], WHOLE["TIFF"]):
        start = len(data) - FIELD.nbytes if data[:2] == b"II" else 54
        with pytest.raises(UnreadableImageError, match="not completely written"):
            decode(data[: start + rows * 576].ljust(len(data), b"\0"))


def test_a_jpeg_that_zeros_would_complete_is_no_picture_yet() -> None:
    data = WHOLE["JPEG"]
    cut = cut_to(data, 0.5) + bytes(200_000)
    with pytest.raises(UnreadableImageError, match="not completely written"):
        decode(cut)
    decode(data + bytes(4096))  # cameras fill up the last block of a disk


def framed(top: int = 0, bottom: int = 0, left: int = 0, right: int = 0) -> np.ndarray:
    made = FIELD.copy()
    made[:top], made[192 - bottom :], made[:, :left], made[:, 192 - right :] = 0, 0, 0, 0
    return made


OVAL = np.where(np.hypot(*(np.mgrid[:192, :192] - 95.5))[..., None] < 90, FIELD, 0).astype(np.uint8)
BAR = FIELD.copy()
BAR[170:176, 20:] = 0
STRIP = framed(bottom=24)
STRIP[178:182, 10:40] = 255
BLACK = {
    "band above": framed(top=30),
    "band below": framed(bottom=30),
    "letterbox": framed(top=60, bottom=60),
    "at the sides": framed(left=30, right=50),
    "frame": framed(20, 20, 20, 20),
    "eyepiece": OVAL,
    "scale bar": BAR,
    "strip with writing": STRIP,
}


@pytest.mark.parametrize("kind", BLACK)
def test_black_that_belongs_to_a_picture_is_kept(kind: str) -> None:
    pixels = BLACK[kind]
    for data in (bmp(pixels), bmp(pixels, from_top=True), tiff(pixels, photometric=2, bits=8)):
        assert np.array_equal(decode(data), pixels)


NOISE = np.random.default_rng(1).integers(0, 256, (300, 300, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.full((300, 300, 3), 255, np.uint8), "single colour"),
        (np.full((300, 300, 3), (200, 160, 190), np.uint8), "single colour"),
        (np.full((300, 300, 3), 200, np.uint8) + NOISE // 32, "single colour|noise"),
        (NOISE, "noise"),
        (np.repeat(NOISE[..., :1], 3, axis=2), "noise"),
    ],
)
def test_a_picture_of_one_colour_or_of_noise_holds_nothing(pixels: np.ndarray, reason: str) -> None:
    for data in (encoded(Image.fromarray(pixels), "PNG"), encoded(Image.fromarray(pixels), "JPEG", quality=90)):
        with pytest.raises(UnreadableImageError, match=f"holds nothing: the picture is .*({reason})"):
            require_content(reduced(decode(data)))


ACROSS = np.linspace(0.0, 1.0, 300)
GRADIENTS = {
    "linear": np.tile(255 * ACROSS, (300, 1)),
    "diagonal": 127 * (ACROSS + ACROSS[:, None]),
    "faint": np.tile(200 + 40 * ACROSS, (300, 1)),
    "waves": np.tile(128 + 100 * np.sin(2 * np.pi * ACROSS), (300, 1)),
    "vignetting": 240 * np.cos(np.hypot(ACROSS - 0.5, ACROSS[:, None] - 0.5)) ** 4,
    "noisy": np.tile(20 + 200 * ACROSS, (300, 1)) + NOISE[..., 0] / 16,
    "radial": np.clip(510 * np.hypot(ACROSS - 0.5, ACROSS[:, None] - 0.5), 0, 255),
    "radial, to the corners": 240 - 300 * np.hypot(ACROSS - 0.5, ACROSS[:, None] - 0.5),
    "radial, noisy": 20 + 300 * np.hypot(ACROSS - 0.5, ACROSS[:, None] - 0.5) + NOISE[..., 0] / 16,
    "radial, of a wide picture": 330 * np.hypot(ACROSS - 0.5, ACROSS[:150, None] - 0.25),
    "elliptic": 255 - 340 * np.hypot(ACROSS - 0.5, 1.0 * np.linspace(-0.5, 0.5, 180)[:, None]),
}


@pytest.mark.parametrize("kind", GRADIENTS)
def test_a_brightness_that_changes_evenly_is_no_cell(kind: str) -> None:
    grey = GRADIENTS[kind].astype(np.uint8)
    for pixels in (np.dstack([grey] * 3), np.dstack([grey, grey // 2, 255 - grey // 4])):
        for turned in (pixels, pixels.swapaxes(0, 1)):
            with pytest.raises(UnreadableImageError, match="changes evenly"):
                require_content(reduced(np.ascontiguousarray(turned)))


@pytest.mark.parametrize("radius", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("shape", [(300, 300), (200, 360), (65, 64)])
def test_a_disc_and_a_blurred_spot_in_the_middle_are_something(shape: tuple[int, int], radius: float) -> None:
    height, width = shape
    rows, columns = np.ogrid[:height, :width]
    away = np.hypot(rows - height / 2, columns - width / 2) / (min(shape) / 2)
    disc = np.where(away < radius, 90, 230)
    spot = 230 - 120 * np.exp(-((away / (radius / 3)) ** 2) / 2)
    for grey in (disc, spot):
        require_content(reduced(np.dstack([grey.astype(np.uint8)] * 3)))


def test_a_small_cell_in_a_large_empty_field_is_something() -> None:
    rows, columns = np.mgrid[:1200, :1200]
    for ground in (240, 150 + columns // 20):
        grey = np.where(np.hypot(rows - 600, columns - 700) < 30, 90, ground).astype(np.uint8)
        require_content(reduced(np.dstack([grey] * 3)))


def test_no_real_and_no_drawn_cell_is_refused_as_nothing(real_cells: Path, drawn_cells: Path) -> None:
    every = [path for folder in sorted(real_cells.iterdir()) for path in sorted(folder.rglob("*.jpg"))[::60]]
    drawn = sorted(drawn_cells.rglob("*.jpg"))
    assert len(every) > 100 and len(drawn) > 20
    for path in [*every, *drawn]:
        require_content(reduced(decode(path.read_bytes())))


def test_a_lab_rejects_what_holds_nothing_and_a_question_is_told(
    tmp_path: Path, drawn_cells: Path, starter: Bundle
) -> None:
    export = tmp_path / "export"
    export.mkdir()
    (export / "flat.png").write_bytes(encoded(Image.new("RGB", (300, 300), (230, 220, 230)), "PNG"))
    (export / "noise.png").write_bytes(encoded(Image.fromarray(NOISE), "PNG"))
    (export / "bmp.bmp").write_bytes(bmp_with_alpha(0))
    copied = export / "copied.bmp"
    copied.write_bytes(cut_to(WHOLE["BMP"], CUT))
    (export / "cell.jpg").write_bytes(next(drawn_cells.rglob("*.jpg")).read_bytes())
    lab = make_lab(tmp_path / "lab", export, starter)
    once(lab)
    rows = ledger(lab)
    assert rows["flat.png"]["reason"].startswith("holds nothing: the picture is of a single colour")
    assert rows["noise.png"]["reason"].startswith("holds nothing: the picture is noise")
    assert [rows[name]["outcome"] for name in ("bmp.bmp", "cell.jpg")] == ["stored", "stored"]
    assert rows["copied.bmp"]["reason"].startswith("not completely written: of its 110646 bytes, those from byte 55433")
    copied.write_bytes(WHOLE["BMP"])
    once(lab)
    assert ledger(lab)["copied.bmp"]["outcome"] == "stored"
    with pytest.raises(UnreadableImageError, match="holds nothing"):
        ask(lab, (export / "flat.png").read_bytes(), name="x")


def of_format(kind: int, values: np.ndarray) -> bytes:
    """A TIFF of 8 bits with this SampleFormat."""
    return tiff(values, photometric=2 if values.ndim == 3 else 1, bits=8, sample_format=kind)


@pytest.mark.parametrize("kind", [2, 3, 5, 6])
@pytest.mark.parametrize("values", [GREY, COLOUR], ids=["grey", "colour"])
def test_pixels_with_a_sign_are_not_taken_for_others(kind: int, values: np.ndarray) -> None:
    with pytest.raises(UnreadableImageError, match="with a sign|not read"):
        decode(of_format(kind, values))
    assert np.array_equal(decode(of_format(1, values))[..., 0], GREY)


CLOSED = {"4:2:0": {"subsampling": 2}, "4:2:2": {"subsampling": 1}, "4:4:4": {"subsampling": 0}, "grey": {}}


@pytest.mark.parametrize("kind", CLOSED)
def test_a_jpeg_that_was_cut_off_and_closed_is_no_picture(kind: str) -> None:
    picture = Image.fromarray(FIELD).convert("L") if kind == "grey" else Image.fromarray(FIELD)
    data = encoded(picture, "JPEG", quality=90, **CLOSED[kind])
    decode(data)
    for share in (0.2, 0.5, 0.85):
        with pytest.raises(UnreadableImageError, match="truncated: the picture ends after"):
            decode(data[: int(share * len(data))] + b"\xff\xd9")


def test_grey_that_belongs_to_a_picture_is_kept() -> None:
    for place in (np.s_[-32:], np.s_[:, -32:], np.s_[-20:, -20:]):  # a band, at the side, a corner for writing
        pixels = FIELD.copy()
        pixels[place] = 128
        decode(encoded(Image.fromarray(pixels), "JPEG", quality=95, subsampling=0))
        for value in (1, 0xCD, 0xFF):
            pixels[place] = value
            assert np.array_equal(decode(bmp(pixels)), pixels) and np.array_equal(
                decode(bmp(pixels, from_top=True)), pixels
            )


@pytest.mark.parametrize("value", [0x01, 0x80, 0xCD, 0xFE, 0xFF])
def test_a_bmp_that_is_filled_up_with_one_value_is_no_picture(value: int) -> None:
    for kind in ("BMP", "BMP from the top", "BMP of grey"):
        data = WHOLE[kind]
        for share in (0.3, 0.6, 0.9):
            at = int(share * len(data)) // 512 * 512
            with pytest.raises(UnreadableImageError, match=f"not completely written: .* are all {value:#04x}"):
                decode(data[:at] + bytes([value]) * (len(data) - at))


SCANS: dict[str, dict[str, Any]] = {
    "colour": {"subsampling": 2},
    "4:4:4, best": {"subsampling": 0, "quality": 100},
    "rough": {"subsampling": 1, "quality": 30},
    "restarts": {"subsampling": 2, "restart_marker_rows": 1},
    "grey": {"mode": "L"},
    "four inks": {"mode": "CMYK"},
}


def progressive(values: np.ndarray, mode: str = "RGB", quality: int = 85, **options: Any) -> bytes:
    return encoded(Image.fromarray(values).convert(mode), "JPEG", progressive=True, quality=quality, **options)


def scan_for_each_colour(values: np.ndarray) -> bytes:
    """A JPEG that is not progressive, whose three colours lie one after the other: made of three grey ones."""
    layers = Image.fromarray(values).convert("YCbCr").split()
    parts = [encoded(layer, "JPEG", quality=90) for layer in layers]
    frames = [part.index(b"\xff\xc0") for part in parts]
    height, width = values.shape[:2]
    frame = struct.pack(">BBHBHHB", 0xFF, 0xC0, 17, 8, height, width, 3) + b"".join(
        bytes((i, 0x11, 0)) for i in (1, 2, 3)
    )
    made = parts[0][: frames[0]] + frame
    for number, (part, at) in enumerate(zip(parts, frames, strict=True), 1):
        rest = part[at + 13 : -2]  # Huffman tables and the scan
        scan = rest.index(b"\xff\xda")
        made += rest[: scan + 5] + bytes((number,)) + rest[scan + 6 :]
    return made + b"\xff\xd9"


def test_whole_jpegs_of_several_scans_are_pictures(drawn_cells: Path) -> None:
    picture = np.asarray(Image.open(sorted(drawn_cells.rglob("*.jpg"))[0]).convert("RGB"))
    for options in SCANS.values():
        for values in (FIELD, COLOUR, picture, picture[:97, :101]):
            data = progressive(values, **options)
            assert decode(data).shape == values.shape
            decode(data + b"more")  # behind its end
    assert np.abs(decode(scan_for_each_colour(picture)).astype(int) - picture).mean() < 4


@pytest.mark.parametrize("kind", SCANS)
def test_a_jpeg_of_several_scans_that_was_cut_off_and_closed_is_no_picture(kind: str, drawn_cells: Path) -> None:
    """Wherever it broke off: between two scans, in one of them, or in the last one."""
    picture = np.asarray(Image.open(sorted(drawn_cells.rglob("*.jpg"))[0]).convert("RGB"))
    data = progressive(picture, **SCANS[kind])
    last = data.rindex(b"\xff\xda")
    between = [at for at in range(len(data) - 1) if data[at : at + 2] in (b"\xff\xda", b"\xff\xc4")][4:]
    assert len(between) > 3
    for at in (*between, *range(last + 20, len(data) - 40, max(1, (len(data) - last) // 12))):
        with pytest.raises(UnreadableImageError, match="truncated: "):
            decode(data[:at].removesuffix(b"\xff") + b"\xff\xd9")


def test_a_jpeg_with_a_scan_for_each_colour_that_was_cut_off_and_closed_is_no_picture(drawn_cells: Path) -> None:
    picture = np.asarray(Image.open(sorted(drawn_cells.rglob("*.jpg"))[0]).convert("RGB"))
    data = scan_for_each_colour(picture)
    starts = [at for at in range(len(data) - 1) if data[at : at + 2] == b"\xff\xda"]
    for at, words in (
        (starts[1], "2 of its 3 colours"),
        (starts[2], "1 of its 3 colours"),
        (starts[2] + 60, "last of the 3"),
    ):
        with pytest.raises(UnreadableImageError, match=f"truncated: .*{words}"):
            decode(data[:at].removesuffix(b"\xff") + b"\xff\xd9")
