"""Small file systems of a benchmark's own, which really fill up, and of which a power cut leaves what was written.

    why_not = mount_for_oneself()          # None where it works: root of a Linux that allows it
    disk = SmallDisk(image, folder, megabytes=256)
    with disk.full(bytes_left): ...        # whoever writes meets ENOSPC, wherever that happens
    disk.cut_power()                       # what was never flushed to the disk is gone

Mounts are in a namespace of this process and its children: nobody else sees them, and they end with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = ["SmallDisk", "mount_for_oneself"]

_NEW_MOUNTS: Final = 0x00020000  # CLONE_NEWNS
_WRITE: Final = 2  # SYNC_FILE_RANGE_WRITE
_BLOCK: Final = 4096


def mount_for_oneself() -> str | None:
    """Give this process mounts of its own, where it may mount. Returns why it may not, None where it may."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "only root of a Linux mounts a file system"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNTS) != 0:
        return f"no mounts of its own: {os.strerror(ctypes.get_errno())}"
    try:
        _do("mount", "--make-rprivate", "/")
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no mounts of its own: {_said(error)}"
    return None


class SmallDisk:
    """An ext4 file system in the file `image`, mounted at `folder`, which exists. Raises OSError where the system does
    not mount it."""

    def __init__(self, image: Path, folder: Path, *, megabytes: int) -> None:
        self._image, self._folder = image, folder
        with image.open("wb") as file:
            file.truncate(megabytes << 20)
        try:
            # no blocks set aside for root; its log of changes small, so that more is left
            _do("mkfs.ext4", "-q", "-F", "-m", "0", "-J", "size=4", str(image))
            self._mount()
        except (OSError, subprocess.CalledProcessError) as error:
            raise OSError(f"a small disk is not mounted here: {_said(error)}") from None

    def _mount(self) -> None:
        # the kernel flushes what nobody asks it to flush only every so many seconds
        _do("mount", "-t", "ext4", "-o", "loop,noatime,commit=300", str(self._image), str(self._folder))

    def flush(self) -> None:
        """All that is written is on the disk, as some time after it was written."""
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
                raise OSError(ctypes.get_errno(), "syncfs")
        finally:
            os.close(descriptor)

    @contextmanager
    def full(self, bytes_left: int) -> Iterator[None]:
        """Until it ends, the disk takes about so many bytes more."""
        filler = self._folder / "filler"
        with filler.open("wb") as file:
            free = os.statvfs(self._folder)
            size = free.f_bavail * free.f_frsize - bytes_left
            while size > 0:  # the lists of a large file's blocks take room themselves
                with contextlib.suppress(OSError):
                    os.posix_fallocate(file.fileno(), 0, size)
                    break
                size -= 64 * _BLOCK
        try:
            yield
        finally:
            filler.unlink()

    def write_out_some(self, rng: random.Random) -> None:
        """Have the kernel write the beginnings of some files to the disk, in no order, as it does now and then."""
        libc = ctypes.CDLL(None)
        libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
        files = [path for path in self._folder.rglob("*") if path.is_file() and path.stat().st_size]
        for path in rng.sample(files, min(4, len(files))):
            with path.open("rb") as file:
                size = path.stat().st_size
                begin = rng.randrange(size) // _BLOCK * _BLOCK
                libc.sync_file_range(file.fileno(), begin, rng.randint(1, size), _WRITE | 1 | 4)

    def cut_power(self) -> None:
        """Go on with what is on the disk at this moment: what was written and not flushed is gone."""
        cut = self._image.with_suffix(".cut")
        _do("cp", "--sparse=auto", str(self._image), str(cut))
        self.remove()
        cut.replace(self._image)
        self._mount()

    def remove(self) -> None:
        """Unmount it; the file stays."""
        _do("umount", str(self._folder))


def _do(*command: str) -> None:
    subprocess.run(command, capture_output=True, check=True, text=True)


def _said(error: OSError | subprocess.CalledProcessError) -> str:
    return error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
