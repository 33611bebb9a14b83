"""A cell is decoded from anything an analyser writes, its background fixed, its nucleus in the middle."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labref.cells.image import BACKGROUND, CROP_SIZE, decode, prepare, prepare_pixels
from labref.demo.cells import OPTICS, draw_cell, make_slides
from labref.errors import UnreadableImageError


def drawn(label: str = "neutrophil", seed: int = 1) -> np.ndarray:
    slide = make_slides(2, seed=5)[0]
    return draw_cell(label, OPTICS[slide.optics], slide, np.random.default_rng(seed))


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize(("kind", "tolerance"), [("JPEG", 6.0), ("PNG", 0.0), ("BMP", 0.0), ("TIFF", 0.0)])
def test_every_format_gives_the_same_picture(kind: str, tolerance: float) -> None:
    picture = drawn()
    back = decode(encoded(Image.fromarray(picture), kind, **({"quality": 95} if kind == "JPEG" else {})))
    assert back.shape == picture.shape and back.dtype == np.uint8
    assert np.abs(back.astype(int) - picture).mean() <= tolerance


def test_grey_alpha_palette_cmyk_and_sixteen_bit() -> None:
    picture = Image.fromarray(drawn())
    grey = np.asarray(picture.convert("L"))
    assert np.array_equal(decode(encoded(picture.convert("L"), "PNG"))[..., 0], grey)
    wide = decode(encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"))
    assert np.abs(wide[..., 0].astype(int) - grey).max() <= 1
    wide = decode(encoded(Image.fromarray(grey.astype(np.uint16) * 257), "TIFF"))
    assert np.abs(wide[..., 0].astype(int) - grey).max() <= 1
    assert decode(encoded(picture.quantize(64), "PNG")).shape == (363, 360, 3)
    cmyk = decode(encoded(picture.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(cmyk.astype(int) - np.asarray(picture)).mean() < 8
    see_through = picture.convert("RGBA")
    see_through.putalpha(Image.new("L", picture.size, 0))
    shown = decode(encoded(see_through, "PNG"))
    assert np.array_equal(shown, np.asarray(picture)), "an alpha that hides everything says nothing"
    half = Image.new("L", picture.size, 0)
    half.paste(255, (0, 0, picture.width, 100))
    see_through.putalpha(half)
    shown = decode(encoded(see_through, "PNG"))
    assert (shown[100:] == 255).all() and np.array_equal(shown[:100], np.asarray(picture)[:100]), "laid over white"


def test_sixteen_bit_colour_png() -> None:
    picture = drawn()[:40, :40]
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in picture)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 40, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert np.abs(decode(data).astype(int) - picture).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_applied(kind: str) -> None:
    picture = Image.fromarray(drawn())
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn by 90° clockwise to see it right
    data = encoded(picture, kind, exif=exif)
    assert decode(data).shape == (360, 363, 3)
    expected = np.asarray(picture.transpose(Image.Transpose.ROTATE_270))
    assert np.abs(decode(data).astype(int) - expected).mean() < 6


@pytest.mark.filterwarnings("ignore:.*orrupt EXIF data:UserWarning")  # as labref.cells.image does outside of tests
def test_damaged_exif_does_not_cost_the_picture() -> None:
    picture = Image.fromarray(drawn())
    plain = decode(encoded(picture, "JPEG", quality=90))
    for exif in (b"Exif\0\0MM", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0" + bytes(range(60))):
        assert np.array_equal(decode(encoded(picture, "JPEG", quality=90, exif=exif)), plain)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"a letter to the laboratory", "not an image"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 50, "image"),
        (b"GIF89a" + b"\0" * 40, "not an image"),
    ],
)
def test_what_is_no_image_says_so(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImageError, match=reason):
        prepare(data)


def test_truncated_small_and_bomb() -> None:
    whole = encoded(Image.fromarray(drawn()), "JPEG", quality=90)
    for part in (0.3, 0.6, 0.95):
        with pytest.raises(UnreadableImageError, match="truncated"):
            prepare(whole[: int(len(whole) * part)])
    whole = encoded(Image.fromarray(drawn()), "PNG")
    with pytest.raises(UnreadableImageError, match="truncated|damaged"):
        prepare(whole[: len(whole) // 2])
    with pytest.raises(UnreadableImageError, match="too small.*1×1"):
        prepare(encoded(Image.new("RGB", (1, 1)), "PNG"))
    for side in (10_000, 30_000):  # both sides of Pillow's own limit
        bomb = encoded(Image.new("1", (side, side)), "PNG")
        assert len(bomb) < 1_000_000
        with pytest.raises(UnreadableImageError, match=f"too large: {side}×{side}"):
            prepare(bomb)


def test_background_comes_to_one_intensity_whatever_the_optics() -> None:
    for slide in make_slides(4, seed=2):
        picture = draw_cell("lymphocyte", OPTICS[slide.optics], slide, np.random.default_rng(3))
        for cast in ((1.0, 1.0, 1.0), (0.9, 0.7, 0.8)):
            cell = prepare_pixels((picture * np.array(cast)).astype(np.uint8))
            grey = cell.crop.reshape(-1, 3).mean(axis=1)
            background = np.median(cell.crop.reshape(-1, 3)[grey > np.percentile(grey, 70)], axis=0)
            assert np.abs(background - BACKGROUND).max() <= 10


@pytest.mark.parametrize(
    ("label", "steps"),
    [
        *((label, ((0, 37), (-31, 0), (25, -25))) for label in ("lymphocyte", "monocyte", "erythroblast")),
        # lobes that lie apart are told from neighbours by the picture's middle, so they bear smaller shifts
        *((label, ((0, 8), (-8, 0), (8, -8))) for label in ("neutrophil", "eosinophil")),
    ],
)
def test_the_nucleus_is_centred_wherever_the_cell_lies(label: str, steps: tuple[tuple[int, int], ...]) -> None:
    picture = drawn(label)
    straight = prepare_pixels(picture)
    assert straight.nucleus_found and straight.crop.shape == (CROP_SIZE, CROP_SIZE, 3)
    for dy, dx in steps:
        moved = prepare_pixels(np.roll(picture, (dy, dx), axis=(0, 1)))
        assert abs(moved.centre[0] - straight.centre[0] - dy) <= 5
        assert abs(moved.centre[1] - straight.centre[1] - dx) <= 5


def test_any_size_keeps_the_analyser_scale() -> None:
    picture = drawn()
    whole = prepare_pixels(picture)
    wide = np.full((480, 640, 3), np.median(picture.reshape(-1, 3)[::7], axis=0), np.uint8)
    wide[60:423, 140:500] = picture
    big = prepare_pixels(wide)
    assert abs(big.centre[0] - whole.centre[0] - 60) <= 5 and abs(big.centre[1] - whole.centre[1] - 140) <= 5
    small = prepare_pixels(picture[80:280, 80:280])
    assert small.crop.shape == (CROP_SIZE, CROP_SIZE, 3)
    assert np.abs(small.crop[0, 0].astype(int) - BACKGROUND).max() <= 2  # padded with background, not stretched
    middle = slice(CROP_SIZE // 2 - 30, CROP_SIZE // 2 + 30)
    assert np.abs(small.crop[middle, middle].astype(int).mean() - whole.crop[middle, middle].mean()) < 20


def test_an_empty_field_is_still_a_cell_image() -> None:
    cell = prepare_pixels(np.full((300, 300, 3), 230, np.uint8))
    assert not cell.nucleus_found
    assert np.abs(cell.crop.astype(int) - BACKGROUND).max() <= 1


@pytest.mark.parametrize("optics", ["pbc", "chula", "bccd", "bonemarrow"])
def test_real_cells_of_every_optics(real_cells: Path, optics: str) -> None:
    files = sorted((real_cells / optics).rglob("*.jpg"))[::37]
    cells = [prepare(path.read_bytes()) for path in files]
    assert len(cells) >= 9
    assert np.mean([cell.nucleus_found for cell in cells]) >= 0.98
    # the analyser's pictures have the cell in the middle; chula and bccd were cut at the edges of fields, their cells
    # lie anywhere
    away = [np.hypot(c.centre[0] - c.size[0] / 2, c.centre[1] - c.size[1] / 2) for c in cells]
    limit, share = {"pbc": (36, 0.95), "chula": (80, 0.85), "bccd": (80, 0.75), "bonemarrow": (60, 0.9)}[optics]
    assert np.mean(np.array(away) <= limit) >= share
    bright = [np.percentile(cell.crop.reshape(-1, 3).mean(axis=1), 95) for cell in cells]
    assert np.median(bright) >= 0.9 * BACKGROUND


def test_real_cells_keep_their_centre_when_captured_again(real_cells: Path) -> None:
    moved = []
    for path in sorted((real_cells / "pbc").rglob("*.jpg"))[::160]:
        picture = decode(path.read_bytes())
        first = prepare_pixels(picture)
        again = prepare_pixels(np.clip(picture[4:, 3:] * np.array([1.03, 0.98, 1.0]), 0, 255).astype(np.uint8))
        moved.append(np.hypot(first.centre[0] - again.centre[0] - 4, first.centre[1] - again.centre[1] - 3))
    assert np.mean(np.array(moved) <= 2.0) >= 0.9


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("turns", [0, 2])
def test_a_turned_or_mirrored_image_gives_the_turned_or_mirrored_crop(
    real_cells: Path, mirror: bool, turns: int
) -> None:
    def change(pixels: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(pixels[:, ::-1] if mirror else pixels, turns))

    for image in sorted((real_cells / "pbc" / "monocyte").glob("*.jpg"))[:6]:
        pixels = decode(image.read_bytes())
        np.testing.assert_array_equal(prepare_pixels(change(pixels)).crop, change(prepare_pixels(pixels).crop))
