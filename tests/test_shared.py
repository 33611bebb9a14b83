"""The shared store: several labs publish to one PostgreSQL with pgvector and ask it, each cell once, each lab its own
rows."""

from __future__ import annotations

import json
import shlex
import shutil
import socket
import threading
import time
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from numpy.typing import NDArray
from typer.testing import CliRunner

from labref.asking.references import Reference, find
from labref.asking.sharing import Others
from labref.bundles.bundle import Bundle
from labref.cli import app
from labref.cli.query import draw_grid
from labref.config import SharedConfig
from labref.errors import ConfigError, DecodingLimitError, SharedError
from labref.lab import Lab
from labref.lab.log import open_log
from labref.shared import asking as asking_module
from labref.shared import browsing, migrations
from labref.shared.address import PASSWORD, Address
from labref.shared.asking import Asking, Wanted
from labref.shared.check import check
from labref.shared.connection import connect
from labref.shared.labs import remove
from labref.shared.migrations import latest, make, migrate
from labref.store import NewCell, Store
from labref.store.duckdb.removal import Due
from labref.store.duckdb.reviews import Review
from labref.tasks.publishing import Publisher, publish, state
from labref.web.desk import Desk
from labref.web.desk import status as desk_status
from labref.words import Fingerprint, LabelSource, cell_id_of
from tests.labs import make_lab, once, running_agent, wait_until
from tests.postgres import Database, Server, database, fill, password, server
from tests.stores import BUNDLE, LABELS, digest_of, new_cell

runner = CliRunner()


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    with server() as running:
        yield running


@pytest.fixture
def shared(postgres: Server) -> Database:
    return database(postgres)


@contextmanager
def lab_of(
    folder: Path, bundle: Bundle, access: tuple[Address, str] | None, url: str | None = None, **settings: Any
) -> Iterator[tuple[Lab, Store]]:
    """A lab without pictures, and its store; it publishes as `access` says. url : another way there, as by a proxy."""
    export = folder.with_name(f"{folder.name}-export")
    export.mkdir(parents=True, exist_ok=True)
    lab = Lab.open(folder) if folder.exists() else make_lab(folder, export, bundle)
    if access is not None:
        address, secret = access
        (folder / "password").write_text(f"{secret}\n")
        to = url or f"postgresql://{address.user}@{address.host}:{address.port}/{address.database}"
        values: dict[str, Any] = {"url": to, "password_file": Path("password"), "wait_seconds": 20.0} | settings
        lab = replace(lab, config=lab.config.model_copy(update={"shared": SharedConfig(**values)}))
    with closing(lab.open_store()) as store:
        yield lab, store


@contextmanager
def two_labs(folder: Path, bundle: Bundle, shared: Database) -> Iterator[tuple[Lab, Store, Store, Asking]]:
    """Lund with its store, which publishes; the store of Malmö, which has no cells; and Malmö's asking."""
    lund, malmo = shared.lab("Lund"), shared.lab("Malmö")
    with (
        lab_of(folder / "lund", bundle, lund) as (lab, store),
        lab_of(folder / "malmo", bundle, malmo) as (_, empty),
        closing(asking(malmo)) as ask,
    ):
        yield lab, store, empty, ask


def lab_with_pictures(
    folder: Path, bundle: Bundle, pictures: Sequence[Path], url: str, secret: str, **watch: Any
) -> Lab:
    """A lab whose export folder has these pictures in their class folders, and whose labref.toml names a shared
    store."""
    export = folder.with_name(f"{folder.name}-export")
    for picture in pictures:
        (export / picture.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, export / picture.parent.name)
    lab = make_lab(folder, export, bundle, **watch)
    with lab.config_file.open("a") as file:
        file.write(f"\n[shared]\nurl = '{url}'\npassword_file = 'password'\nwait_seconds = 20\n")
    (folder / "password").write_text(secret)
    return lab


def cells_for(bundle: Bundle, numbers: range, **changes: Any) -> list[NewCell]:
    """Made-up cells in the latent space of a real bundle."""
    size, classes = bundle.manifest.latent_size, len(bundle.manifest.labels)
    made = []
    for number in numbers:
        rng = np.random.default_rng(number)
        values: dict[str, Any] = {
            "latent": rng.standard_normal(size).astype(np.float32),
            "probabilities": np.full(classes, 1 / classes),
        }
        values["probabilities"] = values["probabilities"].astype(np.float32)
        label = LABELS[number % len(LABELS)]
        source = ("reviewed", "analyser", "predicted")[number % 3]
        values |= {"label": None if source == "predicted" else label, "label_source": source, "predicted_label": label}
        made.append(new_cell(number, **(values | changes)))
    return made


def all_of(lab: Lab, store: Store) -> None:
    for _ in publish(lab, store):
        pass


def published(shared: Database, name: str) -> dict[str, tuple[str, str]]:
    """Label and its source by cell, of a lab; each cell has one row."""
    rows = shared.rows(
        "SELECT cell_id, label, label_source FROM cell WHERE lab = (SELECT id FROM lab WHERE name = %s)", name
    )
    found = {str(cell_id): (str(label), str(source)) for cell_id, label, source in rows}
    assert len(found) == len(rows), "a cell is there twice"
    return found


def in_store(store: Store) -> dict[str, tuple[str, str]]:
    ids = [row.cell_id for row in store.ledger() if row.cell_id is not None]
    return {cell_id: (label, str(source)) for cell_id, (label, source) in store.labelled(ids).items()}


def references(
    store: Store, bundle: Bundle, latent: Any, sharing: Others | None = None, **more: Any
) -> list[Reference]:
    found = find(store, bundle=bundle, latent=latent, digest=None, sharing=sharing, **more)
    assert found.reply is None or found.reply.problem is None, found.reply
    return found.references


def asking(access: tuple[Address, str], wait_seconds: float = 20.0) -> Asking:
    return Asking(access[0], lambda: access[1], wait_seconds)


def asking_as(lab: Lab) -> Asking:
    """As a lab of `lab_of` asks."""
    return asking((Address.of(lab.config.shared.url), (lab.folder / "password").read_text().strip()))


def seen(references: list[Reference]) -> list[tuple[Any, ...]]:
    return [(one.cell_id, one.label, one.label_source, one.distance, one.analyser) for one in references]


# publishing


def test_what_happens_to_cells_reaches_the_shared_store(tmp_path: Path, starter: Bundle, shared: Database) -> None:
    with lab_of(tmp_path / "lab", starter, shared.lab("Lund")) as (lab, store):
        first = cells_for(starter, range(12))
        store.record(first, bundle=starter.digest)
        all_of(lab, store)
        assert published(shared, "Lund") == in_store(store) and len(in_store(store)) == 12
        assert store.outbox.waiting().rows == 0

        named = first[0].cell_id
        store.reviews.give([Review(named, "Blåst; DROP TABLE cell", "a person", None)])
        store.record(cells_for(starter, range(12, 15)), bundle=starter.digest)
        gone = first[4]
        store.remove([Due(gone.cell_id, gone.digest, "x", LabelSource.ANALYSER, "DC-1", "old")])
        assert store.outbox.waiting().rows == 5
        all_of(lab, store)
        told = published(shared, "Lund")
        assert told == in_store(store) and gone.cell_id not in told and len(told) == 14
        assert told[named] == ("Blåst; DROP TABLE cell", "reviewed")

        assert store.trash.bring_back([gone.cell_id]) == [gone.cell_id]
        all_of(lab, store)
        assert published(shared, "Lund") == in_store(store) and len(in_store(store)) == 15
        (columns,) = shared.rows(
            "SELECT array_agg(DISTINCT a.attname::text) FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid "
            "WHERE relnamespace = 'labref'::regnamespace AND relname = 'cell' AND attnum > 0"
        )[0]
        assert isinstance(columns, list) and not {"slide", "path", "patient", "who"} & set(columns)
        assert shared.rows("SELECT * FROM named") == []
        store.withdrawal.take([gone.cell_id], [], "removed by A. Lind: consent withdrawn", erase=True)
        all_of(lab, store)
        assert published(shared, "Lund") == in_store(store) and len(in_store(store)) == 14


def test_latents_are_published_to_the_last_bit(tmp_path: Path, starter: Bundle, shared: Database) -> None:
    with lab_of(tmp_path / "lab", starter, shared.lab("Lund")) as (lab, store):
        cells = cells_for(starter, range(20))
        store.record(cells, bundle=starter.digest)
        all_of(lab, store)
        there: dict[Any, Any] = dict(list[Any](shared.rows("SELECT cell_id, latent::float4[] FROM cell")))
        for cell in cells:
            assert np.array_equal(np.array(there[cell.cell_id], np.float32), cell.latent)


def test_names_are_published_only_where_the_setting_says_so(tmp_path: Path, starter: Bundle, shared: Database) -> None:
    with lab_of(tmp_path / "lab", starter, shared.lab("Lund"), send_names=True) as (lab, store):
        store.record(cells_for(starter, range(2), slide="slide 7"), bundle=starter.digest)
        all_of(lab, store)
    assert {slide for _, _, slide, _ in shared.rows("SELECT * FROM named")} == {"slide 7"}
    with lab_of(tmp_path / "lab", starter, None) as (_, store):  # turned off
        assert store.outbox.waiting().rows == 0
    access = shared.lab("Lund")
    with lab_of(tmp_path / "lab", starter, access) as (lab, store):
        all_of(lab, store)
        assert shared.rows("SELECT * FROM named") == [] and published(shared, "Lund") == in_store(store)


def test_what_labref_toml_says_of_names_and_optics_holds_for_cells_of_before(
    tmp_path: Path, starter: Bundle, shared: Database
) -> None:
    def told() -> tuple[int, list[tuple[object, ...]]]:
        with lab_of(tmp_path / "lab", starter, shared.lab("Lund"), **settings) as (lab, store):
            store.record(cells_for(starter, new, slide="slide 7"), bundle=starter.digest)
            before = store.outbox.waiting().rows
            all_of(lab, store)
            assert published(shared, "Lund") == in_store(store)
        found = shared.rows("SELECT cell.optics, slide FROM cell LEFT JOIN named USING (lab, cell_id) GROUP BY 1, 2")
        return before, found

    new, settings = range(3), dict[str, Any](send_names=True)
    assert told()[1] == [("DC-1", "slide 7")]
    new, settings = range(0), {}
    assert told() == (0, [("DC-1", None)])
    settings = {"optics": "all DC"}
    assert told() == (0, [("all DC", None)])
    new = range(3, 4)
    assert told() == (1, [("all DC", None)]), "nothing but that cell is told"


def test_a_lab_without_a_shared_store_keeps_no_outbox(tmp_path: Path, starter: Bundle, shared: Database) -> None:
    with lab_of(tmp_path / "lab", starter, None) as (lab, store):
        store.record(cells_for(starter, range(3)), bundle=starter.digest)
        assert store.outbox.after(0, 10) == [] and state(lab, store, None) is None
    # turned on later: everything is published
    with lab_of(tmp_path / "lab", starter, shared.lab("Lund")) as (lab, store):
        told = state(lab, store, None)
        assert told is not None and told["waiting"] == 5 and told["since"] is not None
        all_of(lab, store)
        assert published(shared, "Lund") == in_store(store) and len(in_store(store)) == 3


def test_a_store_restored_from_a_backup_publishes_all_again(tmp_path: Path, starter: Bundle, shared: Database) -> None:
    access = shared.lab("Lund")
    with lab_of(tmp_path / "lab", starter, access) as (lab, store):
        store.record(cells_for(starter, range(5)), bundle=starter.digest)
        all_of(lab, store)
    shutil.copy(tmp_path / "lab" / "store.duckdb", tmp_path / "copy")
    with lab_of(tmp_path / "lab", starter, access) as (lab, store):
        store.record(cells_for(starter, range(5, 9)), bundle=starter.digest)
        all_of(lab, store)
    assert len(published(shared, "Lund")) == 9
    shutil.copy(tmp_path / "copy", tmp_path / "lab" / "store.duckdb")
    with lab_of(tmp_path / "lab", starter, access) as (lab, store):
        # as many numbers as before, by other cells
        store.record(cells_for(starter, range(20, 24)), bundle=starter.digest)
        all_of(lab, store)
        assert published(shared, "Lund") == in_store(store)
        assert len(in_store(store)) == 9 and cell_id_of(digest_of(5)) not in in_store(store)


def test_a_shared_store_that_lost_rows_is_made_again(tmp_path: Path, starter: Bundle, shared: Database) -> None:
    with lab_of(tmp_path / "lab", starter, shared.lab("Lund")) as (lab, store):
        store.record(cells_for(starter, range(7)), bundle=starter.digest)
        all_of(lab, store)
        with shared.server.connect(shared.name) as owner:
            for table in ("cell", "thumbnail"):
                owner.execute(f"DELETE FROM labref.{table} WHERE cell_id < '8'".encode())
            owner.execute("INSERT INTO labref.thumbnail VALUES (1, '0123456789abcdef', '')")
            owner.execute("UPDATE labref.lab SET sent = 3, tag = 'of before'")
        assert check(shared.owner, shared.secret).faults == {"thumbnails without a cell": 1}
        all_of(lab, store)
        assert published(shared, "Lund") == in_store(store) and len(in_store(store)) == 7
        assert check(shared.owner, shared.secret).faults == {}


def test_a_new_bundle_moves_the_cells_into_its_space(tmp_path: Path, starter: Bundle, shared: Database) -> None:
    from labref.store import CellEmbedding

    with lab_of(tmp_path / "lab", starter, shared.lab("Lund")) as (lab, store):
        cells = cells_for(starter, range(4))
        store.record(cells, bundle=starter.digest)
        all_of(lab, store)
        other, size, labels = "cd" * 32, 10, ("monocyte", "neutrophil")
        store.add_bundle(other, name="new", version="2", latent_size=size, labels=labels)
        moved = [
            CellEmbedding(cell.cell_id, np.full(size, i, np.float32), np.array([0.5, 0.5], np.float32), "monocyte", 0.5)
            for i, cell in enumerate(cells[:3])
        ]
        store.add_embeddings(moved, bundle=other)
        all_of(lab, store)
        assert len(published(shared, "Lund")) == 4
        store.changes.switch(other)
        all_of(lab, store)
        # the fourth has no place in the new space
        assert set(published(shared, "Lund")) == {cell.cell_id for cell in cells[:3]}
        assert shared.rows(
            "SELECT DISTINCT bundle.digest, vector_dims(latent) FROM cell JOIN bundle ON number = bundle"
        ) == [(other, size)]


# who may write what


def test_a_lab_writes_its_own_rows_alone(tmp_path: Path, starter: Bundle, shared: Database) -> None:
    lund, malmo = shared.lab("Lund"), shared.lab("Malmö")
    for name, access, start in (("lund", lund, 0), ("malmo", malmo, 100)):
        with lab_of(tmp_path / name, starter, access) as (lab, store):
            store.record(cells_for(starter, range(start, start + 3)), bundle=starter.digest)
            all_of(lab, store)
    before = shared.rows("SELECT * FROM cell ORDER BY lab, cell_id")
    assert shared.rows("SELECT lab, count(*) FROM cell GROUP BY lab ORDER BY lab") == [(1, 3), (2, 3)]
    row = "bundle, {} AS lab, withheld, optics, latent, '{}' AS cell_id, generation, digest, label, label_source, analyser, place"
    refused = (
        "INSERT INTO cell (bundle, lab, withheld, optics, latent, cell_id, generation, digest, label, label_source, analyser, "
        f"place, stored_at) SELECT {row.format(2, '0' * 16)}, stored_at FROM cell LIMIT 1",
        "UPDATE cell SET lab = 2",
        "UPDATE cell_1 SET label = 'mine'",
        "INSERT INTO thumbnail VALUES (2, '0123456789abcdef', '')",
        "INSERT INTO named VALUES (2, '0123456789abcdef', 's', 'p')",
        "INSERT INTO lab (name, role) VALUES ('another', 'x')",
        "UPDATE lab SET name = 'Malmö'",
        "UPDATE lab SET role = 'labref_malmo'",
        "DELETE FROM lab",
        "DELETE FROM bundle",
        "TRUNCATE cell",
        "DROP TABLE cell",
        "ALTER TABLE cell DISABLE ROW LEVEL SECURITY",
        "CREATE TABLE labref.mine (a int)",
        "CREATE FUNCTION labref.vector_dims(vector) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "SET ROLE owner",
        "SELECT * FROM pg_authid",
        "COPY cell TO PROGRAM 'cat'",
    )
    with shared.as_lab(lund) as connection:
        for statement in refused:
            with pytest.raises(psycopg.Error):
                connection.execute(statement.encode())
        for statement in ("DELETE FROM cell WHERE lab = 2", "UPDATE cell SET label = 'mine' WHERE lab = 2"):
            assert connection.execute(statement.encode()).rowcount == 0
        assert connection.execute("UPDATE lab SET sent = 0 WHERE name = 'Malmö'").rowcount == 0
        assert connection.execute("SELECT count(*) FROM cell").fetchone() == (6,)
    assert shared.rows("SELECT * FROM cell ORDER BY lab, cell_id") == before


def test_a_reader_reads_and_writes_nothing(tmp_path: Path, starter: Bundle, shared: Database) -> None:
    with lab_of(tmp_path / "lab", starter, shared.lab("Lund")) as (lab, store):
        store.record(cells_for(starter, range(3)), bundle=starter.digest)
        all_of(lab, store)
    with shared.as_lab(shared.lab("room 3", reads_only=True)) as connection:
        assert connection.execute("SELECT count(*) FROM cell").fetchone() == (3,)
        for statement in (
            "DELETE FROM cell",
            "UPDATE cell SET label = 'mine'",
            "UPDATE lab SET sent = 0",
            f"SELECT add_bundle('{'ef' * 32}', 'a', '1', 3)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())
    with (
        pytest.raises(SharedError, match="is the role of no lab"),
        lab_of(tmp_path / "reader", starter, shared.lab("room 3", reads_only=True)) as (lab, store),
    ):
        all_of(lab, store)


def test_a_role_of_another_shared_store_of_the_server_does_not_come_in(postgres: Server, shared: Database) -> None:
    other = database(postgres)
    address, secret = other.lab("Lund")
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        shared.as_lab((replace(address, database=shared.name), secret))


def test_names_and_labels_are_values_and_never_statements(tmp_path: Path, starter: Bundle, shared: Database) -> None:
    evil = "x'); DROP TABLE labref.cell; --"
    access = shared.lab(evil)
    with lab_of(tmp_path / "lab", starter, access, optics=evil) as (lab, store):
        cells = cells_for(starter, range(3), label=evil, label_source="analyser", analyser=evil, slide=evil)
        store.record(cells, bundle=starter.digest)
        all_of(lab, store)
        assert published(shared, evil) == in_store(store) and len(in_store(store)) == 3
    with (
        lab_of(tmp_path / "other", starter, shared.lab("Lund")) as (_, store),
        closing(asking(shared.lab("Lund"))) as ask,
    ):
        latent = cells[0].latent
        for which in (evil.replace(",", ""), "all"):
            (first, *_) = references(store, starter, latent, Others(ask, which))
            assert (first.lab, first.label, first.analyser, first.origin) == (evil, evil, evil, "shared")
        assert references(store, starter, latent, Others(ask, "optics", evil))[0].lab == evil
        assert references(store, starter, latent, Others(ask, "optics", "DC-1")) == []


def test_a_name_that_postgresql_cannot_keep_holds_nothing_up(tmp_path: Path, starter: Bundle, shared: Database) -> None:
    """A class folder of a Latin-1 share has bytes that are no UTF-8; a name can be longer than a column."""
    with lab_of(tmp_path / "lab", starter, shared.lab("Lund"), send_names=True) as (lab, store):
        cells = cells_for(starter, range(3), label="Bl\udce5st", label_source="analyser", analyser="D\udcc4" * 150)
        store.record(cells, bundle=starter.digest)
        all_of(lab, store)
        assert {label for label, _ in published(shared, "Lund").values()} == {"Bl\\udce5st"}
    with (
        lab_of(tmp_path / "other", starter, shared.lab("Malmö")) as (_, store),
        closing(asking(shared.lab("Malmö"))) as ask,
    ):
        found = references(store, starter, cells[0].latent, Others(ask, "optics", "D\udcc4" * 150))
        assert len(found) == 3 and found[0].label == "Bl\\udce5st"


# asking


def test_one_lab_in_the_shared_store_gives_the_eight_of_the_lab_itself(
    tmp_path: Path, starter: Bundle, shared: Database
) -> None:
    size = starter.manifest.latent_size
    with two_labs(tmp_path, starter, shared) as (lab, store, empty, outside), closing(asking_as(lab)) as inside:
        cells = cells_for(starter, range(600))
        # captures of one cell, and cells at the same place, whose order is that of their ids
        same = [new_cell(f"same {i}", latent=cells[i].latent, probabilities=cells[i].probabilities) for i in range(9)]
        store.record([*cells, *same], bundle=starter.digest)
        all_of(lab, store)
        rng = np.random.default_rng(5)
        questions = [cells[3].latent, *rng.standard_normal((30, size)).astype(np.float32)]
        for latent in questions:
            own = references(store, starter, latent)
            assert len(own) == 8
            assert references(store, starter, latent, Others(inside, "all")) == own
            theirs = references(empty, starter, latent, Others(outside, "all"))
            assert seen(theirs) == seen(own)
            assert {(one.lab, one.origin, one.path, one.slide) for one in theirs} == {("Lund", "shared", "", None)}


def test_a_cell_of_another_lab_stands_only_where_it_is_clearly_nearer(
    tmp_path: Path, starter: Bundle, shared: Database
) -> None:
    lund, malmo = shared.lab("Lund"), shared.lab("Malmö")
    size, classes = starter.manifest.latent_size, len(starter.manifest.labels)

    def at(name: str, distance: float, **changes: Any) -> NewCell:
        latent = np.full(size, np.sqrt(distance), np.float32)
        probabilities = np.full(classes, 1 / classes, np.float32)
        return new_cell(name, latent=latent, probabilities=probabilities, **changes)

    one_picture = (Fingerprint(7, 9),)
    own = [at("a", 1.0, label=None, label_source="predicted"), at("b", 2.0), at("c", 3.0, fingerprints=one_picture)]
    theirs = [
        at("d", 0.98, label_source="reviewed"),  # about as near as a, and better known: a goes before it
        at("e", 1.5, label_source="reviewed"),  # clearly nearer than b
        at("b", 2.0),  # the picture that Lund has itself
        at("f", 2.5, fingerprints=(Fingerprint(6, 9),)),  # one bit away from c
        at("g", 9.0),
    ]
    with ExitStack() as stack:
        lab, store = stack.enter_context(lab_of(tmp_path / "lund", starter, lund))
        store.record(own, bundle=starter.digest)
        all_of(lab, store)
        lab, others = stack.enter_context(lab_of(tmp_path / "malmo", starter, malmo))
        others.record(theirs, bundle=starter.digest)
        all_of(lab, others)
        ask = stack.enter_context(closing(asking(lund)))
        latent = np.zeros(size, np.float32)

        def names(found: list[Reference]) -> list[tuple[str, str | None]]:
            by_id = {cell_id_of(digest_of(name)): name for name in "abcdefg"}
            return [(by_id[one.cell_id], one.lab) for one in found]

        wanted = Others(ask, "all")
        assert names(references(store, starter, latent, wanted, k=1)) == [("a", None)]
        assert names(references(store, starter, latent, wanted, k=8)) == [
            ("d", "Malmö"),
            ("a", None),
            ("e", "Malmö"),
            ("b", None),
            ("c", None),
            ("g", "Malmö"),
        ]
        for which in ("Malmö", unicodedata.normalize("NFD", "Malmö")):
            assert names(references(store, starter, latent, Others(ask, which), k=3))[0] == ("d", "Malmö")
        # the picture that is asked about is nobody's reference
        found = find(store, bundle=starter, latent=latent, digest=digest_of("e"), sharing=wanted)
        assert "e" not in dict(names(found.references))
        with pytest.raises(AssertionError, match="names no lab"):
            references(store, starter, latent, Others(ask, " , "))
        with pytest.raises(AssertionError, match="has no lab 'Ystad'"):
            references(store, starter, latent, Others(ask, "Lund, Ystad"))
        ask.close()
        reply = find(store, bundle=starter, latent=latent, digest=None, sharing=wanted).reply
        assert reply is not None and reply.problem == "the shared store is asked no more: labref ends"
        assert ask.thumbnail("Malmö", cell_id_of(digest_of("e"))) is None


def test_a_doubted_or_refused_cell_is_no_reference_for_others(
    tmp_path: Path, starter: Bundle, shared: Database
) -> None:
    with two_labs(tmp_path, starter, shared) as (lab, store, empty, ask):
        cells = cells_for(starter, range(10))
        store.record(cells, bundle=starter.digest)
        all_of(lab, store)
        wanted = Others(ask, "all")
        assert references(empty, starter, cells[0].latent, wanted)[0].cell_id == cells[0].cell_id
        store.rejections.reject(cells[0].cell_id, None, "a person")
        all_of(lab, store)
        assert cells[0].cell_id not in {
            one.cell_id for one in references(empty, starter, cells[0].latent, wanted, k=10)
        }
        store.rejections.undo(cells[0].cell_id, None, "a person")
        all_of(lab, store)
        assert references(empty, starter, cells[0].latent, wanted)[0].cell_id == cells[0].cell_id


def test_a_shared_store_out_of_reach_costs_the_answer_nothing(
    tmp_path: Path, starter: Bundle, postgres: Server, shared: Database
) -> None:
    access = shared.lab("Lund")
    with lab_of(tmp_path / "lund", starter, access) as (lab, store), closing(asking(access, 0.5)) as ask:
        cells = cells_for(starter, range(20))
        store.record(cells, bundle=starter.digest)
        all_of(lab, store)
        own = references(store, starter, cells[0].latent)
        assert references(store, starter, cells[0].latent, Others(ask, "all")) == own
        postgres.kill()
        try:
            waited = []
            for _ in range(6):
                found = find(store, bundle=starter, latent=cells[0].latent, digest=None, sharing=Others(ask, "all"))
                assert found.references == own and found.reply is not None
                assert found.reply.problem is not None and "\n" not in found.reply.problem
                waited.append(found.reply.milliseconds)
                time.sleep(0.3)
            # the first may wait; from then on nobody asks a server that is gone
            assert max(waited) < 1000 and sorted(waited)[2] < 20, waited
        finally:
            postgres.start()

        def back() -> bool:
            reply = find(store, bundle=starter, latent=cells[0].latent, digest=None, sharing=Others(ask, "all")).reply
            return reply is not None and reply.problem is None

        wait_until(back, 30)


def test_a_filter_takes_nothing_from_the_number_of_references(
    tmp_path: Path, starter: Bundle, shared: Database
) -> None:
    """pgvector#719: an approximate index gives fewer than asked for under a filter. Exact scans give all."""
    with two_labs(tmp_path, starter, shared) as (lab, store, empty, ask):
        store.record(cells_for(starter, range(1000)), bundle=starter.digest)
        rare = cells_for(starter, range(2000, 2012), analyser="rare")
        store.record(rare, bundle=starter.digest)
        all_of(lab, store)
        latent = np.zeros(starter.manifest.latent_size, np.float32)
        found = references(empty, starter, latent, Others(ask, "optics", "rare"), k=12)
        assert {one.cell_id for one in found} == {cell.cell_id for cell in rare}


def test_past_a_size_an_index_answers_and_a_filter_takes_nothing_from_the_number(
    shared: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pgvector#719: an index gives fewer than asked for under a filter. Those that are asked for here lie far away."""
    rng = np.random.default_rng(719)
    cells, asked_for = 3000, 72
    labs = np.where(np.arange(cells) % 20 == 0, 2, 1)  # 150 cells of Malmö
    latents = rng.standard_normal((cells, 50)).astype(np.float32)
    latents[labs == 2] += 3
    accesses = [shared.lab(name) for name in ("Lund", "Malmö", "Ystad")]
    fill(shared, latents, labs.tolist(), ["DC-1" if lab == 1 else "DM96" for lab in labs])
    questions = latents[:12] + 0.1 * rng.standard_normal((12, 50)).astype(np.float32)
    ids = [cell_id_of(digest_of(number)) for number in range(cells)]

    def nearest(latent: NDArray[np.float32], wanted: NDArray[np.bool_], k: int = 8) -> list[str]:
        away = np.where(wanted, ((latents - latent) ** 2).mean(1), np.inf)
        return [ids[number] for number in np.argsort(away)[:k]]

    def reply(ask: Asking, latent: NDArray[np.float32], wanted: Wanted, *, exact: bool) -> list[str]:
        answered = ask.put(BUNDLE, latent, wanted, asked_for).reply()
        assert answered.problem is None and answered.exact == exact and len(answered.cells) >= asked_for
        return [one.cell_id for one in answered.cells]

    def labref(*arguments: str) -> str:
        with password(shared.secret):
            done = runner.invoke(app, ["shared", *arguments, "--url", shared.url()])
        assert done.exit_code == 0, done.output
        return done.stdout

    def by_index(compares_at_most: int = 1000) -> Asking:
        return Asking(accesses[2][0], lambda: accesses[2][1], 20.0, compares_at_most=compares_at_most)

    everyone = np.full(cells, True)
    with closing(by_index()) as ask:  # there is none yet
        assert reply(ask, questions[0], Wanted(), exact=True)[:8] == nearest(questions[0], everyone)
    assert "no index\n" in labref("check")
    monkeypatch.setattr("labref.shared.indexing.INDEX_ABOVE", 1000)
    assert "3000 cells" in (said := labref("check")) and "questions want one: labref shared index" in said
    assert "No bundle has more than 3000" in labref("index", "--above", "3000")
    made = json.loads(labref("index", "--json"))
    assert (made["cells"], made["wants_index"]) == (cells, False) and made["index_bytes"] > 50 * 4 * cells
    assert "No bundle has more than 1000" in labref("index") and "an index of" in labref("check")

    with closing(by_index()) as ask:
        right = 0
        for latent in questions:
            right += len(set(reply(ask, latent, Wanted(), exact=False)[:8]) & set(nearest(latent, everyone)))
            # few are meant: all of them are compared
            for wanted in (Wanted(labs=("Malmö",)), Wanted(optics="DM96")):
                assert reply(ask, latent, wanted, exact=True)[:8] == nearest(latent, labs == 2)
        assert right >= 0.95 * 8 * len(questions)
    with closing(by_index(50)) as ask:  # by the index: it goes on until it has enough
        for wanted in (Wanted(labs=("Malmö",)), Wanted(optics="DM96")):
            assert reply(ask, questions[1], wanted, exact=False)[:8] == nearest(questions[1], labs == 2)
        monkeypatch.setitem(asking_module._SETTINGS, "hnsw.max_scan_tuples", "1")
    with closing(by_index(50)) as ask:  # it may not look at as many: all are compared after all
        assert reply(ask, questions[1], Wanted(optics="DM96"), exact=True)[:8] == nearest(questions[1], labs == 2)
    used = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'cell_1_nearest'"
    wait_until(lambda: int(str(shared.rows(used)[0][0])) >= len(questions), 30)

    # what an attempt that was broken off left is not used, and made anew
    with shared.server.connect(shared.name) as owner:
        owner.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'labref.cell_1_nearest'::regclass")
    with closing(by_index()) as ask:
        assert reply(ask, questions[0], Wanted(), exact=True)[:8] == nearest(questions[0], everyone)
    assert json.loads(labref("index", "--json"))["cells"] == cells
    with closing(by_index()) as ask:
        reply(ask, questions[0], Wanted(), exact=False)


def test_a_store_of_before_is_migrated_and_reads_one_optics_from_an_index_alone(
    postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, cells = migrations.steps(), 4000
    latents = np.random.default_rng(3).standard_normal((cells, 50)).astype(np.float32)
    rare = np.arange(cells) % 20 == 0
    with monkeypatch.context() as before:
        before.setattr(migrations, "steps", lambda: known[:2])
        shared = database(postgres)
        shared.lab("Lund")
        fill(shared, latents, [1] * cells, ["DM96" if it else "DC-1" for it in rare])
    migrate(shared.owner, shared.secret)
    with shared.server.connect(shared.name) as owner:
        owner.execute("VACUUM ANALYZE labref.cell")
        # latents of later bundles: the largest that stand in the index, beside the longest name; none; beside the table
        for number, size in enumerate((400, 401, 2000), start=2):
            owner.execute("SELECT labref.add_bundle(%s, 'large', '1', %s)", [f"{number:064x}", size])
            owner.execute(
                "INSERT INTO labref.cell SELECT %s, lab, withheld, %s, %s::text::labref.vector, cell_id, generation, digest, "
                "repeat('l', 1000), label_source, analyser, place, across, down, captured_at, stored_at FROM labref.cell LIMIT 3",
                [number, "𝛼" * 200, f"[{','.join(map(repr, range(size)))}]"],
            )
    with closing(asking(shared.lab("Malmö"))) as ask:
        reply = ask.put(BUNDLE, latents[20], Wanted(optics="DM96"), 8).reply()
    away = np.where(rare, ((latents - latents[20]) ** 2).mean(1), np.inf)
    assert [one.cell_id for one in reply.cells[:8]] == [
        cell_id_of(digest_of(number)) for number in np.argsort(away)[:8]
    ]
    read = "SELECT idx_tup_read, idx_tup_fetch FROM pg_stat_user_indexes WHERE indexrelname = 'cell_1_optics'"
    wait_until(lambda: shared.rows(read) == [(int(rare.sum()), 0)], 30)


def tables_waited_for(shared: Database) -> int:
    """How many connections wait for a lock."""
    ((waiting,),) = shared.rows(
        "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT granted AND a.datname = current_database()"
    )
    return int(str(waiting))


def test_while_a_store_is_migrated_questions_are_answered_and_one_that_was_killed_is_finished(
    postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = migrations.steps()
    latents = np.random.default_rng(4).standard_normal((60, 50)).astype(np.float32)
    with monkeypatch.context() as before:
        before.setattr(migrations, "steps", lambda: known[:2])
        shared = database(postgres)
        lund = shared.lab("Lund")
        fill(shared, latents, [1] * 60, ["DC-1"] * 60)
    with ThreadPoolExecutor(2) as pool, closing(asking(shared.lab("Malmö"), 5.0)) as ask:
        with shared.as_lab(lund) as publishes, publishes.transaction():
            publishes.execute("UPDATE cell SET label = 'under way' WHERE lab = 1")
            killed = pool.submit(migrate, shared.owner, shared.secret)
            wait_until(lambda: tables_waited_for(shared) == 1, 30)
            reply = ask.put(BUNDLE, latents[7], Wanted(optics="DC-1"), 8).reply()
            assert reply.problem is None and reply.cells[0].cell_id == cell_id_of(digest_of(7))
            shared.rows("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted")
            with pytest.raises(SharedError, match="terminating connection"):
                killed.result(30)
            assert shared.rows("SELECT max(version) FROM migration") == [(2,)]
            both = [pool.submit(migrate, shared.owner, shared.secret) for _ in range(2)]
            wait_until(lambda: tables_waited_for(shared) == 2, 30)
        assert [one.result(60) for one in both] == [latest()] * 2
    assert shared.rows("SELECT version FROM migration ORDER BY 1") == [(version,) for version in range(1, latest() + 1)]
    assert check(shared.owner, shared.secret).faults == {}


def test_a_store_that_was_begun_is_finished(postgres: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Database(postgres, made=False)
    with monkeypatch.context() as refused:  # the user may make no roles yet
        refused.setattr(migrations, "steps", lambda: [migrations.Step(1, "cells", "SELECT 1 / 0", 1)])
        with pytest.raises(SharedError, match="division by zero"):
            make(shared.owner, shared.secret)
    with pytest.raises(SharedError, match="is no shared store. Make one"):
        migrate(shared.owner, shared.secret)
    assert make(shared.owner, shared.secret) == latest()
    other = Database(postgres, made=False)
    with other.server.connect(other.name) as owner:
        owner.execute("CREATE SCHEMA labref")
    with pytest.raises(SharedError, match="Take another database"):
        make(other.owner, other.secret)


def test_what_was_dropped_by_hand_is_said_and_made_again(tmp_path: Path, starter: Bundle, shared: Database) -> None:
    def found() -> dict[str, int]:
        with password(shared.secret):
            done = runner.invoke(app, ["shared", "check", "--url", shared.url(), "--json"])
        assert done.exit_code in (0, 1), done.exception
        faults: dict[str, int] = json.loads(done.stdout)["faults"]
        return faults

    address, _ = access = shared.lab("Lund")
    with lab_of(tmp_path / "lab", starter, access) as (lab, store):
        store.record(cells_for(starter, range(6)), bundle=starter.digest)
        all_of(lab, store)
        with shared.server.connect(shared.name) as owner:
            owner.execute("DROP INDEX labref.cell_1_optics")
            assert found() == {"bundles without the index by optics": 1}
            with pytest.raises(SharedError, match="Let its owner do it"):
                migrate(*access)
            assert migrate(shared.owner, shared.secret) == latest() and found() == {}
            assert migrate(*access) == latest(), "there is nothing to do"
            assert store.outbox.waiting().rows == 0
            all_of(lab, store)

            owner.execute("DROP TABLE labref.cell_1")
        assert found() == {"bundles whose table of cells is gone": 1, "thumbnails without a cell": 6}
        assert migrate(shared.owner, shared.secret) == latest()
        all_of(lab, store)
        assert found() == {} and published(shared, "Lund") == in_store(store) and len(in_store(store)) == 6
    with shared.server.connect(shared.name) as owner:
        owner.execute(f"DROP OWNED BY {address.user}; DROP ROLE {address.user}".encode())
    assert found() == {"labs whose role is gone": 1}
    with password(shared.secret):
        done = runner.invoke(app, ["shared", "lab", "remove", "Lund", "--url", shared.url()])
    assert done.exit_code == 0 and found() == {}


def test_one_bundle_that_two_labs_bring_at_once_is_there_once(
    tmp_path: Path, starter: Bundle, shared: Database
) -> None:
    lund, malmo = shared.lab("Lund"), shared.lab("Malmö")
    with lab_of(tmp_path / "lab", starter, malmo) as (lab, store), ThreadPoolExecutor(1) as beside:
        store.record(cells_for(starter, range(3)), bundle=starter.digest)
        with shared.as_lab(lund) as first, first.transaction():
            first.execute("SELECT add_bundle(%s, 'starter', '1', %s)", [starter.digest, starter.manifest.latent_size])
            second = beside.submit(all_of, lab, store)
            wait_until(lambda: tables_waited_for(shared) == 1, 30)
        second.result(30)
        assert published(shared, "Malmö") == in_store(store)
    assert shared.rows("SELECT digest FROM bundle") == [(starter.digest,)]


def test_a_lab_is_taken_out_while_it_publishes(shared: Database) -> None:
    lund = shared.lab("Lund")
    fill(shared, np.zeros((2, 50), np.float32), [1, 1], ["DC-1"] * 2)
    with ThreadPoolExecutor(1) as beside:
        with shared.as_lab(lund) as publishes, publishes.transaction():
            publishes.execute("SELECT sent FROM lab WHERE id = 1 FOR UPDATE")
            publishes.execute("INSERT INTO thumbnail VALUES (1, '0123456789abcdef', '')")
            gone = beside.submit(remove, shared.owner, shared.secret, "Lund")
            wait_until(lambda: tables_waited_for(shared) == 1, 30)
        assert gone.result(30) == 2
    assert shared.rows("SELECT * FROM lab") == shared.rows("SELECT * FROM thumbnail") == []


def test_the_server_s_log_holds_no_password(postgres: Server, shared: Database) -> None:
    with shared.server.connect(shared.name) as owner:
        owner.execute(f"ALTER DATABASE {shared.name} SET log_statement = 'all'".encode())
    _, secret = access = shared.lab("Lund")
    shared.as_lab(access).close()
    log = (postgres.folder / "log").read_text()
    assert "CREATE ROLE" in log and secret not in log


def test_a_moment_that_no_computer_knows_costs_others_no_answer(
    tmp_path: Path, starter: Bundle, shared: Database
) -> None:
    with shared.server.connect(shared.name) as owner:
        owner.execute(f"ALTER DATABASE {shared.name} SET timezone = 'Asia/Tokyo'".encode())
        owner.execute(f"ALTER DATABASE {shared.name} SET datestyle = 'German'".encode())
    with two_labs(tmp_path, starter, shared) as (lab, store, empty, ask):
        ends = [datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC), datetime(1, 1, 1, tzinfo=UTC), None]
        cells = [
            cell
            for at, number in zip(ends, range(3), strict=True)
            for cell in cells_for(starter, range(number, number + 1), captured_at=at)
        ]
        store.record([*cells, *cells_for(starter, range(3, 5))], bundle=starter.digest)
        all_of(lab, store)
        with shared.as_lab((Address.of(lab.config.shared.url), (lab.folder / "password").read_text().strip())) as own:
            for number, at in ((3, "infinity"), (4, "4713-01-01 BC")):
                named = cell_id_of(digest_of(number))
                own.execute("UPDATE cell SET captured_at = %s, stored_at = %s WHERE cell_id = %s", [at, at, named])
            own.execute("UPDATE lab SET published_at = 'infinity'")
        found = references(empty, starter, cells[0].latent, Others(ask, "Lund"), k=5)
        told = {one.cell_id: one.captured_at for one in found}
        assert [told[cell.cell_id] for cell in cells] == ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", None]
        assert len(told) == 5
        assert len(ask.read(lambda connection: browsing.cells(connection, limit=9, offset=0))) == 5
        assert [one.cells for one in check(shared.owner, shared.secret).labs] == [5, 0]


def test_a_picture_that_could_not_be_made_for_a_moment_is_made_later(
    tmp_path: Path, starter: Bundle, shared: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sent() -> list[bytes]:
        return sorted(bytes(jpeg) for (jpeg,) in shared.rows("SELECT jpeg FROM thumbnail"))  # type: ignore[call-overload]

    def shown(of: dict[str, bytes | Exception | None]) -> None:
        def of_cell(_: object, cell_id: str, __: str) -> bytes | None:
            made = of[cell_id]
            if isinstance(made, Exception):
                raise made
            return made

        monkeypatch.setattr("labref.lab.pictures.Pictures.of_cell", of_cell)

    monkeypatch.setattr("labref.tasks.publishing._LACKING_AT_ONCE", 2)
    monkeypatch.setattr("labref.tasks.publishing._THUMBNAILS_AT_ONCE", 1)
    with lab_of(tmp_path / "lab", starter, shared.lab("Lund")) as (lab, store):
        cells = cells_for(starter, range(5))
        store.record(cells, bundle=starter.digest)
        busy = DecodingLimitError("takes too long to decode: more than 10 s (labref.toml, [decoding] seconds)")
        ids = [cell.cell_id for cell in cells]
        shown(dict(zip(ids, (busy, busy, busy, None, b"a picture"), strict=True)))
        all_of(lab, store)
        assert sent() == [b"", b"a picture"]
        shown(dict.fromkeys(ids, b"later"))  # the kept picture that was missing is back, too
        all_of(lab, store)
        assert sent() == [b"", b"a picture", *[b"later"] * 3]
        store.outbox.refill()
        all_of(lab, store)
        assert sent() == [b"a picture", *[b"later"] * 4]


def test_a_lab_with_nothing_to_tell_sees_that_the_shared_store_was_restored(
    tmp_path: Path, starter: Bundle, shared: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labref.tasks.publishing._HOLDS_SECONDS", 0.1)
    with lab_of(tmp_path / "lab", starter, shared.lab("Lund")) as (lab, store), open_log(lab) as log:
        store.record(cells_for(starter, range(9)), bundle=starter.digest)
        with closing(Publisher(lab, store, log)) as publisher:
            wait_until(lambda: publisher.waiting()[0] == 0 and len(published(shared, "Lund")) == 9, 30)
            with shared.server.connect(shared.name) as owner, owner.transaction():
                owner.execute("DELETE FROM labref.cell")
                owner.execute("UPDATE labref.lab SET sent = 3, tag = 'of before'")
            wait_until(lambda: published(shared, "Lund") == in_store(store) and publisher.problem is None, 30)


# breaks


class Proxy:
    """A TCP proxy before the server, which cuts its connections when it is told to."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._open: list[socket.socket] = []
        self.passed = 0
        self.cut_after: int | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                came, _ = self._listening.accept()
                gone = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                if self._listening.fileno() < 0:
                    return
                came.close()
                continue
            self._open += [came, gone]
            for one, other in ((came, gone), (gone, came)):
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(4096):
                self.passed += len(data)
                if self.cut_after is not None and self.passed > self.cut_after:
                    self.cut()
                    return
                other.sendall(data)
        except OSError:
            pass
        finally:
            for end in (one, other):
                with suppress(OSError):  # a socket that another thread reads from is not closed before that ends
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def cut(self) -> None:
        """End all connections, in the middle of whatever they carry."""
        self.passed, self.cut_after = 0, None
        ends, self._open = self._open, []
        for end in ends:
            with suppress(OSError):  # wakes who waits for it
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self._listening.close()
        self.cut()


def test_nothing_is_lost_and_nothing_twice_where_the_connection_is_cut(
    tmp_path: Path, starter: Bundle, postgres: Server, shared: Database
) -> None:
    access = shared.lab("Lund")
    rng = np.random.default_rng(11)
    with (
        closing(Proxy(postgres.port)) as proxy,
        lab_of(tmp_path / "lab", starter, access, shared.url(access[0].user, port=proxy.port)) as (lab, store),
    ):
        cut = 0
        for turn in range(12):
            store.record(cells_for(starter, range(40 * turn, 40 * turn + 40)), bundle=starter.digest)
            changed = list(in_store(store))[:: 7 + turn]
            store.reviews.give([Review(cell_id, f"class {turn}", "a person", None) for cell_id in changed])
            proxy.passed, proxy.cut_after = 0, int(rng.integers(2_000, 90_000))
            try:
                all_of(lab, store)
            except SharedError:
                cut += 1
        proxy.cut_after = None
        all_of(lab, store)
        assert cut >= 6, "the connection was hardly ever cut"
        assert published(shared, "Lund") == in_store(store) and len(in_store(store)) == 480
        assert check(shared.owner, shared.secret).faults == {}


def test_nothing_is_lost_and_nothing_twice_where_the_server_is_killed(
    tmp_path: Path, starter: Bundle, postgres: Server, shared: Database
) -> None:
    access = shared.lab("Lund")
    with (
        lab_of(tmp_path / "lab", starter, access) as (lab, store),
        open_log(lab) as log,
        closing(Publisher(lab, store, log)) as publisher,
    ):
        for turn in range(4):
            for part in range(6):
                start = 300 * turn + 50 * part
                store.record(cells_for(starter, range(start, start + 50)), bundle=starter.digest)
                store.reviews.give([Review(cell_id_of(digest_of(start)), f"class {turn}", "a person", None)])
                if part == 3:
                    postgres.kill()
            assert store.counts().cells == 300 * turn + 300  # ingest did not wait
            assert publisher.lag_seconds() > 0 and not publisher.is_behind()
            with pytest.MonkeyPatch.context() as hours:
                hours.setattr("labref.tasks.publishing._BEHIND_SECONDS", 0.0)
                assert publisher.is_behind()
            postgres.start()
            wait_until(lambda: publisher.problem is None and publisher.waiting()[0] == 0, 60)
        assert publisher.lag_seconds() == 0
        assert published(shared, "Lund") == in_store(store) and len(in_store(store)) == 1200
        assert check(shared.owner, shared.secret).faults == {}


# where one may go


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql://lund:secret@127.0.0.1/labref", "holds a password"),
        ("postgresql://lund@127.0.0.1/labref?password=secret", "holds a password"),
        ("postgresql://lund@db.example.org/labref?sslmode=require", "sslmode=require"),
        ("postgresql://lund@db.example.org/labref?sslmode=disable", "sslmode=disable"),
        ("postgresql://lund@db.example.org/labref?sslmode=prefer", "sslmode=prefer"),
        ("postgresql://lund@127.0.0.1,db.example.org/labref", "one host"),
        ("postgresql://lund@127.0.0.1/labref?hostaddr=192.0.2.1", "'hostaddr'"),
        ("postgresql://lund@127.0.0.1/labref?host=db.example.org", "one host"),
        ("postgresql://lund@127.0.0.1/labref?service=other", "'service'"),
        ("postgresql:///labref", "one host"),
        ("mysql://lund@127.0.0.1/labref", "is written as"),
        ("postgresql://lund@127.0.0.1/", "one host"),
    ],
)
def test_no_url_leads_to_a_server_that_is_not_verified(url: str, why: str) -> None:
    with pytest.raises(SharedError, match=why) as told:
        Address.of(url)
    assert "secret" not in str(told.value)


def test_a_server_elsewhere_is_always_verified() -> None:
    given = Address.of("postgresql://lund@db.example.org/labref").keywords()
    assert (given["sslmode"], given["sslrootcert"]) == ("verify-full", "system")
    given = Address.of("postgresql://lund@192.0.2.1:5433/labref?sslrootcert=/etc/ca.pem").keywords()
    assert (given["sslmode"], given["sslrootcert"], given["port"]) == ("verify-full", "/etc/ca.pem", 5433)
    assert "sslmode" not in Address.of("postgresql://lund@[::1]/labref").keywords()
    assert Address.of("postgresql://lund@/labref?host=/run/postgresql").host == "/run/postgresql"
    folder = Address.of("postgresql://lund@%2Frun%2FPostgreSQL/labref")
    assert folder.host == "/run/PostgreSQL" and "sslmode" not in folder.keywords()
    assert Address.of("postgresql://lund@[::1]:5433/labref").port == 5433


class Authority:
    """A made-up authority. file : its certificate."""

    def __init__(self, folder: Path, name: str) -> None:
        self._key, self._name = ec.generate_private_key(ec.SECP256R1()), name
        self._own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(self._signed(self._own, self._key, x509.BasicConstraints(ca=True, path_length=None)))

    def certificate(self, host: str) -> tuple[bytes, bytes]:
        """A server's certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        plain = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return self._signed(named, key, x509.SubjectAlternativeName([x509.DNSName(host)])), plain

    def _signed(self, named: x509.Name, key: ec.EllipticCurvePrivateKey, says: x509.ExtensionType) -> bytes:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder(self._own, named, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=2))
            .add_extension(says, critical=False)
            .sign(self._key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )


def test_a_server_is_let_in_only_by_a_certificate_of_the_authority_and_for_its_name(
    tmp_path: Path, postgres: Server, shared: Database
) -> None:
    hospital, another = Authority(tmp_path, "hospital"), Authority(tmp_path, "another")
    address, secret = shared.lab("Lund")

    def url(host: str, authority: Path) -> str:
        where = f"{address.user}@{host}:{postgres.port}/{shared.name}"
        return f"postgresql://{where}?sslmode=verify-full&sslrootcert={authority}"

    def refused(host: str, authority: Path) -> str:
        with pytest.raises(SharedError) as told:
            connect(Address.of(url(host, authority)), secret)
        assert secret not in str(told.value) and "\n" not in str(told.value)
        return str(told.value)

    assert "does not support SSL" in refused("localhost", hospital.file)
    with postgres.shows(*hospital.certificate("localhost")):
        with connect(Address.of(url("localhost", hospital.file)), secret) as connection:
            found = connection.execute("SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone()
            assert found is not None and found[0] and found[1] in ("TLSv1.2", "TLSv1.3")
        said = refused("localhost", another.file)
        assert "certificate verify failed" in said and "sslrootcert" in said
        with password(shared.secret):  # what is printed for a shell and for another computer
            owner = f"postgresql://{shared.owner.user}@localhost:{postgres.port}/{shared.name}"
            words = [
                "shared",
                "lab",
                "add",
                "room",
                "--reader",
                "--url",
                f"{owner}?sslmode=verify-full&sslrootcert={hospital.file}",
            ]
            told = runner.invoke(app, words)
        assert told.exit_code == 0 and "copy it there" in told.output, told.output
        (line,) = (line for line in told.output.splitlines() if "labref web" in line)
        in_a_shell = shlex.shlex(line.strip(), posix=True, punctuation_chars=True)
        in_a_shell.whitespace_split = True
        assert Address.of(list(in_a_shell)[3]).parameters == (
            ("sslmode", "verify-full"),
            ("sslrootcert", str(hospital.file)),
        )
        said = refused("127.0.0.1", hospital.file)
        assert 'does not match host name "127.0.0.1"' in said
        assert "does not exist" in refused("localhost", tmp_path / "none.pem")


def test_a_password_in_labref_toml_is_refused(tmp_path: Path, starter: Bundle) -> None:
    with lab_of(tmp_path / "lab", starter, None):
        pass
    with (tmp_path / "lab" / "labref.toml").open("a") as file:
        file.write("\n[shared]\nurl = 'postgresql://lund:secret@127.0.0.1/labref'\n")
    with pytest.raises(ConfigError, match="holds a password") as told:
        Lab.open(tmp_path / "lab")
    assert "secret" not in str(told.value)


# the command


def test_the_command_makes_a_shared_store_and_labs_publish_and_ask(
    tmp_path: Path, starter: Bundle, postgres: Server, drawn_cells: Path
) -> None:
    shared = Database(postgres, made=False)

    def labref(*arguments: object, code: int = 0) -> str:
        done = runner.invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == code, done.output + str(done.exception)
        return done.output if code else done.stdout

    with password(shared.secret):
        assert "no shared store" in labref("shared", "check", "--url", shared.url(), code=1)
        assert "no shared store" in labref("shared", "migrate", "--url", shared.url(), code=1)
        assert f"version {latest()}" in labref("shared", "init", "--url", shared.url())
        labref("shared", "init", "--url", shared.url())  # a second time does nothing
        labref("shared", "migrate", "--url", shared.url())
        assert "has no lab yet" in labref("shared", "lab", "list", "--url", shared.url())
        accesses = [
            json.loads(labref("shared", "lab", "add", name, "--url", shared.url(), "--json")) for name in ("A", "B")
        ]
        assert labref("shared", "lab", "add", "all", "--url", shared.url(), code=1)
        said = labref("shared", "lab", "add", "DC-1, room 2", "--url", shared.url(), code=1)
        assert "cannot be the name of a lab" in said and "no comma" in said
        assert "password of before" not in labref("shared", "lab", "add", "C", "--url", shared.url())
        assert "password of before lets nobody in" in labref("shared", "lab", "add", "C", "--url", shared.url())
        labref("shared", "lab", "remove", "C", "--url", shared.url())
    (tmp_path / "owner").write_text(f"{shared.secret}\n")
    with password("of somebody else"):  # the file that a command names counts more than the variable
        labref("shared", "lab", "list", "--url", shared.url(), "--password-file", tmp_path / "owner")
    labs = []
    pictures = sorted(drawn_cells.rglob("*.jpg"))
    for number, access in enumerate(accesses):
        lab = lab_with_pictures(
            tmp_path / f"lab {number}", starter, pictures[number::2], access["url"], access["password"]
        )
        once(lab)
        told = json.loads(labref("shared", "publish", "--lab", lab.folder, "--json"))
        assert told == {"cells": 16, "rebuilt": False}
        labs.append(lab.folder)
    assert shared.rows("SELECT count(*), count(*) FILTER (WHERE length(jpeg) > 500) FROM thumbnail") == [(32, 32)]
    with password(shared.secret):
        whole = json.loads(labref("shared", "check", "--url", shared.url(), "--json"))
        assert [(lab["name"], lab["cells"]) for lab in whole["labs"]] == [("A", 16), ("B", 16)] and not whole["faults"]

    asked = next((tmp_path / "lab 0-export").rglob("*.jpg"))
    own = json.loads(labref("query", asked, "--lab", labs[0], "--json"))
    assert own["shared"] is None and {one["lab"] for one in own["references"]} == {None}
    out = tmp_path / "grid.png"
    every = json.loads(labref("query", asked, "--lab", labs[0], "--shared", "all", "--json", "--grid", out))
    theirs = [one for one in every["references"] if one["origin"] == "shared"]
    assert every["shared"]["problem"] is None and every["shared"]["labs"] == ["B"] and theirs
    assert {one["lab"] for one in theirs} == {"B"} and out.stat().st_size > 10_000
    shared.rows("UPDATE thumbnail SET jpeg = 'no picture' RETURNING lab")  # another lab's fault
    draw_grid(Lab.open(labs[0]), every, asked.read_bytes(), out)
    assert every["distribution"] == own["distribution"] and every["novelty"] == own["novelty"]
    said = labref("query", asked, "--lab", labs[0], "--shared", "B")
    assert any(line.rstrip().endswith("  B") for line in said.splitlines())
    with password(shared.secret):
        labref("shared", "lab", "add", "empty", "--url", shared.url())
    said = labref("query", asked, "--lab", labs[0], "--shared", "empty")
    assert "none of other labs: those that are meant have no such cells" in said
    said = labref("query", asked, "--lab", labs[0], "--shared", "B", "-k", "1")
    nearer = "none of theirs is clearly nearer" not in said
    assert nearer == any(line.rstrip().endswith("  B") for line in said.splitlines()), "it is said where none is"
    assert "nothing to tell" in labref("status", "--lab", labs[0])
    assert "none of other labs: the microscope" in labref("query", asked, "--lab", labs[0], "--shared", "optics")

    with password("wrong"):
        said = labref("query", asked, "--lab", labs[0], "--shared", "all")
        assert "none of other labs: the shared store" in said and "does not take the password" in said
        assert "wrong" not in said
    with password(shared.secret):
        assert "B and its 16 cells are taken out" in labref("shared", "lab", "remove", "B", "--url", shared.url())
        assert "has no lab 'B'" in labref("shared", "lab", "remove", "B", "--url", shared.url(), code=1)
        assert "A: 16 cells" in labref("shared", "lab", "list", "--url", shared.url())
        for name in ("room 1", "room-1"):  # of one name as PostgreSQL writes it: each has a role of its own
            labref("shared", "lab", "add", name, "--reader", "--url", shared.url())
        listed = labref("shared", "lab", "list", "--url", shared.url(), "--json").splitlines()
        roles = {row["name"]: row["role"] for row in map(json.loads, listed) if row["reads_only"]}
        assert set(roles) == {"room 1", "room-1"} and len(set(roles.values())) == 2
        labref("shared", "lab", "add", "room-1", "--reader", "--url", shared.url())  # a new password, for the same role
        assert "reads the shared store no more" in labref(
            "shared", "lab", "remove", "room 1", "--reader", "--url", shared.url()
        )
        said = labref("shared", "lab", "list", "--url", shared.url())
        assert f"room-1: reads only, role {roles['room-1']}\n" in said and "room 1:" not in said
        said = labref("shared", "lab", "remove", "A", "--reader", "--url", shared.url(), code=1)
        assert "has no reader 'A'; it has room-1" in said
    assert labref("shared", "publish", "--lab", labs[1], code=1)
    labref("store", "backup", tmp_path / "backup", "--lab", labs[0])
    said = labref("store", "restore", tmp_path / "backup", tmp_path / "restored")
    assert "password of the shared store is in no backup" in said and str(tmp_path / "restored" / "password") in said
    assert "labref shared lab add" in labref("shared", "publish", "--lab", tmp_path / "restored", code=1)
    told = json.loads(labref("shared", "publish", "--rebuild", "--lab", labs[0], "--json"))
    assert told == {"cells": 16, "rebuilt": True}


def test_agents_at_work_at_once_publish_each_cell_once_and_see_each_others_labels(
    tmp_path: Path, starter: Bundle, shared: Database, drawn_cells: Path
) -> None:
    pictures = sorted(drawn_cells.rglob("*.jpg"))
    names = ("A", "B", "C")
    with ExitStack() as stack:
        labs: list[Lab] = []
        for number, name in enumerate(names):
            address, secret = shared.lab(name)
            labs.append(
                lab_with_pictures(
                    *(tmp_path / f"lab {name}", starter, pictures[number::3], shared.url(address.user), secret),
                    analyser=f"DC {name}",
                )
            )
        for lab in labs:
            stack.enter_context(running_agent(lab))
        wait_until(lambda: shared.rows("SELECT count(*) FROM cell") == [(len(pictures),)], 120)
        assert shared.rows("SELECT count(DISTINCT cell_id) FROM cell") == [(len(pictures),)]
        assert check(shared.owner, shared.secret).faults == {}
        asked = pictures[0]
        with Desk.open(labs[1]) as desk:

            def told() -> dict[str, str]:
                row = desk.ask(asked.read_bytes(), name="", k=100, shared="A")
                assert row["shared"]["problem"] is None
                return {one["cell_id"]: one["label"] for one in row["references"] if one["lab"] == "A"}

            chosen = next(iter(told()))
            began = time.monotonic()
            with Desk.open(labs[0]) as first:
                list(first.run("label.set", cell=chosen, label="seen elsewhere", new=True, who="a person"))
            wait_until(lambda: told()[chosen] == "seen elsewhere", 60)
            assert time.monotonic() - began < 30  # 5 s where the computer has nothing else to do
        status = [desk_status(lab)["shared"] for lab in labs]
        port = json.loads(labs[0].agent_file.read_text(encoding="utf-8"))["port"]
        with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            told_of = answer.read().decode()
        assert "\nlabref_shared_waiting " in told_of and "\nlabref_shared_lag_seconds " in told_of
        assert {one["server"] for one in status} == {str(shared.owner)} and {one["problem"] for one in status} == {None}


def test_a_newer_shared_store_is_left_alone(shared: Database) -> None:
    with shared.server.connect(shared.name) as owner:
        owner.execute(
            "INSERT INTO labref.migration (version, name, labref_version) VALUES (%s, 'later', '9')", [latest() + 1]
        )
    for work in (make, migrate):
        with pytest.raises(SharedError, match="Install a newer labref"):
            work(shared.owner, shared.secret)


@pytest.mark.parametrize(
    ("version", "serves", "says"),
    [
        (latest() + 1, latest(), None),
        (latest() + 1, None, "Install a newer labref"),
        (latest() + 2, latest() + 1, "Install a newer labref"),
        (migrations.LEAST, None, None),
        (migrations.LEAST - 1, None, "Its owner brings it up to date: `labref shared migrate`"),
    ],
)
def test_a_store_and_its_labs_need_not_be_upgraded_together(
    tmp_path: Path, starter: Bundle, postgres: Server, version: int, serves: int | None, says: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    known = migrations.steps()
    with monkeypatch.context() as before:
        before.setattr(migrations, "steps", lambda: known[:version])
        before.setattr(migrations, "LEAST", 1)
        shared = database(postgres)
        access = shared.lab("Lund")
    if version > latest():
        with shared.server.connect(shared.name) as owner:
            owner.execute(
                "INSERT INTO labref.migration (version, name, labref_version, serves) VALUES (%s, 'later', '9', %s)",
                [version, serves],
            )
    with lab_of(tmp_path / "lund", starter, access) as (lab, store), closing(asking(access)) as ask:
        cell = cells_for(starter, range(1))
        store.record(cell, bundle=starter.digest)
        if says is not None:
            with pytest.raises(SharedError, match=says):
                all_of(lab, store)
            return
        all_of(lab, store)
        reply = ask.put(starter.digest, cell[0].latent, Wanted(reader=True), 8).reply()
        assert [one.cell_id for one in reply.cells] == [cell[0].cell_id]
    with password(shared.secret):
        done = runner.invoke(app, ["shared", "check", "--url", shared.url()])
    assert done.exit_code == 0 and ("labref shared migrate" in done.stdout) == (version < latest()), done.output


def test_the_password_stands_in_no_message(shared: Database) -> None:
    address, _ = shared.lab("Lund")
    with pytest.raises(SharedError, match="does not take the password") as told:
        make(address, "not this one")
    assert "not this one" not in str(told.value) and PASSWORD not in str(told.value)
