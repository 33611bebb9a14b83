"""The watched folders together: which of them a path belongs to, and what lies in them that is no export."""

from __future__ import annotations

import contextlib
import ctypes
import fnmatch
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import psutil

__all__ = ["FileNumbers", "Roots", "is_network_folder", "kind_of", "mount_in", "mount_of", "real_path"]

_DRIVE_REMOTE: Final = 4  # GetDriveTypeW
_MOUNTS: Final = Path("/proc/mounts")
_NETWORK_FILE_SYSTEMS: Final = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "drvfs",
        "glusterfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "prl_fs",
        "smb3",
        "smbfs",
    }
    | {"vboxsf", "virtiofs", "vmhgfs"}
)


_NUMBERS_STAY: Final = frozenset(
    {
        "apfs",
        "bcachefs",
        "btrfs",
        "ext2",
        "ext3",
        "ext4",
        "f2fs",
        "hfs",
        "jfs",
        "nilfs2",
        "ntfs",
        "ntfs3",
        "refs",
        "reiserfs",
    }
    | {"tmpfs", "ubifs", "ufs", "xfs", "zfs"}
)
"""File systems that write a file's number on the disk. FAT has none and makes them up at each mount; of those that are
not listed nobody knows."""

_OF_A_LAB: Final = frozenset({"labref.toml", "store.duckdb"})
_THUMBNAILS: Final = "thumbnails"


class Roots:
    """The watched folders as they are now. Where one lies in another, or a link leads into it, the innermost counts."""

    def __init__(self, folders: Sequence[Path], excluded: Iterable[Path] = (), reserved: Iterable[str] = ()) -> None:
        """excluded : folders in them that are no export.  reserved : names of folders and files that are none, upper
        and lower case alike; `*` stands for any characters."""
        self._by_real: dict[str, str] = {}
        for folder in folders:
            self._by_real.setdefault(real_path(str(folder)), str(folder))
        self._excluded = {real_path(str(folder)) for folder in excluded}
        names = [name.lower() for name in reserved]
        self._names = frozenset(name for name in names if "*" not in name)
        patterns = [fnmatch.translate(name.replace("[", "[[]").replace("?", "[?]")) for name in names if "*" in name]
        self._pattern = re.compile("|".join(patterns)) if patterns else None

    @property
    def folders(self) -> list[str]:
        """The watched folders; of several that are one, the first."""
        return list(self._by_real.values())

    def is_root(self, real: str) -> bool:
        """Whether the folder with this `real_path` is a watched one."""
        return real in self._by_real

    def is_excluded(self, real: str) -> bool:
        """Whether the folder with this `real_path` is no export."""
        return real in self._excluded

    def is_reserved(self, name: str, *, folder: bool = False) -> bool:
        """Whether the system, or the maker of a file server, keeps this name of a file or folder for itself. folder :
        it is a folder's, which is left alone, too, where it begins with a dot: that hides it."""
        if folder and name.startswith("."):
            return True
        name = name.lower()
        return name in self._names or (self._pattern is not None and self._pattern.match(name) is not None)

    def is_of_a_lab(self, name: str, beside: Callable[[str], bool]) -> bool:
        """Whether the folder called `name` holds the pictures that a lab, this one or another, makes of its cells.
        beside : whether there is a file of some name beside it."""
        return name == _THUMBNAILS and all(map(beside, _OF_A_LAB))

    def home(self, path: str, root: str) -> tuple[str, str] | None:
        """Where a scan meets the file that an event in the watched folder `root` called `path`: its path, and the
        watched folder it belongs to. None where it lies in what a scan leaves alone."""
        real = real_path(root)
        parts = path[len(root) :].strip(os.sep).split(os.sep)  # noqa: PTH206
        owner, start = self._by_real.get(real, root), 0
        if real in self._excluded:
            return None
        for number, part in enumerate(parts[:-1], 1):
            above = real
            if self.is_of_a_lab(part, lambda name: os.path.exists(os.path.join(above, name))):  # noqa: B023, PTH110, PTH118
                return None
            real = os.path.join(real, os.path.normcase(part))  # noqa: PTH118
            if real in self._excluded:
                return None
            if real in self._by_real:
                owner, start = self._by_real[real], number
        if self.is_reserved(parts[-1]) or any(self.is_reserved(part, folder=True) for part in parts[start:-1]):
            return None
        return os.path.join(owner, *parts[start:]), owner  # noqa: PTH118


def real_path(path: str) -> str:
    """`path` without links, and in lower case where the system does not tell it from upper: equal for equal folders."""
    return os.path.normcase(os.path.realpath(path))


class FileNumbers:
    """The inode numbers of files, where they say that a file is the same: network shares, FAT and others number files
    anew. Each watched folder is looked up once."""

    def __init__(self) -> None:
        self._kept: dict[str, bool] = {}

    def of(self, root: str, inode: int) -> int | None:
        """The number of a file in the watched folder `root`; None where numbers do not stay."""
        if root not in self._kept:
            folder = Path(root)
            self._kept[root] = not is_network_folder(folder) and kind_of(folder) in _NUMBERS_STAY
        return inode if self._kept[root] else None


def is_network_folder(folder: Path) -> bool:
    """Whether `folder` lies on a network share or a virtual machine's shared folder, where file events cannot be relied
    on."""
    if sys.platform == "win32":
        drive = os.path.splitdrive(os.path.realpath(folder))[0]
        if drive.startswith("\\\\"):
            return True
        return bool(ctypes.windll.kernel32.GetDriveTypeW(drive + "\\") == _DRIVE_REMOTE)
    kind = kind_of(folder)
    # sshfs and its like; a local disk through FUSE (ntfs-3g) is "fuseblk"
    return kind in _NETWORK_FILE_SYSTEMS or kind.startswith("fuse.")


def kind_of(folder: Path) -> str:
    """The kind of file system that `folder` lies on, in lower case; "" where it cannot be found out."""
    return mount_of(folder)[1]


def mount_of(folder: Path) -> tuple[str, str]:
    """Where the file system that `folder` lies on is mounted, and its kind in lower case; both are "" where they cannot
    be found out."""
    place = os.path.realpath(folder)
    with contextlib.suppress(FileNotFoundError):  # Linux has it
        return mount_in(place, _MOUNTS.read_bytes().decode("utf-8", "surrogateescape"))
    mounted = {os.path.normcase(one.mountpoint): one.fstype.lower() for one in psutil.disk_partitions(all=True)}
    above = [os.path.normcase(str(one)) for one in (Path(place), *Path(place).parents)]
    return next(((one, mounted[one]) for one in above if one in mounted), ("", ""))


def mount_in(folder: str, mounts: str) -> tuple[str, str]:
    """The same for `folder`, a path without links, where `mounts` is the content of /proc/mounts."""
    best, kind = "", ""
    for line in mounts.splitlines():
        _, written, found, *_ = line.split(" ")
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), written)
        inside = folder == point or folder.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # of two mounts at one point the later one is seen
            best, kind = point, found
    return best, kind
