"""What the packs of a pool say together: which cells there are, in which domain, as which class, one of each physical
cell; and what is deleted because they no longer say it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb

from labref.errors import PackError
from labref.failpoints import failpoint
from labref.packs import CELLS, MANIFEST, REMOVED, Manifest, read_manifest
from training.data.classes import common_name
from training.data.pool import CACHE, INDEX, PACKS, STATE, connect, index_digest, name_in_pool, table
from training.data.pooled import (
    GOING,
    INCOMING,
    LABS,
    LINKS,
    MARKS,
    chain_of,
    copy_table,
    delete,
    key_of,
    known_labs,
    pack_names,
    packs_of,
    remove,
    taken_at,
    write_lab,
    write_whole,
)

__all__ = ["bring_up", "is_fresh"]


def is_fresh(folder: Path) -> bool:
    """Whether what the pool says of its cells is made of the packs that it has, and nothing is left to delete."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(state, dict):
        return False
    withdrawn = _withdrawn(folder)
    newest = {lab: max((m.number for m in packs_of(folder, lab).values()), default=0) for lab in known_labs(folder)}
    return (
        state.get("packs") == pack_names(folder)
        and state.get("index") == index_digest(folder)
        and not _of_nobody(folder)
        and state.get("withdrawn") == withdrawn
        and all(int(told["newest"]) >= newest[lab] for lab, told in known_labs(folder).items())
        and not any(folder.glob(f"{GOING}*"))
    )


def bring_up(folder: Path) -> None:
    """Make anew what the pool says of its cells, and delete what it says nothing of. Raises `PackError`."""
    for left in folder.glob(f"{GOING}*"):
        remove(left)
    withdrawn = _withdrawn(folder)
    _forget_labs(folder, withdrawn)  # before anything of others is read, which may be damaged
    for lab in _of_nobody(folder):  # one small file that is lost must not take all that a lab gave with it
        raise PackError(
            f"{folder} holds packs of the lab {lab}, and {LABS}/{lab}.json, its key, is missing. Restore it, or trust the lab's key "
            f"again; to be rid of them, delete {PACKS}/{lab}."
        )
    known, chains = known_labs(folder), dict[str, list[tuple[str, Manifest]]]()
    for lab, told in known.items():
        packs = packs_of(folder, lab)
        newest = max((manifest.number for manifest in packs.values()), default=0)
        if newest > int(told["newest"]):
            write_lab(folder, key_of(told, lab), told["state"], newest)
        if told["state"] == "trusted" and packs:
            chains[lab] = chain_of(packs)
    _forget_waiting(folder)
    with closing(connect()) as database:
        _index(folder, database, chains)
        failpoint("pool.index")
        kept = {f"{lab}/{name}" for lab, chain in chains.items() for name, _ in chain}
        for name in set(pack_names(folder)) - kept:
            delete(folder, folder / PACKS / name)
        for name in sorted(kept):
            _forget_rows(folder, database, *name.split("/"))
    state = {"packs": pack_names(folder), "withdrawn": withdrawn, "index": index_digest(folder)}
    write_whole(folder / STATE, (json.dumps(state, indent=1) + "\n").encode())


def _index(folder: Path, database: duckdb.DuckDBPyConnection, chains: Mapping[str, list[tuple[str, Manifest]]]) -> None:
    """Write `cells.parquet`: a row for each cell that a lab gives now."""
    database.execute(
        "CREATE OR REPLACE TEMP TABLE given (lab VARCHAR, pack VARCHAR, cell VARCHAR, label VARCHAR, optics VARCHAR, consent VARCHAR, "
        "taken VARCHAR, place INTEGER)"
    )
    database.execute("CREATE OR REPLACE TEMP TABLE taken_back (lab VARCHAR, cell VARCHAR, place INTEGER)")
    database.execute("CREATE OR REPLACE TEMP TABLE link (name VARCHAR, other VARCHAR)")
    database.execute("CREATE OR REPLACE TEMP TABLE mark (name VARCHAR, pixels VARCHAR)")
    for lab, chain in chains.items():
        for place, (name, manifest) in enumerate(chain):
            pack = folder / PACKS / lab / name
            at = taken_at(pack)
            database.execute(
                f"INSERT INTO given SELECT $1, $2, cell, label, optics, $3, $4, $5 FROM {table(pack / CELLS)}",
                [lab, name, manifest.consent, at, place],
            )
            database.execute(f"INSERT INTO taken_back SELECT $1, cell, $2 FROM {table(pack / REMOVED)}", [lab, place])
            database.execute(f"INSERT INTO link SELECT name, other FROM {table(pack / LINKS)}")
            database.execute(f"INSERT INTO mark SELECT name, pixels FROM {table(pack / MARKS)}")
    database.execute(
        "CREATE OR REPLACE TEMP TABLE cell AS SELECT g.* FROM (SELECT * FROM given QUALIFY row_number() OVER (PARTITION BY lab, cell "
        "ORDER BY place DESC) = 1) g LEFT JOIN (SELECT lab, cell, max(place) AS gone FROM taken_back GROUP BY ALL) t "
        "ON t.lab = g.lab AND t.cell = g.cell WHERE coalesce(t.gone, -1) < g.place ORDER BY g.taken, g.lab, g.cell"
    )
    rows = database.execute("SELECT lab, pack, cell, label, optics, consent, taken FROM cell").fetchall()
    names = [name_in_pool(row[0], row[2]) for row in rows]
    # those of the very same pixels are linked with the first of them alone, which its lab may have taken back
    pairs = database.execute(
        "FROM link UNION ALL SELECT m.name, min(m.name) OVER (PARTITION BY m.pixels) FROM mark m SEMI JOIN "
        "(SELECT unnest(?::VARCHAR[]) AS name) n ON n.name = m.name",
        [names],
    ).fetchall()
    group = _groups(names, pairs)
    classes = [common_name(row[3]) for row in rows]
    said: dict[int, set[str]] = {}
    for number, first in enumerate(group):
        said.setdefault(first, set()).add(classes[number])
    why: list[str | None] = [
        "labels disagree" if len(said[first]) > 1 else None if first == number else "recapture"
        for number, first in enumerate(group)
    ]
    columns: list[list[Any]] = [
        names,
        [row[0] for row in rows],
        [row[1] for row in rows],
        [row[2] for row in rows],
        [row[3] for row in rows],
        classes,
        [f"{row[0][:8]}-{row[4][:8]}" for row in rows],
        [row[5] for row in rows],
        [row[6] for row in rows],
        [names[first] for first in group],
        why,
    ]
    called = ("name", "lab", "pack", "cell", "label", "class", "domain", "consent", "taken", "same_as", "why")
    listed = ", ".join(f"unnest(${number}::VARCHAR[]) AS {name}" for number, name in enumerate(called, 1))
    database.execute(
        f"CREATE OR REPLACE TEMP TABLE indexed AS SELECT *, why IS NULL AS kept FROM (SELECT {listed})", columns
    )
    copy_table(database, "FROM indexed ORDER BY name", folder / INDEX)


def _withdrawn(folder: Path) -> list[str]:
    """Labs that are withdrawn."""
    return [lab for lab, told in known_labs(folder).items() if told["state"] == "withdrawn"]


def _forget_labs(folder: Path, withdrawn: Sequence[str]) -> None:
    """Delete what labs gave that are withdrawn: crops, rows and packs. What the pool says of all cells is made anew."""
    if withdrawn:
        delete(folder, folder / CACHE)
    for lab in withdrawn:
        if (folder / PACKS / lab).exists():
            (folder / INDEX).unlink(missing_ok=True)
            delete(folder, folder / PACKS / lab)


def _of_nobody(folder: Path) -> list[str]:
    """Labs of which packs lie in the pool, and of which it does not know the key."""
    return sorted({name.partition("/")[0] for name in pack_names(folder)} - known_labs(folder).keys())


def _forget_waiting(folder: Path) -> None:
    """Delete packs that were cut off on their way in, and that come in no more: a newer one of the lab did, and may
    have taken back what they hold."""
    known = known_labs(folder)
    for left in folder.glob(f"{INCOMING}{'?' * 16}"):
        with contextlib.suppress(PackError):
            manifest = read_manifest(left / MANIFEST)
            told = known.get(manifest.lab)
            if told is not None and told["state"] == "trusted" and manifest.number > int(told["newest"]):
                continue
        delete(folder, left)


def _groups(names: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[int]:
    """For each cell the number of the first that shows the same one, directly or through others."""
    number = {name: place for place, name in enumerate(names)}
    first = list(range(len(names)))

    def root(place: int) -> int:
        while first[place] != place:
            first[place] = first[first[place]]
            place = first[place]
        return place

    for name, other in pairs:
        if name in number and other in number:
            one, two = sorted((root(number[name]), root(number[other])))
            first[two] = one
    return [root(place) for place in range(len(names))]


def _forget_rows(folder: Path, database: duckdb.DuckDBPyConnection, lab: str, pack: str) -> None:
    """Write a pack's tables anew without the cells that it no longer gives, where there are such."""
    place = folder / PACKS / lab / pack
    current = f"(SELECT cell, name FROM {table(folder / INDEX)} WHERE lab = '{lab}' AND pack = '{pack}')"
    row = database.execute(f"SELECT count(*) FROM {table(place / CELLS)} ANTI JOIN {current} USING (cell)").fetchone()
    if row == (0,):
        return
    failpoint("pool.forget")
    for file, column in (
        (MARKS, "name"),
        (LINKS, "name"),
        (CELLS, "cell"),
    ):  # the one that is looked at above goes last
        kept = f"SELECT p.* FROM {table(place / file)} p SEMI JOIN {current} i ON i.{column} = p.{column}"
        copy_table(database, f"{kept} ORDER BY p.{column}", place / file)
