"""Pictures of cells in every form that labref reads, and what can be done to their bytes.

`originals` writes a few cells as JPEG, PNG, BMP and TIFF of many kinds. `mutate` changes one of them: bits, runs of
bytes, a cut, a splice with another of its format, and what the format itself is made of: fields of headers, sizes,
chunks, segments, tags. Of a PNG the checksums are put right afterwards, mostly, and what is compressed is changed
before it is compressed: so a change reaches beyond the first test.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from labref.cells.image import U8

__all__ = ["FORMATS", "Original", "mutate", "originals"]

Order = Literal["big", "little"]

FORMATS: Final = ("JPEG", "PNG", "BMP", "TIFF")
_SIDES: Final = (64, 96, 128)  # pixels
_WIDTHS: Final = (1, 2, 4, 8)  # bytes of a number
_MOST_STEPS: Final = 4
_SAME_CHECKSUM: Final = 0.1  # of the changed PNGs keep the checksums that no longer fit
_PNG_START: Final = b"\x89PNG\r\n\x1a\n"
_PNG_OTHERS: Final = (
    b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"tRNS", b"PLTE", b"pHYs", b"tIME", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"zTXt",
    b"iTXt", b"tEXt", b"sBIT", b"bKGD", b"hIST", b"IDAT", b"IEND", b"IHDR",
)  # fmt: skip
_TIFF_TAGS: Final = (
    254, 255, 256, 257, 258, 259, 262, 263, 266, 270, 273, 274, 277, 278, 279, 280, 281, 282, 284, 292, 296, 297, 301,
    305, 317, 318, 320, 322, 323, 324, 325, 330, 332, 338, 339, 340, 341, 347, 512, 513, 514, 529, 530, 532, 700, 33723,
    34377, 34665, 34675, 34853,
)  # fmt: skip
_BMP_FIELDS: Final = ((2, 4), (10, 4), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2), (30, 4), (34, 4), (46, 4), (50, 4))
"""Where each field of a BMP's header begins, and its bytes."""


@dataclass(frozen=True)
class Original:
    """One sound picture. kind : of `FORMATS`."""

    name: str
    kind: str
    data: bytes


def originals(cells: Sequence[U8]) -> list[Original]:
    """Each cell, uint8[h, w, 3], in each form, small."""
    made: list[Original] = []
    for number, pixels in enumerate(cells):
        side = _SIDES[number % len(_SIDES)]
        picture = Image.fromarray(pixels).resize((side, side - 4 * (number % 2)), Image.Resampling.LANCZOS)
        for kind, forms in (("JPEG", _jpegs), ("PNG", _pngs), ("BMP", _bmps), ("TIFF", _tiffs)):
            made += [Original(f"{kind} {name} {number}", kind, data) for name, data in forms(picture).items()]
    return made


def _saved(picture: Image.Image, kind: str, **how: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "an analyser"
    return exif


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _with_alpha(picture: Image.Image) -> Image.Image:
    alpha = Image.new("L", picture.size, 255)
    alpha.paste(90, (0, 0, picture.width // 2, 8))
    shown = picture.convert("RGBA")
    shown.putalpha(alpha)
    return shown


def _jpegs(picture: Image.Image) -> dict[str, bytes]:
    grey = picture.convert("L")
    return {
        "whole colours": _saved(picture, "JPEG", quality=85, subsampling=0),
        "half": _saved(picture, "JPEG", quality=75, subsampling=1),
        "quarter": _saved(picture, "JPEG", quality=60, subsampling=2, optimize=True),
        "progressive": _saved(picture, "JPEG", quality=75, progressive=True),
        "grey": _saved(grey, "JPEG", quality=75),
        "grey progressive": _saved(grey, "JPEG", quality=75, progressive=True),
        "CMYK": _saved(picture.convert("CMYK"), "JPEG", quality=75),
        "restarts": _saved(picture, "JPEG", quality=75, restart_marker_blocks=3),
        "turned": _saved(picture, "JPEG", quality=75, exif=_turned(), icc_profile=_profile(), comment=b"a cell"),
        "of two": _saved(picture, "MPO", quality=75, save_all=True, append_images=[picture.rotate(90, expand=True)]),
    }


def _pngs(picture: Image.Image) -> dict[str, bytes]:
    grey = picture.convert("L")
    said = PngImagePlugin.PngInfo()
    said.add_text("Slide", "S001", zip=True)
    said.add_itxt("Cell", "Lymphocyte", zip=True)
    said.add(b"gAMA", struct.pack(">I", 100_000))
    said.add(b"pHYs", struct.pack(">IIB", 2835, 2835, 1))
    palette = picture.quantize(64)
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    return {
        "RGB": _saved(picture, "PNG"),
        "not compressed": _saved(picture, "PNG", compress_level=0),
        "RGBA": _saved(_with_alpha(picture), "PNG"),
        "grey": _saved(grey, "PNG"),
        "grey and alpha": _saved(_with_alpha(picture).convert("LA"), "PNG"),
        "palette": _saved(palette, "PNG"),
        "palette of 4 bits": _saved(picture.quantize(15), "PNG", bits=4),
        "palette and alpha": _saved(palette, "PNG", transparency=3),
        "16 bits": _saved(wide, "PNG"),
        "much said": _saved(picture, "PNG", pnginfo=said, exif=_turned(), icc_profile=_profile()),
        "moving": _saved(picture, "PNG", save_all=True, append_images=[picture.rotate(90), picture.rotate(180)]),
    }


def _bmps(picture: Image.Image) -> dict[str, bytes]:
    pixels = np.asarray(picture)
    height, width = pixels.shape[:2]
    rows = _saved(picture, "BMP")[54:]
    red, green, blue = (pixels[::-1, :, band].astype(np.uint16) for band in range(3))
    short = ((red >> 3) << 11 | (green >> 2) << 5 | blue >> 3).astype("<u2")
    palette = picture.quantize(200)
    colours = _saved(palette, "BMP")[54:][: 4 * 256]
    runs = b"".join(bytes((1, value)) for value in np.asarray(palette)[0])
    packed = b"".join(
        b"".join(bytes((1, value)) for value in row) + b"\0\0" for row in np.asarray(palette)[::-1].tolist()
    )

    def with_header(bits: int, compression: int, colours: bytes, values: bytes, masks: bytes = b"") -> bytes:
        start = 54 + len(masks) + len(colours)
        return (
            struct.pack("<2sIHHI", b"BM", start + len(values), 0, 0, start)
            + struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(values), 2835, 2835,
                          len(colours) // 4, 0)
            + masks + colours + values
        )  # fmt: skip

    return {
        "RGB": _saved(picture, "BMP"),
        "RGBA": _saved(_with_alpha(picture), "BMP"),
        "grey": _saved(picture.convert("L"), "BMP"),
        "palette": _saved(palette, "BMP"),
        "of OS/2": struct.pack("<2sIHHIIHHHH", b"BM", 26 + len(rows), 0, 0, 26, 12, width, height, 1, 24) + rows,
        "16 bits": with_header(16, 3, b"", short.tobytes(), struct.pack("<III", 0xF800, 0x07E0, 0x001F)),
        "run lengths": with_header(8, 1, colours, packed + b"\0\1"),
        "run lengths and jumps": with_header(8, 1, colours, runs + b"\0\2\3\1" + packed[: len(packed) // 2] + b"\0\1"),
    }


def _tiffs(picture: Image.Image) -> dict[str, bytes]:
    grey = picture.convert("L")
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    small = picture.resize((picture.width // 2, picture.height // 2))
    made = {
        "RGB": _saved(picture, "TIFF"),
        "grey": _saved(grey, "TIFF"),
        "palette": _saved(picture.quantize(64), "TIFF"),
        "RGBA": _saved(_with_alpha(picture), "TIFF"),
        "CMYK": _saved(picture.convert("CMYK"), "TIFF"),
        "16 bits": _saved(wide, "TIFF"),
        "numbers": _saved(Image.fromarray(np.asarray(grey).astype(np.float32) / 255), "TIFF"),
        "of 64 bits": _saved(picture, "TIFF", big_tiff=True),
        "of two pages": _saved(picture, "TIFF", save_all=True, append_images=[small]),
        "tiles": _tiled(picture),
        "strips": _saved(picture, "TIFF", compression="tiff_lzw", tiffinfo={278: 8, 317: 2}),
        "two colours": _saved(grey.convert("1"), "TIFF", compression="group4"),
        "turned": _saved(picture, "TIFF", compression="tiff_adobe_deflate", exif=_turned(), icc_profile=_profile()),
    }
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma"):
        made[compression] = _saved(picture, "TIFF", compression=compression)
    made["16 bits, LZW"] = _saved(wide, "TIFF", compression="tiff_lzw")
    return made


def _tiled(picture: Image.Image, side: int = 32) -> bytes:
    """A TIFF of tiles that are not compressed; its numbers begin with the upper byte, unlike those of the others."""
    pixels = np.asarray(picture)
    down, across = -(-pixels.shape[0] // side), -(-pixels.shape[1] // side)
    whole = np.zeros((down * side, across * side, 3), np.uint8)
    whole[: pixels.shape[0], : pixels.shape[1]] = pixels
    tiles = whole.reshape(down, side, across, side, 3).swapaxes(1, 2).reshape(-1, side * side * 3)
    count, size = len(tiles), side * side * 3
    starts = [8 + number * size for number in range(count)]
    lists = 8 + count * size
    bits_at = lists + 8 * count
    tags = [
        (256, 3, 1, picture.width << 16), (257, 3, 1, picture.height << 16), (258, 3, 3, bits_at), (259, 3, 1, 1 << 16),
        (262, 3, 1, 2 << 16), (277, 3, 1, 3 << 16), (284, 3, 1, 1 << 16), (322, 3, 1, side << 16),
        (323, 3, 1, side << 16), (324, 4, count, lists), (325, 4, count, lists + 4 * count),
    ]  # fmt: skip
    return (
        struct.pack(">2sHI", b"MM", 42, bits_at + 6) + tiles.tobytes() + struct.pack(f">{count}I", *starts)
        + struct.pack(f">{count}I", *[size] * count) + struct.pack(">HHH", 8, 8, 8) + struct.pack(">H", len(tags))
        + b"".join(struct.pack(">HHII", *tag) for tag in tags) + bytes(4)
    )  # fmt: skip


# what is done to bytes, whatever they are


def mutate(rng: random.Random, choices: Sequence[Original]) -> tuple[Original, bytes]:
    """One of `choices`, and its bytes changed in one to four steps. Each format is as likely as the others."""
    kind = rng.choice(FORMATS)
    of_kind = [one for one in choices if one.kind == kind]
    original = rng.choice(of_kind)
    data = original.data
    for _ in range(min(_MOST_STEPS, 1 + int(rng.expovariate(1.0)))):
        step = rng.random()
        if step < 0.55:
            data = _OF_FORMAT[kind](rng, data)
        elif step < 0.95:
            data = bytes(rng.choice(_STEPS)(rng, bytearray(data)))
        else:
            data = _spliced(rng, data, rng.choice(of_kind).data)
    return original, data


def _at(rng: random.Random, data: bytearray, need: int = 1) -> int:
    """A place with `need` bytes behind it; in one of two cases near the beginning."""
    most = max(0, len(data) - need)
    return rng.randint(0, min(most, 96) if rng.random() < 0.5 else most)


def _number(rng: random.Random, width: int, near: int = 0) -> int:
    """A number of `width` bytes where programs go wrong; `near` is what stood there."""
    bits = 8 * width
    edges = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
    chosen = rng.random()
    if chosen < 0.5:
        value = rng.choice((*edges, (1 << bits) - 1, 1 << (bits - 1), (1 << (bits - 1)) - 1))
    elif chosen < 0.8:
        value = near + rng.choice((-256, -16, -8, -2, -1, 1, 2, 8, 16, 256, near, -near // 2))
    else:
        value = rng.getrandbits(rng.randint(1, bits))
    return value % (1 << bits)


def _flip(rng: random.Random, data: bytearray) -> bytearray:
    for _ in range(rng.choice((1, 1, 2, 4, 16)) if data else 0):
        data[_at(rng, data)] ^= 1 << rng.randrange(8)
    return data


def _run(rng: random.Random, data: bytearray) -> bytearray:
    length = min(len(data), rng.choice((1, 2, 4, 16, 64, 256, 1024)))
    at = _at(rng, data, length)
    what = rng.random()
    if what < 0.3:
        put = bytes(length)
    elif what < 0.5:
        put = b"\xff" * length
    elif what < 0.8:
        put = rng.randbytes(length)
    else:
        put = bytes(data[at : at + 1] or b"\0") * length
    data[at : at + length] = put
    return data


def _put_number(rng: random.Random, data: bytearray) -> bytearray:
    width = rng.choice(_WIDTHS)
    if len(data) < width:
        return data
    at = _at(rng, data, width)
    order: Order = rng.choice(("big", "little"))
    data[at : at + width] = _number(rng, width, int.from_bytes(data[at : at + width], order)).to_bytes(width, order)
    return data


def _cut(rng: random.Random, data: bytearray) -> bytearray:
    return data[: rng.randint(0, len(data))]


def _drop(rng: random.Random, data: bytearray) -> bytearray:
    length = rng.choice((1, 2, 4, 32, 512))
    at = _at(rng, data, length)
    del data[at : at + length]
    return data


def _insert(rng: random.Random, data: bytearray) -> bytearray:
    at, length = _at(rng, data), rng.choice((1, 2, 4, 32, 512))
    data[at:at] = rng.randbytes(length) if rng.random() < 0.5 else data[at : at + length]
    return data


def _swap(rng: random.Random, data: bytearray) -> bytearray:
    length = rng.choice((1, 4, 16, 128))
    if len(data) < 2 * length:
        return data
    one, other = _at(rng, data, length), _at(rng, data, length)
    first, second = bytes(data[one : one + length]), bytes(data[other : other + length])
    data[one : one + length], data[other : other + length] = second, first
    return data


_STEPS: Final[tuple[Callable[[random.Random, bytearray], bytearray], ...]] = (
    _flip, _flip, _run, _put_number, _put_number, _cut, _drop, _insert, _swap,
)  # fmt: skip


def _spliced(rng: random.Random, one: bytes, other: bytes) -> bytes:
    """The beginning of one and the end of the other."""
    return one[: rng.randint(0, len(one))] + other[rng.randint(0, len(other)) :]


def _changed(rng: random.Random, data: bytes) -> bytes:
    return bytes(rng.choice(_STEPS)(rng, bytearray(data)))


# what each format is made of


def _of_png(rng: random.Random, data: bytes) -> bytes:
    chunks: list[tuple[bytes, bytes, bytes]] = []
    at = 8
    while at + 12 <= len(data) and len(chunks) < 200:
        size, name = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + size]
        chunks.append((name, body, data[at + 8 + size : at + 12 + size]))
        at += 12 + size
    if not chunks:
        return data
    keep_checksums = rng.random() < _SAME_CHECKSUM
    number = rng.randrange(len(chunks))
    name, body, checksum = chunks[number]
    what = rng.random()
    if what < 0.3 and chunks[0][0] == b"IHDR" and len(chunks[0][1]) == 13:
        width, height, *others = struct.unpack(">IIBBBBB", chunks[0][1])
        sizes = [width, height]
        if rng.random() < 0.4:
            changed = rng.randrange(2)
            sizes[changed] = _number(rng, 4, sizes[changed])
        else:
            others[rng.randrange(5)] = rng.choice((0, 1, 2, 3, 4, 6, 7, 8, 16, 32, 255))
        chunks[0] = (b"IHDR", struct.pack(">IIBBBBB", *sizes, *others), chunks[0][2])
    elif what < 0.5:
        bodies = [body for name, body, _ in chunks if name == b"IDAT"]
        first = next((at for at, chunk in enumerate(chunks) if chunk[0] == b"IDAT"), 0)
        try:
            values = zlib.decompress(b"".join(bodies))
        except zlib.error:
            return _changed(rng, data)
        packed = zlib.compress(_changed(rng, values), rng.choice((0, 1, 6)))
        parts = [packed]
        if rng.random() < 0.3:
            cut = rng.randint(0, len(packed))
            parts = [packed[:cut], b"", packed[cut:]]
        chunks = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
        chunks[first:first] = [(b"IDAT", part, bytes(4)) for part in parts]
    elif what < 0.7:
        chunks[number] = (name, _changed(rng, body), checksum)
    elif what < 0.78:
        del chunks[number]
    elif what < 0.84:
        chunks.insert(rng.randint(0, len(chunks)), chunks[number])
    elif what < 0.88:
        rng.shuffle(chunks)
    elif what < 0.94:
        body = rng.randbytes(rng.choice((0, 1, 3, 4, 9, 26, 32, 768)))
        if rng.random() < 0.3:  # what says its length itself: a name, and then something compressed
            body = b"a\0\0" + zlib.compress(rng.randbytes(9) * rng.choice((1, 10, 200_000)))
        chunks.insert(rng.randint(1, len(chunks)), (rng.choice(_PNG_OTHERS), body, bytes(4)))
    else:
        chunks[number] = (rng.choice(_PNG_OTHERS), body, checksum)
    out = [_PNG_START]
    for name, body, checksum in chunks:
        right = struct.pack(">I", zlib.crc32(name + body))
        size = _number(rng, 4, len(body)) if rng.random() < 0.01 else len(body)
        out += [struct.pack(">I", size), name, body, checksum if keep_checksums else right]
    return b"".join(out)


def _of_jpeg(rng: random.Random, data: bytes) -> bytes:
    segments: list[tuple[int, bytes, bytes]] = []  # marker, what it says, the data of its scan
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and len(segments) < 200:
        marker, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        end = at + 2 + max(2, size)
        after = end
        if marker == 0xDA:
            after = next(
                (
                    place
                    for place in range(end, len(data) - 1)
                    if data[place] == 0xFF and data[place + 1] not in (0, *range(0xD0, 0xD8))
                ),
                len(data),
            )
        segments.append((marker, data[at + 4 : end], data[end:after]))
        at = after
    if not segments:
        return data
    rest = data[at:]
    number = rng.randrange(len(segments))
    frames = [place for place, (marker, _, _) in enumerate(segments) if 0xC0 <= marker <= 0xCF and marker != 0xC4]
    scans = [place for place, (marker, _, _) in enumerate(segments) if marker == 0xDA]
    what = rng.random()
    if what < 0.25 and frames:
        number = rng.choice(frames)
        marker, body, scan = segments[number]
        changed = bytearray(body)
        if rng.random() < 0.2:
            marker = rng.randint(0xC0, 0xCF)
        elif len(changed) >= 6:
            place, width = rng.choice(((0, 1), (1, 2), (3, 2), (5, 1), *((at, 1) for at in range(6, len(changed)))))
            near = int.from_bytes(changed[place : place + width], "big")
            changed[place : place + width] = _number(rng, width, near).to_bytes(width, "big")
        segments[number] = (marker, bytes(changed), scan)
    elif what < 0.5 and scans:
        number = rng.choice(scans)
        marker, body, scan = segments[number]
        if rng.random() < 0.3:
            body = _changed(rng, body)
        else:  # stuffing kept, so that a change does not end the scan
            scan = _changed(rng, scan.replace(b"\xff\0", b"\xff")).replace(b"\xff", b"\xff\0")
        segments[number] = (marker, body, scan)
    elif what < 0.75:
        marker, body, scan = segments[number]
        segments[number] = (marker, _changed(rng, body), scan)
    elif what < 0.82:
        del segments[number]
    elif what < 0.9:
        segments.insert(rng.randint(0, len(segments)), segments[number])
    elif what < 0.95:
        rng.shuffle(segments)
    else:
        marker = rng.choice((0xC4, 0xDB, 0xDD, 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE, 0xDC, 0xCC))
        segments.insert(rng.randint(0, len(segments)), (marker, rng.randbytes(rng.choice((0, 1, 2, 14, 65))), b""))
    out = [data[:2]]
    for marker, body, scan in segments:
        size = _number(rng, 2, len(body) + 2) if rng.random() < 0.01 else len(body) + 2
        out += [b"\xff", bytes((marker,)), (size & 0xFFFF).to_bytes(2, "big"), body, scan]
    return b"".join(out) + rest


def _of_bmp(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    if len(changed) < 54:
        return _changed(rng, data)
    if rng.random() < 0.25:
        start = min(len(changed), int.from_bytes(changed[10:14], "little"))
        return bytes(changed[:start]) + _changed(rng, bytes(changed[start:]))
    at, width = rng.choice(_BMP_FIELDS)
    if at == 28:
        value = rng.choice((0, 1, 2, 4, 8, 16, 24, 32, 64))
    elif at == 30:
        value = rng.choice((0, 1, 2, 3, 4, 5, 6, 11))
    elif at == 14:
        value = rng.choice((12, 16, 40, 52, 56, 64, 108, 124, 0, 255))
    else:
        value = _number(rng, width, int.from_bytes(changed[at : at + width], "little"))
    changed[at : at + width] = value.to_bytes(width, "little")
    return bytes(changed)


def _of_tiff(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    if len(changed) < 16 or bytes(changed[:2]) not in (b"II", b"MM"):
        return _changed(rng, data)
    order: Order = "little" if changed[:2] == b"II" else "big"
    big = int.from_bytes(changed[2:4], order) == 43
    wide = 8 if big else 4  # bytes of a place in the file

    def read(at: int, width: int) -> int:
        return int.from_bytes(changed[at : at + width], order)

    def write(at: int, width: int, value: int) -> None:
        if at + width <= len(changed):
            changed[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, order)

    directory = read(8 if big else 4, wide)
    head, entry = (8, 20) if big else (2, 12)
    if directory + head > len(changed):
        return _changed(rng, data)
    count = read(directory, head)
    if not 0 < count < 200:
        return _changed(rng, data)
    at = directory + head + entry * rng.randrange(count)
    what = rng.random()
    if what < 0.5:  # the value, or where the values lie
        write(at + 4 + wide, rng.choice((1, 2, wide)), _number(rng, wide, read(at + 4 + wide, wide)))
    elif what < 0.65:  # how many there are
        write(at + 4, wide, _number(rng, wide, read(at + 4, wide)))
    elif what < 0.75:
        write(at + 2, 2, rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 16, 17, 18, 99)))
    elif what < 0.85:
        write(at, 2, rng.choice(_TIFF_TAGS))
    elif what < 0.9:
        write(directory, head, _number(rng, head, count))
    elif what < 0.95:  # the next page: this one again, or nowhere
        write(directory + head + entry * count, wide, rng.choice((directory, 0, 8, len(changed), directory + 2)))
    else:
        values = read(at + 4 + wide, wide)
        if values + 8 <= len(changed):
            write(values, rng.choice((2, 4, 8)), _number(rng, 8, read(values, 8)))
    return bytes(changed)


_OF_FORMAT: Final[dict[str, Callable[[random.Random, bytes], bytes]]] = {
    "JPEG": _of_jpeg,
    "PNG": _of_png,
    "BMP": _of_bmp,
    "TIFF": _of_tiff,
}
