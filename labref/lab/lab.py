"""One lab: a folder with its configuration, store, kept images, bundles and logs.

LAB/labref.toml                   what is watched, and how (labref.config)
LAB/store.duckdb                  the latent store (labref.store)
LAB/images/<ab>/<cd>/<sha256>     original bytes of every cell, named by their digest
LAB/bundles/<short>/              installed bundles (labref.bundles.bundle)
LAB/maps/<number>.npz             weights of the newest maps (labref.store.duckdb.maps)
LAB/token                         secret of this lab's agent, readable by its owner only
LAB/metrics-token                 what a monitoring server on another computer sends; where [metrics] names an address
LAB/key, LAB/key.pub              the lab's own key, which signs packs for the centre (labref.lab.contributing)
LAB/packs/                        what the centre has of this lab by its packs
LAB/agent.json                    where the running agent listens; gone when none runs
LAB/logs/proven.json              which bundles this computer was seen to run rightly (labref.bundles.proof)
LAB/logs/embedding.json           which cells the networks are at work on (labref.lab.suspects)
LAB/logs/novelty.json             how far the cells of a large lab lie from each other (labref.asking.novelty)
LAB/logs/crash.txt                where the agent crashed, if it did
LAB/logs/labref.log               JSON lines, rotated
LAB/thumbnails/<ab>/              small pictures for pages, made again where they are missing (labref.lab.pictures)

All of it is for its owner alone, or for its group where labref.toml says so (labref.files).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import itertools
import logging
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from labref.bundles.atlas import Atlas
from labref.bundles.bundle import Bundle, starter_bundle
from labref.bundles.proof import prove
from labref.bundles.trial import Inference
from labref.cells.decoding import Decoder, Limits, decoder
from labref.config import Config, load_config, starting_config
from labref.errors import BundleError, LabError
from labref.export.paths import path_to_text
from labref.failpoints import failpoint
from labref.files import GROUP, OWNER, Rights, follow, give, give_all, read_file, sync_folder
from labref.lab.moved import follow_folders
from labref.lab.presence import clear_marks
from labref.lab.trust import bring_in, public_key_in, take_over, trust_key
from labref.som.placing import open_placer
from labref.store import Store

__all__ = ["Lab", "absolute", "new_token", "refuse_in_lab", "refuse_own"]

_CONFIG = "labref.toml"
_STORE = "store.duckdb"
_INCOMING = ".incoming"  # inside images/: bytes on their way to their name
_OWN_NAMES = (
    _CONFIG,
    _STORE,
    "images",
    "bundles",
    "maps",
    "logs",
    "thumbnails",
    "token",
    "metrics-token",
    "key",
    "key.pub",
    "packs",
    "agent.json",
)
_LEFT_OUT = ("images", "bundles", "logs", "thumbnails")
_CELL_ID = re.compile(r"[0-9a-f]{16}")
_SHORT = re.compile(r"[0-9a-f]{12}")  # of a bundle's digest
_sequence = itertools.count()


@dataclass(frozen=True)
class Lab:
    """A lab's folder (absolute) and its configuration."""

    folder: Path
    config: Config

    @staticmethod
    def find(explicit: Path | None = None) -> Lab:
        """The lab at `explicit`, else at LABREF_LAB, else the nearest parent folder with a labref.toml.

        Raises `LabError` with the remedy where there is none, `ConfigError` where its labref.toml is wrong.
        """
        if explicit is not None:
            return Lab.open(explicit)
        named = os.environ.get("LABREF_LAB")
        if named:
            return Lab.open(Path(named))
        here = Path.cwd()
        for folder in (here, *here.parents):
            if (folder / _CONFIG).is_file():
                return Lab.open(folder)
        raise LabError(
            f"no lab here: neither {here} nor a folder above it holds a {_CONFIG}. Name one with --lab DIR or LABREF_LAB, "
            "or make one with `labref init DIR --watch FOLDER`."
        )

    @staticmethod
    def open(folder: Path) -> Lab:
        """The lab in `folder`. Raises `LabError` where it is none, `ConfigError` where its labref.toml is wrong."""
        folder = absolute(folder)
        try:
            there = (folder / _CONFIG).is_file()
        except PermissionError:
            raise LabError(_of_another_user(folder)) from None
        if not there:
            why = f"it has no {_CONFIG}" if folder.is_dir() else "there is no such folder"
            raise LabError(f"{folder} is no lab: {why}. Make one with `labref init {folder} --watch FOLDER`.")
        lab = Lab(folder, load_config(folder / _CONFIG))
        refuse_own(folder, lab.watched)
        lab._refuse_two_analysers()
        follow(lab.rights)
        return lab

    @staticmethod
    def create(
        folder: Path,
        watch: Sequence[Path],
        bundle: Path | None = None,
        *,
        analyser: str | Sequence[str] | None = None,
        keys: Sequence[Path] = (),
        unsigned: bool = False,
    ) -> Lab:
        """Make a lab in `folder` (made where missing) that watches the folders `watch`.

        bundle : a bundle file or folder to install; None installs the starter bundle.
        analyser : whose cells these are; several names are of one watched folder each, in their order.
        keys : files of public keys that the lab trusts as well as labref's own.  unsigned : the bundle may come
        without a signature. Refuses, with `LabError`, a folder that already is a lab and watched folders that are not
        there. Where anything fails, nothing of the lab is left behind.
        """
        folder = absolute(folder)
        if (folder / _CONFIG).exists():
            raise LabError(
                f"{folder} already is a lab. Nothing was changed; to watch another folder edit {folder / _CONFIG}."
            )
        taken = next((name for name in _OWN_NAMES if (folder / name).exists()), None)
        if taken:
            raise LabError(f"{folder} already holds something called {taken!r}. Choose another folder for the lab.")
        refuse_in_lab(folder)
        names = [analyser] if isinstance(analyser, str) else list(analyser or ())
        if len(names) > 1 and len(names) != len(watch):
            raise LabError(
                f"{len(names)} analysers are named, and {len(watch)} folders watched. Name one for all, or one for each folder, in their order."
            )
        given = (
            dict(zip(watch, names, strict=True))
            if len(names) > 1
            else dict.fromkeys(watch, names[0] if names else None)
        )
        watched = [_watchable(path) for path in given]
        refuse_own(folder, watched)
        made = _first_missing(folder)
        staging: Path | None = None
        moved: list[Path] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=".labref-init-", dir=folder))
            _fill(staging, watched, bundle, list(given.values()), keys, unsigned)
            for entry in staging.iterdir():
                give_all(entry, OWNER)
            if not _holds_others(folder, watched):
                give(folder, OWNER, passed=_passed(folder, watched))
            # labref.toml goes last: until it is there, the folder is no lab
            for name in sorted((entry.name for entry in staging.iterdir()), key=lambda name: name == _CONFIG):
                target = folder / name
                failpoint("init.rename")
                os.replace(staging / name, target)
                moved.append(target)
            return Lab.open(folder)
        except BaseException as error:
            for path in moved:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)
            if made is not None:
                shutil.rmtree(made, ignore_errors=True)
            if isinstance(error, OSError):
                raise LabError(
                    f"cannot make a lab in {folder}: {error.strerror or error}. Choose a folder that can be written."
                ) from None
            raise
        finally:
            if staging is not None and staging.exists():
                shutil.rmtree(staging, ignore_errors=True)

    @property
    def config_file(self) -> Path:
        """LAB/labref.toml."""
        return self.folder / _CONFIG

    @property
    def store_file(self) -> Path:
        """LAB/store.duckdb."""
        return self.folder / _STORE

    @property
    def images(self) -> Path:
        """LAB/images, the original bytes of every cell."""
        return self.folder / "images"

    @property
    def bundles(self) -> Path:
        """LAB/bundles, one folder for each installed bundle."""
        return self.folder / "bundles"

    @property
    def log_file(self) -> Path:
        """LAB/logs/labref.log, JSON lines."""
        return self.folder / "logs" / "labref.log"

    @property
    def suspects_file(self) -> Path:
        """LAB/logs/embedding.json, which cells the networks are at work on; see `labref.lab.suspects`."""
        return self.folder / "logs" / "embedding.json"

    @property
    def thumbnails(self) -> Path:
        """LAB/thumbnails, small pictures for pages; it may be deleted at any time."""
        return self.folder / "thumbnails"

    @property
    def shared_password_file(self) -> Path | None:
        """The file that holds the password of the shared store, where labref.toml names one."""
        file = self.config.shared.password_file
        return None if file is None else self._from_lab(file)

    @property
    def agent_file(self) -> Path:
        """LAB/agent.json: pid, port and start of the running agent."""
        return self.folder / "agent.json"

    @property
    def watched(self) -> tuple[Path, ...]:
        """The export folders, absolute; relative ones in labref.toml are meant from the lab folder."""
        return tuple(self._from_lab(path) for path in self.config.watch.folders)

    def _from_lab(self, path: Path) -> Path:
        return absolute(path) if str(path).startswith("~") else absolute(self.folder / path)

    @cached_property
    def decoder(self) -> Decoder:
        """Decodes pictures, within the limits of labref.toml's [decoding]."""
        return decoder(Limits(**self.config.decoding.model_dump()))

    @property
    def inference(self) -> Inference:
        """How networks are run, by labref.toml's [inference]."""
        return _inference(self.config)

    @property
    def analysers(self) -> dict[str, str]:
        """The analysers of single watched folders, by the folder's absolute path, where labref.toml names them."""
        named = self.config.watch.analysers
        return {
            str(root): named[folder]
            for root, folder in zip(self.watched, self.config.watch.folders, strict=True)
            if folder in named
        }

    def _refuse_two_analysers(self) -> None:
        """Raise `LabError` where one folder is watched under two names, as by a link, with two analysers: its cells are
        of one of them."""
        watch = self.config.watch
        named: dict[str, tuple[Path, str | None]] = {}
        for root, folder in zip(self.watched, watch.folders, strict=True):
            analyser = watch.analysers.get(folder, watch.analyser)
            first, other = named.setdefault(_comparable(root), (folder, analyser))
            if other != analyser:
                raise LabError(
                    f"{first} and {folder} are one folder, and {self.folder / _CONFIG} gives it two analysers, {other or 'none'} and "
                    f"{analyser or 'none'}. Watch it under one name."
                )

    @property
    def rights(self) -> Rights:
        """Who may read what is made in this lab."""
        return GROUP if self.config.access.group else OWNER

    def give_rights(self) -> None:
        """Give the lab's folder, and what labref keeps in it, the rights that labref.toml says, and warn (logger
        `labref`) where they were open to more people until now."""
        if os.name == "nt":
            return
        passed = _passed(self.folder, self.watched)
        wanted = (self.rights.folder | passed) & 0o777
        before = self.folder.stat()
        if not _holds_others(self.folder, self.watched):
            give(self.folder, self.rights, passed=passed)
            if before.st_uid == os.geteuid() and self.folder.stat().st_mode & 0o777 != wanted:
                return  # the file system keeps rights of its own
        changed = [give_all(path, self.rights) for path in self._own_entries()]
        if before.st_mode & 0o077 & ~wanted and (any(changed) or self.folder.stat().st_mode != before.st_mode):
            who = "its owner and group (770, files 660)" if self.config.access.group else "its owner (700, files 600)"
            logging.getLogger("labref").warning(
                "note: %s could be read by other users of this computer; it is now for %s. To share a lab with its group: [access] "
                "group = true in labref.toml.",
                self.folder,
                who,
            )

    def _own_entries(self) -> Iterator[Path]:
        for entry in self.folder.iterdir():
            if entry.name in (*_OWN_NAMES, "unclaimed") or entry.name.startswith(_STORE):
                yield entry

    def open_store(self) -> Store:
        """Open the lab's store. Raises `StoreLockedError` while another process has it open, and other `StoreError`."""
        if not self.store_file.exists():
            raise LabError(
                f"{self.store_file} is missing. Put it back from a backup, or make a new lab with `labref init`."
            )
        if self.store_file.stat().st_nlink > 1:
            raise LabError(
                f"{self.store_file} is also in another folder, under another name of the same file (a hard link, as `cp -al` makes them): "
                f"what is written here would be written there, and damage it. Give this lab a file of its own: copy {_STORE} (and "
                f"{_STORE}.wal, if it is there) to another name, and put the copy in its place."
            )
        self.give_rights()
        store = Store.open(self.store_file, open_placer=open_placer)
        try:
            watched = [path_to_text(str(folder)) for folder in self.watched]
            store.slides.locate(watched)
            follow_folders(store, watched)
            take_over(store, self.bundles)
            store.outbox.switch(bool(self.config.shared.url))
            store.maps.own = self.config.map.per_analyser
        except BaseException:
            store.close()
            raise
        return store

    def bundle(self, store: Store) -> Bundle:
        """The lab's active bundle, verified. Raises `LabError` where the store names none, `BundleError` where it is
        damaged; see `ways_out`."""
        active = store.active_bundle()
        if active is None:
            raise LabError(f"no bundle is active in {self.folder}. Make the lab again with `labref init`.")
        with self.ways_out(store):
            return Bundle.installed(self.bundles, active)

    @contextlib.contextmanager
    def ways_out(self, store: Store) -> Iterator[None]:
        """A `BundleError` in the block is about the active bundle: it is raised with the bundle's name, and with the
        commands that help."""
        try:
            yield
        except BundleError as error:
            names = {
                bundle.digest: f"{bundle.name}/{bundle.version} ({bundle.digest[:12]})" for bundle in store.bundles()
            }
            active = store.active_bundle() or ""
            raise BundleError(
                f"the active bundle {names.get(active, active[:12])} cannot be used: {error} Ways out: bring its file in again (`labref "
                f"bundle install FILE`){_way_back(store, names)}, or change to another (`labref bundle install FILE`, then `labref bundle "
                "activate NAME --yes`; FILE may be the word starter, for the bundle that comes with this labref)."
            ) from error

    def token(self) -> str:
        """The secret that requests to this lab's agent carry. Raises `LabError` where it cannot be read."""
        return self._secret("token")

    def metrics_token(self) -> str:
        """What a monitoring server on another computer has to send; made when it is first asked for. Raises `LabError`
        where it cannot be read or made."""
        name = "metrics-token"
        try:
            new_token(self.folder, name)
        except FileExistsError:
            pass
        except OSError as error:
            raise LabError(
                f"cannot make {self.folder / name}: {error.strerror}. Give the agent's user access."
            ) from None
        return self._secret(name)

    def _secret(self, name: str) -> str:
        path = self.folder / name
        try:
            token = path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise LabError(
                f"cannot read {path}: {getattr(error, 'strerror', None) or error}. Use labref as the user who made the lab."
            ) from None
        if len(token) < 32:
            raise LabError(f"{path} holds no token. Write 32 or more random characters into it.")
        return token

    def pseudonym(self, path: str) -> str:
        """12 hexadecimal characters that stand for a path in logs; without this lab's token they cannot be turned
        back."""
        key = self.token().encode()
        return hmac.new(key, path.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:12]

    def image_path(self, digest: str) -> Path:
        """Where the original bytes with this digest (64 hexadecimal characters) are kept."""
        return self.images / digest[:2] / digest[2:4] / digest

    def read_image(self, digest: str) -> bytes:
        """The kept original bytes with this digest. Raises `LabError` where they are missing or damaged."""
        path = self.image_path(digest)
        try:
            data = read_file(path)
        except OSError as error:
            raise LabError(f"the kept image {digest[:16]} cannot be read: {error.strerror}. Restore {path}.") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise LabError(f"the kept image {digest[:16]} is damaged. Restore {path} from a backup.")
        return data

    def kept_image(self, cell_id: str) -> bytes | None:
        """The kept original bytes of the cell with this id (16 hexadecimal characters); None where they are missing or
        damaged."""
        if not _CELL_ID.fullmatch(cell_id):
            return None
        for path in (self.images / cell_id[:2] / cell_id[2:4]).glob(f"{cell_id}*"):
            with contextlib.suppress(LabError):
                return self.read_image(path.name)
        return None

    def store_image(self, data: bytes, digest: str) -> Path:
        """Keep original bytes under their digest: written beside, flushed to the disk, then renamed. Idempotent.

        The name is safe against a power cut only after `sync_images`. Raises OSError (a full disk, say), leaving
        nothing.
        """
        # plain strings: this runs for every cell, and a Path costs more than the system call
        folder = f"{self.images}{os.sep}{digest[:2]}{os.sep}{digest[2:4]}"
        target = f"{folder}{os.sep}{digest}"
        if os.path.exists(target):  # noqa: PTH110
            return Path(target)
        incoming = f"{self.images}{os.sep}{_INCOMING}"
        temporary = f"{incoming}{os.sep}{digest}.{os.getpid()}.{next(_sequence)}"
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103
        os.makedirs(incoming, exist_ok=True)  # noqa: PTH103
        try:
            with open(temporary, "xb", buffering=0) as file:  # noqa: PTH123
                failpoint("images.write")
                left = memoryview(data)
                while left:
                    left = left[file.write(left) :]
                failpoint("images.fsync")
                os.fsync(file.fileno())
            failpoint("images.rename")
            os.replace(temporary, target)
            failpoint("images.renamed", may_fail=False)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108
            raise
        return Path(target)

    def heal_image(self, data: bytes, digest: str) -> None:
        """Keep the bytes of a stored cell again where they were lost, name and all; where they are, this costs a
        look."""
        if not os.path.exists(self.image_path(digest)):  # noqa: PTH110
            self.store_image(data, digest)
            self.sync_images([digest])

    def sync_images(self, digests: Iterable[str]) -> None:
        """Flush the names of kept images to the disk, so that a power cut cannot take them (nothing to do on
        Windows)."""
        folders: set[Path] = set()
        for digest in digests:
            leaf = self.image_path(digest).parent
            folders.update((leaf, leaf.parent))
        if folders:
            folders.add(self.images)
        # leaves first: a parent must not outlive a name that it vouches for
        for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
            failpoint("images.sync")
            sync_folder(folder)

    def central_image(self, bundle: str, cell_id: str) -> bytes | None:
        """The JPEG of a cell of the atlas that an installed bundle carries (`labref.bundles.atlas`); None where there
        is no such bundle or cell. bundle : the first 12 characters of its digest."""
        if not _SHORT.fullmatch(bundle):
            return None
        try:
            atlas = _atlas_of(self.bundles / bundle)
        except BundleError:
            return None
        return None if atlas is None else atlas.picture(cell_id)

    def clear_incoming(self) -> None:
        """Remove bytes and bundles that a killed agent left on their way, and marks of killed commands; only the
        process that has the store open may call it."""
        for left in (self.images / _INCOMING, *self.bundles.glob(".incoming-*")):
            shutil.rmtree(left, ignore_errors=True)
        clear_marks(self.folder)

    def refuse_output(self, target: Path) -> None:
        """Raise `LabError` where `target`, a file or folder that shall be written, lies in a watched folder, under
        whatever name: the export is only read, and a picture in it would become a cell. So it does where `target` is,
        or lies in, what a lab needs for itself, this one or another: its configuration, its store, its images."""
        refuse_in_lab(target)
        real = _comparable(target)
        for folder in self.watched:
            if real.startswith(_comparable(folder)):
                raise LabError(
                    f"{target} lies in {folder}, which labref watches and never writes to: it would be taken in. Choose a "
                    "place outside."
                )

    def excluded(self) -> list[Path]:
        """Folders that a scan leaves out: the lab's own, and the whole lab unless an export folder lies in it."""
        lab = os.path.realpath(self.folder)
        inside = any(os.path.realpath(root).startswith(lab + os.sep) for root in self.watched)
        return [*self.own_folders(), *([] if inside else [self.folder])]

    def own_folders(self) -> Iterator[Path]:
        """Folders of the lab that hold no export, even where the export folder lies in the lab or the lab in it."""
        yield from (self.folder / name for name in _LEFT_OUT)


@lru_cache(maxsize=4)
def _atlas_of(folder: Path) -> Atlas | None:
    """The atlas of the bundle in this folder, verified once. Its pictures are verified each time they are read."""
    return Bundle.in_its_folder(folder).atlas


def _holds_others(folder: Path, watched: Iterable[Path]) -> bool:
    """Whether folders that are neither the lab's nor watched lie in its folder: then that is not labref's alone to
    close, such as somebody's home."""
    exports = [os.path.realpath(root) + os.sep for root in watched]
    return any(
        entry.is_dir()
        and entry.name not in (*_OWN_NAMES, "unclaimed")
        and not entry.name.startswith((_STORE, ".labref-"))
        and not any(root.startswith(os.path.realpath(entry) + os.sep) for root in exports)
        for entry in folder.iterdir()
    )


def _passed(folder: Path, watched: Iterable[Path]) -> int:
    """More rights of a lab's folder: where an export lies in it, the analyser has to pass through."""
    lab = os.path.realpath(folder) + os.sep
    return 0o011 if any(os.path.realpath(root).startswith(lab) for root in watched) else 0


def new_token(folder: Path, name: str = "token") -> None:
    """Give the lab in `folder` a secret that only its owner can read."""
    descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_urlsafe(32) + "\n")


def absolute(path: Path) -> Path:
    """`path` from the root, without `..` and with `~` expanded; links in it stay links, so that people know it
    again. Raises `LabError` where it begins with the home folder of nobody, or holds the character NUL."""
    if "\0" in str(path):
        raise LabError(f"{str(path)!r} holds the character NUL, which no path can hold.")
    try:
        return Path(os.path.abspath(path.expanduser()))  # noqa: PTH100  # Path.resolve follows links, Path.absolute keeps ..
    except RuntimeError:
        raise LabError(
            f"{path} begins with the home folder of a user that this computer does not know. Write the path out, or ./{path} for a "
            "file of that name."
        ) from None


def _comparable(path: Path) -> str:
    """`path` without links, with a separator at its end: what begins with that of a folder lies in it."""
    return os.path.join(os.path.normcase(os.path.realpath(path.expanduser())), "")  # noqa: PTH118


def refuse_in_lab(target: Path) -> None:
    """Raise `LabError` where `target` is, or lies in, what a lab needs for itself: its configuration, its store, its
    images. A file there would be written over, and a lab in its images would be moved away as nobody's."""
    real = Path(_comparable(target))
    for folder in real.parents:
        first = real.relative_to(folder).parts[0]
        if first in map(os.path.normcase, (*_OWN_NAMES, f"{_STORE}.wal")) and (folder / _CONFIG).is_file():
            raise LabError(
                f"{target} is what the lab in {folder} works with, and would be lost. Choose another name, or a place "
                "outside."
            )


def refuse_own(lab: Path, watched: Iterable[Path]) -> None:
    """Raise `LabError` where one of the folders `watched` is that of the lab in the folder `lab`, or one that a scan
    leaves out as the lab's own: nothing would be found there."""
    own = {os.path.realpath(folder) for folder in (lab, *(lab / name for name in _LEFT_OUT))}
    for folder in watched:
        if os.path.realpath(folder) in own:
            raise LabError(
                f"{folder} is the lab's own folder and cannot be watched. Choose the analyser's export folder: --watch, or [watch] "
                f"folders in {lab / _CONFIG}."
            )


def _watchable(path: Path) -> Path:
    path = absolute(path)
    if not os.path.isdir(path):  # noqa: PTH112  # Path.is_dir raises where a folder above it cannot be entered
        what = "is no folder" if os.path.exists(path) else "does not exist, or cannot be reached"  # noqa: PTH110
        raise LabError(f"the folder to watch, {path}, {what}. Make it first, or correct --watch.")
    return path


def _first_missing(folder: Path) -> Path | None:
    """The topmost of `folder` and its parents that does not exist yet."""
    missing = None
    for candidate in (folder, *folder.parents):
        if candidate.exists():
            break
        missing = candidate
    return missing


def _fill(
    folder: Path,
    watched: Sequence[Path],
    bundle: Path | None,
    analysers: Sequence[str | None],
    keys: Sequence[Path],
    unsigned: bool,
) -> None:
    (folder / "images").mkdir()
    (folder / "logs").mkdir()
    (folder / _CONFIG).write_text(starting_config(watched, analysers), encoding="utf-8")
    how = _inference(load_config(folder / _CONFIG))
    with contextlib.closing(Store.create(folder / _STORE)) as store:
        for file in keys:
            trust_key(store, public_key_in(file))
        installed = bring_in(
            store,
            bundle if bundle is not None else starter_bundle(),
            folder / "bundles",
            unsigned=unsigned,
            check=lambda made: prove(made, folder, how),
        )
        manifest = installed.manifest
        store.set_active_bundle(
            installed.digest,
            name=manifest.name,
            version=manifest.version,
            latent_size=manifest.latent_size,
            labels=manifest.labels,
        )
    new_token(folder)


def _way_back(store: Store, names: Mapping[str, str]) -> str:
    """What a message says of the bundle that was active before; nothing where there is none."""
    active, pending = store.active_bundle(), store.changes.pending()
    before = [digest for digest, _ in store.changes.activations() if digest != active and digest in names]
    if not before:
        return ""
    if pending is not None:  # the first only gives that up
        return f", go back to {names[before[-1]]} (`labref bundle rollback`, twice)"
    return f", go back to {names[before[-1]]} (`labref bundle rollback`)"


def _inference(config: Config) -> Inference:
    inference = config.inference
    return Inference(
        device=inference.device,
        threads=inference.threads or None,
        batch_size=inference.batch_size or None,
        precision=inference.precision,
        trial_seconds=inference.trial_seconds,
        trial_memory_megabytes=inference.trial_memory_megabytes,
    )


def _of_another_user(folder: Path) -> str:
    """That this user may not look into a lab's folder, and who may."""
    for each in (folder, *folder.parents):  # the lab's own owner is not to be had where the folder about it is closed
        with contextlib.suppress(OSError, KeyError, NotImplementedError):
            owner = each.owner()
            return f"{folder} is closed to this user; its owner is {owner}. Give the command as that user: `sudo -u {owner} labref …`."
    return f"{folder} is closed to this user. Give the command as the user who made the lab."
