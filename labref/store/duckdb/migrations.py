"""The schema, as the steps that led to it.

Every step is a small function, registered in order and applied together with its record in one transaction: a
store is at one version or the next, never between. A released step is never edited; the next change is a new one.
Times are TIMESTAMP columns holding UTC.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import duckdb

from labref import __version__
from labref.errors import StoreError, StoreTooNewError
from labref.failpoints import failpoint

__all__ = ["Migration", "apply", "latest_version", "migration", "schema_version"]

Step = Callable[[duckdb.DuckDBPyConnection], None]


@dataclass(frozen=True)
class Migration:
    """One step: the schema version it leads to, what it brings, and the function that does it."""

    version: int
    summary: str
    step: Step


_REGISTRY: list[Migration] = []


def migration(version: int, summary: str) -> Callable[[Step], Step]:
    """Register a step; versions count up from 1 without a gap."""

    if version != len(_REGISTRY) + 1:
        raise ValueError(f"the migration after {len(_REGISTRY)} cannot be {version}")

    def register(step: Step) -> Step:
        _REGISTRY.append(Migration(version, summary, step))
        return step

    return register


def latest_version() -> int:
    """The schema version that this labref writes."""
    return _REGISTRY[-1].version


def schema_version(connection: duckdb.DuckDBPyConnection) -> int:
    """The schema version of an open database; 0 for an empty one.

    Raises StoreError where the database holds tables but is no labref store.
    """
    try:
        found = connection.execute("SELECT max(version) FROM migration").fetchone()
    except (duckdb.CatalogException, duckdb.InvalidInputException):
        # there is no such table, or only this module's function; a list of all tables, asked for first, takes 15 ms
        if connection.execute("SELECT 1 FROM duckdb_tables() LIMIT 1").fetchone() is None:
            return 0
        raise StoreError("it is a DuckDB database, but not a labref store (no table named `migration`)") from None
    return int(found[0]) if found and found[0] is not None else 0


def apply(connection: duckdb.DuckDBPyConnection, steps: list[Migration] | None = None) -> int:
    """Bring the database to the newest schema this labref knows, and return its version.

    Raises StoreTooNewError, and changes nothing, where a newer labref wrote it. A step that fails leaves the
    database as the step before it left it.
    """
    steps = _REGISTRY if steps is None else steps
    version = schema_version(connection)
    if version > steps[-1].version:
        writer = connection.execute("SELECT labref_version FROM migration WHERE version = ?", [version]).fetchone()
        raise StoreTooNewError(
            f"it was written by labref {writer[0] if writer else '(unknown)'} (schema {version}); this is labref "
            f"{__version__}, which knows schemas up to {steps[-1].version}. Install that labref or a newer one, or "
            "restore a backup made before the upgrade"
        )
    for step in steps[version:]:
        failpoint("migrate.begin")
        connection.begin()
        try:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS migration (version INTEGER PRIMARY KEY, summary VARCHAR NOT NULL, "
                "applied_at TIMESTAMP NOT NULL, labref_version VARCHAR NOT NULL)"
            )
            step.step(connection)
            failpoint("migrate.record")
            connection.execute(
                "INSERT INTO migration VALUES (?, ?, ?, ?)",
                [step.version, step.summary, datetime.now(UTC).replace(tzinfo=None), __version__],
            )
            failpoint("migrate.commit")
            connection.commit()
            failpoint("migrate.committed", may_fail=False)
        except BaseException:
            connection.rollback()
            raise
    return steps[-1].version


@migration(1, "bundles, and which of them is active")
def _bundles(connection: duckdb.DuckDBPyConnection) -> None:
    # each bundle has its own table embedding_<number>, because its latents have their own length and space
    connection.execute("""
        CREATE TABLE bundle (
            number      INTEGER PRIMARY KEY,
            digest      VARCHAR NOT NULL UNIQUE,
            name        VARCHAR NOT NULL,
            version     VARCHAR NOT NULL,
            latent_size INTEGER NOT NULL,
            labels      VARCHAR[] NOT NULL,
            added_at    TIMESTAMP NOT NULL
        )""")
    # the last row names the active bundle; the others are how the lab got there
    connection.execute("""
        CREATE TABLE activation (
            number       INTEGER PRIMARY KEY,
            digest       VARCHAR NOT NULL,
            activated_at TIMESTAMP NOT NULL
        )""")


@migration(2, "cells, and how their labels changed")
def _cells(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("""
        CREATE TABLE cell (
            cell_id           VARCHAR PRIMARY KEY,
            digest            VARCHAR NOT NULL,
            path              VARCHAR NOT NULL,
            size_bytes        BIGINT NOT NULL,
            width             INTEGER NOT NULL,
            height            INTEGER NOT NULL,
            label             VARCHAR NOT NULL,
            label_source      VARCHAR NOT NULL,
            slide             VARCHAR,
            analyser          VARCHAR,
            captured_at       TIMESTAMP,
            average_hash      UBIGINT NOT NULL,
            duplicate_of      VARCHAR,
            duplicate_verdict VARCHAR,
            duplicate_group   VARCHAR,
            added_at          TIMESTAMP NOT NULL
        )""")
    connection.execute("""
        CREATE TABLE label_change (
            cell_id         VARCHAR NOT NULL,
            changed_at      TIMESTAMP NOT NULL,
            path            VARCHAR NOT NULL,
            label           VARCHAR NOT NULL,
            label_source    VARCHAR NOT NULL,
            previous        VARCHAR NOT NULL,
            previous_source VARCHAR NOT NULL
        )""")


@migration(3, "the ledger: one outcome a file, and what it replaced")
def _ledger(connection: duckdb.DuckDBPyConnection) -> None:
    # label, label_source, slide: what the path itself says; NULL where it says nothing
    columns = """
            size_bytes   BIGINT,
            mtime_ns     BIGINT,
            outcome      VARCHAR NOT NULL,
            reason       VARCHAR,
            cell_id      VARCHAR,
            label        VARCHAR,
            label_source VARCHAR,
            slide        VARCHAR,
            duplicate_of VARCHAR,
            recorded_at  TIMESTAMP NOT NULL"""
    connection.execute(f"CREATE TABLE file (path VARCHAR PRIMARY KEY, {columns})")
    connection.execute(f"CREATE TABLE file_history (path VARCHAR NOT NULL, {columns}, replaced_at TIMESTAMP NOT NULL)")


@migration(4, "maps, which is in use, and where cells lie on it")
def _maps(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("""
        CREATE TABLE map (
            number       INTEGER PRIMARY KEY,
            bundle       VARCHAR NOT NULL,
            rows         INTEGER NOT NULL,
            columns      INTEGER NOT NULL,
            sigma        DOUBLE NOT NULL,
            seed         BIGINT NOT NULL,
            trainer      VARCHAR NOT NULL,
            started_from INTEGER,
            cells        BIGINT NOT NULL,
            qe           DOUBLE NOT NULL,
            te           DOUBLE NOT NULL,
            qe_before    DOUBLE,
            te_before    DOUBLE,
            moved_far    DOUBLE,
            verdict      VARCHAR NOT NULL,
            seconds      DOUBLE NOT NULL,
            trained_at   TIMESTAMP NOT NULL
        )""")
    # of the maps of one bundle, the one that the last row names is in use; the others are how the lab got there
    connection.execute("""
        CREATE TABLE map_activation (
            number       INTEGER PRIMARY KEY,
            map          INTEGER NOT NULL,
            activated_at TIMESTAMP NOT NULL
        )""")
    # only of maps in use; node: row * columns + column. No key: looked up in memory, and cheap to write
    connection.execute("""
        CREATE TABLE map_position (
            map                INTEGER NOT NULL,
            cell_id            VARCHAR NOT NULL,
            node               INTEGER NOT NULL,
            quantization_error FLOAT NOT NULL
        )""")


@migration(5, "changing to another bundle, and cells that a bundle cannot embed")
def _bundle_changes(connection: duckdb.DuckDBPyConnection) -> None:
    # at most one row has no end: the change that is under way
    connection.execute("""
        CREATE TABLE bundle_change (
            number    INTEGER PRIMARY KEY,
            digest    VARCHAR NOT NULL,
            wished_at TIMESTAMP NOT NULL,
            switch    BOOLEAN NOT NULL,
            leave_out BOOLEAN NOT NULL,
            report    VARCHAR,
            ended_at  TIMESTAMP,
            outcome   VARCHAR
        )""")
    connection.execute("""
        CREATE TABLE embedding_failure (
            digest    VARCHAR NOT NULL,
            cell_id   VARCHAR NOT NULL,
            reason    VARCHAR NOT NULL,
            failed_at TIMESTAMP NOT NULL
        )""")


@migration(6, "cells that retention removed, so that they are not taken in again")
def _removed_cells(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("""
        CREATE TABLE removed_cell (
            cell_id      VARCHAR PRIMARY KEY,
            digest       VARCHAR NOT NULL,
            label        VARCHAR NOT NULL,
            label_source VARCHAR NOT NULL,
            slide        VARCHAR,
            analyser     VARCHAR,
            added_at     TIMESTAMP NOT NULL,
            removed_at   TIMESTAMP NOT NULL,
            reason       VARCHAR NOT NULL
        )""")


@migration(7, "who gave a label, and when")
def _label_givers(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("ALTER TABLE label_change ADD COLUMN who VARCHAR")
    connection.execute("ALTER TABLE label_change ADD COLUMN given_at TIMESTAMP")


@migration(8, "what was measured of each cell's optics")
def _measures(connection: duckdb.DuckDBPyConnection) -> None:
    # NULL where the kept bytes could not be measured; analyser and added_at are those of the cell
    connection.execute("""
        CREATE TABLE measure (
            cell_id          VARCHAR NOT NULL,
            analyser         VARCHAR,
            added_at         TIMESTAMP NOT NULL,
            background_red   FLOAT,
            background_green FLOAT,
            background_blue  FLOAT,
            focus            FLOAT,
            density_red      FLOAT,
            density_green    FLOAT,
            density_blue     FLOAT
        )""")


@migration(9, "fingerprints of cells, which were found alike, and what people decided of them")
def _duplicates(connection: duckdb.DuckDBPyConnection) -> None:
    # NULL where the kept bytes could not be used; no key: searched in memory, and cheap to write
    connection.execute("""
        CREATE TABLE fingerprint (
            cell_id VARCHAR NOT NULL,
            version INTEGER NOT NULL,
            across  UBIGINT,
            down    UBIGINT
        )""")
    # history: names cells that may be gone
    connection.execute("""
        CREATE TABLE resemblance (
            cell     VARCHAR NOT NULL,
            other    VARCHAR NOT NULL,
            score    DOUBLE NOT NULL,
            verdict  VARCHAR NOT NULL,
            found_at TIMESTAMP NOT NULL
        )""")
    # the last row of a pair holds
    connection.execute("""
        CREATE TABLE duplicate_decision (
            number     INTEGER PRIMARY KEY,
            cell       VARCHAR NOT NULL,
            other      VARCHAR NOT NULL,
            decision   VARCHAR NOT NULL,
            who        VARCHAR,
            decided_at TIMESTAMP NOT NULL
        )""")


@migration(10, "landmarks of cells' pictures, by which the pictures of their neighbours are found")
def _landmarks(connection: duckdb.DuckDBPyConnection) -> None:
    # no key: searched in memory, and cheap to write
    connection.execute("""
        CREATE TABLE landmark (
            cell_id VARCHAR NOT NULL,
            version INTEGER NOT NULL,
            across  UBIGINT NOT NULL,
            down    UBIGINT NOT NULL
        )""")


@migration(11, "the order in which rows came, as a number of their own")
def _numbers(connection: duckdb.DuckDBPyConnection) -> None:
    # up to now the order was that of the physical rows, which deleting and compacting may change
    for table in ("cell", "label_change", "file_history", "resemblance", "embedding_failure"):
        connection.execute(f"ALTER TABLE {table} ADD COLUMN number BIGINT")
        connection.execute(f"UPDATE {table} SET number = rowid + 1")
    # 0 where a damaged store has no such cell
    for table in ("measure", "landmark"):
        connection.execute(f"ALTER TABLE {table} ADD COLUMN number BIGINT DEFAULT 0")
        connection.execute(f"UPDATE {table} SET number = cell.number FROM cell WHERE cell.cell_id = {table}.cell_id")
    connection.execute("CREATE TABLE sequence (last_number BIGINT NOT NULL)")
    connection.execute(
        "INSERT INTO sequence SELECT greatest(0, "
        "(SELECT max(number) FROM cell), (SELECT max(number) FROM label_change), (SELECT max(number) FROM file_history), "
        "(SELECT max(number) FROM resemblance), (SELECT max(number) FROM embedding_failure))"
    )


@migration(12, "every row has its number")
def _no_row_without_a_number(connection: duckdb.DuckDBPyConnection) -> None:
    # DuckDB does this in no transaction that wrote the column
    for table in ("measure", "landmark"):
        connection.execute(f"ALTER TABLE {table} ALTER COLUMN number DROP DEFAULT")
    for table in ("cell", "label_change", "file_history", "resemblance", "embedding_failure", "measure", "landmark"):
        connection.execute(f"ALTER TABLE {table} ALTER COLUMN number SET NOT NULL")


@migration(13, "the average hash, which nothing asks any more, is no longer kept")
def _no_average_hash(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("ALTER TABLE cell DROP COLUMN average_hash")


@migration(14, "a trash for the cells that retention removes, and when the lab was seen alive")
def _trash(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("CREATE TABLE clock (number BIGINT NOT NULL, seen_at TIMESTAMP NOT NULL)")
    # NULL: the cell is gone for good
    connection.execute("ALTER TABLE removed_cell ADD COLUMN number BIGINT")
    # a cell that came back counts for retention as if it had come with that number
    connection.execute("CREATE TABLE restored_cell (cell_id VARCHAR NOT NULL, number BIGINT NOT NULL)")
    # the trash of other tables is made when the first cell is removed
    connection.execute("CREATE TABLE trash_cell AS FROM cell LIMIT 0")


@migration(15, "lists of labels that were imported, and how far each is")
def _label_lists(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("""
        CREATE TABLE label_list (
            number   INTEGER PRIMARY KEY,
            digest   VARCHAR NOT NULL,
            began_at TIMESTAMP NOT NULL,
            ended_at TIMESTAMP,
            rows     BIGINT NOT NULL,
            refused  BIGINT NOT NULL,
            done     BIGINT NOT NULL,
            changed  BIGINT NOT NULL,
            same     BIGINT NOT NULL,
            older    BIGINT NOT NULL
        )""")


@migration(16, "by what a file is known again that was replaced by one of equal size and time")
def _file_numbers(connection: duckdb.DuckDBPyConnection) -> None:
    # NULL where it is not known: the next scan learns it
    trash = connection.execute("SELECT table_name FROM duckdb_tables() WHERE table_name = 'trash_file'").fetchall()
    for table in ("file", "file_history", *(name for (name,) in trash)):
        connection.execute(f"ALTER TABLE {table} ADD COLUMN ctime_ns BIGINT")
        connection.execute(f"ALTER TABLE {table} ADD COLUMN inode UBIGINT")


@migration(17, "who may look at the pages, and who is signed in")
def _people(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("""
        CREATE TABLE person (
            number     BIGINT PRIMARY KEY,
            name       VARCHAR NOT NULL,
            role       VARCHAR NOT NULL,
            code_hash  VARCHAR NOT NULL,
            created_at TIMESTAMP NOT NULL,
            expires_at TIMESTAMP,
            revoked_at TIMESTAMP
        )""")
    connection.execute("""
        CREATE TABLE session (
            token_hash VARCHAR PRIMARY KEY,
            person     BIGINT NOT NULL,
            created_at TIMESTAMP NOT NULL,
            seen_at    TIMESTAMP NOT NULL,
            expires_at TIMESTAMP NOT NULL
        )""")


@migration(18, "who approved which slide, and labels that were taken back")
def _slide_approvals(connection: duckdb.DuckDBPyConnection) -> None:
    # the last row of a slide holds
    connection.execute("""
        CREATE TABLE slide_approval (
            number     BIGINT PRIMARY KEY,
            slide      VARCHAR NOT NULL,
            decision   VARCHAR NOT NULL,
            who        VARCHAR,
            decided_at TIMESTAMP NOT NULL,
            cells      BIGINT NOT NULL,
            bundle     VARCHAR
        )""")
    # the number of the change that this one takes back
    connection.execute("ALTER TABLE label_change ADD COLUMN undoes BIGINT")


@migration(19, "what other systems sent, by their own keys, so that nothing is done twice")
def _events(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("""
        CREATE TABLE event (
            key        VARCHAR PRIMARY KEY,
            asked      VARCHAR NOT NULL,
            answer     VARCHAR NOT NULL,
            happened_at TIMESTAMP NOT NULL
        )""")


@migration(20, "references that people called no good")
def _reference_rejections(connection: duckdb.DuckDBPyConnection) -> None:
    # the last row of a pair holds; query is NULL for any
    connection.execute("""
        CREATE TABLE reference_rejection (
            number     BIGINT PRIMARY KEY,
            cell       VARCHAR NOT NULL,
            query      VARCHAR,
            decision   VARCHAR NOT NULL,
            who        VARCHAR,
            decided_at TIMESTAMP NOT NULL
        )""")


@migration(21, "blinded readings, and what was decided on the cells of review queues")
def _readings(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("""
        CREATE TABLE reading (
            number     BIGINT PRIMARY KEY,
            title      VARCHAR NOT NULL,
            kind       VARCHAR NOT NULL,
            arms       VARCHAR[] NOT NULL,
            seed       BIGINT NOT NULL,
            how        VARCHAR NOT NULL,
            bundle     VARCHAR NOT NULL,
            who        VARCHAR,
            started_at TIMESTAMP NOT NULL,
            ended_at   TIMESTAMP
        )""")
    connection.execute("""
        CREATE TABLE reading_task (
            reading   BIGINT NOT NULL,
            task      INTEGER NOT NULL,
            cell      VARCHAR NOT NULL,
            label     VARCHAR NOT NULL,
            predicted VARCHAR NOT NULL,
            shown     VARCHAR NOT NULL,
            draw      VARCHAR NOT NULL
        )""")
    connection.execute("""
        CREATE TABLE reading_answer (
            number      BIGINT PRIMARY KEY,
            reading     BIGINT NOT NULL,
            task        INTEGER NOT NULL,
            arm         VARCHAR NOT NULL,
            person      VARCHAR NOT NULL,
            choice      VARCHAR,
            seconds     DOUBLE NOT NULL,
            answered_at TIMESTAMP NOT NULL,
            undone      BOOLEAN NOT NULL
        )""")
    # the last row of a cell and a queue holds
    connection.execute("""
        CREATE TABLE review_decision (
            number     BIGINT PRIMARY KEY,
            queue      VARCHAR NOT NULL,
            cell       VARCHAR NOT NULL,
            label      VARCHAR NOT NULL,
            who        VARCHAR,
            decided_at TIMESTAMP NOT NULL,
            changed    BOOLEAN NOT NULL,
            undone     BOOLEAN NOT NULL
        )""")


@migration(22, "which slides cells left and came to without being new")
def _slide_moves(connection: duckdb.DuckDBPyConnection) -> None:
    # so that an approval ends too where one cell left the slide and another came
    connection.execute("""
        CREATE TABLE slide_move (
            number BIGINT NOT NULL,
            slide  VARCHAR NOT NULL,
            came   BOOLEAN NOT NULL
        )""")


@migration(23, "whether a cell's picture shows one stained cell, and the pictures taken in all the same")
def _qualities(connection: duckdb.DuckDBPyConnection) -> None:
    # no row: not judged yet; NULL: its kept bytes cannot be judged
    connection.execute("""
        CREATE TABLE quality (
            cell_id VARCHAR NOT NULL,
            is_cell BOOLEAN,
            reason  VARCHAR,
            focus   FLOAT
        )""")
    connection.execute("""
        CREATE TABLE admitted (
            number      BIGINT PRIMARY KEY,
            digest      VARCHAR NOT NULL,
            who         VARCHAR,
            admitted_at TIMESTAMP NOT NULL
        )""")


@migration(24, "the judgement of one picture is found at once")
def _key_of_qualities(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("CREATE INDEX quality_of_cell ON quality (cell_id)")


@migration(25, "two watched folders can each have a slide of one name")
def _folders(connection: duckdb.DuckDBPyConnection) -> None:
    # NULL where it is not known: the lab, which knows its watched folders, says it (`Slides.locate`)
    there = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    for table in ("cell", "file", "file_history", "slide_approval", "slide_move", "trash_cell", "trash_file"):
        if table in there:
            connection.execute(f"ALTER TABLE {table} ADD COLUMN folder VARCHAR")


@migration(26, "which keys sign bundles that the lab takes in, and why each bundle came in")
def _keys(connection: duckdb.DuckDBPyConnection) -> None:
    # the last row of a key holds
    connection.execute("""
        CREATE TABLE signing_key (
            number     BIGINT PRIMARY KEY,
            key        VARCHAR NOT NULL,
            name       VARCHAR NOT NULL,
            state      VARCHAR NOT NULL,
            because    VARCHAR,
            changed_at TIMESTAMP NOT NULL
        )""")
    # the last row of a digest holds; numbers of a name only grow, whatever becomes of its bundles
    connection.execute("""
        CREATE TABLE admission (
            number        BIGINT PRIMARY KEY,
            digest        VARCHAR NOT NULL,
            how           VARCHAR NOT NULL,
            name          VARCHAR,
            bundle_number BIGINT,
            key_id        VARCHAR,
            admitted_at   TIMESTAMP NOT NULL
        )""")
    # a lab that was there before has bundles without a signature, in its store and in its folder: it keeps them
    connection.execute("CREATE TABLE before_signatures AS SELECT count(*) > 0 AS waits FROM bundle")


@migration(27, "what the shared store is still to be told")
def _outbox(connection: duckdb.DuckDBPyConnection) -> None:
    # `cell` is not called cell_id: rows stay when the cell is removed, which is what they tell
    connection.execute("""
        CREATE TABLE outbox (
            number   BIGINT NOT NULL,
            kind     VARCHAR NOT NULL,
            cell     VARCHAR,
            tag      VARCHAR NOT NULL,
            noted_at TIMESTAMP NOT NULL
        )""")
    connection.execute("CREATE TABLE publication AS SELECT false AS is_on, 0::BIGINT AS sent")


@migration(28, "maps of one analyser's cells")
def _own_maps(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("ALTER TABLE map ADD COLUMN analyser VARCHAR")
