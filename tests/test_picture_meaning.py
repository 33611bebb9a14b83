"""What the values of a picture mean, for each kind of picture that Pillow opens: what every viewer shows, or a refusal
with the reason, and never other pixels without a word.

| kind | decision |
|---|---|
| BMP or TIFF with alpha that is 0 everywhere | the alpha is ignored |
| other alpha, `tRNS`, PNG with any alpha | laid over white |
| TIFF grey of 12 bits | 4095 is white |
| grey of 16 bits, TIFF or PNG | white is MaxSampleValue, else the least of 8, 10 … 16 bits that holds the maximum |
| grey that is signed, of 32 bits or float | likewise, and for floats 1; refused below 0, above 65535, and no numbers |
| MINISWHITE | inverted, of 8 bits by Pillow, of more bits here |
| colour of 16 bits, TIFF or PNG | the upper 8 bits; refused where only the lower are used (10, 12, 14-bit cameras) |
| TIFF of several frames | the first that is no reduced copy and no mask |
| palette, CMYK, YCbCr, one bit | as Pillow converts them |
| of a single colour, or noise alone | refused by ingest and query |
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
from labref.cells.image import decode, require_content
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
    values: np.ndarray, *, photometric: int, bits: int, sample_format: int = 1, maximum: int | None = None
) -> bytes:
    """An uncompressed little-endian TIFF with these very tags and the bytes of `values`."""
    samples = 1 if values.ndim == 2 else values.shape[2]
    entries = [
        (256, 3, [values.shape[1]]),
        (257, 3, [values.shape[0]]),
        (258, 3, [bits] * samples),
        (259, 3, [1]),
        (262, 3, [photometric]),
        (273, 4, [0]),
        (277, 3, [samples]),
        (278, 3, [values.shape[0]]),
        (279, 4, [values.nbytes]),
        *([] if maximum is None else [(281, 3, [maximum] * samples)]),
        (339, 3, [sample_format] * samples),
    ]
    after = 8 + 2 + 12 * len(entries) + 4
    extra, rows = b"", []
    for tag, kind, found in entries:
        packed = struct.pack("<" + {3: "H", 4: "I"}[kind] * len(found), *found)
        if len(packed) > 4:
            rows.append((tag, kind, len(found), struct.pack("<I", after + len(extra))))
            extra += packed
        else:
            rows.append((tag, kind, len(found), packed.ljust(4, b"\0")))
    start = after + len(extra)
    head = b"II*\0" + struct.pack("<IH", 8, len(rows))
    for tag, kind, count, value in rows:
        head += struct.pack("<HHI", tag, kind, count) + (struct.pack("<I", start) if tag == 273 else value)
    return head + bytes(4) + extra + values.tobytes()


def bmp_with_alpha(alpha: int) -> bytes:
    """A 32-bit BMP with masks for all four channels."""
    pixels = np.dstack([COLOUR[::-1, :, ::-1], np.full((64, 64), alpha, np.uint8)]).tobytes()
    head = struct.pack("<IiiHHIIiiII", 108, 64, 64, 1, 32, 3, len(pixels), 2835, 2835, 0, 0)
    head += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(pixels), 0, 0, 14 + len(head)) + head + pixels


def png16(values: np.ndarray) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    colour = {1: 0, 3: 2}[1 if values.ndim == 2 else values.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def of_bits(grey: np.ndarray, bits: int, kind: Any = np.uint16) -> np.ndarray:
    """The picture as a camera of so many bits gives it; 250 of 255 is its brightest."""
    return np.rint(grey / 255.0 * (2**bits - 1)).astype(kind)


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
}


@pytest.mark.parametrize("kind", SEEN_GREY)
def test_grey_of_any_depth_is_as_bright_as_it_was_taken(kind: str) -> None:
    seen = decode(SEEN_GREY[kind])
    assert np.abs(seen[..., 0].astype(int) - GREY).max() <= 3
    assert (seen[..., 0] == seen[..., 1]).all()


SEEN_COLOUR = {
    "BMP, alpha all 0": bmp_with_alpha(0),
    "BMP, alpha all 255": bmp_with_alpha(255),
    "TIFF, alpha all 0": encoded(Image.fromarray(np.dstack([COLOUR, np.zeros_like(GREY)]), "RGBA"), "TIFF"),
    "TIFF of 16 bits": tiff(COLOUR.astype(np.uint16) * 257, photometric=2, bits=16),
    "PNG of 16 bits": png16(COLOUR.astype(np.uint16) * 257),
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


def test_an_alpha_that_says_something_is_laid_over_white() -> None:
    alpha = np.where(GREY == 70, 255, 0).astype(np.uint8)
    seen = decode(encoded(Image.fromarray(np.dstack([COLOUR, alpha]), "RGBA"), "TIFF"))
    assert (seen[0, 0] == 255).all()
    assert (seen[32, 32] == COLOUR[32, 32]).all()


REFUSED = {
    "12 bits in colour of 16": (tiff(of_bits(COLOUR, 12), photometric=2, bits=16), "only the lower ones are used"),
    "10 bits in colour of 16": (tiff(of_bits(COLOUR, 10), photometric=2, bits=16), "only the lower ones are used"),
    "14 bits in colour of 16": (tiff(of_bits(COLOUR, 14), photometric=2, bits=16), "only the lower ones are used"),
    "PNG, 12 bits in colour": (png16(of_bits(COLOUR, 12)), "only the lower ones are used"),
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


@pytest.mark.parametrize("kind", REFUSED)
def test_values_of_which_no_brightness_is_known_are_refused_with_the_reason(kind: str) -> None:
    data, reason = REFUSED[kind]
    with pytest.raises(UnreadableImageError, match=reason):
        decode(data)


def test_a_reduced_copy_or_a_mask_before_the_picture_is_passed_over() -> None:
    for kind in (1, 4):
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[254] = kind
        small, file = Image.new("RGB", (40, 40), (9, 9, 9)), io.BytesIO()
        small.encoderinfo = {"tiffinfo": tags}
        whole = Image.fromarray(COLOUR)
        whole.encoderinfo = {}
        small.save(file, "TIFF", save_all=True, append_images=[whole], tiffinfo=tags)
        frames = Image.open(io.BytesIO(file.getvalue()))
        frames.seek(1)
        if frames.tag_v2.get(254, 0):  # this Pillow writes the tag into every frame
            frames.seek(0)
            data = bytearray(file.getvalue())
            at = data.rindex(struct.pack("<HHI", 254, 4, 1))
            data[at + 8 : at + 12] = bytes(4)
            file = io.BytesIO(bytes(data))
        seen = decode(file.getvalue())
        assert seen.shape == (64, 64, 3)
        assert np.array_equal(seen, COLOUR)


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
            require_content(decode(data))


def test_no_real_and_no_drawn_cell_is_refused_as_nothing(real_cells: Path, drawn_cells: Path) -> None:
    every = [path for folder in sorted(real_cells.iterdir()) for path in sorted(folder.rglob("*.jpg"))[::60]]
    drawn = sorted(drawn_cells.rglob("*.jpg"))
    assert len(every) > 100 and len(drawn) > 20
    for path in [*every, *drawn]:
        require_content(decode(path.read_bytes()))


def test_a_lab_rejects_what_holds_nothing_and_a_question_is_told(
    tmp_path: Path, drawn_cells: Path, starter: Bundle
) -> None:
    export = tmp_path / "export"
    export.mkdir()
    (export / "flat.png").write_bytes(encoded(Image.new("RGB", (300, 300), (230, 220, 230)), "PNG"))
    (export / "noise.png").write_bytes(encoded(Image.fromarray(NOISE), "PNG"))
    (export / "bmp.bmp").write_bytes(bmp_with_alpha(0))
    (export / "cell.jpg").write_bytes(next(drawn_cells.rglob("*.jpg")).read_bytes())
    lab = make_lab(tmp_path / "lab", export, starter)
    once(lab)
    rows = ledger(lab)
    assert rows["flat.png"]["reason"] == "holds nothing: the picture is of a single colour"
    assert rows["noise.png"]["reason"].startswith("holds nothing: the picture is noise")
    assert [rows[name]["outcome"] for name in ("bmp.bmp", "cell.jpg")] == ["stored", "stored"]
    with pytest.raises(UnreadableImageError, match="holds nothing"):
        ask(lab, (export / "flat.png").read_bytes(), name="x")
