"""Packs of labs → a pool: verified, merged, with one picture of each cell, and taken out again where a lab withdraws.

A pack comes in whole or not at all. It is copied into a folder of the pool under a name that nothing reads, verified,
its cells are compared with all others, and then the folder gets its name. What the pool says of its cells is made of
the packs after that, by DuckDB; a command that was cut off there is finished by the next. A pack that was cut off while
its cells were compared goes on where it was.

Of a lab those packs count that its newest one builds on. A cell is as its newest pack says. What packs no longer give,
and what a lab that withdraws gave, is deleted: rows, pictures and cached crops.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import duckdb

from labref.bundles.signing import MAX_DOCUMENT_BYTES, KnownKey, PublicKey, read_public_key
from labref.cells.image import PREPARATION
from labref.errors import BundleError, PackError
from labref.failpoints import failpoint
from labref.files import read_file, sync_folder
from labref.packs import CELLS, MANIFEST, MOST_CROP, REMOVED, Manifest, take_in
from labref.words import MEASURES
from training.data.comparing import compare
from training.data.merging import bring_up, is_fresh
from training.data.pool import INDEX, PACKS, POOL, connect, in_words, is_pool, table
from training.data.pooled import (
    INCOMING,
    TAKEN,
    chain_of,
    delete,
    key_of,
    key_state,
    known_lab,
    known_labs,
    pack_names,
    packs_of,
    write_lab,
    write_whole,
)

__all__ = ["Ingested", "LabInPool", "MissingPackError", "create", "ingest", "labs", "refresh", "trust", "withdraw"]

FORMAT: Final = 1
_LEAST_ROW: Final = 4  # bytes; a name of 16 hexadecimal characters, which is chance, takes 8 and more


class MissingPackError(PackError):
    """A pack builds on one that the pool has not."""


@dataclass(frozen=True)
class Ingested:
    """What became of a pack. known : it was in the pool already.  cells, removed : of the pack.  recaptures : its cells
    that show one that the pool has, or another of its own."""

    lab: str
    number: int
    known: bool
    cells: int = 0
    removed: int = 0
    recaptures: int = 0


@dataclass(frozen=True)
class LabInPool:
    """A lab of the pool.

    key : its public key.  state : `withdrawn`: nothing of it is here, and none of its packs comes in.  newest : largest
    number of a pack that came in.  packs : manifests of those that count, oldest first.  domains : cells that are
    trained on, by domain.  left_out : cells that are not, by the reason.
    """

    key: PublicKey
    state: Literal["trusted", "withdrawn"]
    newest: int
    packs: tuple[Manifest, ...]
    domains: Mapping[str, int]
    left_out: Mapping[str, int]


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """One command at a time changes a pool. DuckDB's errors are raised as `PackError`."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise PackError(f"another command changes {folder}; wait until it is done.") from None
    try:
        with in_words(folder):
            yield
    finally:
        lock.release()


def create(folder: Path) -> None:
    """Make a pool, unless it is there. Raises `PackError` where the folder holds something else, or a newer pool."""
    if is_pool(folder):
        try:
            found = json.loads((folder / POOL).read_text(encoding="utf-8"))["format"]
        except (OSError, ValueError, KeyError, TypeError):
            raise PackError(f"{folder / POOL} is damaged; restore it: it holds {_pool_json()!r}.") from None
        if found != FORMAT:
            raise PackError(f"{folder} is a pool of format {found}, this labref knows {FORMAT}. Upgrade labref.")
        return
    if folder.exists() and any(folder.iterdir()):
        raise PackError(f"{folder} is not empty, and no pool. Name a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / POOL, _pool_json().encode())


def trust(folder: Path, file: Path, *, again: bool = False) -> PublicKey:
    """Let packs of the lab in whose public key is in `file`. again : also where it was withdrawn. Raises
    `PackError`."""
    try:
        key = read_public_key(read_file(file, MAX_DOCUMENT_BYTES), file)
    except BundleError as error:
        raise PackError(str(error)) from None
    except OSError as error:
        raise PackError(f"{file} is no public key: {error.strerror or error}.") from None
    create(folder)
    with _held(folder):
        before = known_lab(folder, key.id)
        if before is not None and before["state"] == "withdrawn" and not again:
            raise PackError(f"the lab {key.title} was withdrawn here. Where it gives its cells again, say --again.")
        newest = 0 if before is None else int(before["newest"])
        write_lab(folder, key, "trusted", newest)
        if not is_fresh(folder):
            bring_up(folder)
    return key


def withdraw(folder: Path, lab: str) -> int:
    """Take a lab out again with all that it gave, and let none of its packs in; returns how many packs it had.

    lab : id of its key, or a beginning of it that no other has. What was trained before stays as it is. Raises
    `PackError`.
    """
    _require(folder)
    with _held(folder):
        found = [name for name in known_labs(folder) if lab and name.startswith(lab)]
        if len(found) != 1:
            raise PackError(
                f"{folder} has {'several labs' if found else 'no lab'} {lab}; `python -m training pool {folder}` lists them."
            )
        before = known_lab(folder, found[0])
        assert before is not None
        packs = sum(name.startswith(f"{found[0]}/") for name in pack_names(folder))
        write_lab(folder, key_of(before, found[0]), "withdrawn", int(before["newest"]))
        failpoint("pool.withdrawn", may_fail=False)
        for left in folder.glob(f"{INCOMING}*"):  # one could be of this lab
            delete(folder, left)
        bring_up(folder)
    return packs


def refresh(folder: Path) -> None:
    """Bring to its end what was cut off. Raises `PackError`."""
    _require(folder)
    with _held(folder):
        if not is_fresh(folder):
            bring_up(folder)


def labs(folder: Path) -> list[LabInPool]:
    """The labs of a pool, by id; `refresh` comes first. Raises `PackError`."""
    _require(folder)
    domains: dict[str, dict[str, int]] = {}
    left_out: dict[str, dict[str, int]] = {}
    with in_words(folder), closing(connect()) as database:
        if (folder / INDEX).is_file():
            rows = database.execute(
                f"SELECT lab, domain, why, count(*) FROM {table(folder / INDEX)} GROUP BY ALL ORDER BY ALL"
            ).fetchall()
            for lab, domain, why, n in rows:
                if why is None:
                    domains.setdefault(lab, {})[domain] = n
                else:
                    left_out.setdefault(lab, {})[why] = left_out.get(lab, {}).get(why, 0) + n
    found = []
    for lab, told in known_labs(folder).items():
        packs = tuple(manifest for _, manifest in chain_of(packs_of(folder, lab)))
        found.append(
            LabInPool(
                key_of(told, lab),
                told["state"],
                int(told["newest"]),
                packs,
                domains.get(lab, {}),
                left_out.get(lab, {}),
            )
        )
    return found


def ingest(folder: Path, source: Path, step: Callable[[str, int], Callable[[int], None]]) -> Ingested:
    """Take the pack `source` into the pool.

    step : called with the name of a part of the work and its size; what it gives is called with what was done of it.
    Raises `PackError` where the pack is refused; `MissingPackError` where one has to come before it.
    """
    _require(folder)
    with _held(folder):
        if not is_fresh(folder):
            bring_up(folder)
        keys = {lab: KnownKey(key_of(told, lab), key_state(told)) for lab, told in known_labs(folder).items()}
        for left in folder.glob(f"{INCOMING}{'?' * 12}"):  # of a command that was cut off; what was compared has 16
            shutil.rmtree(left, ignore_errors=True)
        copy = folder / f"{INCOMING}{os.urandom(6).hex()}"
        try:
            copy.mkdir()
            pack = take_in(source, keys, copy)
            manifest, lab = pack.manifest, pack.manifest.lab
            told = known_lab(folder, lab)
            assert told is not None
            there = packs_of(folder, lab)
            if pack.digest[:16] in there:
                return Ingested(lab, manifest.number, True, manifest.cells, manifest.removed)
            if manifest.number <= int(told["newest"]):
                raise PackError(
                    f"{source} is number {manifest.number} of the lab {lab}, and the pool has had number {told['newest']}: an older pack, or "
                    "one that was withdrawn, is not taken in."
                )
            if manifest.follows is not None and manifest.follows[:16] not in there:
                raise MissingPackError(
                    f"{source} builds on a pack of the lab {lab} that the pool has not ({manifest.follows[:16]}). Bring that first, or ask the "
                    "lab for all: `labref contribute --everything`."
                )
            if manifest.preparation != PREPARATION["version"]:
                raise PackError(
                    f"{source} holds cells of preparation {manifest.preparation}, and this labref prepares them as "
                    f"{PREPARATION['version']}. Use the labref of that time, or ask the lab for all anew once it is upgraded."
                )
            _check_tables(copy, manifest, source)
            waiting = folder / f"{INCOMING}{pack.digest[:16]}"
            _go_on(copy, waiting, pack_names(folder))
        finally:
            shutil.rmtree(copy, ignore_errors=True)
        try:
            recaptures = compare(folder, waiting, manifest, source, step)
        except PackError:
            shutil.rmtree(waiting, ignore_errors=True)
            raise
        write_whole(waiting / TAKEN, json.dumps({"at": datetime.now(UTC).isoformat(timespec="microseconds")}).encode())
        target = folder / PACKS / lab / pack.digest[:16]
        target.parent.mkdir(parents=True, exist_ok=True)
        failpoint("pool.rename")
        os.replace(waiting, target)
        sync_folder(target.parent)
        failpoint("pool.renamed", may_fail=False)
        write_lab(folder, keys[lab].key, "trusted", manifest.number)
        bring_up(folder)
        return Ingested(lab, manifest.number, False, manifest.cells, manifest.removed, recaptures)


def _pool_json() -> str:
    return json.dumps({"kind": "labref pool", "format": FORMAT}) + "\n"


def _require(folder: Path) -> None:
    if not is_pool(folder):
        raise PackError(f"{folder} is no pool. Make one: `python -m training pool {folder} --trust FILE.pub`.")
    create(folder)


def _check_tables(folder: Path, manifest: Manifest, source: Path) -> None:
    """Raise `PackError` where the tables of a pack are not what a pack's are: a lab vouches for them, and labref may
    still have been another, or changed."""
    cells, removed = (table(folder / name) for name in (CELLS, REMOVED))
    sound = [
        "regexp_full_match(cell, '[0-9a-f]{16}')",
        "regexp_full_match(optics, '[0-9a-f]{12}')",
        "regexp_full_match(history, '[0-9a-f]{32}')",
        "label_source IN ('labref', 'export')",
        "decisions >= 0",
        f"(latent IS NULL OR (len(latent) = {manifest.latent_size:d} AND len(list_filter(latent, lambda x: x IS NULL OR NOT isfinite(x))) = 0))",
        f"octet_length(crop) <= {MOST_CROP:d}",  # so all of them are read, too
        *(f"({name} IS NULL OR isfinite({name}))" for name in MEASURES),
    ]
    try:
        with closing(connect()) as database:
            for name, wanted, rows in (
                (CELLS, manifest.columns, manifest.cells),
                (REMOVED, {"cell": "VARCHAR"}, manifest.removed),
            ):
                file = folder / name
                found = {row[0]: row[1] for row in database.execute(f"DESCRIBE FROM {table(file)}").fetchall()}
                if list(found.items()) != list(wanted.items()):
                    raise PackError(f"{source} is no pack: its tables have other columns than a pack's.")
                held = database.execute(f"SELECT count(*) FROM {table(file)}").fetchone()
                # a small file can say that it has a million million rows, which nobody wants to read
                if held != (rows,) or rows * _LEAST_ROW > file.stat().st_size:
                    raise PackError(f"{source} is no pack: its tables have more or fewer rows than it says.")
            counts = dict(database.execute(f"SELECT label, count(*) FROM {cells} GROUP BY label").fetchall())
            told = database.execute(
                f"SELECT count(DISTINCT cell), count(*) FILTER ({' AND '.join(sound)}) FROM {cells}"
            ).fetchone()
            gone = database.execute(
                f"SELECT count(*), count(DISTINCT cell) FILTER (regexp_full_match(cell, '[0-9a-f]{{16}}')) FROM {removed} "
                f"WHERE cell NOT IN (SELECT cell FROM {cells} WHERE cell IS NOT NULL)"
            ).fetchone()
    except duckdb.Error as error:
        raise PackError(f"{source} is no pack: its tables cannot be read: {str(error).splitlines()[0]}") from None
    if counts != manifest.classes or told != (manifest.cells, manifest.cells) or gone != (manifest.removed,) * 2:
        raise PackError(f"{source} is no pack: its tables hold values, or counts, that no lab writes.")


def _go_on(copy: Path, waiting: Path, beside: Sequence[str]) -> None:
    """Give a verified pack the folder in which its cells are compared. What was done there is kept where the pool is as
    it was then."""
    state = {"beside": list(beside)}
    with contextlib.suppress(OSError, ValueError):
        if json.loads((waiting / "state.json").read_text(encoding="utf-8")) == state:
            for name in (CELLS, REMOVED, MANIFEST):
                os.replace(copy / name, waiting / name)
            return
    shutil.rmtree(waiting, ignore_errors=True)
    (copy / "state.json").write_text(json.dumps(state), encoding="utf-8")
    os.replace(copy, waiting)
