"""What lies in a pool beside its index: labs, packs, and how files of it are written and deleted. See
`training.data.pool`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import duckdb

from labref.bundles.signing import PublicKey
from labref.errors import PackError
from labref.failpoints import failpoint
from labref.files import sync_folder
from labref.packs import MANIFEST, Manifest, read_manifest
from training.data.pool import PACKS

__all__ = [
    "GOING",
    "INCOMING",
    "LABS",
    "LINKS",
    "MARKS",
    "TAKEN",
    "chain_of",
    "copy_table",
    "delete",
    "key_of",
    "key_state",
    "known_lab",
    "known_labs",
    "pack_names",
    "packs_of",
    "remove",
    "taken_at",
    "write_lab",
    "write_whole",
]

LABS: Final = "labs"
INCOMING: Final = ".incoming-"
"""What the name of a folder begins with that is on its way in."""
GOING: Final = ".going-"
"""What the name of something begins with that is being deleted."""
MARKS: Final = "marks.parquet"
LINKS: Final = "links.parquet"
TAKEN: Final = "taken.json"


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole, in the place of the one before."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    sync_folder(path.parent)


def known_labs(folder: Path) -> dict[str, dict[str, Any]]:
    """What the pool says of each lab, by its id. Raises `PackError` where a file of that is damaged."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted((folder / LABS).glob("[0-9a-f]*.json")):
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            sound = told["state"] in ("trusted", "withdrawn") and type(told["newest"]) is int
            if not sound or key_of(told, file.stem).id != file.stem:
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError):
            raise PackError(
                f"{file}, what the pool says of a lab, is damaged. Restore it; or delete it, and trust the lab's key again."
            ) from None
        found[file.stem] = told
    return found


def known_lab(folder: Path, lab: str) -> dict[str, Any] | None:
    """What the pool says of a lab; None where it does not know it."""
    return known_labs(folder).get(lab)


def write_lab(folder: Path, key: PublicKey, state: str, newest: int) -> None:
    """Write down what the pool says of a lab. newest : the largest number of a pack that came in."""
    (folder / LABS).mkdir(exist_ok=True)
    told = {"key": key.raw.hex(), "name": key.name, "state": state, "newest": newest}
    write_whole(folder / LABS / f"{key.id}.json", (json.dumps(told, indent=1) + "\n").encode())


def key_of(told: Mapping[str, Any], lab: str) -> PublicKey:
    """The key of a lab, by what the pool says of it. Raises `PackError` where that is damaged."""
    key = PublicKey(bytes.fromhex(told["key"]), str(told["name"]))
    if key.id != lab:
        raise PackError(f"the pool's file of the lab {lab} holds another key. Restore it.")
    return key


def key_state(told: Mapping[str, Any]) -> Literal["trusted", "revoked"]:
    """What the pool thinks of a lab's key."""
    return "trusted" if told["state"] == "trusted" else "revoked"


def packs_of(folder: Path, lab: str) -> dict[str, Manifest]:
    """The packs of a lab that lie in the pool, by the beginning of their digest. Raises `PackError` where what one says
    of itself is damaged."""
    places = sorted((folder / PACKS / lab).glob("[0-9a-f]*"))
    try:
        return {place.name: read_manifest(place / MANIFEST) for place in places}
    except PackError as error:
        raise PackError(
            f"{error} Restore it, or withdraw the lab: `python -m training pool {folder} --withdraw {lab}`."
        ) from None


def pack_names(folder: Path) -> list[str]:
    """All packs that lie in the pool."""
    return sorted(f"{lab.name}/{pack.name}" for lab in (folder / PACKS).glob("*") for pack in lab.glob("[0-9a-f]*"))


def taken_at(pack: Path) -> str:
    """When a pack came in, ISO 8601, UTC. Raises `PackError` where that is damaged."""
    try:
        return str(json.loads((pack / TAKEN).read_text(encoding="utf-8"))["at"])
    except (OSError, ValueError, KeyError, TypeError):
        raise PackError(f"{pack / TAKEN}, when a pack came in, is damaged. Restore it, or withdraw the lab.") from None


def chain_of(packs: Mapping[str, Manifest]) -> list[tuple[str, Manifest]]:
    """Of a lab's packs the newest, and those that it builds on, oldest first."""
    chain: list[tuple[str, Manifest]] = []
    name = max(packs, key=lambda one: packs[one].number, default=None)
    while name is not None:
        chain.append((name, packs[name]))
        follows = packs[name].follows
        name = None if follows is None else follows[:16]
        if name is not None and name not in packs:
            raise PackError(
                f"the pool lacks the pack {name}, on which another builds. Restore it, or withdraw the lab."
            )
    return chain[::-1]


def copy_table(database: duckdb.DuckDBPyConnection, query: str, target: Path) -> None:
    """Write the rows of a query as a Parquet file, whole or not at all."""
    part = target.with_name(f".{target.name}.part")
    sql = str(part).replace("'", "''")
    database.execute(f"COPY ({query}) TO '{sql}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 2048)")
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, target)


def delete(folder: Path, what: Path) -> None:
    """Under another name first: what is half deleted is nowhere read."""
    if what.exists():
        going = folder / f"{GOING}{os.urandom(6).hex()}"
        failpoint("pool.delete")
        os.replace(what, going)
        remove(going)


def remove(going: Path) -> None:
    """Delete it. Raises `PackError` where something of it stays: nobody is told that it is gone."""
    shutil.rmtree(going, ignore_errors=True)
    if os.path.lexists(going):
        raise PackError(
            f"{going}, which a lab gives no more, cannot be deleted whole. Look at the rights of what is in it, then give "
            f"`python -m training pool {going.parent}`."
        )
