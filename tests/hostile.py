"""Pictures that harm a decoder which is given no limits, each made as small as it can be."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image

__all__ = ["huge_png", "many_scans"]


def many_scans(scans: int, side: int, shade: int = 120) -> bytes:
    """A progressive JPEG of side×side pixels, in which one empty scan comes so many times: it costs a decoder time, not
    bytes. `shade`, 0 to 255, makes one differ from another."""
    image = Image.new("RGB", (side, side), (shade,) * 3)
    image.paste((20, 20, 20), (side // 64 * 16,) * 2 + (side // 32 * 16,) * 2)  # of whole blocks: the scan stays empty
    file = io.BytesIO()
    image.save(file, "JPEG", quality=20, progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    table = data[data.rindex(b"\xff\xc4", 0, last) : last]
    header = data[last : last + 2 + struct.unpack(">H", data[last + 2 : last + 4])[0]]
    return data[:last] + (table + header + bytes(4)) * scans + b"\xff\xd9"


def huge_png(width: int, height: int) -> bytes:
    """A PNG of one colour: some kilobytes that become width × height × 4 bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows, some = (b"\0" + b"\xb0" * (4 * width)) * 50, height // 50
    packer = zlib.compressobj(9, wbits=-15)
    part = packer.compress(rows) + packer.flush(zlib.Z_FULL_FLUSH)  # nothing in it refers to what came before
    rest = rows[: len(rows) // 50 * (height % 50)]
    body = b"\x78\xda" + part * some + packer.compress(rest) + packer.flush()
    check = 1
    for _ in range(some):
        check = zlib.adler32(rows, check)
    body += struct.pack(">I", zlib.adler32(rest, check))
    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
