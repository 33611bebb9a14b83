"""Random days in a lab, against the rules written down plainly: whatever comes in whatever order, the ledger is
right."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from labref.store import NewCell, Rejected, SeenAgain, Store
from tests.stores import BUNDLE, JUDGED, LABELS, digest_of, mark, new_cell, new_store

WEIGHT = {"predicted": 0, "analyser": 1, "reviewed": 2}


@dataclass
class Lab:
    """The rules, one file at a time: label, source and mark by cell; outcome, cell and whom it repeats by path."""

    cells: dict[str, tuple[str, str, int]] = field(default_factory=dict)
    files: dict[str, tuple[str, str | None, str | None]] = field(default_factory=dict)
    replaced: dict[str, list[str]] = field(default_factory=dict)

    def take(self, item: NewCell | SeenAgain | Rejected) -> None:
        if isinstance(item, Rejected):
            self.settle(item.path, ("rejected", None, None))
            return
        cell_id = item.digest[:16]
        if cell_id in self.cells:
            before = self.files.get(item.path)
            if before is None or before[1] != cell_id:
                self.settle(item.path, ("duplicate", cell_id, cell_id))
            label, source, hashed = self.cells[cell_id]
            if item.label is not None and WEIGHT[item.label_source] > WEIGHT[source]:
                self.cells[cell_id] = (item.label, item.label_source, hashed)
            return
        assert isinstance(item, NewCell)
        label, source = (item.predicted_label, "predicted") if item.label is None else (item.label, item.label_source)
        alike = [
            ((hashed ^ item.fingerprints[0].across).bit_count(), other) for other, (_, _, hashed) in self.cells.items()
        ]
        bits, other = min(alike, key=lambda pair: pair[0], default=(64, ""))
        outcome = "duplicate" if bits < 2 else "possible_duplicate" if bits <= 3 else "stored"
        self.cells[cell_id] = (label, source, item.fingerprints[0].across)
        self.settle(item.path, (outcome, cell_id, other if bits <= 3 else None))

    def settle(self, path: str, outcome: tuple[str, str | None, str | None]) -> None:
        before = self.files.get(path)
        if before is not None and before != outcome:
            self.replaced.setdefault(path, []).append(before[0])
        self.files[path] = outcome


def a_file(rng: np.random.Generator, known: set[int]) -> NewCell | SeenAgain | Rejected:
    path, number = f"/export/{rng.integers(60)}.jpg", int(rng.integers(40))
    label = None if rng.random() < 0.3 else LABELS[rng.integers(2)]
    source = str(rng.choice(list(WEIGHT)))
    if rng.random() < 0.1:
        return Rejected(path, 1, 1, "no image")
    if number in known and rng.random() < 0.7:
        return SeenAgain(path, 1, 1, digest_of(number), label, source)
    known.add(number)
    bits = np.random.default_rng(number).integers(0, 8, number % 4)  # the same bytes have the same fingerprint
    hashed = sum(1 << int(bit) for bit in bits) << 8 * (number % 3)
    return new_cell(number, path=path, label=label, label_source=source, fingerprints=mark(hashed))


@pytest.mark.parametrize("seed", range(4))
def test_the_store_keeps_the_rules(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lab, known = Lab(), set[int]()
    files = [a_file(rng, known) for _ in range(250 if seed % 2 else 125)]  # alone, each takes a commit
    with new_store(tmp_path) as store:
        at = 0
        while at < len(files):
            size = int(rng.integers(1, 40)) if seed % 2 else 1
            batch = files[at : at + size]
            at += size
            store.record(batch, bundle=BUNDLE, **JUDGED)
            for item in batch:
                lab.take(item)
        check(store, lab)
    with Store.open(tmp_path / "store.duckdb") as store:
        check(store, lab)
        store.record([files[-1]], bundle=BUNDLE, **JUDGED)
        lab.take(files[-1])
        check(store, lab)


def check(store: Store, lab: Lab) -> None:
    rows = list(store.ledger())
    assert {row.path: (str(row.outcome), row.cell_id, row.duplicate_of) for row in rows} == lab.files
    assert len(rows) == len(lab.files) == store.counts().files
    cells = store.cells(list(lab.cells))
    found = {cell_id: (cell.label, str(cell.label_source)) for cell_id, cell in cells.items()}
    assert found == {cell_id: (label, source) for cell_id, (label, source, _) in lab.cells.items()}
    assert store.labels(list(lab.cells)) == {cell_id: label for cell_id, (label, _, _) in lab.cells.items()}
    assert store.labelled(list(lab.cells)) == found
    groups: dict[str, list[str]] = {}
    for cell in cells.values():
        groups.setdefault(cell.duplicate_group or cell.cell_id, []).append(cell.cell_id)
    for group in groups.values():
        assert all(sorted(store.duplicate_group(cell_id)) == sorted(group) for cell_id in group)
    assert store.counts().cells == len(lab.cells)
    for path in lab.files:
        assert [str(row.outcome) for row in store.history(path)] == lab.replaced.get(path, [])
    away = {cell_id: hashed.bit_count() for cell_id, (_, _, hashed) in lab.cells.items()}  # in the order they came

    def nearest(cells: list[str], bits: int, most: int) -> list[str]:
        return sorted((one for one in cells if away[one] <= bits), key=away.__getitem__)[:most]

    came = list(away)  # of the last ones, more are compared
    expected = [*nearest(came, 3, 32), *nearest(came[-64:], 7, 8), *nearest(came[-8:], 10, 8)]
    assert store.candidates(mark(0), 3) == list(dict.fromkeys(expected))
