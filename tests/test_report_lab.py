"""The report of a lab before it goes live: on real cells of two microscopes, by command, over HTTP, and as people see
it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy
from playwright.sync_api import Browser as Chromium

from labref.asking import report as asking
from labref.asking.agreement import mean_share, share, weighted
from labref.asking.answer import answer_for_stored
from labref.bundles.bundle import Bundle, install
from labref.errors import LabrefError
from labref.lab import Lab
from labref.operations.report import LabReport
from labref.web.desk import Desk, run
from labref.web.report import as_file
from labref.words import name_key
from tests.browser import open_page
from tests.bundles import carrying
from tests.labs import make_lab, once, running_agent, wait_until
from tests.pages import let_in
from tests.test_cli import labref

SLIDE, HOSTILE = "Andersson 1912", "Blast <script>alert(1)</script>"
SCOPE = "Dr Öberg's <b>Axio</b>"
CLASSES = ("eosinophil", "lymphocyte", "monocyte", "neutrophil")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, starter: Bundle, real_cells: Path) -> Lab:
    """156 real cells of two microscopes: of pbc, reviewed, one class with a hostile name; and of chula, with the
    analyser's classes, some of them recaptures."""
    folder = tmp_path_factory.mktemp("report")
    first, second = folder / "export" / "dm96", folder / "export" / "scope"

    def take(source: str, label: str, most: int, target: Path, *, frames: bool = False) -> None:
        target.mkdir(parents=True, exist_ok=True)
        files = sorted((real_cells / source / label).glob("*.jpg"))
        for file in files[:: 1 if frames else len(files) // most][:most]:
            shutil.copy(file, target / file.name)

    signed = first / SLIDE / "Signed slides"
    for label in CLASSES:
        take("pbc", label, 20, signed / label)
        take("chula", label, 16, second / label, frames=True)
    take("pbc", "basophil", 6, signed / "basophil")
    take("pbc", "platelet", 6, signed / "platelet")
    lab = make_lab(folder / "lab", first, starter, stable_seconds=0.0, complete_seconds=0.0)
    watch = lab.config.watch.model_copy(
        update={"folders": (first, second), "analyser": "DM96", "analysers": {second: SCOPE}}
    )
    lab.config_file.write_text(
        f"[watch]\nfolders = ['{first}', '{second}']\nanalyser = 'DM96'\nstable_seconds = 0.0\n"
        f"complete_seconds = 0.0\n[watch.analysers]\n'{second}' = \"{SCOPE}\"\n",
        encoding="utf-8",
    )
    lab = replace(lab, config=lab.config.model_copy(update={"watch": watch}))
    summary = once(lab)
    assert summary.rejected == 0
    with Desk.open(lab) as desk:  # no file can have such a name everywhere
        for row in desk.ledger_rows(outcome="stored"):
            if "platelet" in row["path"]:
                list(desk.run("label.set", cell=row["cell_id"], label=HOSTILE, who="A", new=True))
    return lab


@pytest.fixture(scope="module")
def made(lab: Lab) -> dict[str, Any]:
    """The report of the whole lab."""
    (row,) = (row for row in run(lab, "report.make") if set(row) != {"progress"})
    return row


def test_the_precision_is_that_of_the_labs_own_answers(lab: Lab, made: dict[str, Any]) -> None:
    LabReport.model_validate(made)
    reviewed = made["analysers"][0]
    assert (reviewed["analyser"], reviewed["basis"]) == ("DM96", "reviewed")
    assert reviewed["asked"] == reviewed["distinct"] == 92
    with lab.open_store() as store:
        bundle = lab.bundle(store)
        wanted: dict[str, list[float]] = {}
        for cell in store.cells(
            [f"{n:016x}" for ids, _ in store.every_latent(bundle=bundle.digest) for n in ids]
        ).values():
            if cell.analyser == "DM96":
                answer = answer_for_stored(lab, store, bundle, cell)
                assert answer is not None
                same = [name_key(one["label"]) == name_key(cell.label) for one in answer["references"]]
                wanted.setdefault(cell.label, []).append(float(np.mean(same)))
    assert {row["label"]: row["cells"] for row in reviewed["classes"]} == {k: len(v) for k, v in wanted.items()}
    for row in reviewed["classes"]:
        assert row["precision"]["value"] == pytest.approx(np.mean(wanted[row["label"]]))
    assert reviewed["precision"]["value"] == pytest.approx(np.mean(np.concatenate(list(wanted.values()))))
    assert reviewed["precision_of_classes"]["value"] == pytest.approx(np.mean([np.mean(v) for v in wanted.values()]))
    worst = [one["right"] / one["counted"] for one in reviewed["worst"]]
    assert worst == sorted(worst)
    assert len(worst) == min(20, sum(value < 1 for values in wanted.values() for value in values))
    assert len(reviewed["drawn"]) == len({one["cell_id"] for one in reviewed["drawn"]}) == 20
    for one in (*reviewed["drawn"], *reviewed["worst"]):
        assert one["cell_id"] not in {reference["cell_id"] for reference in one["references"]}


def test_a_class_is_trusted_only_where_there_are_cells_enough(made: dict[str, Any]) -> None:
    classes = {row["label"]: row for row in made["analysers"][0]["classes"]}
    rare = classes["basophil"]
    assert (rare["cells"], rare["enough"], rare["best"]) == (6, False, 5 / 8)
    assert rare["precision"]["value"] <= rare["best"]
    assert classes["eosinophil"]["enough"]
    small = next(one for one in made["analysers"][0]["findings"] if one["what"] == "small classes")
    assert "basophil" in small["labels"]
    assert "eosinophil" not in small["labels"]


def test_classes_that_nobody_reviewed_are_told_apart(made: dict[str, Any]) -> None:
    scope = made["analysers"][1]
    assert (scope["analyser"], scope["reviewed"], scope["basis"]) == (SCOPE, 0, "analyser")
    assert scope["asked"] == scope["distinct"] <= scope["cells"] == 64
    settle = {one["what"] for one in scope["findings"] if one["level"] == "settle"}
    assert {"nothing reviewed", "optics training"} <= settle
    assert made["analysers"][0]["findings"][0]["level"] == "know"
    assert abs(scope["optics"]["from_training"]["background_red"]) > 2.5
    assert scope["recaptures"]["found"] == scope["cells"] - scope["distinct"] > 0


def test_reviewing_changes_whose_classes_count(lab: Lab, tmp_path: Path) -> None:
    copied = replace(lab, folder=shutil.copytree(lab.folder, tmp_path / "lab"))
    with Desk.open(copied) as desk:
        ids = [row["cell_id"] for row in desk.ledger_rows(outcome="stored") if "scope" in row["path"]][:30]
        for cell in ids:
            label = next(desk.run("cell.show", cell=cell))["label"]
            list(desk.run("label.set", cell=cell, label=label, who="A"))
        *_, row = desk.run("report.make")
    (scope,) = (one for one in row["analysers"] if one["analyser"] == SCOPE)
    assert (scope["basis"], scope["reviewed"], scope["asked"]) == ("reviewed", 30, 30)
    # references that nobody reviewed are neither right nor wrong
    assert any(one["counted"] < 8 for one in scope["drawn"])
    assert all(
        one["counted"] == sum(reference["label_source"] == "reviewed" for reference in one["references"])
        for one in scope["drawn"]
    )


def test_a_sample_is_drawn_class_by_class_and_the_same_each_time(lab: Lab, made: dict[str, Any]) -> None:
    def sampled(seed: int) -> dict[str, Any]:
        *_, row = run(lab, "report.make", sample=30, seed=seed)
        return row

    one, again, other = sampled(3), sampled(3), sampled(4)
    assert one["analysers"] == again["analysers"]
    assert one["analysers"][0]["drawn"] != other["analysers"][0]["drawn"]
    asked = {row["label"]: row["asked"] for row in one["analysers"][0]["classes"]}
    assert asked == dict.fromkeys((*CLASSES, "basophil", HOSTILE), 5)
    assert one["analysers"][0]["asked"] == 30
    assert one["analysers"][0]["novel"]["n"] == 30


def test_the_share_of_the_sample_goes_to_rare_classes_first() -> None:
    assert asking._shares({"a": 900, "b": 50, "c": 3}, 100) == {"c": 3, "b": 48, "a": 49}
    assert asking._shares({"a": 9, "b": 5}, 1000) == {"a": 9, "b": 5}


def test_intervals_are_wilsons_and_never_without_width() -> None:
    interval = scipy.stats.binomtest(18, 20).proportion_ci(0.95, method="wilson")
    assert astuple(mean_share([1.0] * 18 + [0.0] * 2)) == pytest.approx((0.9, interval.low, interval.high, 20))
    assert astuple(share(18, 20)) == pytest.approx((0.9, interval.low, interval.high, 20))
    certain = mean_share([1.0] * 16)
    assert certain.low == pytest.approx(0.8063923194655637)
    assert mean_share([]).value is None
    # as much of each stratum as it has of the whole is a plain sample
    parts = [(30.0, share(24, 30)), (10.0, share(9, 10))]
    assert astuple(weighted(parts)) == pytest.approx(astuple(share(33, 40)))
    # one rare cell that counts half makes the whole uncertain
    rare = weighted([(1.0, share(1, 1)), (1.0, share(1000, 1000))])
    assert rare.low is not None
    assert rare.low < 0.55
    assert weighted([(1.0, share(0, 0))]).value is None


def test_the_file_stands_alone_and_shows_every_example(lab: Lab, made: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    stdout, _ = labref("report", "--lab", str(lab.folder), "--out", str(out), "--language", "sv")
    assert "DM96: 92 of 92 distinct cells asked, precision " in stdout
    text = out.read_text("utf-8")
    shown = [one for row in made["analysers"] for one in (*row["drawn"], *row["worst"])]
    assert text.count("<img ") == sum(1 + len(one["references"]) for one in shown)
    assert text.count('src="data:image/jpeg;base64,') == text.count("<img ")
    assert not re.search(r"(src|href)=\"(?!data:image/jpeg;base64,|#)", text)
    assert "<script" not in text.lower()
    assert "Blast &lt;script&gt;" in text
    assert "<b>Axio</b>" not in text
    assert 'lang="sv"' in text
    assert "Slumpvis" not in text  # the noun is small in Swedish
    assert "slumpvis dragna svar" in text
    assert SLIDE not in text
    assert "Signed slides" not in text


def test_numbers_alone_hold_no_name_and_no_cell(lab: Lab, made: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "numbers.html"
    stdout, _ = labref("report", "--lab", str(lab.folder), "--out", str(out), "--counts-only", "--json")
    row = json.loads(stdout)
    LabReport.model_validate(row)
    for text in (stdout, out.read_text("utf-8")):
        for name in ("script&gt;", "<script", "berg", "DM96", "Axio", SLIDE, str(lab.folder), "<img"):
            assert name not in text, name
        for one in made["analysers"][0]["drawn"]:
            assert one["cell_id"] not in text
    assert row["counts_only"]
    assert [one["analyser"] for one in row["analysers"]] == ["analyser 1", "analyser 2"]
    assert {one["label"] for one in row["analysers"][0]["classes"]} == {*CLASSES, "basophil", "class 1"}
    for one, whole in zip(row["analysers"], made["analysers"], strict=True):
        assert one["precision"] == whole["precision"]
        assert one["drawn"] == one["worst"] == []


def test_it_is_not_written_where_it_would_be_taken_in(lab: Lab, tmp_path: Path) -> None:
    inside = lab.watched[0] / "report.html"
    _, stderr = labref("report", "--lab", str(lab.folder), "--out", str(inside), code=1)
    assert "never writes to" in stderr
    assert not inside.exists()
    _, stderr = labref("report", "--lab", str(lab.folder), "--out", str(tmp_path / "no" / "r.html"), code=1)
    assert "folder that exists" in stderr
    _, stderr = labref("report", "--lab", str(lab.folder), code=2)
    assert "--out report.html" in stderr


def test_a_lab_without_cells_has_a_report(tmp_path: Path, starter: Bundle) -> None:
    (tmp_path / "export").mkdir()
    lab = make_lab(tmp_path / "lab", tmp_path / "export", starter)
    *_, row = run(lab, "report.make")
    LabReport.model_validate(row)
    assert row["analysers"] == []
    assert "No cells yet." in as_file(row, "en", lambda _: None)


def test_a_report_that_cannot_be_kept_is_said(tmp_path: Path, starter: Bundle) -> None:
    (tmp_path / "export").mkdir()
    lab = make_lab(tmp_path / "lab", tmp_path / "export", starter)
    shutil.rmtree(lab.folder / "logs", ignore_errors=True)
    (lab.folder / "logs").write_text("in the way")
    with pytest.raises(LabrefError, match="could not be kept"):
        list(run(lab, "report.make"))
    assert next(iter(run(lab, "report.show")))["report"] is None


@pytest.fixture(scope="module")
def agent(lab: Lab, made: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A copy of the lab without a report, with its agent."""
    copied = replace(lab, folder=shutil.copytree(lab.folder, tmp_path_factory.mktemp("agent") / "lab"))
    (copied.folder / "logs" / "report.json").unlink()
    with running_agent(copied):
        yield copied


def test_with_an_agent_the_report_is_the_same_and_made_in_the_background(lab: Lab, agent: Lab) -> None:
    reader = let_in(agent, "Reader", "view")
    assert "No report has been made yet." in reader.get("/report").text
    assert "Make the report" not in reader.get("/report").text
    assert reader.post("/report", {"sample": "1000"}).status == 403
    assert reader.get("/report/file").status == 404
    reviewer = let_in(agent, "Reviewer", "review")
    assert reviewer.post("/report", {"sample": "5"}).status == 400
    begun = reviewer.post("/report", {"sample": "30", "seed": "1"})
    assert (begun.status, begun.headers["location"]) == (303, "/report")
    wait_until(lambda: next(iter(run(agent, "report.show")))["making"] is None)
    (state,) = run(agent, "report.show")
    *_, alone = run(lab, "report.make", sample=30)
    assert state["report"]["analysers"] == alone["analysers"]
    *_, row = run(agent, "report.make", sample=30, counts_only=True)
    assert row["analysers"][0]["precision"] == alone["analysers"][0]["precision"]
    numbers = reader.get("/report/numbers.json")
    assert numbers.headers["content-disposition"] == 'attachment; filename="labref-report-numbers.json"'
    assert json.loads(numbers.body)["analysers"] == row["analysers"]
    file = reader.get("/report/file")
    assert file.text.count("data:image/jpeg;base64,") > 300
    assert SLIDE not in reader.get("/report").text


@pytest.fixture(scope="module")
def with_atlas(tmp_path_factory: pytest.TempPathFactory, starter: Bundle, real_cells: Path) -> Lab:
    """A young lab of 34 reviewed cells, whose bundle carries 24 others of pbc: of one class the lab has two cells, of
    another none."""
    folder = tmp_path_factory.mktemp("central")
    signed = folder / "export" / SLIDE / "Signed slides"
    atlas: dict[str, list[Path]] = {}
    for label, own, central in (("neutrophil", 16, 8), ("monocyte", 16, 0), ("eosinophil", 2, 8), ("basophil", 0, 8)):
        files = sorted((real_cells / "pbc" / label).glob("*.jpg"))
        atlas[label] = files[7 :: len(files) // 8][:central]
        if own:
            (signed / label).mkdir(parents=True)
            for file in files[:: len(files) // own][:own]:
                shutil.copy(file, signed / label / file.name)
    bundle = install(carrying(starter, folder, atlas), folder / "bundles")
    lab = make_lab(folder / "lab", folder / "export", bundle)
    assert once(lab).rejected == 0
    return lab


def test_own_cells_are_compared_with_the_atlas_and_with_both(with_atlas: Lab) -> None:
    stdout, _ = labref("report", "--lab", str(with_atlas.folder), "--json")
    report = json.loads(stdout)
    LabReport.model_validate(report)
    (row,) = report["analysers"]
    assert report["atlas"]
    assert report["atlas_shown"]
    wanted: dict[str, list[tuple[float, float]]] = {}
    with with_atlas.open_store() as store:
        bundle = with_atlas.bundle(store)
        atlas = bundle.atlas
        assert atlas is not None
        for ids, latents in store.every_latent(bundle=bundle.digest):
            for cell, latent in zip(store.cells([f"{n:016x}" for n in ids]).values(), latents, strict=True):
                answer = answer_for_stored(with_atlas, store, bundle, cell)
                assert answer is not None
                nearest = np.argsort(((atlas.latents - latent) ** 2).mean(axis=1))[:8]
                wanted.setdefault(cell.label, []).append(
                    (
                        float(np.mean([atlas.labels[at] == cell.label for at in nearest])),
                        float(np.mean([one["label"] == cell.label for one in answer["references"]])),
                    )
                )
    assert {label: len(found) for label, found in wanted.items()} == {"neutrophil": 16, "monocyte": 16, "eosinophil": 2}
    classes = {one["label"]: one for one in row["classes"]}
    for label, found in wanted.items():
        central, both = np.mean(found, axis=0)
        assert classes[label]["central"]["value"] == pytest.approx(central)
        assert classes[label]["both"]["value"] == pytest.approx(both)
        assert classes[label]["both"]["n"] == len(found)
    for place, which in enumerate(("central", "both")):
        every = [figures[place] for found in wanted.values() for figures in found]
        assert row[which]["precision"]["value"] == pytest.approx(np.mean(every))
        of_classes = [np.mean([figures[place] for figures in found]) for found in wanted.values()]
        assert row[which]["precision_of_classes"]["value"] == pytest.approx(np.mean(of_classes))
    # two cells cannot fill a row; the atlas has no monocyte
    assert classes["eosinophil"]["precision"]["value"] <= 1 / 8 < classes["eosinophil"]["both"]["value"]
    assert classes["monocyte"]["central"]["value"] == 0 < classes["monocyte"]["both"]["value"]


def test_the_three_stand_in_file_page_and_numbers_in_each_language(with_atlas: Lab, tmp_path: Path) -> None:
    """Also where the lab turned central cells off: it sees what it does without."""
    off = replace(with_atlas, folder=shutil.copytree(with_atlas.folder, tmp_path / "lab"))
    with off.config_file.open("a", encoding="utf-8") as file:
        file.write("\n[atlas]\nenabled = false\n")
    out = tmp_path / "report.html"
    said = {
        "en": ("Own cells, central cells, both", "with both.", "the setting turns central cells off"),
        "sv": ("Egna celler, centrala celler, båda", "med båda.", "inställningen stänger av centrala celler"),
        "de": ("Eigene Zellen, zentrale Zellen, beide", "mit beiden beantwortet.", "schaltet zentrale Zellen ab"),
    }
    for language, (heading, shown, turned_off) in said.items():
        stdout, _ = labref(
            *("report", "--lab", str(off.folder), "--out", str(out), "--language", language, "--counts-only", "--json")
        )
        text = out.read_text("utf-8")
        assert heading in text and turned_off in text and shown not in text
        labref("report", "--lab", str(with_atlas.folder), "--out", str(out), "--language", language)
        text = out.read_text("utf-8")
        assert heading in text and shown in text and turned_off not in text
    numbers = json.loads(stdout)
    LabReport.model_validate(numbers)
    assert (numbers["atlas"], numbers["atlas_shown"]) == (True, False)
    *_, whole = run(with_atlas, "report.make")
    for key in ("precision", "central", "both"):
        assert numbers["analysers"][0][key] == whole["analysers"][0][key]
    with running_agent(with_atlas):
        page = let_in(with_atlas, "Reader", "view").get("/report").text
    both = whole["analysers"][0]["both"]["precision"]["value"]
    assert said["en"][0] in page
    assert f"<b>{100 * both:.1f} %</b>".replace(" ", "") in page.replace("\N{NO-BREAK SPACE}", "").replace(" ", "")


def test_a_bundle_without_an_atlas_is_compared_with_nothing(made: dict[str, Any]) -> None:
    assert not made["atlas"]
    for row in made["analysers"]:
        assert row["central"] is row["both"] is None
        assert all(one["central"] is one["both"] is None for one in row["classes"])
    assert "central cells" not in as_file(made, "en", lambda _: None)


@pytest.mark.parametrize("dark", [False, True])
def test_people_see_the_report(agent: Lab, made: dict[str, Any], browser: Chromium, tmp_path: Path, dark: bool) -> None:
    list(run(agent, "report.make", sample=30))
    with open_page(browser, agent, f"Head {dark}", dark=dark) as page:
        page.goto("/condition")
        page.get_by_role("link", name="what the lab's references are worth").click()
        page.wait_for_url("**/report")
        assert page.get_by_role("heading", level=2).all_inner_texts() == ["DM96", SCOPE]
        assert page.get_by_text("Nobody has reviewed a cell of this analyser").is_visible()
        page.wait_for_load_state("networkidle")
        wrong = page.locator(".row-of-cells .other").first
        wrong.scroll_into_view_if_needed()
        assert wrong.inner_text().startswith("≠ ")
        loaded = wrong.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)")
        assert loaded == 160
        # nothing is wider than the window
        assert page.evaluate("document.documentElement.scrollWidth") <= 1366


def test_the_file_prints_on_a4(lab: Lab, made: dict[str, Any], browser: Chromium, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(as_file(made, "de", lambda _: None), encoding="utf-8")
    context = browser.new_context(viewport={"width": 703, "height": 1000}, color_scheme="dark")  # 186 mm
    try:
        page = context.new_page()
        page.goto(file.as_uri())
        page.emulate_media(media="print")
        assert page.evaluate("document.documentElement.scrollWidth") <= 703
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    finally:
        context.close()
