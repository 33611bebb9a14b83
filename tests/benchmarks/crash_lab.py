"""The part of the crash benchmark that runs in its own process: the work that is killed, and the check of the lab after
it.

The outputs of the networks are real, but computed once, beforehand: thousands of forked processes cannot each open the
networks, nor start another in which pictures are decoded, which writes nothing: that is done in the process itself.
Everything else is labref itself: its agent, operations, backup, retention, maps.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import duckdb
import numpy as np
from numpy.typing import NDArray

from labref import som
from labref.agent import run
from labref.asking import answer
from labref.bundles.bundle import Bundle, install
from labref.bundles.inference import Embedder, Embeddings
from labref.cells.decoding import Decoder
from labref.cells.examination import TASKS
from labref.cells.image import MAX_PIXELS, prepare
from labref.cells.quality import judge
from labref.config import RetentionConfig
from labref.errors import LabrefError
from labref.lab import Lab
from labref.lab.trust import bring_in
from labref.operations import bundle as bundle_operations
from labref.operations import perform
from labref.progress import rows_of
from labref.store import Counts, Placed, Store, StoredMap
from labref.store.duckdb import migrations
from labref.tasks import backup, retention
from labref.tasks.context import Adoption, Context
from labref.words import Reason

__all__ = ["SCENARIOS", "Scenario", "check", "export_of", "is_taken_in", "prepare_numbers"]

SCHEMAS: Final = Path(__file__).parents[1] / "schemas"
_KEPT: Final = 4  # cells of each class that the retention of these rounds keeps
_MAP_SIDE: Final = 5


class KnownNumbers:
    """Stands in for an `Embedder`: returns the outputs that a real one gave for the same crops."""

    def __init__(self, bundle: Bundle, numbers: Path) -> None:
        self.bundle = bundle
        self.provider, self.provider_line, self.precision = "known", "numbers computed before", "full"
        with np.load(numbers / f"{bundle.digest}.npz") as file:
            self._rows = {key: row for row, key in enumerate(file["keys"].tolist())}
            self._named = {name: row for row, name in enumerate(file["names"].tolist())}
            self._latents, self._probabilities = file["latents"], file["probabilities"]

    def embed(self, crops: NDArray[np.uint8]) -> Embeddings:
        rows = [self._rows[_key(crop)] for crop in crops]
        return Embeddings(self._probabilities[rows], self._latents[rows])

    describe = Embedder.describe

    def latent_of(self, digest: str) -> NDArray[np.float32]:
        """float32[L] of the image with this digest."""
        latent: NDArray[np.float32] = self._latents[self._named[digest]]
        return latent

    def golden_difference(self) -> float:
        return 0.0

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def export_of(life: Path) -> Path:
    """The folder into which the analyser of this lab exports; the lab's own disk does not hold it."""
    return life.with_suffix(".export")


def is_taken_in(data: bytes) -> bool:
    """Whether a lab stores this picture: made smaller, one may hold nothing any more."""
    found = TASKS["examine"](data, MAX_PIXELS)
    return found.empty is None and judge(found.judged_by).reason is not Reason.NOTHING


def _stand_in(life: Path) -> None:
    """Have pictures decoded in this process, networks stand for numbers computed before, and no bundle run anew."""
    numbers = life.parent / "numbers"

    def run(self: Decoder, task: str, data: bytes, stopped: object = None) -> Any:
        return TASKS[task](data, int(self.limits.megapixels * 1e6))

    vars(answer)["open_proven"] = lambda bundle, *_: KnownNumbers(bundle, numbers)
    vars(bundle_operations)["prove"] = lambda *_, **__: None
    Decoder._run = run  # type: ignore[method-assign]


def _key(crop: NDArray[np.uint8]) -> str:
    return hashlib.sha256(crop.tobytes()).hexdigest()


def prepare_numbers(images: Path, bundles: list[Path], folder: Path) -> None:
    """Compute, with the real networks, the numbers of every image of the folder `images` for each of `bundles`
    (files)."""
    paths = sorted(images.iterdir())
    crops = np.stack([prepare(path.read_bytes()).crop for path in paths])
    names = np.array([path.name for path in paths])
    keys = np.array([_key(crop) for crop in crops])
    for file in bundles:
        bundle = install(file, folder / "bundles")
        with Embedder.open(bundle, device="cpu") as embedder:
            made = embedder.embed(crops)
        np.savez(
            folder / f"{bundle.digest}.npz",
            keys=keys,
            names=names,
            latents=made.latents,
            probabilities=made.probabilities,
        )


@contextmanager
def _context(life: Path) -> Iterator[Context]:
    """The lab in this process: its store is open, and its networks return the numbers computed before."""
    lab = _lab(life)
    with lab.open_store() as store:

        def embedder() -> Any:
            return KnownNumbers(lab.bundle(store), life.parent / "numbers")

        def adopt(bundle: Bundle) -> Adoption:
            ready: Any = KnownNumbers(bundle, life.parent / "numbers")
            return Adoption(ready, lambda: None)

        yield Context(lab, store, embedder, None, adopt)


def _lab(life: Path) -> Lab:
    lab = Lab.open(life / "lab")
    keep = RetentionConfig(cells=_KEPT, at_least=0, percent_a_day=100)
    return replace(lab, config=lab.config.model_copy(update={"retention": keep}))


def _ingest(life: Path) -> None:
    summary = run(_lab(life), once=True, json=True)
    if summary.interrupted or summary.unreachable:
        raise RuntimeError(f"the pass was not whole: {summary}")


def _operate(name: str, **parameters: Any) -> Callable[[Path], None]:
    def work(life: Path) -> None:
        with _context(life) as context:
            for _ in perform(context, name, parameters):
                pass

    return work


def _back_up(life: Path) -> None:
    _operate("store.backup", target=str(life / "backup"))(life)


def _back_up_to_file(life: Path) -> None:
    (life / "backup.zip").unlink(missing_ok=True)
    _operate("store.backup", target=str(life / "backup.zip"))(life)


def _export(life: Path) -> None:
    (life / "cells.parquet").unlink(missing_ok=True)
    _operate("store.export", target=str(life / "cells.parquet"), pixels=32)(life)


def _restore(life: Path) -> None:
    shutil.rmtree(life / "restored", ignore_errors=True)
    with _drained(backup.restore(life / "backup", life / "restored")):
        pass


def _retain(life: Path) -> None:
    with _context(life) as context:
        retention.retain(context.lab, context.store, stopped=lambda: False, report=lambda _: None)
        in_trash = [cell.cell_id for cell in context.store.trash.cells(1)]
        if in_trash:
            for _ in perform(context, "store.bring_back", {"cells": in_trash[::2]}):
                pass
        retention.empty_trash(context.lab, context.store)


def _withdraw(life: Path) -> None:
    """A person removes two cells with all their captures, and has two others erased."""
    with _context(life) as context:
        store = context.store
        there = [digest[:16] for digest in sorted(store.digests()) if store.cell(digest[:16]) is not None][:4]
        for part, erase in ((there[:2], False), (there[2:], True)):
            cells = list(store.cells(part))  # a capture of one went with the other
            if cells:
                asked = {"cells": cells, "why": "withdrawn", "erase": erase}
                for _ in perform(context, "store.remove", asked):
                    pass


def _put_old_stores(life: Path) -> None:
    for source in SCHEMAS.glob("*.duckdb"):
        shutil.copy(source, life / f"old-{source.name}")


def _migrate(life: Path) -> None:
    for source in SCHEMAS.glob("*.duckdb"):
        Store.open(life / f"old-{source.name}").close()


def _change_bundle(life: Path) -> None:
    with _context(life) as context:
        active = context.store.active_bundle()
        pending = context.store.changes.pending()
        installed = [path.name for path in sorted(context.lab.bundles.iterdir()) if not path.name.startswith(".")]
        others = [name for name in installed if name != (active or "")[:12]]
        wanted = others[0] if pending is None else pending.digest
        for _ in perform(context, "bundle.activate", {"bundle": wanted, "yes": True, "leave_out": True}):
            pass
        if context.store.active_bundle() == active:
            raise RuntimeError("the bundle was not switched")


def _train_map(life: Path) -> None:
    """A map of the cells, trained here rather than in a process apart, and put in use as the agent does."""
    with _context(life) as context:
        store = context.store
        bundle = store.active_bundle() or ""
        parts = list(store.maps.latents(bundle))
        ids, latents = (np.concatenate(part) for part in zip(*parts, strict=True))
        trained = som.train(latents, rows=_MAP_SIDE, cols=_MAP_SIDE, seed=len(ids))
        nodes, errors = som.winners(trained, latents)
        version = StoredMap(
            number=0,
            bundle=bundle,
            rows=_MAP_SIDE,
            columns=_MAP_SIDE,
            sigma=1.0,
            seed=len(ids),
            trainer="batch",
            started_from=None,
            cells=len(ids),
            qe=float(errors.mean()),
            te=0.0,
            qe_before=None,
            te_before=None,
            moved_far=None,
            verdict="first",
            seconds=0.0,
            trained_at=datetime.now(UTC),
        )
        store.maps.switch(version, partial(som.save, trained), Placed(ids, nodes, errors.astype(np.float32)))


def _install(life: Path) -> None:
    """A bundle brought in anew."""
    with _context(life) as context:
        active = (context.store.active_bundle() or "")[:12]
        pending = context.store.changes.pending()
        file = next(path for path in (life.parent / "files").iterdir() if path.stem != active)
        if pending is None:
            shutil.rmtree(context.lab.bundles / file.stem, ignore_errors=True)
        bring_in(context.store, file, context.lab.bundles, unsigned=True, check=lambda _: None)


def _spoil(life: Path) -> None:
    """Make the faults that only `_repair` mends: a lost embedding, lost bytes of a cell, and a link to a missing
    cell."""
    with _context(life) as context:
        lab, active = context.lab, context.store.active_bundle()
    with duckdb.connect(str(lab.store_file)) as connection:
        found = connection.execute("SELECT number FROM bundle WHERE digest = ?", [active]).fetchone()
        cells = connection.execute("SELECT cell_id, digest FROM cell ORDER BY cell_id LIMIT 3").fetchall()
        if found and len(cells) == 3:
            connection.execute(f"DELETE FROM embedding_{found[0]} WHERE cell_id = ?", [cells[0][0]])
            connection.execute("UPDATE cell SET duplicate_of = '0000000000000000' WHERE cell_id = ?", [cells[1][0]])
            lab.image_path(cells[2][1]).unlink(missing_ok=True)


_repair = _operate("ledger.check", repair=True)


@contextmanager
def _drained(steps: Any) -> Iterator[None]:
    for _ in rows_of(steps):
        pass
    yield


Work = Callable[[Path], None]


class Scenario:
    """work : what is killed or fails, and can be done again after. before : what makes it necessary, undisturbed."""

    def __init__(self, work: Work, weight: int, before: Work | None = None) -> None:
        self.work, self.weight, self.before = work, weight, before


SCENARIOS: Final = {
    "ingest": Scenario(_ingest, 40),
    "migrate": Scenario(_migrate, 10, _put_old_stores),
    "backup": Scenario(_back_up, 10),
    "backup_to_file": Scenario(_back_up_to_file, 4),
    "restore": Scenario(_restore, 3, _back_up),
    "export": Scenario(_export, 3),
    "retention": Scenario(_retain, 8),
    "withdrawal": Scenario(_withdraw, 4),
    "change_bundle": Scenario(_change_bundle, 7),
    "map": Scenario(_train_map, 8),
    "install": Scenario(_install, 2),
    "repair": Scenario(_repair, 5, _spoil),
}
"""What is done to a lab, and how often."""


def check(life: Path, done: str, then: Counts) -> list[str]:
    """The list of faults in the lab, after the work `done` was finished and a pass over the export folder was made.

    then : what the store held between the two.
    """
    faults: list[str] = []
    with _context(life) as context:
        store, lab = context.store, context.lab
        rows = list(perform(context, "ledger.check", {}))
        faults += [f"{row['count']} x {row['fault']}: {row['examples'][:2]}" for row in rows if "fault" in row]
        wanted = _digests_of_images(life)
        cells = store.digests().keys()
        removed = set(store.removed_digests())
        ledger = list(store.ledger())
        if lost := wanted - cells - removed:
            faults.append(f"{len(lost)} cells are lost")
        if strange := (cells | removed) - wanted:
            faults.append(f"{len(strange)} cells come from nowhere")
        if both := cells & removed:
            faults.append(f"{len(both)} cells are removed and there")
        if twice := len(ledger) - len({row.path for row in ledger}):
            faults.append(f"{twice} files have two outcomes")
        if kept := [digest for digest in removed if lab.image_path(digest).exists()]:
            faults.append(f"the bytes of {len(kept)} removed cells are still there")
        faults += _wrong_numbers(context, life)
        if done == "migrate":
            faults += _wrong_upgrades(life)
    if done in ("backup", "backup_to_file"):
        target = life / ("backup" if done == "backup" else "backup.zip")
        shutil.rmtree(life / "restored", ignore_errors=True)
        with _drained(backup.restore(target, life / "restored")):
            pass
    if done in ("backup", "backup_to_file", "restore"):
        with Lab.open(life / "restored").open_store() as restored:
            if restored.counts() != then:
                faults.append("the restored lab is another one")
    return faults


def whole_backup(life: Path) -> None:
    """Raise where the earlier backup is no longer whole after a later backup was killed."""
    if (life / "backup" / "backup.json").exists():
        with backup.Backup.open(life / "backup") as found, _drained(found.verify()):
            pass


def _digests_of_images(life: Path) -> set[str]:
    pool = {path.name for path in (life.parent / "images").iterdir()}
    found = (hashlib.sha256(path.read_bytes()).hexdigest() for path in export_of(life).rglob("*.jpg"))
    return {digest for digest in found if digest in pool}


def _wrong_numbers(context: Context, life: Path) -> Iterator[str]:
    """Embeddings that are not those of their cell's image."""
    active = context.store.active_bundle() or ""
    known = KnownNumbers(context.lab.bundle(context.store), life.parent / "numbers")
    # of those in the trash nobody asks for the latents
    digests = [digest for digest in context.store.digests() if context.store.has_digest(digest) is not None]
    found = context.store.latents([digest[:16] for digest in digests], bundle=active)
    for digest in digests:
        if not np.array_equal(known.latent_of(digest), found.get(digest[:16], np.empty(0))):
            yield f"cell {digest[:16]} has another cell's latent"


def _wrong_upgrades(life: Path) -> Iterator[str]:
    for source in SCHEMAS.glob("*.duckdb"):
        with duckdb.connect(str(source), read_only=True) as before, Store.open(life / f"old-{source.name}") as after:
            cells = before.execute("SELECT count(*) FROM cell").fetchone()
            files = before.execute("SELECT count(*) FROM file").fetchone()
            if (after.counts().cells, after.counts().files) != ((cells or [0])[0], (files or [0])[0]):
                yield f"{source.name} lost something on its way"
            if after.schema_version != migrations.latest_version() or after.faults().found:
                yield f"{source.name} was not brought up to date"
        (life / f"old-{source.name}").unlink()


def main(life: Path, what: str, scenario: str) -> tuple[int, Any]:
    """Do one thing in this process. Returns the exit code, 0 where it is done and 1 where it failed with an error of
    labref, and what is to be told: the error, or the faults found."""
    chosen = SCENARIOS[scenario]
    _stand_in(life)
    if what == "before" and chosen.before is not None:
        chosen.before(life)
    elif what == "work":
        try:
            chosen.work(life)
        except LabrefError as error:
            return 1, str(error)
    elif what == "finish":
        whole_backup(life)
        chosen.work(life)
        with _context(life) as context:
            then = context.store.counts()
        _ingest(life)
        return 0, check(life, scenario, then)
    return 0, None


def told(value: Any) -> str:
    """One line of JSON."""
    return json.dumps(value)
