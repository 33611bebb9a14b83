"""Changing bundles: cells are embedded again in the background, queries go on, the switch is one moment, and can be
undone."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from labref import failpoints
from labref.agent.service import _Agent
from labref.bundles.bundle import Bundle
from labref.bundles.trial import Inference, Shown
from labref.bundles.trial_process import work
from labref.cli import app
from labref.demo.cells import LABELS, OPTICS, draw_cell, encode_jpeg, make_slides
from labref.errors import LabrefError
from labref.lab import Lab
from labref.lab.log import open_log
from labref.store import Store
from labref.tasks.turns import SHARE, Turns
from labref.web import desk
from labref.web.client import AgentClient
from labref.web.desk import Desk, ask, status
from tests.benchmarks.reembed import change_while_killed
from tests.bundles import RENAMED, another
from tests.labs import make_lab, once, running_agent, wait_until


@pytest.fixture(scope="module")
def export(drawn_cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight drawn cells in class folders, and eight flat ones whose class only the networks say."""
    folder = tmp_path_factory.mktemp("export")
    for number, file in enumerate(sorted(drawn_cells.rglob("*.jpg"))[::2]):
        target = folder / file.parent.name / file.name if number % 2 else folder / f"{file.parent.name}{file.name}"
        target.parent.mkdir(exist_ok=True)
        shutil.copy(file, target)
    return folder


@pytest.fixture(scope="module")
def other(starter: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another bundle: 40 latents, and another name for one class."""
    return another(starter, tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="module")
def filled(starter: Bundle, export: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lab that has taken the export in, with the other bundle installed; copied for every test."""
    folder = tmp_path_factory.mktemp("filled") / "lab"
    lab = make_lab(folder, export, starter)
    once(lab)
    run(lab, "bundle.install", file=str(other), unsigned=True)
    return folder


@pytest.fixture
def lab(filled: Path, tmp_path: Path) -> Lab:
    """A filled lab with the other bundle installed."""
    return Lab.open(Path(shutil.copytree(filled, tmp_path / "lab")))


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoints.disarm()


def run(lab: Lab, name: str, **parameters: Any) -> list[dict[str, Any]]:
    """Rows of an operation without those of its progress."""
    return [row for row in desk.run(lab, name, **parameters) if set(row) != {"progress"}]


def references(lab: Lab, image: Path) -> list[tuple[str, float]]:
    return [(r["cell_id"], r["distance"]) for r in ask(lab, image.read_bytes(), name=image.name)["references"]]


def an_image(lab: Lab) -> Path:
    return sorted(lab.watched[0].glob("*.jpg"))[0]


def test_the_old_space_answers_until_the_switch_and_again_after_rollback(lab: Lab) -> None:
    image = an_image(lab)
    before = references(lab, image)
    (change,) = run(lab, "bundle.activate", bundle="other")
    assert (change["state"], change["embedded"], change["failed"]) == ("ready", change["cells"], 0)
    assert references(lab, image) == before
    (change,) = run(lab, "bundle.activate", bundle="other", switch_now=True)
    assert change["state"] == "active"
    assert references(lab, image) != before
    assert status(lab)["bundle"]["name"] == "other"
    *_, back = run(lab, "bundle.rollback")
    assert back["bundle"]["name"] == "starter"
    assert references(lab, image) == before
    *_, forward = run(lab, "bundle.rollback")
    assert forward["bundle"]["name"] == "other"


def test_new_latents_are_those_of_cells_taken_in_by_the_new_bundle(lab: Lab, other: Path, tmp_path: Path) -> None:
    run(lab, "bundle.activate", bundle="other", yes=True)
    fresh = Lab.create(tmp_path / "fresh", list(lab.watched), other, unsigned=True)
    once(fresh)
    with lab.open_store() as changed, fresh.open_store() as new:
        bundle = changed.active_bundle()
        assert bundle is not None and bundle == new.active_bundle()
        ids = [row.cell_id for row in new.ledger() if row.cell_id]
        ours, theirs = changed.latents(ids, bundle=bundle), new.latents(ids, bundle=bundle)
        assert ours.keys() == theirs.keys() == set(ids)
        for cell_id in ids:
            np.testing.assert_allclose(ours[cell_id], theirs[cell_id], rtol=1e-3, atol=1e-3)


def test_a_cell_that_went_before_a_change_is_a_reference_again_once_it_is_back(lab: Lab) -> None:
    image = an_image(lab)
    (gone, _), *_ = references(lab, image)
    run(lab, "store.remove", cells=[gone], why="by mistake")
    run(lab, "bundle.activate", bundle="other", yes=True)
    assert gone not in dict(references(lab, image))
    run(lab, "store.bring_back", cells=[gone])
    found = references(lab, image)
    assert gone in dict(found) and status(lab)["without_latent"] == 0
    # where labref ended before it was embedded, the next pass of the agent does it
    with lab.open_store() as store:
        store.forget_latents([gone], bundle=store.active_bundle() or "")
    assert run(lab, "ledger.check", latents=0)[-1]["ok"] is False
    once(lab)
    assert [cell for cell, _ in references(lab, image)] == [cell for cell, _ in found]
    assert run(lab, "ledger.check")[-1]["ok"] is True


def test_predicted_labels_follow_the_active_bundle_and_given_ones_stay(lab: Lab) -> None:
    old, new = RENAMED

    def labels() -> dict[str, dict[str, int]]:
        with lab.open_store() as store:
            found: dict[str, dict[str, int]] = {}
            for row in store.ledger():
                cell = store.cell(row.cell_id or "")
                assert cell is not None
                counts = found.setdefault(str(cell.label_source), {})
                counts[cell.label] = counts.get(cell.label, 0) + 1
            return found

    before = labels()
    assert before["predicted"].get(old), "a cell is predicted to be of the class that is renamed"
    run(lab, "bundle.activate", bundle="other", yes=True)
    after = labels()
    assert after["analyser"] == before["analyser"]
    assert after["predicted"][new] == before["predicted"][old] and old not in after["predicted"]
    run(lab, "bundle.rollback")
    assert labels() == before


def test_the_report_says_how_many_of_the_eight_change_by_class(lab: Lab) -> None:
    (change,) = run(lab, "bundle.activate", bundle="other")
    report = change["report"]
    with lab.open_store() as store:
        counts = store.counts()
    assert report["cells"] == report["sampled"] == counts.cells
    assert {label: entry["cells"] for label, entry in report["classes"].items()} == counts.by_label
    assert 0 < report["changed"] <= 8
    assert all(0 <= entry["changed"] <= 8 for entry in report["classes"].values())
    # looked at again by hand
    with lab.open_store() as store:
        old, new = (bundle.digest for bundle in store.bundles())
        label, entry = next(iter(report["classes"].items()))
        differ = []
        for row in store.ledger():
            cell_id = row.cell_id or ""
            if store.labels([cell_id])[cell_id] == label:
                spaces = []
                for digest in (old, new):
                    latent = store.latents([cell_id], bundle=digest)[cell_id]
                    group = store.duplicate_group(cell_id)
                    spaces.append({n.cell_id for n in store.nearest(latent, bundle=digest, k=8, exclude=group)})
                differ.append(len(spaces[1] - spaces[0]))
        # reviewed cells are preferred among near-equal ones, so a reference or so may differ
        assert entry["changed"] == pytest.approx(np.mean(differ), abs=1.0)


def test_cells_that_came_after_the_switch_are_caught_up_in_the_old_space(
    lab: Lab, drawn_cells: Path, tmp_path: Path
) -> None:
    run(lab, "bundle.activate", bundle="other", yes=True)
    image = an_image(lab)
    extra = tmp_path / "more"
    extra.mkdir()
    for file in sorted(drawn_cells.rglob("*.jpg"))[:4]:
        (extra / file.name).write_bytes(file.read_bytes() + b"\0")  # other bytes of the same picture
    wider = lab.config.watch.model_copy(update={"folders": (*lab.watched, extra), "stable_seconds": 0.0})
    once(Lab(lab.folder, lab.config.model_copy(update={"watch": wider})))
    rows = run(lab, "bundle.rollback")
    assert rows[0]["switched"]["embedded"] < rows[0]["switched"]["cells"]
    assert rows[-1]["embedded"] == rows[-1]["cells"]
    assert status(lab)["without_latent"] == 0
    assert len(references(lab, image)) == 8


def test_a_cell_whose_bytes_are_gone_holds_the_switch_until_it_is_left_out(lab: Lab) -> None:
    with lab.open_store() as store:
        cell = store.cell(next(row.cell_id for row in store.ledger() if row.cell_id))
    assert cell is not None
    kept = lab.image_path(cell.digest)
    data = kept.read_bytes()
    kept.unlink()
    (change,) = run(lab, "bundle.activate", bundle="other", yes=True)
    assert (change["state"], change["failed"]) == ("held", 1)
    assert change["failures"][0]["cell_id"] == cell.cell_id
    assert status(lab)["bundle"]["name"] == "starter"
    kept.write_bytes(data)
    (change,) = run(lab, "bundle.activate", bundle="other")
    assert (change["state"], change["failed"]) == ("active", 0)


def test_the_switch_can_leave_out_cells_that_cannot_be_embedded(lab: Lab) -> None:
    with lab.open_store() as store:
        cell = store.cell(next(row.cell_id for row in store.ledger() if row.cell_id))
    assert cell is not None
    lab.image_path(cell.digest).write_bytes(b"damaged")
    run(lab, "bundle.activate", bundle="other", yes=True)
    (change,) = run(lab, "bundle.activate", bundle="other", switch_now=True, leave_out=True)
    assert (change["state"], change["failed"]) == ("active", 1)
    found = status(lab)
    assert (found["bundle"]["name"], found["without_latent"]) == ("other", 0)


def test_a_change_is_given_up_by_rollback_and_leaves_the_lab_as_it_was(lab: Lab) -> None:
    before = references(lab, an_image(lab))
    run(lab, "bundle.activate", bundle="other")
    *_, row = run(lab, "bundle.rollback")
    assert row["state"] == "none"
    assert status(lab)["bundle_change"] is None
    assert references(lab, an_image(lab)) == before
    with pytest.raises(LabrefError, match="no bundle to go back to"):
        run(lab, "bundle.rollback")


def test_drop_deletes_latents_and_files_but_never_of_the_active_bundle(lab: Lab) -> None:
    run(lab, "bundle.activate", bundle="other", yes=True)
    with pytest.raises(LabrefError, match="active one"):
        run(lab, "bundle.drop", bundle="other")
    (row,) = run(lab, "bundle.drop", bundle="starter")
    assert row["dropped"]["name"] == "starter"
    listed = run(lab, "bundle.list")
    assert [entry["name"] for entry in listed] == ["other"]
    assert [path.name for path in lab.bundles.iterdir()] == [listed[0]["digest"][:12]]
    with pytest.raises(LabrefError, match="no bundle to go back to"):
        run(lab, "bundle.rollback")


def test_a_failure_at_any_write_loses_nothing_and_the_change_goes_on(lab: Lab) -> None:
    before = references(lab, an_image(lab))
    for point in ("bundle.wish", "embed.write", "bundle.report", "bundle.relabel", "bundle.switch"):
        failpoints.arm(f"{point}=eio@1")
        with pytest.raises((LabrefError, OSError)):
            run(lab, "bundle.activate", bundle="other", yes=True)
        failpoints.disarm()
        with lab.open_store() as store:
            active = store.active_bundle()
            assert active is not None and Bundle.open(lab.bundles / active[:12]).manifest.name == "starter"
    assert references(lab, an_image(lab)) == before
    (change,) = run(lab, "bundle.activate", bundle="other", yes=True)
    assert (change["state"], change["embedded"]) == ("active", change["cells"])


def test_the_agent_changes_bundles_while_it_answers_and_takes_cells_in(lab: Lab, drawn_cells: Path) -> None:
    image = an_image(lab)
    answers: list[str] = []
    problems: list[Exception] = []
    ended = threading.Event()
    with running_agent(lab):

        def keep_asking() -> None:
            while not ended.wait(0.3):  # as a busy person; faster, and the change waits for the answers
                try:
                    with Desk.open(lab) as desk:
                        answer = desk.ask(image.read_bytes(), name="x")
                    assert len(answer["references"]) == 8
                    answers.append(answer["bundle"])
                except Exception as error:
                    problems.append(error)

        asking = threading.Thread(target=keep_asking)
        asking.start()
        try:
            run(lab, "bundle.activate", bundle="other", yes=True)
            assert status(lab)["bundle_change"] is not None
            wait_until(lambda: status(lab)["bundle"]["name"] == "other")
            # on a busy machine the next answer takes a while
            wait_until(lambda: bool(problems) or len(set(answers)) == 2)
        finally:
            ended.set()
            asking.join()
        assert problems == []
        switched = [first != second for first, second in itertools.pairwise(answers)]
        assert sum(switched) == 1, "one switch, and none back"
        found = status(lab)
        assert (found["bundle_change"], found["without_latent"]) == (None, 0)
        assert found["agent"]["jobs"]["ended"]["bundle"]["outcome"] == "done"
        # a cell that comes now is embedded by the new bundle
        (lab.watched[0] / "late.jpg").write_bytes(sorted(drawn_cells.rglob("*.jpg"))[0].read_bytes() + b"\0")
        wait_until(lambda: status(lab)["cells"] == found["cells"] + 1)
        assert status(lab)["without_latent"] == 0
        *_, row = run(lab, "bundle.rollback", wait=True)
        assert (row["bundle"]["name"], row["embedded"]) == ("starter", row["cells"])
    (lab.watched[0] / "late.jpg").unlink()


def test_a_change_ends_however_fast_files_come(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch of cells that are embedded again takes longer here, and more come meanwhile."""
    # here it is not other programs that it waits for
    monkeypatch.setattr("labref.tasks.jobs.lower_priority", lambda: None)
    failpoints.arm(",".join(f"reembed.commit=delay:0.5@{number}" for number in range(1, 200)))
    folder, rng, slide = lab.watched[0] / "flood", np.random.default_rng(1), make_slides(1)[0]
    folder.mkdir()
    before, written, ended = status(lab)["cells"], itertools.count(), threading.Event()

    def outcomes() -> int:
        return sum(status(lab)["outcomes"].values())

    def flood() -> None:
        while not ended.wait(0.2):
            for _ in range(max(0, outcomes() + 8 - before - len(list(folder.iterdir())))):
                picture = draw_cell(str(rng.choice(LABELS)), OPTICS[slide.optics], slide, rng)
                (folder / f"{next(written)}.jpg").write_bytes(encode_jpeg(picture))

    with (
        lab.open_store() as store,
        open_log(lab) as log,
        _Agent(lab, store, log, once=False) as agent,
        ThreadPoolExecutor(2) as beside,
    ):
        try:
            serving, flooding = beside.submit(agent.serve), beside.submit(flood)
            wait_until(lambda: outcomes() > before)
            run(lab, "bundle.activate", bundle="other", yes=True)
            wait_until(lambda: flooding.done() or status(lab)["bundle"]["name"] == "other")
            ended.set()
            flooding.result()
            files = before + len(list(folder.iterdir()))
            wait_until(lambda: outcomes() == files)
            wait_until(lambda: status(lab)["without_latent"] == 0)
        finally:
            ended.set()
            agent.stop()
        assert serving.result().rejected == 0


def test_new_cells_go_first_and_leave_cells_that_are_embedded_again_their_share() -> None:
    turns = Turns()
    taken: list[int] = []

    def new_cells() -> None:
        for number in range(10):
            with turns.new(16):
                taken.append(number)

    with turns.changing(), turns.embedding_again():
        taking = threading.Thread(target=new_cells)
        taking.start()
        wait_until(lambda: len(taken) == 2)
        time.sleep(0.6)
        assert len(taken) == 2, "so many go first"
        for more in range(3, 11):
            turns.embedded_again(SHARE * 16)
            wait_until(lambda more=more: len(taken) == more)  # type: ignore[misc]
        taking.join()
        turns.embedded_again(1000)
        with turns.new(1000):
            pass
        stopped = threading.Event()
        threading.Timer(0.2, stopped.set).start()
        began = time.monotonic()
        with turns.new(16, stopped=stopped.is_set):
            assert 0.2 <= time.monotonic() - began < 10, "who has to end does not wait"
    began = time.monotonic()
    with turns.new(1000):
        assert time.monotonic() - began < 0.2, "nothing is embedded again"


def test_new_cells_leave_a_change_more_time_than_they_take() -> None:
    turns = Turns()
    with turns.changing():
        with turns.new(16):
            time.sleep(0.5)
        began = time.monotonic()
        with turns.new(16):
            assert SHARE * 0.5 <= time.monotonic() - began < SHARE * 0.5 + 5
        time.sleep(0.1)
        began = time.monotonic()
        with turns.new(16):
            assert time.monotonic() - began < 0.1, "the change had its time"


def test_new_cells_do_not_wait_long_for_work_that_does_not_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labref.tasks.turns._LONGEST_SECONDS", 0.3)
    turns = Turns()
    with turns.changing(), turns.embedding_again():
        began = time.monotonic()
        for _ in range(4):
            with turns.new(1000):
                pass
        assert 0.9 <= time.monotonic() - began < 5
        turns.embedded_again(SHARE * 1000)  # what was waited for in vain is not owed
        began = time.monotonic()
        with turns.new(16):
            assert time.monotonic() - began < 0.3


def test_an_agent_started_anew_goes_on_with_a_change_that_was_cut_off(lab: Lab) -> None:
    with lab.open_store() as store:
        wish(store, lab)
    with running_agent(lab):
        wait_until(lambda: status(lab)["bundle"]["name"] == "other")
        assert AgentClient.find(lab) is not None


def wish(store: Store, lab: Lab) -> None:
    """Write the wish down and nothing else, as a command does that is killed right then."""
    other = next(
        bundle
        for bundle in (Bundle.open(path) for path in lab.bundles.iterdir())
        if bundle.digest != store.active_bundle()
    )
    manifest = other.manifest
    store.add_bundle(
        other.digest,
        name=manifest.name,
        version=manifest.version,
        latent_size=manifest.latent_size,
        labels=manifest.labels,
    )
    store.changes.wish(other.digest, switch=True)


def test_the_command_tells_what_happens_and_what_to_do_next(lab: Lab, other: Path) -> None:
    def told(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, [*words, "--lab", str(lab.folder)])
        assert result.exit_code == code, result.output
        return result.output

    assert "is sound" in told("bundle", "verify", str(other), "--unsigned")
    listed = [json.loads(line) for line in told("bundle", "list", "--json").splitlines()]
    assert {entry["name"]: entry["state"] for entry in listed} == {"starter": "active", "other": "installed"}
    assert "other/" in told("bundle", "activate", "wrong", code=1)
    text = told("bundle", "activate", "other")
    assert "is ready" in text and "--switch" in text and "of each cell's eight references" in text
    assert "is ready" in told("status")
    assert "is active" in told("bundle", "activate", "other", "--switch")
    assert "answers again" in told("bundle", "rollback")
    assert "is gone" in told("bundle", "drop", "other")


def test_a_labref_that_prepares_crops_otherwise_can_still_change_from_the_old_bundle(
    lab: Lab, starter: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = {**starter.manifest.preparation, "version": 99}
    file = another(starter, tmp_path, name="newer", preparation=newer)
    monkeypatch.setattr("labref.bundles.bundle.PREPARATION", newer)

    def here(bundle: Bundle, how: Inference) -> Shown:  # another process would be of this labref
        return Shown(**work(bundle.folder, bundle.digest, how))

    monkeypatch.setattr("labref.bundles.proof.tried", here)
    with pytest.raises(LabrefError, match="labref bundle activate NAME --yes.*the word starter"):
        references(lab, an_image(lab))
    assert "labref bundle activate NAME" in status(lab)["attention"][0]
    assert not run(lab, "store.check")[-1]["ok"]
    run(lab, "bundle.install", file=str(file), unsigned=True)
    (change,) = run(lab, "bundle.activate", bundle="newer")
    assert (change["state"], change["report"]["sampled"]) == ("ready", 0)
    assert "prepared" in change["report"]["problem"]
    (change,) = run(lab, "bundle.activate", bundle="newer", switch_now=True)
    assert (change["state"], change["embedded"]) == ("active", change["cells"])
    assert len(references(lab, an_image(lab))) == 8
    with pytest.raises(LabrefError, match="prepared"):
        run(lab, "bundle.rollback")
    assert status(lab)["bundle"]["name"] == "newer"
    *_, checked = run(lab, "store.check")
    assert {(bundle["active"], bundle["state"]) for bundle in checked["bundles"]} == {
        (True, "sound"),
        (False, "outdated"),
    }
    assert checked["ok"], "a bundle of before is no fault of the lab"


def test_a_lab_whose_bundle_is_of_another_labref_gets_the_starter_by_its_name(lab: Lab, tmp_path: Path) -> None:
    shutil.rmtree(lab.bundles)
    lab.bundles.mkdir()
    outcome = CliRunner().invoke(app, ["bundle", "install", "starter", "--lab", str(lab.folder)])
    assert outcome.exit_code == 0 and "signed by labref starter" in outcome.output, outcome.output
    assert len(references(lab, an_image(lab))) == 8


def test_a_damaged_bundle_is_refused_and_verify_says_so(lab: Lab, other: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.labref"
    data = bytearray(other.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(LabrefError):
        run(lab, "bundle.install", file=str(damaged), unsigned=True)
    folder = next(path for path in lab.bundles.iterdir() if Bundle.open(path).manifest.name == "other")
    (folder / "encoder.onnx").write_bytes(b"other")
    assert sum("problem" in row for row in run(lab, "bundle.verify")) == 1
    with pytest.raises(LabrefError):
        run(lab, "bundle.activate", bundle=folder.name)
    assert status(lab)["bundle_change"] is None


def test_the_benchmark_of_killed_changes_finds_nothing_wrong(drawn_cells: Path, tmp_path: Path) -> None:
    found = change_while_killed(tmp_path, cells=16, kills=0, seed=3, images=drawn_cells)
    assert found["faults"] == []
    assert found["queries"] > 0 and found["latents_compared"] == found["cells"]
