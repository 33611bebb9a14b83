"""Whether a file is written to its end: a copy in the making may have its final size from the start, with zeros where
nothing has arrived yet.

A BMP or an uncompressed TIFF becomes black there; a compressed picture may fail to decode, or become anything. Some
programs write another value than zero into what is missing of a BMP, or close a JPEG that was cut off, whose rest
becomes grey, or coarse (`labref.cells.scans`). A black band that belongs to the picture is told from what is missing by
where it begins and ends: a frame or a letterbox goes along whole rows, while a copy stops in the middle of one, or at
the blocks of a disk. A part that ends between two rows is taken for missing where it is more than a fifth of the
picture with no counterpart at the other end, or has picture on both sides.

What is refused here is waited for like any file that is no usable image yet (`labref.export.settle`): it is read again
when it changes, and is rejected with this reason once it has stood still for `complete_seconds`.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, TiffImagePlugin

from labref.cells.scans import require_scans
from labref.errors import UnreadableImageError

__all__ = ["require_complete"]

_BLOCK = 512  # bytes; disks are written in multiples of it
_ZEROS = bytes(_BLOCK)
_WRITTEN = re.compile(rb"[^\0]")
_JPEG_TAIL = 64  # bytes; a scan that ends in so many zeros, and nothing after it
_PACKED = (5, 8, 32773, 32946)  # compressions of a TIFF: LZW, deflate, PackBits, deflate
_LEAST_CUT = 16  # bytes of a row; what ends nearer to its edge ends between two rows
_LEAST_CONTENT = 0.2  # of the bytes of a row that holds a picture are not zero
_DARK = 16
_BAND_SHARE = 0.2  # of the picture
_BAND_ROWS = 2
_WHITE = 0xFF
_UNDECODED = 128  # what a decoder makes of the blocks that a scan does not bring


@dataclass(frozen=True)
class _Raw:
    """Where the values of a picture lie in its file.

    start, end : bytes.  row : bytes of one row, padding with it; 0 where they do not lie row by row.  dark : whether
    zeros are black.  packed : so that many zeros on end mean nothing.
    """

    start: int
    end: int
    row: int
    dark: bool
    packed: bool = False


def require_complete(data: bytes, image: Image.Image) -> None:
    """Raise `UnreadableImageError` where parts of the file `data`, opened as `image`, are zeros that were never
    written."""
    if image.format == "JPEG" and data[-_JPEG_TAIL:] == bytes(_JPEG_TAIL) and not _has_end(data):
        raise _incomplete(data, len(data.rstrip(b"\0")), len(data))
    if image.format in ("JPEG", "MPO"):
        _require_scan(image)
        require_scans(data, image)
    if image.format == "BMP":
        _require_filled(data, image)
    if image.format == "PNG":
        _require_chunks(data)
        return
    at = data.find(_ZEROS)
    raw = None if at < 0 else _raw(data, image)
    while at >= 0:
        written = _WRITTEN.search(data, at + _BLOCK)
        end = len(data) if written is None else written.start()
        if raw is None:  # zeros after a compressed picture are nobody's
            missing = written is not None and (_is_of_blocks(at, end) or _is_no_scan(data, at, image))
        elif raw.packed and at < raw.end and end > raw.start:
            missing = True
        elif at < raw.end and end > raw.start:
            missing = _is_of_blocks(at, end, written is None) or _is_missing(
                data, raw, max(at, raw.start), min(end, raw.end)
            )
        else:
            missing = False
        if missing:
            raise _incomplete(data, at, end)
        at = data.find(_ZEROS, end)


def _require_scan(image: Image.Image) -> None:
    """Raise where the scan of a JPEG ended before its picture: the blocks to the last one are of one grey, and they
    begin within a row of blocks, or are more than a fifth of the picture."""
    last = image.getpixel((image.width - 1, image.height - 1))
    if image.mode not in ("L", "RGB") or {*(last if isinstance(last, tuple) else (last,))} != {_UNDECODED}:
        return
    layers = getattr(image, "layer", None) or [(1, 1, 1, 0)]
    side_x, side_y = 8 * max(layer[1] for layer in layers), 8 * max(layer[2] for layer in layers)
    grey = (np.atleast_3d(np.asarray(image)) == _UNDECODED).all(axis=2)
    rows, columns = -(-image.height // side_y), -(-image.width // side_x)
    whole = np.ones((rows * side_y, columns * side_x), np.bool_)
    whole[: image.height, : image.width] = grey
    blocks = whole.reshape(rows, side_y, columns, side_x).all(axis=(1, 3)).ravel()
    written = int(np.flatnonzero(~blocks).max(initial=-1)) + 1
    left = len(blocks) - written
    row, column = divmod(written, columns)
    cut = column > 0 and not blocks[max(0, (row - 1) * columns + column) : row * columns].all()
    if left and (cut or left > _BAND_SHARE * len(blocks)):
        raise UnreadableImageError(
            f"truncated: the picture ends after {written} of its {len(blocks)} blocks, and the rest is grey; copy it again"
        )


def _require_filled(data: bytes, image: Image.Image) -> None:
    """Raise where the pixels of a BMP end in one value that is not zero and cannot belong to the picture: it begins
    within a row, beside a row that goes on, or, as a bright background is white, at a block of the disk."""
    raw = _raw(data, image)
    value = data[raw.end - 1] if raw is not None and raw.row else 0
    if raw is None or not value or data[raw.end - _BLOCK : raw.end] != bytes((value,)) * _BLOCK:
        return
    start = raw.start + len(data[raw.start : raw.end].rstrip(bytes((value,))))
    first, begins = divmod(start - raw.start, raw.row)
    if raw.end - start < raw.row or first < 1:
        return
    if value == _WHITE:
        cut = start % _BLOCK == 0
    else:
        beside = np.frombuffer(data[raw.start + (first - 1) * raw.row + begins : raw.start + first * raw.row], np.uint8)
        cut = len(beside) >= _LEAST_CUT and float((beside != value).mean()) >= _LEAST_CONTENT
    if cut and begins:
        raise UnreadableImageError(
            f"not completely written: of its {len(data)} bytes, those from byte {start} to byte {raw.end} are all {value:#04x} (a "
            "copy that has not ended, or broke off); copy it again"
        )


def _is_of_blocks(start: int, end: int, at_end: bool = False) -> bool:
    return start % _BLOCK == 0 and (at_end or end % _BLOCK == 0)


def _is_no_scan(data: bytes, at: int, image: Image.Image) -> bool:
    """Whether zeros from byte `at` cannot be part of the scan of a JPEG: with its Huffman table they would not mean
    that nothing changes, as in a flat picture, but all the finest patterns at once."""
    if image.format != "JPEG" or image.info.get("progressive"):
        return False
    segment, first_symbol = 2, 0
    while segment + 4 <= len(data) and data[segment] == 0xFF:
        marker, size = data[segment + 1], int.from_bytes(data[segment + 2 : segment + 4], "big")
        table, end = segment + 4, segment + 2 + size
        while marker == 0xC4 and table + 17 < end:
            if data[table] == 0x10:  # for all but the mean, of brightness
                first_symbol = data[table + 17]  # the one whose code is zeros
            table += 17 + sum(data[table + 1 : table + 17])
        segment = end
        if marker == 0xDA:
            return at >= segment and first_symbol & 0x0F != 0
    return False


def _incomplete(data: bytes, start: int, end: int) -> UnreadableImageError:
    where = "its end" if end == len(data) else f"byte {end}"
    return UnreadableImageError(
        f"not completely written: of its {len(data)} bytes, those from byte {start} to {where} are zeros (a copy that has "
        "not ended, or broke off); copy it again"
    )


def _require_chunks(data: bytes) -> None:
    """Raise where a PNG has no end, or a part of its picture is not as its checksum says, which Pillow does not
    look at."""
    at = 8
    while at + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IEND":
            return
        if kind == b"IDAT" and zlib.crc32(data[at + 4 : at + 8 + size]) != int.from_bytes(
            data[at + 8 + size :][:4], "big"
        ):
            raise UnreadableImageError(
                f"damaged, or not completely written: the bytes {at} to {at + size + 12} of the PNG do not match their checksum; copy "
                "it again"
            )
        at += size + 12
    raise UnreadableImageError("truncated: the PNG has no end; copy it again")


def _has_end(data: bytes) -> bool:
    """Whether a JPEG has its end mark. Among a scan's own bytes none looks like it; in what comes before, one may."""
    return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda") >= 0


def _raw(data: bytes, image: Image.Image) -> _Raw | None:
    """None where the values are those of a JPEG."""
    width, height = image.size
    if image.format == "BMP":
        start, header = struct.unpack_from("<II", data, 10)
        bits = struct.unpack_from("<H", data, 24 if header == 12 else 28)[0]
        if header != 12 and struct.unpack_from("<I", data, 30)[0] in (1, 2):  # run lengths: zeros end rows
            return _Raw(start, len(data), 0, dark=True)
        row = (width * bits + 31) // 32 * 4
        return _Raw(start, min(start + row * height, len(data)), row, dark=bits > 8 or _black_is_first(image))
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or image.tag_v2.get(259, 1) not in (1, *_PACKED):
        return None
    tags = image.tag_v2
    dark = tags.get(262) in (1, 2) or (tags.get(262) == 3 and _black_is_first(image))
    if 324 in tags:  # tiles
        starts, sizes, row = tags[324], tags[325], 0
    else:
        starts, sizes = tags[273], tags.get(279, (len(data),))
        samples = int(tags.get(277, 1)) if tags.get(284, 1) == 1 else 1
        row = (width * samples * max(tags.get(258, (1,))) + 7) // 8
        if any(one + size != after for one, size, after in zip(starts, sizes, starts[1:], strict=False)):
            row = 0
    ends = [start + size for start, size in zip(starts, sizes, strict=False)]
    return _Raw(min(starts), min(max(ends), len(data)), row, dark, packed=tags.get(259, 1) in _PACKED)


def _black_is_first(image: Image.Image) -> bool:
    palette = image.getpalette() if image.mode == "P" else [0]
    return max((palette or [0])[:3]) <= _DARK


def _is_missing(data: bytes, raw: _Raw, start: int, end: int) -> bool:
    """Whether the zeros of a raw picture from `start` to `end` were never written; both lie in it."""
    whole = raw.end - raw.start
    if not raw.row:
        return raw.dark and end == raw.end and end - start > _BAND_SHARE * whole
    first, begins = divmod(start - raw.start, raw.row)
    last, ends = divmod(end - raw.start, raw.row)
    if last - first - (begins > 0) < 1:  # not one whole row: a scale bar
        return False

    def holds_picture(row: int, left: int, right: int) -> bool:
        at = raw.start + row * raw.row
        part = np.frombuffer(data[at + left : at + right], np.uint8)
        return right - left >= _LEAST_CUT and float((part != 0).mean()) >= _LEAST_CONTENT

    cut_begin = begins > 0 and first > 0 and holds_picture(first - 1, begins, raw.row)
    cut_end = ends > 0 and raw.start + (last + 2) * raw.row <= raw.end and holds_picture(last + 1, 0, ends)
    if cut_begin or cut_end:
        return True
    at_begin, at_end = start <= raw.start + _LEAST_CUT, end >= raw.end - _LEAST_CUT
    if not raw.dark:
        return False
    if not at_begin and not at_end:
        between = begins < _LEAST_CUT or raw.row - begins < _LEAST_CUT
        return between and (ends < _LEAST_CUT) and end - start > _BAND_ROWS * raw.row
    opposite = data[raw.start : raw.start + raw.row] if at_end else data[raw.end - raw.row : raw.end]
    return end - start > _BAND_SHARE * whole and ((at_begin and at_end) or any(opposite))
