"""The centre compares bundles over labs' counts-only reports: what it reads and refuses, what it reckons, what people
see."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser as Chromium
from typer.testing import CliRunner

from labref.asking.agreement import Figure, share
from labref.bundles.bundle import Bundle
from labref.lab import Lab
from labref.lab.contributing import Pseudonyms, own_key
from labref.operations.report import LabReport
from tests.labs import make_lab, once
from tests.test_cli import labref
from training.cli.app import app
from training.report.labs import difference, mean_difference

CLASSES = ("basophil", "eosinophil", "lymphocyte", "monocyte", "neutrophil")
OLD, NEW = "a" * 64, "b" * 64


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, starter: Bundle, drawn_cells: Path) -> Lab:
    """Twelve reviewed cells of three classes, in a lab whose names must not leave it."""
    folder = tmp_path_factory.mktemp("lab")
    for label in CLASSES[:3]:
        target = folder / "export" / "Svensson, Anna" / "Signed slides" / label
        shutil.copytree(drawn_cells / label, target)
    lab = make_lab(folder / "Sahlgrenska", folder / "export", starter)
    assert once(lab).rejected == 0
    return lab


@pytest.fixture(scope="module")
def sent(lab: Lab) -> dict[str, Any]:
    """What the lab sends."""
    found: dict[str, Any] = json.loads(labref("report", "--json", "--counts-only", "--lab", lab.folder)[0])
    return found


def of_a_lab(
    sent: Mapping[str, Any],
    precision: Mapping[str, tuple[int, int]],
    *,
    digest: str = NEW,
    at: str = "2026-11-01T08:00:00Z",
    lab: str | None = "0123456789abcdef",
    off: float | None = 0.5,
    **more: Any,
) -> dict[str, Any]:
    """The report of another lab, as labref writes it. precision : (right, asked) of each class.  off : from the
    training, robust standard deviations; None for not told."""
    made = copy.deepcopy(dict(sent))
    (row,) = made["analysers"]
    (first, *_) = row["classes"]
    figures = {label: share(*of) for label, of in precision.items()}
    row["classes"] = [
        first
        | {"label": label, "cells": one.n, "asked": one.n, "precision": asdict(one), "best": min(1.0, (one.n - 1) / 8)}
        | {
            "enough": one.n > 8 and float(one.high or 1) - float(one.low or 0) <= 0.2,
            "instead": "monocyte",
            "instead_share": 0.1,
        }
        for label, one in figures.items()
    ]
    whole = asdict(share(*(sum(of[part] for of in precision.values()) for part in (0, 1))))
    row |= {
        "precision": whole,
        "precision_of_classes": whole,
        "asked": whole["n"],
        "cells": whole["n"],
        "reviewed": whole["n"],
    }
    row["pseudonym"] = None if lab is None else "0a1b2c3d4e5f"
    measures = None if off is None else dict.fromkeys(("background_red", "background_green", "background_blue", "focus", "density_red", "density_green", "density_blue"), 0.1)  # fmt: skip
    row["optics"] = row["optics"] | {"from_training": measures and measures | {"focus": off}}
    name = {OLD: "autumn", NEW: "winter"}[digest]
    made |= {"lab": lab, "made_at": at, "bundle": {"name": name, "version": "1", "digest": digest}} | more
    LabReport.model_validate(made)
    return made


def write(file: Path, made: Mapping[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(made), encoding="utf-8")
    return file


def labs(*words: object, code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["labs", *map(str, words)])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def even(right: int, asked: int) -> dict[str, tuple[int, int]]:
    return dict.fromkeys(CLASSES, (right, asked))


@pytest.fixture(scope="module")
def folder(sent: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labs: one had two bundles, one only the old, one only the new, which fails on monocytes there."""
    folder = tmp_path_factory.mktemp("reports")
    write(folder / "Lund" / "1.json", of_a_lab(sent, even(160, 200), digest=OLD, at="2026-10-01T08:00:00Z"))
    write(folder / "Lund" / "2.json", of_a_lab(sent, even(190, 200)))
    write(folder / "Oslo" / "1.json", of_a_lab(sent, even(150, 200), digest=OLD, lab="f" * 16, off=None))
    failing = {**even(196, 200), "monocyte": (90, 200), "basophil": (3, 6), "class 1": (60, 60)}
    write(folder / "Umeå" / "1.json", of_a_lab(sent, failing, lab=None, off=3.5))
    return folder


def test_a_lab_sends_what_its_packs_call_it_and_the_page_shows_its_figures(
    lab: Lab, sent: dict[str, Any], tmp_path: Path
) -> None:
    assert sent["lab"] is None and sent["analysers"][0]["pseudonym"] is None, "no key is made for a report"
    key, made_now = own_key(lab, "Haematology, Sahlgrenska")
    assert made_now
    told = labref("report", "--json", "--counts-only", "--lab", lab.folder)[0]
    with_key = json.loads(told)
    LabReport.model_validate(with_key)
    assert (with_key["lab"], with_key["analysers"][0]["pseudonym"]) == (key.public.id, Pseudonyms(key).optics(None))
    assert not re.search("Sahlgrenska|Svensson|Haematology", told)
    whole = json.loads(labref("report", "--json", "--lab", lab.folder)[0])
    assert "pseudonym" not in whole["analysers"][0] and "lab" not in whole
    out = tmp_path / "page.html"
    done = labs(write(tmp_path / "Sahlgrenska.json", with_key), "--out", out, "--json")
    (row,) = json.loads(done.stdout)["rows"]
    assert (row["lab"], row["basis"], row["asked"]) == (key.public.id[:8], "reviewed", 12)
    assert row["precision_of_classes"] == with_key["analysers"][0]["precision_of_classes"]
    assert not row["enough"] and not any(one["enough"] for one in row["classes"]), "four cells of a class are too few"
    page = out.read_text("utf-8")
    assert not re.search("Sahlgrenska|Svensson|<script|<img|https?://(?!www.w3.org)", page)
    head = page.partition("in the order in which labs reported them first</caption>")[2].partition("</thead>")[0]
    assert head.count("<th scope") == 9, "as many columns as a screen of 1366 pixels has room for"


def test_bundles_are_compared_by_lab_class_and_optics(folder: Path) -> None:
    found = json.loads(labs(folder, "--json").stdout)
    old, new = found["bundles"]
    assert [(b["letter"], b["name"], b["labs"], b["fails"], b["too_few"]) for b in (old, new)] == [
        ("A", "autumn", 2, 0, 0),
        ("B", "winter", 2, 1, 1),
    ]
    assert old["precision_of_classes"]["value"] == pytest.approx((0.8 + 0.75) / 2)
    assert [(row["lab"], row["bundle"]) for row in found["rows"]] == [
        ("01234567", "A"),
        ("01234567", "B"),
        ("ffffffff", "A"),
        ("lab 1", "B"),
    ]
    monocytes = {one["bundle"]: one for one in found["classes"] if one["label"] == "monocyte"}
    assert monocytes["B"]["precision"]["value"] == pytest.approx((0.95 + 0.45) / 2)
    assert monocytes["B"]["analysers"] == 2 and monocytes["A"]["precision"]["value"] == pytest.approx((0.8 + 0.75) / 2)
    assert "class 1" not in {one["label"] for one in found["classes"]}, "it is another class in each lab"
    assert {(one["optics"], one["bundle"], one["analysers"]) for one in found["optics"]} == {
        ("as trained on", "A", 1),
        ("as trained on", "B", 1),
        ("not told", "A", 1),
        ("off", "B", 1),
    }
    assert found["left_out"] == []


def test_a_change_is_of_the_same_analyser_with_two_bundles(folder: Path, sent: dict[str, Any], tmp_path: Path) -> None:
    (step,) = json.loads(labs(folder, "--json").stdout)["changes"]
    assert (step["before"], step["after"], step["better"], step["worse"]) == ("A", "B", 1, 0)
    (change,) = step["analysers"]
    assert change["optics"] == "01234567-0a1b2c3d" and change["difference"]["value"] == pytest.approx(0.15)
    assert change["difference"]["low"] > 0 and step["mean"] == pytest.approx(change["difference"] | {"n": 1})
    assert {one["label"] for one in step["classes"]} == set(CLASSES)
    # the analysers of a lab without a key are only numbered, by how many cells they have: they are not paired
    two = of_a_lab(sent, even(100, 200), lab=None)
    two["analysers"] = [row | {"analyser": f"analyser {n}"} for n, row in enumerate(two["analysers"] * 2, 1)]
    write(
        tmp_path / "Bergen" / "1.json",
        two | {"bundle": two["bundle"] | {"digest": OLD}, "made_at": "2026-10-01T08:00:00Z"},
    )
    write(tmp_path / "Bergen" / "2.json", two)
    found = json.loads(labs(tmp_path, "--json").stdout)
    assert found["changes"] == [] and found["not_paired"] == ["lab 1"]


def test_an_analyser_that_another_replaced_is_not_compared_with_it(sent: dict[str, Any], tmp_path: Path) -> None:
    # half past midnight in Sweden is before the old one's hour, whatever the digits say
    new = of_a_lab(sent, even(190, 200), at="2026-10-02T00:30:00+02:00")
    new["analysers"][0]["pseudonym"] = "f" * 12
    old = of_a_lab(sent, even(100, 200), digest=OLD, at="2026-10-01T23:00:00Z")
    write(tmp_path / "new.json", new)
    write(tmp_path / "old.json", old)
    found = json.loads(labs(tmp_path, "--json").stdout)
    assert found["changes"] == [] and len(found["rows"]) == 2
    assert [bundle["name"] for bundle in found["bundles"]] == ["winter", "autumn"], "in the order of time"


def test_the_interval_of_a_difference_is_newcombes() -> None:
    """Newcombe 1998, Statistics in Medicine 17:873, table II, method 10: 56 of 70 against 48 of 80."""
    found = difference(share(48, 80), share(56, 70))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert mean_difference([found]) == Figure(found.value, found.low, found.high, 1)
    two = mean_difference([found, found, Figure(None, None, None, 0)])
    assert (two.value, two.n) == (found.value, 2)
    assert found.value is not None and found.low is not None and two.low is not None
    assert found.value - two.low == pytest.approx((found.value - found.low) / 2**0.5)


def broken(sent: dict[str, Any]) -> dict[str, tuple[bytes, str]]:
    """What a lab may send that is no report: by the file's name its bytes, and what is said."""
    good = of_a_lab(sent, even(190, 200))
    text = json.dumps(good)

    def changed(**more: Any) -> bytes:
        return json.dumps(good | more).encode()

    def of_analyser(**more: Any) -> bytes:
        return json.dumps(good | {"analysers": [good["analysers"][0] | more]}).encode()

    first, (of_class, *_) = good["analysers"][0]["precision"], good["analysers"][0]["classes"]
    beyond = first | {"value": 1e300}
    far = good["analysers"][0]["optics"]["from_training"] | {"focus": -1e308}
    return {
        "cut": (text[: len(text) // 2].encode(), "was cut off"),
        "empty": (b"", "holds no JSON"),
        "page": (b"\n<!doctype html><title>x</title>", "is a page for people"),
        "list": (b"[1]", "holds no report of a lab"),
        "deep": (b"[" * 100_000, "holds no JSON"),
        "twice": (text.replace('"seed"', '"sample"').encode(), "holds the name"),
        "bytes": (bytes(range(200, 256)), "holds no JSON"),
        "long": (b" " * 4_000_001, "cannot be read"),
        "not made": (b'{"report": null, "making": null, "problem": null}', "holds no report of a lab"),
        "whole": (changed(counts_only=False), "holds cells, and names that the lab gave: delete it"),
        "later": (changed(version="9.1", cells={"a": 1}), "is of labref 9.1, which this one"),
        "lacking": (json.dumps({k: v for k, v in good.items() if k != "seed"}).encode(), "seed: Field required"),
        "other k": (changed(k=5), "counts 5 references"),
        "no date": (changed(made_at="yesterday"), "is no date"),
        "no zone": (changed(made_at="2026-11-01T08:00:00"), "has no time zone"),
        "digest": (changed(bundle=good["bundle"] | {"digest": "x"}), "digest is none"),
        "id": (changed(lab="../../etc"), "lab: String should match"),
        "name": (changed(bundle=good["bundle"] | {"name": "x" * 201}), "a name of more than 200"),
        "half": (changed(bundle=good["bundle"] | {"name": "\ud800"}), "holds no JSON"),
        "before the year 1": (changed(made_at="0001-01-01T00:00:00+23:59"), "is no date"),
        "share": (of_analyser(precision=beyond), "precision of analyser 1 is no share"),
        "too many": (of_analyser(precision=first | {"n": 10**400}), "is below 0, or above"),
        "too far": (of_analyser(optics=good["analysers"][0]["optics"] | {"drift": far}), "off by more than"),
        "instead": (of_analyser(classes=[of_class | {"instead": "x" * 201}]), "a name of more than 200"),
        "one for two": (changed(analysers=good["analysers"] * 2), "one pseudonym of two analysers"),
        "infinite": (of_analyser(precision=beyond | {"value": float("inf")}), "holds no JSON"),
        "negative": (of_analyser(cells=-1), "is below 0"),
    }


def test_what_is_no_report_is_said_and_the_others_are_shown(sent: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "well.json", of_a_lab(sent, even(190, 200)))
    wrong = broken(sent)
    for name, (data, _) in wrong.items():
        (tmp_path / f"{name}.json").write_bytes(data)
    out = tmp_path / "page.html"
    done = labs(tmp_path, tmp_path / "gone.json", "--out", out, "--json", code=1)
    found = json.loads(done.stdout)
    assert [row["lab"] for row in found["rows"]] == ["01234567"]
    why = {Path(one["file"]).stem: one["why"] for one in found["left_out"]}
    assert why.keys() == {*wrong, "gone"} and "No such file" in why["gone"]
    for name, (_, said) in wrong.items():
        assert said in why[name], (name, why[name])
        assert f"{name}.json" in done.stderr and f"{name}.json" not in out.read_text("utf-8")
    assert "Files that do not count" in out.read_text("utf-8")


def test_what_older_and_newer_versions_and_other_systems_write_is_read(sent: dict[str, Any], tmp_path: Path) -> None:
    good = of_a_lab(sent, even(190, 200))
    older = copy.deepcopy(good)
    for lacking in ("lab", "atlas_shown"):
        del older[lacking]
    for lacking in ("pseudonym", "central", "both"):
        del older["analysers"][0][lacking]
    newer = copy.deepcopy(good) | {"version": "9.0", "more": {"a": 1}, "lab": "e" * 16}
    newer["analysers"][0] |= {"sharpness": 3}
    finding = {"level": "know", "n": 1, "labels": []}
    newer["analysers"][0]["findings"] = [finding | {"what": what} for what in ("new", "many novel", "newer")]
    newer["analysers"][0]["pictures"]["reasons"] = {"a reason of tomorrow": 3}
    write(tmp_path / "older.json", older)
    write(tmp_path / "newer.json", newer)
    windows = json.dumps(of_a_lab(sent, even(180, 200), lab="d" * 16))
    (tmp_path / "windows.json").write_bytes(windows.encode("utf-16"))  # as PowerShell redirects
    asked = {"report": of_a_lab(sent, even(170, 200), lab="c" * 16), "making": None, "problem": None}
    write(tmp_path / "asked.json", asked)
    found = json.loads(labs(tmp_path, "--json").stdout)
    assert sorted(row["lab"] for row in found["rows"]) == ["cccccccc", "dddddddd", "eeeeeeee", "lab 1"]
    notes = " ".join(found["notes"])
    assert (
        "several versions of labref" in notes
        and "Fields of a newer labref were left alone: a reason of tomorrow, more, sharpness" in notes
    )
    assert "1 lab without a key of their own" in notes


def test_of_one_bundle_in_a_lab_the_newest_report_counts(sent: dict[str, Any], tmp_path: Path) -> None:
    first, second = of_a_lab(sent, even(150, 200)), of_a_lab(sent, even(190, 200), at="2026-11-02T01:00:00+02:00")
    write(tmp_path / "a.json", first)
    write(tmp_path / "b" / "x.json", second)
    write(tmp_path / "b" / "y.json", second)
    write(tmp_path / "c.json", second | {"made_at": "2036-01-01T00:00:00Z", "lab": "f" * 16})
    same = tmp_path / "b" / "x.json"
    found = json.loads(labs(tmp_path, same, "--json").stdout)
    assert [row["precision"]["value"] for row in found["rows"]] == [0.95, 0.95]
    assert [(Path(one["file"]).name, one["why"], Path(one["instead"]).name) for one in found["left_out"]] == [
        ("y.json", "is the same report as another", "x.json"),
        ("a.json", "is older than another of the same lab and bundle", "x.json"),
    ]
    assert any("computer's clock is wrong" in note for note in found["notes"])


def test_labs_without_a_key_stand_in_the_order_of_their_numbers(sent: dict[str, Any], tmp_path: Path) -> None:
    for number in range(11):
        report = of_a_lab(sent, even(150 + number, 200), lab=None, at=f"2026-11-01T08:{59 - number}:00Z")
        for digest in (OLD, NEW) if number in (0, 1, 9) else (NEW,):
            name = {OLD: "autumn", NEW: "winter"}[digest]
            bundle = report["bundle"] | {"name": name, "digest": digest}
            rows = [*report["analysers"], *report["analysers"]]  # of two, nobody knows which is which
            write(tmp_path / f"{number:02}" / f"{name}.json", report | {"bundle": bundle, "analysers": rows})
    write(tmp_path / "with a key.json", of_a_lab(sent, even(190, 200)))
    found = json.loads(labs(tmp_path, "--json").stdout)
    shown = list(dict.fromkeys(row["lab"] for row in found["rows"]))
    assert shown == ["01234567", *(f"lab {number}" for number in range(1, 12))]
    assert list(dict.fromkeys(one["lab"] for one in found["files"])) == shown
    assert found["not_paired"] == ["lab 1", "lab 2", "lab 10"]


def test_folders_that_disagree_with_the_ids_of_labs_are_said(sent: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "Lund" / "1.json", of_a_lab(sent, even(150, 200)))
    write(tmp_path / "Umeå" / "1.json", of_a_lab(sent, even(190, 200), at="2026-11-02T08:00:00Z"))
    write(tmp_path / "Umeå" / "2.json", of_a_lab(sent, even(180, 200), lab="f" * 16))
    notes = " ".join(json.loads(labs(tmp_path, "--json").stdout)["notes"])
    assert "Reports of 01234567 lie in 2 folders" in notes
    assert "One folder holds reports of 01234567 and ffffffff" in notes and "Lund" not in notes


def test_without_a_usable_report_nothing_is_written(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    (tmp_path / "none").mkdir()
    assert "holds no file that ends in .json" in labs(tmp_path / "none", "--out", out, code=1).stderr
    (tmp_path / "none" / "bad.json").write_text("{")
    assert "no report can be used" in labs(tmp_path / "none", "--out", out, code=1).stderr
    assert "say where the page goes" in labs(tmp_path / "none", code=2).stderr
    assert not out.exists()


@pytest.mark.skipif(os.name == "nt", reason="names of files are text there")
def test_odd_files_are_named_or_read(sent: dict[str, Any], tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff/1.json"))
    write(odd, of_a_lab(sent, even(190, 200)))
    (tmp_path / "loop.json").symlink_to("loop.json")
    (tmp_path / "folder.json").mkdir()
    found = json.loads(labs(tmp_path, "--json", code=1).stdout)
    assert [Path(one["file"]).parts[-2:] for one in found["files"]] == [("\\xff", "1.json")]
    assert sorted(Path(one["file"]).name for one in found["left_out"]) == ["folder.json", "loop.json"]
    os.mkfifo(tmp_path / "pipe")
    assert "it is no file" in labs(odd, "--out", tmp_path / "pipe", code=1).stderr, "as /dev/null is none"


def test_a_page_that_cannot_be_written_is_said(folder: Path, tmp_path: Path) -> None:
    report = folder / "Lund" / "1.json"
    assert "the page would take its place" in labs(report, "--out", report, code=1).stderr
    assert report.read_text("utf-8").startswith("{")
    assert "cannot be written" in labs(folder, "--out", tmp_path / "none" / "page.html", code=1).stderr


@pytest.mark.parametrize("names", [False, True])
def test_people_see_the_page(
    folder: Path, sent: dict[str, Any], browser: Chromium, tmp_path: Path, names: bool
) -> None:
    evil = "<script>alert(1)</script>\u202e"
    hostile = of_a_lab(sent, {**even(180, 200), 'x"><img src=y onerror=alert(1)>': (100, 200)}, lab=None)
    hostile["bundle"] |= {"name": evil, "digest": "c" * 64}
    write(tmp_path / "reports" / "<i>Malmö" / "1.json", hostile)
    out = tmp_path / "page.html"
    done = labs(folder, tmp_path / "reports", "--out", out, *(["--names"] if names else []))
    assert "written to" in done.stdout and "Lund" in done.stdout
    context = browser.new_context(viewport={"width": 1366, "height": 768}, java_script_enabled=True)
    faults: list[str] = []
    page = context.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: faults.append(dialog.message))
    page.on("request", lambda asked: faults.append(asked.url) if not asked.url.startswith("file:") else None)
    try:
        page.goto(out.as_uri())
        assert page.locator("script, img, iframe, i").count() == 0
        assert page.locator("h2").count() == 8 and page.locator("svg.chart").count() >= 9
        text = page.locator("body").inner_text()
        for said in ("fails", "too few", "▲ better"):
            assert said in text, said
        assert "<script>alert(1)</script>\\u202e" in text
        assert ("Lund" in text) is names and ("<i>Malmö" in text) is names
        marks = {
            letter: page.locator(f"svg.chart .mark.b{number}").first.evaluate("mark => mark.tagName")
            for number, letter in enumerate("AB")
        }
        assert marks == {"A": "circle", "B": "polygon"}, "the shape tells bundles apart too"
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert page.locator("details table").count() >= 8
    finally:
        context.close()
    assert faults == []


@pytest.mark.parametrize(("cells", "novel", "called_out"), [(8, 1, False), (100, 12, True), (100, 1, False)])
def test_a_share_is_called_out_beyond_chance_only(
    sent: dict[str, Any], tmp_path: Path, cells: int, novel: int, called_out: bool
) -> None:
    made = of_a_lab(sent, even(190, 200), off=0.5)
    made["analysers"][0]["novel"] = asdict(share(novel, cells))
    write(tmp_path / "reports" / "1.json", made)
    labs(tmp_path / "reports", "--out", tmp_path / "labs.html")
    page = (tmp_path / "labs.html").read_text(encoding="utf-8")
    assert (f"{novel / cells:.1%} !" in page) == called_out and f"{novel / cells:.1%}" in page
