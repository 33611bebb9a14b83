"""SVOMEN: sets that are named and cannot change unseen, people's choices counted as the thesis counted them, spaces
scored."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from labref.bundles.bundle import Bundle
from labref.som.training import as_minisom
from training.cli.svomen import app
from training.data.images import Item, load_attributes
from training.measure.latents import Latents, load_latents, on_map, save_latents
from training.measure.statistics import bootstrap, share
from training.measure.triplets import (
    Triplet,
    TripletSet,
    attribute_triplets,
    draw_triplets,
    judged,
    read_votes,
    score,
)


def some_latents(per_class: int = 20, size: int = 4) -> Latents:
    rng = np.random.default_rng(5)
    paths = [f"{label}/{label}_{n:02d}.jpg" for label in "abc" for n in range(per_class)]
    middle = np.repeat(np.arange(3), per_class)[:, None] * 4.0
    return Latents(
        tuple(Item(path, path[0]) for path in paths),
        (middle + rng.normal(size=(len(paths), size))).astype(np.float32),
        "test",
    )


def test_people_are_asked_about_what_the_thesis_asked() -> None:
    latents = some_latents()
    drawn = draw_triplets(latents, per_class=15, seed=3)
    assert len(drawn.triplets) == 45
    assert {t.draw for t in drawn.triplets} == {"close-close", "close-class", "close-random"}
    values = latents.values.astype(float)
    for t in drawn.triplets:
        row, first, second = latents.rows([t.reference, t.alternative_1, t.alternative_2])
        assert len({row, first, second}) == 3
        order = np.argsort(((values - values[row]) ** 2).mean(axis=1), kind="stable")
        eight = set(order[1:9].tolist())
        assert len(eight & {first, second}) >= (2 if t.draw == "close-close" else 1)
        if t.draw == "close-class":
            assert t.reference[0] in (t.alternative_1[0], t.alternative_2[0])
    assert draw_triplets(latents, per_class=15, seed=3) == drawn
    assert draw_triplets(latents, per_class=15, seed=4).digest != drawn.digest


def test_a_set_reads_back_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    drawn = draw_triplets(some_latents(), per_class=5)
    drawn.save(tmp_path / "set.json")
    assert TripletSet.load(tmp_path / "set.json") == drawn
    text = (tmp_path / "set.json").read_text()
    (tmp_path / "set.json").write_text(text.replace("close-close", "close-class", 1))
    with pytest.raises(ValueError, match="changed after it was drawn"):
        TripletSet.load(tmp_path / "set.json")
    (tmp_path / "set.json").write_text(text.replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(ValueError, match="labref-triplets 9"):
        TripletSet.load(tmp_path / "set.json")


def choices(drawn: TripletSet, tmp_path: Path, said: list[list[int]]) -> list[Path]:
    files = []
    for number, answers in enumerate(said):
        files.append(tmp_path / f"{number}.csv")
        with files[-1].open("w", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(["set", "triplet", "person", "choice"])
            writer.writerows([drawn.digest[:12], n, f"person {number}", c] for n, c in enumerate(answers))
    return files


def test_eight_of_ten_decide(tmp_path: Path) -> None:
    drawn = draw_triplets(some_latents(), per_class=1)
    # triplet 0: eight say 1; triplet 1: seven say 2; triplet 2: eight say 2, two say neither
    said = [[1, 2, 2]] * 7 + [[1, 1, 2]] + [[2, 1, 0]] * 2
    votes = read_votes(choices(drawn, tmp_path, said), drawn)
    valid, told = judged(drawn, votes)
    assert [(t.reference, t.right) for t in valid] == [
        (drawn.triplets[0].reference, 1),
        (drawn.triplets[2].reference, 2),
    ]
    assert told["people"] == 10 and told["undecided"] == 1 and told["too_few_asked"] == 0
    assert judged(drawn, read_votes(choices(drawn, tmp_path, said[:9]), drawn))[1]["too_few_asked"] == 3
    figures = score(drawn, some_latents(), votes=votes)
    assert figures["valid"] == 2 and figures["set"]["votes_digest"] == told["votes_digest"]


def test_votes_that_do_not_fit_are_named(tmp_path: Path) -> None:
    drawn = draw_triplets(some_latents(), per_class=1)
    [file] = choices(drawn, tmp_path, [[1, 2, 2]])
    text = file.read_text()
    for wrong, says in (
        (text.replace(drawn.digest[:12], "0" * 12), "a choice on set"),
        (text.replace(",2,", ",77,", 1), "no such triplet"),
        (text + f"{drawn.digest[:12]},0,person 0,2\n", "chose twice"),
        ("a,b\n1,2\n", "needs the columns"),
    ):
        file.write_text(wrong)
        with pytest.raises(ValueError, match=says):
            read_votes([file], drawn)


def test_a_space_made_of_the_attributes_scores_full_and_a_random_one_half(real_cells: Path) -> None:
    table = load_attributes(real_cells / "pbc" / "attributes.csv")
    items = [
        Item(f"{label}/{path.name}", label)
        for label in ("neutrophil", "monocyte", "eosinophil")
        for path in sorted((real_cells / "pbc" / label).glob("*.jpg"))[:150]
    ]
    drawn = attribute_triplets(items, table, per_draw=200, seed=2)
    assert len(drawn.triplets) == 600 and drawn.how["margin"] == 3 and drawn.how["of"] == 11
    assert sum(t.same_class for t in drawn.triplets) >= 200
    known = [item for item in items if item.path.rsplit("/", 1)[-1] in table]
    columns = list(zip(*(table[item.path.rsplit("/", 1)[-1]] for item in known), strict=True))
    one_hot = np.stack([[v == value for v in column] for column in columns for value in sorted(set(column))], axis=1)
    perfect = score(drawn, Latents(tuple(known), one_hot.astype(np.float32), "attributes"))
    assert perfect["svomen"]["value"] == 1.0 and perfect["ties"] == 0
    blind = np.random.default_rng(1).normal(size=(len(known), 50)).astype(np.float32)
    found = score(drawn, Latents(tuple(known), blind, "random"))
    assert abs(found["svomen"]["value"] - 0.5) < 0.08
    assert set(found["by_draw"]) == {"class-class", "class-random", "random-random"}
    assert attribute_triplets(items, table, per_draw=200, seed=2).digest == drawn.digest


def test_both_in_one_node_of_a_map_earn_no_point() -> None:
    trained = as_minisom(np.arange(2 * 3 * 4, dtype=float).reshape(2, 3, 4), sigma=1.0, learning_rate=0.5, seed=1)
    latents = Latents(
        tuple(Item(f"a/{n}", "a") for n in (1, 2, 3)),
        np.array([[0, 1, 2, 3], [20, 21, 22, 23], [20, 21, 22, 23.4]], "f4"),
        "t",
    )
    places = on_map(latents, trained)
    assert places.values.tolist() == [[0, 0], [1, 2], [1, 2]]
    one = TripletSet("attributes", {}, (Triplet("a/1", "a/2", "a/3", "class-class", True, 1),))
    assert score(one, places)["ties"] == 1 and score(one, places)["correct"] == 0
    assert score(one, latents)["correct"] == 1


def test_intervals() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(0.5, 1.0, 400)
    plain = bootstrap(values)
    assert plain.low < plain.value < plain.high
    assert (plain.high - plain.low) == pytest.approx(2 * 1.96 / 20, rel=0.2)
    # what comes in clusters of four equal values is known only a quarter as well
    repeated = bootstrap(np.repeat(values, 4), clusters=np.repeat(np.arange(400), 4).tolist())
    assert repeated.high - repeated.low == pytest.approx(plain.high - plain.low, rel=0.2)
    uneven = bootstrap([1.0] * 90 + [0.0] * 10, strata=["a"] * 90 + ["b"] * 10)
    assert uneven.value == 0.5
    # Wilson 1927, 9 of 10
    assert (share(9, 10).low, share(9, 10).high) == (pytest.approx(0.5958, abs=1e-4), pytest.approx(0.9821, abs=1e-4))


def test_the_command_draws_asks_and_scores(starter: Bundle, drawn_cells: Path, tmp_path: Path) -> None:
    def run(*words: object) -> str:
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        return done.stdout

    run("draw", "--bundle", starter.folder, "--tree", drawn_cells, "--per-class", 1, "--out", tmp_path / "set.json")
    drawn = TripletSet.load(tmp_path / "set.json")
    assert len(drawn.triplets) == 8
    run("sheet", tmp_path / "set.json", "--tree", drawn_cells, "--out", tmp_path / "ask.html")
    page = (tmp_path / "ask.html").read_text(encoding="utf-8")
    assert drawn.digest[:12] in page and not re.search(r"https?://", page)
    assert not any(t.reference in page for t in drawn.triplets)  # neither class nor slide is shown
    files = choices(drawn, tmp_path, [[1] * 8] * 2)
    found = json.loads(
        run(
            *("score", tmp_path / "set.json", "--bundle", starter.folder, "--tree", drawn_cells, "--people", 2),
            *("--agree", 2, "--votes", files[0], "--votes", files[1], "--json"),
        )
    )
    assert found["valid"] == 8 and 0 <= found["svomen"]["low"] <= found["svomen"]["value"]
    assert found["set"]["digest"] == drawn.digest and found["latents"]["size"] == 50
    silent = CliRunner().invoke(app, ["score", str(tmp_path / "set.json"), "--latents", str(tmp_path / "none.npz")])
    assert silent.exit_code == 1


def test_latents_read_back(tmp_path: Path) -> None:
    latents = some_latents()
    save_latents(latents, tmp_path / "a.npz")
    again = load_latents(tmp_path / "a.npz")
    assert again.digest == latents.digest and again.paths == latents.paths
    np.savez(tmp_path / "b.npz", latents=np.zeros((3, 2)))
    with pytest.raises(ValueError, match="holds no latents"):
        load_latents(tmp_path / "b.npz")
    with pytest.raises(ValueError, match="no latents of 1 images"):
        latents.rows(["a/none.jpg"])
