"""What the store keeps of files and cells: one outcome a file, nothing twice, and every replaced outcome remembered."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

from labref.errors import StoreError
from labref.store import CellEmbedding, FileState, Rejected, SeenAgain, Store
from labref.words import SlideId
from tests.stores import BUNDLE, JUDGED, LABELS, activate, digest_of, mark, new_cell, new_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with new_store(tmp_path) as store:
        yield store


def again(number: int, path: str, **changes: object) -> SeenAgain:
    return replace(SeenAgain(path, 30_000, 1_700_000_000_000_000_000, digest_of(number)), **changes)  # type: ignore[arg-type]


def test_a_stored_cell_comes_back_as_it_went_in(store: Store) -> None:
    captured = datetime(2024, 5, 1, 9, 30, tzinfo=timezone(timedelta(hours=2)))
    cell = new_cell(1, captured_at=captured, label="monocyte", label_source="reviewed")
    (row,) = store.record([cell], bundle=BUNDLE)
    assert (row.path, row.outcome, row.reason, row.cell_id) == ("/export/1.jpg", "stored", None, cell.cell_id)
    assert (row.label, row.label_source, row.slide, row.duplicate_of) == ("monocyte", "reviewed", "slide 1", None)
    assert row.at.tzinfo is UTC and abs(datetime.now(UTC) - row.at) < timedelta(minutes=1)
    found = store.cell(cell.cell_id)
    assert found is not None
    for name in ("cell_id", "digest", "path", "size_bytes", "width", "height", "label", "slide", "analyser"):
        assert getattr(found, name) == getattr(cell, name)
    assert found.captured_at == captured and found.captured_at.utcoffset() == timedelta(0)
    assert found.added_at == row.at
    latent = store.latents([cell.cell_id], bundle=BUNDLE)[cell.cell_id]
    assert latent.dtype == np.float32 and (latent == cell.latent).all()
    assert store.cell("0" * 16) is None


def test_a_cell_nobody_labelled_carries_its_prediction(store: Store) -> None:
    (row,) = store.record([new_cell(1, label=None, predicted_label="eosinophil")], bundle=BUNDLE)
    assert (row.label, row.label_source) == ("eosinophil", "predicted")
    found = store.cell(new_cell(1).cell_id)
    assert found is not None and (found.label, found.label_source) == ("eosinophil", "predicted")


def test_every_file_has_one_outcome_and_the_ledger_lists_them_oldest_first(store: Store) -> None:
    store.record([new_cell(1), new_cell(2)], bundle=BUNDLE)
    store.record([Rejected("/export/bad.jpg", None, None, "zero bytes")], bundle=BUNDLE)
    store.record([again(1, "/export/copy.jpg"), Rejected("/export/text.jpg", 4, 5, "no image")], bundle=BUNDLE)
    rows = list(store.ledger())
    assert [row.path for row in rows] == [
        "/export/1.jpg",
        "/export/2.jpg",
        "/export/bad.jpg",
        "/export/copy.jpg",
        "/export/text.jpg",
    ]
    assert [row.path for row in store.ledger(outcome="rejected")] == ["/export/bad.jpg", "/export/text.jpg"]
    assert [row.path for row in store.ledger(limit=2)] == ["/export/copy.jpg", "/export/text.jpg"]
    (row,) = store.ledger(path="/export/bad.jpg")
    assert (row.outcome, row.reason, row.cell_id, row.label) == ("rejected", "zero bytes", None, None)
    assert list(store.ledger(path="/export/unknown.jpg")) == []
    counts = store.counts()
    assert counts.files == 5 and counts.cells == 2
    assert counts.outcomes == {"stored": 2, "duplicate": 1, "possible_duplicate": 0, "rejected": 2}
    assert counts.by_label == {"neutrophil": 2} and counts.by_label_source == {"analyser": 2}
    assert counts.by_slide == {SlideId("", "slide 1"): 2} and counts.by_analyser == {"DC-1": 2}
    with pytest.raises(ValueError, match="lost"):
        list(store.ledger(outcome="lost"))


def test_the_scan_gets_size_time_and_outcome_of_every_file(store: Store) -> None:
    store.record([new_cell(1, size_bytes=7, mtime_ns=2**60 + 1), Rejected("/x", None, None, "gone")], bundle=BUNDLE)
    assert store.known_files() == {
        "/export/1.jpg": FileState(7, 2**60 + 1, "stored"),
        "/x": FileState(None, None, "rejected"),
    }


def test_the_same_bytes_at_another_path_are_one_cell_with_two_paths(store: Store) -> None:
    first = new_cell(1)
    store.record([first], bundle=BUNDLE)
    (row,) = store.record([again(1, "/export/copy.jpg")], bundle=BUNDLE)
    assert (row.outcome, row.cell_id, row.duplicate_of) == ("duplicate", first.cell_id, first.cell_id)
    assert row.reason is not None and first.cell_id in row.reason
    assert store.paths(first.cell_id) == ["/export/1.jpg", "/export/copy.jpg"]
    assert store.counts().cells == 1


def test_a_replay_after_a_crash_changes_nothing(store: Store) -> None:
    batch = [new_cell(1), new_cell(2), again(1, "/export/copy.jpg"), Rejected("/x", 1, 2, "no image")]
    first = store.record(batch, bundle=BUNDLE)
    assert store.record(batch, bundle=BUNDLE) == first
    assert list(store.ledger()) == sorted(first, key=lambda row: (row.at, row.path))
    assert store.counts().cells == 2
    assert all(store.history(row.path) == [] for row in first)


def test_the_same_bytes_twice_in_one_batch_are_one_cell(store: Store) -> None:
    rows = store.record([again(1, "/export/early.jpg"), new_cell(1), new_cell(1, path="/export/b.jpg")], bundle=BUNDLE)
    assert [row.outcome for row in rows] == ["duplicate", "stored", "duplicate"]
    assert {row.cell_id for row in rows} == {new_cell(1).cell_id}
    assert store.counts().cells == 1


def test_a_path_with_new_content_gets_a_new_outcome_and_keeps_the_old_in_its_history(store: Store) -> None:
    path = "/export/reused.jpg"
    store.record([Rejected(path, 10, 1, "the file is cut short")], bundle=BUNDLE)
    store.record([new_cell(1, path=path, mtime_ns=2)], bundle=BUNDLE)
    store.record([new_cell(2, path=path, mtime_ns=3)], bundle=BUNDLE)
    (row,) = store.ledger(path=path)
    assert (row.outcome, row.cell_id) == ("stored", new_cell(2).cell_id)
    assert [(old.outcome, old.cell_id) for old in store.history(path)] == [
        ("rejected", None),
        ("stored", new_cell(1).cell_id),
    ]
    assert store.known_files() == {path: FileState(30_000, 3, "stored")}
    assert store.counts().cells == 2, "the first cell is kept: nothing is ever dropped"


def test_a_path_that_changes_twice_in_one_batch_remembers_both(store: Store) -> None:
    path = "/export/quick.jpg"
    rows = store.record(
        [Rejected(path, 1, 1, "cut short"), new_cell(1, path=path), new_cell(2, path=path)], bundle=BUNDLE
    )
    assert [row.outcome for row in rows] == ["rejected", "stored", "stored"]
    assert [row.cell_id for row in store.ledger(path=path)] == [new_cell(2).cell_id]
    assert [row.outcome for row in store.history(path)] == ["rejected", "stored"]


def test_a_file_touched_without_a_change_keeps_its_outcome(store: Store) -> None:
    (first,) = store.record([new_cell(1)], bundle=BUNDLE)
    (row,) = store.record(
        [again(1, "/export/1.jpg", mtime_ns=99, label="neutrophil", label_source="analyser")], bundle=BUNDLE
    )
    assert (row.outcome, row.at, row.duplicate_of) == ("stored", first.at, None)
    assert store.known_files()["/export/1.jpg"] == FileState(30_000, 99, "stored")
    assert store.history("/export/1.jpg") == []


@pytest.mark.parametrize(
    ("bits", "outcome"),
    [(0, "duplicate"), (1, "duplicate"), (2, "possible_duplicate"), (3, "possible_duplicate"), (4, "stored")],
)
@pytest.mark.parametrize("together", [True, False], ids=["one batch", "two batches"])
def test_what_is_judged_the_same_is_marked_linked_and_kept(
    store: Store, bits: int, outcome: str, together: bool
) -> None:
    first, second = new_cell(1, fingerprints=mark(0)), new_cell(2, fingerprints=mark(2**63 - 2 ** (63 - bits)))
    if together:
        row = store.record([first, second], bundle=BUNDLE, **JUDGED)[1]
    else:
        store.record([first], bundle=BUNDLE, **JUDGED)
        (row,) = store.record([second], bundle=BUNDLE, **JUDGED)
    linked = None if outcome == "stored" else first.cell_id
    assert (row.outcome, row.cell_id, row.duplicate_of) == (outcome, second.cell_id, linked)
    found = store.cell(second.cell_id)
    assert found is not None
    assert (found.duplicate_of, found.duplicate_verdict) == (linked, None if linked is None else outcome)
    group = [first.cell_id, second.cell_id] if outcome == "duplicate" else [second.cell_id]
    assert sorted(store.duplicate_group(second.cell_id)) == sorted(group)
    assert store.counts().cells == 2


def test_the_same_cell_is_recognised_whatever_its_class(store: Store) -> None:
    cells = [new_cell(1, fingerprints=mark(5)), new_cell(2, fingerprints=mark(5), label="monocyte")]
    assert [row.outcome for row in store.record(cells, bundle=BUNDLE, **JUDGED)] == ["stored", "duplicate"]


def test_without_a_judge_no_cell_is_called_a_duplicate(store: Store) -> None:
    rows = store.record([new_cell(1, fingerprints=mark(5)), new_cell(2, fingerprints=mark(5))], bundle=BUNDLE)
    assert [row.outcome for row in rows] == ["stored", "stored"]


def test_a_duplicate_links_to_the_cell_it_resembles_most_and_the_oldest_of_equals(store: Store) -> None:
    store.record(
        [new_cell(1, fingerprints=mark(0b111)), new_cell(2, fingerprints=mark(0b100_0000))], bundle=BUNDLE, **JUDGED
    )
    (row,) = store.record([new_cell(3, fingerprints=mark(0b011))], bundle=BUNDLE, **JUDGED)
    assert row.duplicate_of == new_cell(1).cell_id
    rows = store.record(
        [new_cell(4, fingerprints=mark(2**40)), new_cell(5, fingerprints=mark(2**40))], bundle=BUNDLE, **JUDGED
    )
    assert rows[1].duplicate_of == new_cell(4).cell_id
    (row,) = store.record([new_cell(6, fingerprints=mark(2**40))], bundle=BUNDLE, **JUDGED)
    assert row.duplicate_of == new_cell(4).cell_id


def test_a_chain_of_duplicates_is_one_group(store: Store) -> None:
    cells = [new_cell(i, fingerprints=mark(2**i - 1)) for i in range(4)]  # each one bit from the one before
    for cell in cells:
        store.record([cell], bundle=BUNDLE, **JUDGED)
    for cell in cells:
        assert store.duplicate_group(cell.cell_id) == [member.cell_id for member in cells]
    assert store.duplicate_group("0" * 16) == []


def test_a_copy_among_signed_slides_makes_its_cell_reviewed(store: Store) -> None:
    cell = new_cell(1, label=None, predicted_label="monocyte", path="/export/Unsigned slides/7_001.jpg", slide="7")
    store.record([cell], bundle=BUNDLE)
    signed = "/export/Signed slides/Lymphocyte/LY_1.jpg"
    (row,) = store.record([again(1, signed, label="lymphocyte", label_source="reviewed")], bundle=BUNDLE)
    assert (row.label, row.label_source, row.slide) == ("lymphocyte", "reviewed", "7")
    found = store.cell(cell.cell_id)
    assert found is not None
    assert (found.label, found.label_source, found.path, found.slide) == ("lymphocyte", "reviewed", signed, "7")
    (unsigned,) = store.ledger(path=cell.path)
    assert (unsigned.outcome, unsigned.label, unsigned.label_source) == ("stored", "lymphocyte", "reviewed")


def test_a_label_that_counts_no_more_changes_nothing_but_its_path_keeps_it(store: Store) -> None:
    store.record([new_cell(1, label="monocyte", label_source="reviewed")], bundle=BUNDLE)
    for source in ("reviewed", "analyser", "predicted"):
        path = f"/export/{source}.jpg"
        (row,) = store.record([again(1, path, label="lymphocyte", label_source=source)], bundle=BUNDLE)
        assert (row.label, row.label_source) == ("lymphocyte", source)
    found = store.cell(new_cell(1).cell_id)
    assert found is not None and (found.label, found.label_source) == ("monocyte", "reviewed")
    assert {row.label for row in store.ledger()} == {"monocyte", "lymphocyte"}


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_outcomes_do_not_depend_on_how_files_fall_into_batches(tmp_path: Path, batch_size: int) -> None:
    files = [
        new_cell(1, fingerprints=mark(0)),
        new_cell(2, fingerprints=mark(1)),
        again(1, "/a"),
        new_cell(1, path="/b"),
        Rejected("/c", 1, 1, "no image"),
        new_cell(3, fingerprints=mark(7), label=None),
        new_cell(4, path="/c"),
    ]
    with new_store(tmp_path) as store:
        for start in range(0, len(files), batch_size):
            store.record(files[start : start + batch_size], bundle=BUNDLE, **JUDGED)
        seen = {row.path: (row.outcome, row.cell_id, row.duplicate_of, row.label) for row in store.ledger()}
    first, second = new_cell(1).cell_id, new_cell(2).cell_id
    assert seen == {
        "/export/1.jpg": ("stored", first, None, "neutrophil"),
        "/export/2.jpg": ("duplicate", second, first, "neutrophil"),
        "/a": ("duplicate", first, first, "neutrophil"),
        "/b": ("duplicate", first, first, "neutrophil"),
        "/export/3.jpg": ("possible_duplicate", new_cell(3).cell_id, second, "neutrophil"),
        "/c": ("stored", new_cell(4).cell_id, None, "neutrophil"),
    }


@pytest.mark.parametrize(
    "name",
    [
        "/export/Å 日本 cell.jpg",
        "/export/latin-1 \udce9.jpg",  # the byte E9, as os.fsdecode carries it
        "/export/\udce9\udcff/\udc80.jpg",
        "C:\\export\\lone \ud83d surrogate.jpg",
        "/export/literal \\udce9.jpg",
        "/export/" + "x" * 4000,
        "/export/quote ' \" ; DROP TABLE cell; --.jpg",
    ],
)
def test_any_file_name_is_kept_to_the_last_byte(store: Store, name: str) -> None:
    cell = new_cell(1, path=name, slide=name, label=name)
    (row,) = store.record([cell], bundle=BUNDLE)
    assert (row.path, row.slide, row.label) == (name, name, name)
    store.record([Rejected(name + "2", 1, 1, f"cannot read {name}")], bundle=BUNDLE)
    assert list(store.ledger(path=name)) == [row]
    assert [row.reason for row in store.ledger(path=name + "2")] == [f"cannot read {name}"]
    assert set(store.known_files()) == {name, name + "2"}
    assert store.paths(cell.cell_id) == [name]
    found = store.cell(cell.cell_id)
    assert found is not None and (found.path, found.slide, found.label) == (name, name, name)
    assert SlideId("", name) in store.counts().by_slide


def test_names_that_differ_only_in_a_broken_byte_are_different_files(store: Store) -> None:
    names = [f"/export/{chr(0xDCE0 + i)}.jpg" for i in range(8)] + ["/export/dce0.jpg"]
    store.record([Rejected(name, 1, 1, "no image") for name in names], bundle=BUNDLE)
    assert set(store.known_files()) == set(names)


def test_a_digest_is_known_as_soon_as_its_cell_is_recorded_and_after_reopening(tmp_path: Path) -> None:
    with new_store(tmp_path) as store:
        assert store.has_digest(digest_of(1)) is None
        store.record([new_cell(i) for i in range(9000)], bundle=BUNDLE)  # enough to merge the newcomers once
        store.record([new_cell(9000)], bundle=BUNDLE)
        assert all(store.has_digest(digest_of(i)) == new_cell(i).cell_id for i in (0, 1, 8999, 9000))
        assert store.has_digest(digest_of(9001)) is None
    with Store.open(tmp_path / "store.duckdb") as store:
        assert all(store.has_digest(digest_of(i)) == new_cell(i).cell_id for i in (0, 1, 8999, 9000))
        assert store.has_digest(digest_of(9001)) is None
        twin = new_cell("twin", fingerprints=new_cell(8017).fingerprints)
        (row,) = store.record([twin], bundle=BUNDLE, **JUDGED)
        assert row.duplicate_of == new_cell(8017).cell_id, "fingerprints are read again as well"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"latent": np.zeros(49, np.float32)}, "embedded by another bundle"),
        ({"probabilities": np.zeros(4, np.float32)}, "embedded by another bundle"),
        ({"latent": np.full(50, np.nan, np.float32)}, "not finite"),
        ({"latent": np.full(50, -np.inf, np.float32)}, "not finite"),
        ({"cell_id": "f" * 16}, "not named after its digest"),
    ],
)
def test_a_cell_that_does_not_fit_spoils_nothing_of_its_batch(
    store: Store, changes: dict[str, object], says: str
) -> None:
    with pytest.raises(StoreError, match=says):
        store.record([new_cell(1), new_cell(2, **changes)], bundle=BUNDLE)
    assert store.counts().files == 0 and store.counts().cells == 0
    assert store.has_digest(digest_of(1)) is None
    store.record([new_cell(1)], bundle=BUNDLE)
    assert store.counts().cells == 1


def test_a_batch_that_the_database_refuses_leaves_neither_rows_nor_memory(store: Store) -> None:
    store.build_index()
    too_wide = new_cell(2, width=2**40)  # does not fit its column
    with pytest.raises(StoreError, match="cannot keep it"):
        store.record([new_cell(1), too_wide], bundle=BUNDLE)
    assert store.counts().files == 0
    assert store.has_digest(digest_of(1)) is None
    assert store.candidates(new_cell(1).fingerprints, 2) == []
    assert store.nearest(new_cell(1).latent, bundle=BUNDLE, k=8) == []
    (row,) = store.record([new_cell(1)], bundle=BUNDLE)
    assert row.outcome == "stored"


def test_errors_say_what_to_do(store: Store) -> None:
    with pytest.raises(StoreError, match="add or activate the bundle first"):
        store.record([new_cell(1)], bundle="cd" * 32)
    with pytest.raises(StoreError, match="record it as a new cell"):
        store.record([again(1, "/x")], bundle=BUNDLE)
    with pytest.raises(StoreError, match="no time zone"):
        store.record([new_cell(1, captured_at=datetime(2024, 5, 1))], bundle=BUNDLE)
    with pytest.raises(StoreError, match="guess"):
        store.record([new_cell(1, label_source="guess")], bundle=BUNDLE)
    assert store.record([], bundle=BUNDLE) == []
    assert store.counts().files == 0


def test_bundles_of_any_latent_size_live_side_by_side_until_the_switch(store: Store) -> None:
    other = "cd" * 32
    store.record([new_cell(1)], bundle=BUNDLE)
    store.add_bundle(other, name="wider", version="2", latent_size=75, labels=("a", "b"))
    assert store.active_bundle() == BUNDLE
    assert [(bundle.digest, bundle.latent_size, bundle.labels[:2]) for bundle in store.bundles()] == [
        (BUNDLE, 50, ("basophil", "eosinophil")),
        (other, 75, ("a", "b")),
    ]
    wide = new_cell(2, latent=np.ones(75, np.float32), probabilities=np.array([0.5, 0.5], np.float32))
    store.record([wide], bundle=other)
    assert [near.cell_id for near in store.nearest(wide.latent, bundle=other, k=8)] == [wide.cell_id]
    assert [near.cell_id for near in store.nearest(new_cell(1).latent, bundle=BUNDLE, k=8)] == [new_cell(1).cell_id]
    activate(store, other, latent_size=75, labels=("a", "b"))
    assert store.active_bundle() == other
    activate(store)
    assert store.active_bundle() == BUNDLE, "a switch can be undone"
    assert len(store.bundles()) == 2
    with pytest.raises(StoreError, match="Install it again"):
        activate(store, other, latent_size=50)


def test_a_store_without_a_bundle_says_so(tmp_path: Path) -> None:
    with Store.create(tmp_path / "store.duckdb") as store:
        assert store.active_bundle() is None and store.bundles() == []
        with pytest.raises(StoreError, match="no active bundle"):
            store.build_index()


def test_threads_read_while_one_writes(store: Store) -> None:
    store.build_index()
    query = new_cell("query").latent
    failures: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                near = store.nearest(query, bundle=BUNDLE, k=20)
                assert [one.distance for one in near] == sorted(one.distance for one in near)
                assert len(store.cells([one.cell_id for one in near])) == len(near)
                counts = store.counts()
                assert counts.files == counts.cells <= len(store.known_files())
                assert sum(counts.by_label.values()) == counts.outcomes["stored"]
                for row in store.ledger(limit=5):
                    assert row.cell_id is not None and store.cell(row.cell_id) is not None
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    writers = [
        threading.Thread(
            target=lambda start=start: [
                store.record([new_cell(start + i) for i in range(j, j + 20)], bundle=BUNDLE) for j in range(0, 200, 20)
            ]
        )
        for start in (0, 1000)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    done.set()
    for reader in readers:
        reader.join()
    assert failures == []
    assert store.counts().cells == 400


@pytest.mark.parametrize(
    ("name", "value"), [("latent", np.nan), ("latent", np.inf), ("probabilities", np.nan), ("probabilities", -np.inf)]
)
def test_no_number_that_is_not_finite_enters_a_latent_space(store: Store, name: str, value: float) -> None:
    cell = new_cell(1)
    store.record([cell], bundle=BUNDLE)
    store.set_active_bundle("cd" * 32, name="another", version="1", latent_size=50, labels=LABELS)
    numbers = {"latent": cell.latent.copy(), "probabilities": cell.probabilities.copy()}
    numbers[name][3] = value
    spoilt = CellEmbedding(
        cell.cell_id, numbers["latent"], numbers["probabilities"], predicted_label="monocyte", predicted_probability=0.5
    )
    with pytest.raises(StoreError, match=f"{cell.cell_id} has .*{name[:6]}.* not finite"):
        store.add_embeddings([spoilt], bundle="cd" * 32)
    assert store.latents([cell.cell_id], bundle="cd" * 32) == {}
    whole = replace(spoilt, latent=cell.latent, probabilities=cell.probabilities)
    with pytest.raises(StoreError, match="shape"):
        store.add_embeddings([replace(whole, latent=cell.latent[:49])], bundle="cd" * 32)
    store.add_embeddings([whole], bundle="cd" * 32)
    assert list(store.latents([cell.cell_id], bundle="cd" * 32)) == [cell.cell_id]
