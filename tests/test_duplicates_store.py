"""What the store remembers of cells that repeat others: links, decisions, their history, and cells compared late."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from labref.errors import StoreError
from labref.failpoints import arm, disarm
from labref.store import Judge, NewCell, Resemblance, SeenAgain, Store
from labref.store.duckdb.duplicates import Decision, Learnt
from labref.store.duckdb.reviews import Review
from labref.store.memory.books import GroupBook
from labref.words import Fingerprint, Landmark, Verdict
from tests.stores import BUNDLE, JUDGED, by_bits, digest_of, mark, new_cell, new_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with new_store(tmp_path) as store:
        yield store


def chain(n: int = 4) -> list[NewCell]:
    """Cells of which each repeats the one before: one bit of difference."""
    return [new_cell(f"chain {i}", fingerprints=mark(2**i - 1)) for i in range(n)]


def recorded(store: Store, *cells: NewCell) -> list[str]:
    """Record cells one by one; their ids."""
    for cell in cells:
        store.record([cell], bundle=BUNDLE, **JUDGED)
    return [cell.cell_id for cell in cells]


def possible(store: Store) -> tuple[str, str]:
    """A cell, and another that may repeat it."""
    first, second = recorded(store, new_cell("a", fingerprints=mark(0)), new_cell("b", fingerprints=mark(0b111)))
    return first, second


def outcome(store: Store, cell_id: str) -> tuple[str, str | None]:
    """Outcome and link of the file that a cell was stored from."""
    cell = store.cell(cell_id)
    assert cell is not None
    (row,) = store.ledger(path=cell.path)
    return str(row.outcome), row.duplicate_of


def test_a_possible_duplicate_waits_for_a_decision(store: Store) -> None:
    first, second = possible(store)
    (pair,) = store.duplicates.pairs()
    assert (pair.cell_id, pair.other, pair.verdict, pair.found) == (second, first, Verdict.POSSIBLE, Verdict.POSSIBLE)
    assert pair.score == pytest.approx(1 - 3 / 64)
    assert pair.decision is None
    assert store.duplicates.possible() == {second}
    assert store.duplicate_group(second) == [second]


def test_confirmed_it_is_a_duplicate_and_the_ledger_says_who_said_so(store: Store) -> None:
    first, second = possible(store)
    pair = store.duplicates.confirm(second, "A. Lind")
    assert (pair.verdict, pair.found, pair.decision, pair.who) == (
        Verdict.DUPLICATE,
        Verdict.POSSIBLE,
        Decision.CONFIRMED,
        "A. Lind",
    )
    assert store.duplicate_group(first) == [first, second]
    assert store.duplicates.possible() == set()
    assert outcome(store, second) == ("duplicate", first)
    (row,) = store.ledger(outcome="duplicate")
    assert row.reason is not None and "A. Lind" in row.reason and first in row.reason
    assert [str(before.outcome) for before in store.history(row.path)] == ["possible_duplicate"]


def test_rejected_it_is_a_cell_of_its_own_for_ever(store: Store, tmp_path: Path) -> None:
    first, second = possible(store)
    pair = store.duplicates.reject(second, None)
    assert (pair.verdict, pair.decision) == (None, Decision.REJECTED)
    assert outcome(store, second) == ("stored", None)
    assert store.duplicates.possible() == set() and store.duplicates.rejected() == {frozenset((first, second))}
    assert [p.cell_id for p in store.duplicates.pairs(verdict="rejected")] == [second]
    store.learn_fingerprints([Learnt(second, mark(0b111))], judge=by_bits, candidate_bits=10)
    cell = store.cell(second)
    assert cell is not None and cell.duplicate_of is None, "compared again, it is not linked again"
    store.close()
    with Store.open(tmp_path / "store.duckdb") as reopened:
        assert reopened.duplicates.rejected() == {frozenset((first, second))}


@pytest.mark.parametrize("decide", ["confirm", "reject"])
def test_undone_what_labref_had_found_holds_again(store: Store, decide: str) -> None:
    first, second = possible(store)
    before = outcome(store, second)
    getattr(store.duplicates, decide)(second, "A")
    pair = store.duplicates.undo(second, "B")
    assert (pair.verdict, pair.decision, pair.who) == (Verdict.POSSIBLE, Decision.UNDONE, "B")
    assert outcome(store, second) == before == ("possible_duplicate", first)
    assert store.duplicate_group(first) == [first] and store.duplicates.rejected() == set()
    said = [(decision, who) for _, _, decision, who, _ in store.duplicates.history(second)]
    assert said == [(Decision(f"{decide}ed"), "A"), (Decision.UNDONE, "B")]
    with pytest.raises(StoreError, match="nothing to undo"):
        store.duplicates.undo(second, "C")


def test_a_person_can_link_what_labref_did_not_and_take_it_back(store: Store) -> None:
    first, second = recorded(store, new_cell("a", fingerprints=mark(0)), new_cell("b", fingerprints=mark(2**40 - 1)))
    pair = store.duplicates.confirm(first, "A", other=second)
    assert (pair.cell_id, pair.other) == (second, first), "the later repeats the earlier, however it was said"
    assert (pair.found, pair.score) == (None, None)
    assert store.duplicate_group(first) == [first, second]
    assert store.duplicates.undo(second, "A").verdict is None
    assert store.duplicate_group(first) == [first]
    assert outcome(store, second) == ("stored", None)


def test_a_link_in_the_middle_of_a_chain_parts_it_and_joins_it_again(store: Store) -> None:
    ids = recorded(store, *chain())
    assert store.duplicate_group(ids[3]) == ids
    store.duplicates.reject(ids[2], None)
    assert store.duplicate_group(ids[0]) == ids[:2]
    assert store.duplicate_group(ids[3]) == ids[2:]
    store.duplicates.undo(ids[2], None)
    for cell_id in ids:
        assert store.duplicate_group(cell_id) == ids


def test_copies_of_a_cells_bytes_keep_their_outcome_when_the_cell_is_decided_on(store: Store) -> None:
    _, second = possible(store)
    copy = SeenAgain("/export/copy.jpg", 1, 1, digest_of("b"), "monocyte", "analyser")
    store.record([copy], bundle=BUNDLE)
    store.duplicates.reject(second, None)
    (row,) = store.ledger(path="/export/copy.jpg")
    assert (row.outcome, row.duplicate_of) == ("duplicate", second)


def test_files_of_one_cell_that_say_different_classes_are_a_conflict(store: Store) -> None:
    cell = new_cell("a", label="neutrophil")
    store.record([cell, new_cell("b")], bundle=BUNDLE)
    assert store.duplicates.conflicts() == []
    store.record(
        [
            SeenAgain("/export/other.jpg", 1, 1, cell.digest, "monocyte", "analyser"),
            SeenAgain("/export/unsigned.jpg", 1, 1, cell.digest),
            SeenAgain("/export/same.jpg", 1, 1, digest_of("b"), "neutrophil", "analyser"),
        ],
        bundle=BUNDLE,
    )
    (conflict,) = store.duplicates.conflicts()
    assert (conflict.cell_id, conflict.label) == (cell.cell_id, "neutrophil")
    assert {(path, label) for path, label, _ in conflict.says} == {
        (cell.path, "neutrophil"),
        ("/export/other.jpg", "monocyte"),
    }
    in_conflict = {row.path: row.conflict for row in store.ledger() if row.conflict}
    assert in_conflict == dict.fromkeys(
        [cell.path, "/export/other.jpg", "/export/unsigned.jpg"], ("monocyte", "neutrophil")
    )


@pytest.mark.parametrize(
    ("decide", "says"),
    [
        (lambda duplicates: duplicates.confirm("0" * 16, None), "no cell 0000"),
        (lambda duplicates: duplicates.reject(new_cell("a").cell_id, None), "linked with no other"),
        (lambda duplicates: duplicates.confirm(new_cell("a").cell_id, None, "f" * 16), "cannot be a recapture"),
        (
            lambda duplicates: duplicates.confirm(new_cell("a").cell_id, None, new_cell("a").cell_id),
            "cannot be a recapture",
        ),
        (lambda duplicates: duplicates.undo(new_cell("a").cell_id, None), "nothing to undo"),
    ],
)
def test_what_cannot_be_decided_is_said_and_changes_nothing(store: Store, decide: object, says: str) -> None:
    possible(store)
    before = list(store.ledger())
    assert callable(decide)
    with pytest.raises(StoreError, match=says):
        decide(store.duplicates)
    assert list(store.ledger()) == before


@pytest.mark.parametrize("point", ["duplicates.decide", "duplicates.files", "store.commit"])
def test_a_decision_that_fails_halfway_is_not_made(store: Store, point: str) -> None:
    _, second = possible(store)
    before = (store.duplicates.pairs(), list(store.ledger()))
    arm(f"{point}=eio@1")
    try:
        with pytest.raises(StoreError, match="cannot be written"):
            store.duplicates.confirm(second, None)
    finally:
        disarm()
    assert (store.duplicates.pairs(), list(store.ledger())) == before
    assert store.duplicates.confirm(second, None).verdict is Verdict.DUPLICATE


# neighbours in one field


def place(*bits: int) -> tuple[Landmark, ...]:
    """Landmarks of a picture, all of it shown, of which only the first hash counts."""
    return tuple(Landmark(mark(value), Fingerprint(2**64 - 1, 2**64 - 1)) for value in bits)


def neighbours(digest: str, other: str) -> Resemblance:
    """A judge to whom all pictures show one field."""
    return Resemblance(0.99, Verdict.NEIGHBOUR)


BESIDE = {"judge": neighbours, "candidate_bits": 10}


def two_of_one_field(store: Store) -> tuple[str, str]:
    """Two cells whose pictures have a landmark in common, and nothing else; their ids."""
    first = new_cell("left", landmarks=place(0xFFFF << 40, 0xFFFF))
    second = new_cell("right", landmarks=place(0xFFFF << 20, 0xFFFF))
    for cell in (first, new_cell("elsewhere", landmarks=place(0xFFFF << 48)), second):
        store.record([cell], bundle=BUNDLE, **BESIDE)
    return first.cell_id, second.cell_id


def test_neighbours_are_found_by_a_landmark_and_remembered_but_not_linked(store: Store) -> None:
    first, second = two_of_one_field(store)
    (pair,) = store.duplicates.pairs(verdict="neighbour")
    assert (pair.cell_id, pair.other, pair.verdict, pair.score) == (second, first, Verdict.NEIGHBOUR, 0.99)
    assert store.duplicates.pairs() == [], "nobody has to look at them"
    assert store.duplicates.possible() == set() and store.duplicate_group(second) == [second]
    assert outcome(store, second) == ("stored", None)
    beside = {row.cell_id: row.neighbours for row in store.ledger() if row.neighbours}
    assert beside == {first: (second,), second: (first,)}


def test_neighbours_are_found_in_one_batch_and_after_opening_anew(store: Store, tmp_path: Path) -> None:
    one, two, three = (new_cell(i, landmarks=place(0xFFFF << 8 * i, 0xFF00)) for i in (2, 3, 4))
    store.record([one, two], bundle=BUNDLE, **BESIDE)
    assert len(store.duplicates.pairs(verdict="neighbour")) == 1
    store.close()
    with Store.open(tmp_path / "store.duckdb") as reopened:
        reopened.record([three], bundle=BUNDLE, **BESIDE)
        found = {pair.other for pair in reopened.duplicates.pairs(verdict="neighbour") if pair.cell_id == three.cell_id}
    assert found == {one.cell_id, two.cell_id}


def test_a_person_may_call_neighbours_one_cell_and_take_it_back(store: Store) -> None:
    first, second = two_of_one_field(store)
    assert store.duplicates.confirm(second, "A", other=first).verdict is Verdict.DUPLICATE
    assert store.duplicates.pairs(verdict="neighbour") == []
    assert not any(row.neighbours for row in store.ledger())
    store.duplicates.undo(second, "A")
    assert store.duplicate_group(second) == [second] and outcome(store, second) == ("stored", None)
    assert [pair.cell_id for pair in store.duplicates.pairs(verdict="neighbour")] == [second]


def test_a_neighbour_that_retention_removed_is_listed_no_more(store: Store) -> None:
    first, second = two_of_one_field(store)
    store.remove(
        [due for due in store.due(days=0, cells=1, at_least=0, reviewed=True, limit=10) if due.cell_id == first]
    )
    assert store.cell(first) is None and store.cell(second) is not None
    assert store.duplicates.pairs(verdict="neighbour") == []
    assert not any(row.neighbours for row in store.ledger())


# captures of one cell under two labels


def test_captures_of_one_cell_under_two_labels_are_a_conflict_each_once(store: Store) -> None:
    labels = (None, "neutrophil", "monocyte", "neutrophil", "basophil")
    cells = [
        new_cell(
            f"chain {i}", fingerprints=mark(2**i - 1), label=label, label_source="analyser" if label else "predicted"
        )
        for i, label in enumerate(labels)
    ]
    ids = recorded(store, *cells)
    assert store.duplicate_group(ids[0]) == ids
    found = [(pair.cell_id, pair.other) for pair in store.duplicates.conflicting_pairs()]
    assert sorted(found) == sorted([(ids[2], ids[1]), (ids[4], ids[1])]), (
        "each with the first that a label was given to"
    )
    says = store.duplicates.says([ids[0], ids[2]])
    assert says == {ids[2]: [(cells[2].path, "monocyte", "analyser")]}
    store.reviews.give([Review(cell_id, "neutrophil", "A. Lind", None) for cell_id in (ids[2], ids[4])])
    assert store.duplicates.conflicting_pairs() == []


def test_a_possible_duplicate_under_another_label_is_a_conflict_until_it_is_rejected(store: Store) -> None:
    first, second = recorded(
        store, new_cell("a", fingerprints=mark(0)), new_cell("b", fingerprints=mark(0b111), label="monocyte")
    )
    (pair,) = store.duplicates.conflicting_pairs()
    assert (pair.cell_id, pair.other, pair.verdict) == (second, first, Verdict.POSSIBLE)
    store.duplicates.reject(second, "A")
    assert store.duplicates.conflicting_pairs() == []


def test_a_predicted_label_is_no_conflict(store: Store) -> None:
    recorded(
        store,
        new_cell("a", fingerprints=mark(0)),
        new_cell("b", fingerprints=mark(1), label=None, predicted_label="monocyte"),
    )
    assert len(store.duplicates.pairs(verdict="duplicate")) == 1
    assert store.duplicates.conflicting_pairs() == []


# cells that an earlier labref stored


def without_marks(store: Store, *cells: NewCell) -> list[str]:
    """Store cells without fingerprints, as an earlier labref did."""
    bare = [new_cell(cell.path.removeprefix("/export/").removesuffix(".jpg"), fingerprints=()) for cell in cells]
    store.record(bare, bundle=BUNDLE)
    return [cell.cell_id for cell in bare]


def test_cells_stored_without_fingerprints_are_compared_late_and_linked_as_if_they_had_had_them(store: Store) -> None:
    cells = chain()
    ids = without_marks(store, *cells)
    assert store.duplicates.count_without_fingerprint() == 4
    assert store.duplicates.without_fingerprint() == ids
    (fresh,) = recorded(store, new_cell("new", fingerprints=mark(2**4 - 1)))
    assert outcome(store, fresh) == ("stored", None)
    for cell in (cells[3], cells[0], cells[2], cells[1]):
        new_cell(cell.path.removeprefix("/export/").removesuffix(".jpg"), fingerprints=cell.fingerprints)
        store.learn_fingerprints([Learnt(cell.cell_id, cell.fingerprints)], judge=by_bits, candidate_bits=10)
    assert store.duplicates.count_without_fingerprint() == 0
    linked = {pair.cell_id: pair.other for pair in store.duplicates.pairs(verdict="duplicate")}
    assert linked[fresh] == ids[3], "a later cell is linked with one that was compared after it"
    assert linked[ids[1]] == ids[0]
    for cell_id, other in linked.items():
        older, later = store.cell(other), store.cell(cell_id)
        assert older is not None and later is not None and older.added_at <= later.added_at
    assert set(store.candidates(mark(0), 2)) >= set(ids[:3])


def test_links_of_the_thesis_rule_that_nothing_confirms_are_removed(store: Store) -> None:
    first, second = without_marks(store, new_cell("b"), new_cell("a"))
    with store._transaction() as connection:
        connection.execute(
            "UPDATE cell SET duplicate_of = ?, duplicate_group = ?, duplicate_verdict = 'duplicate' WHERE cell_id = ?",
            [first, first, second],
        )
        connection.execute("UPDATE file SET outcome = 'duplicate', duplicate_of = ? WHERE cell_id = ?", [first, second])
    store.reload()
    assert store.duplicate_group(first) == [first, second]

    def different(digest: str, other: str) -> Resemblance:
        return Resemblance(0.7, Verdict.DIFFERENT)

    learnt = [Learnt(first, mark(0)), Learnt(second, mark(1))]
    store.learn_fingerprints(learnt, judge=different, candidate_bits=10)
    assert store.duplicate_group(first) == [first]
    assert outcome(store, second) == ("stored", None)
    (row,) = [row for row in store.ledger() if row.cell_id == second]
    assert row.reason is not None and "registration does not confirm" in row.reason
    assert [str(before.outcome) for before in store.history(row.path)] == ["duplicate"]


def learn_again(store: Store, judge: Judge, *cells: NewCell) -> None:
    """Make the fingerprints of stored cells anew, as after an upgrade."""
    learnt = [Learnt(cell.cell_id, cell.fingerprints, cell.landmarks) for cell in cells]
    store.learn_fingerprints(learnt, judge=judge, candidate_bits=10)


@pytest.mark.parametrize("alike", [mark(0b111), mark(2**40 - 1)])
def test_a_link_of_registration_that_this_version_calls_neighbours_is_taken_back(
    store: Store, alike: tuple[Fingerprint]
) -> None:
    first, second = new_cell("a", fingerprints=mark(0)), new_cell("b", fingerprints=mark(0b111))
    recorded(store, first, second)
    assert store.duplicates.possible() == {second.cell_id}
    with store._transaction() as connection:
        connection.execute("UPDATE fingerprint SET version = 1")
    store.reload()
    # whether the new fingerprints would bring the two together or not
    learn_again(store, neighbours, first, new_cell("b", fingerprints=alike))
    assert store.duplicates.possible() == set() and outcome(store, second.cell_id) == ("stored", None)
    (pair,) = store.duplicates.pairs(verdict="neighbour")
    assert (pair.cell_id, pair.other) == (second.cell_id, first.cell_id)
    (row,) = store.ledger(path=second.path)
    assert row.reason is not None and "does not confirm" in row.reason
    assert [str(before.outcome) for before in store.history(second.path)] == ["possible_duplicate"]
    learn_again(store, neighbours, first, second)
    with store._reading() as cursor:
        assert cursor.execute("SELECT count(*) FROM resemblance").fetchall() == [(2,)], "nothing is written twice"


def test_what_registration_found_stays_where_the_bytes_cannot_be_used_now(store: Store) -> None:
    first, second = new_cell("a", fingerprints=mark(0)), new_cell("b", fingerprints=mark(0b111))
    recorded(store, first, second)
    learn_again(store, lambda digest, other: None, first, second)
    assert store.duplicates.possible() == {second.cell_id}


def test_what_people_decided_stays_when_a_link_would_be_taken_back(store: Store) -> None:
    first, second = new_cell("a", fingerprints=mark(0)), new_cell("b", fingerprints=mark(0b111))
    recorded(store, first, second)
    store.duplicates.confirm(second.cell_id, "A")
    learn_again(store, neighbours, first, second)
    assert store.duplicate_group(first.cell_id) == [first.cell_id, second.cell_id]
    assert store.duplicates.pairs(verdict="neighbour") == []


def test_neighbours_are_found_among_cells_compared_late_whichever_came_first(store: Store) -> None:
    cells = [new_cell(i, landmarks=place(0xFFFF << 8 * i, 0xFF00)) for i in (2, 3, 4)]
    without_marks(store, *cells)
    for cell in (cells[2], cells[0], cells[1]):
        learn_again(store, neighbours, cell)
    found = {(pair.cell_id, pair.other) for pair in store.duplicates.pairs(verdict="neighbour")}
    ids = [cell.cell_id for cell in cells]
    assert found == {(ids[1], ids[0]), (ids[2], ids[0]), (ids[2], ids[1])}


def test_a_persons_decision_outlives_being_compared_late(store: Store) -> None:
    first, second = without_marks(store, new_cell("b"), new_cell("a"))
    store.duplicates.confirm(second, "A", other=first)

    def different(digest: str, other: str) -> Resemblance:
        return Resemblance(0.1, Verdict.DIFFERENT)

    store.learn_fingerprints([Learnt(first, mark(0)), Learnt(second, mark(0))], judge=different, candidate_bits=10)
    assert store.duplicate_group(first) == [first, second]


def test_groups_in_memory_are_those_of_a_plain_dictionary_while_they_grow() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 2**64, 20_000, np.uint64)
    firsts = ids[:1500]
    group = {int(cell): int(first) for cell, first in zip(ids[1500:], rng.choice(firsts, 18_500), strict=True)}
    known = np.array(list(group.items())[:900], np.uint64)
    book = GroupBook(known[:, 0], known[:, 1])
    for number, (cell, first) in enumerate(list(group.items())[900:], 901):
        book.add(cell, first)
        if number in (901, 5000, 10_000, len(group)):
            grown = dict(list(group.items())[:number])
            assert len(book) == number
            assert book.of(ids).tolist() == [grown.get(cell, cell) for cell in ids.tolist()]
            for first in firsts[:40].tolist():
                assert book.members(first) == [first, *(cell for cell, of in grown.items() if of == first)]
            looked_at, shown = rng.permutation(ids)[:700], []
            for cell in looked_at.tolist():
                shown.append(
                    grown.get(cell, cell) not in [grown.get(other, other) for other in looked_at[: len(shown)].tolist()]
                )
            assert book.firsts(looked_at).tolist() == shown


def test_a_cell_whose_bytes_cannot_be_used_is_not_tried_for_ever(store: Store) -> None:
    (cell_id,) = without_marks(store, new_cell("a"))
    store.learn_fingerprints([Learnt(cell_id, ())], judge=by_bits, candidate_bits=10)
    assert store.duplicates.count_without_fingerprint() == 0
    assert store.candidates(mark(0), 64) == []
