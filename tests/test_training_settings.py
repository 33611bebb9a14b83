"""Settings of a run, by the command: what is wrong is refused with what is allowed, and every setting is listed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from labref.bundles.bundle import starter_bundle
from labref.bundles.schema import check_name
from training.cli.app import app
from training.config import PRESETS, RunConfig
from training.networks.shipped import read_bundle
from training.run import Run

WRITTEN_BEFORE = {
    "thesis": "73661ed9c0a54b9b",
    "full": "df63d8c3ce5a4fc8",
    "starter": "2bcac3e8dd42c10a",
    "optics": "4e755404d2d5360e",
    "experts": "e26bc4ffc5950f7d",
}
"""First digits of the SHA-256 of each preset's JSON as it was before settings were checked (`thesis`: since it is model
B of table 3). Models are named by it."""


def command(*words: object, code: int = 0) -> Result:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def refused(data: Path, tmp_path: Path, *settings: str, preset: str = "starter") -> list[str]:
    """The lines that `train` says of wrong settings; it makes no run."""
    sets = [word for setting in settings for word in ("--set", setting)]
    done = command("train", data, "--run", tmp_path / "runs" / "mine", "--preset", preset, *sets, code=2)
    assert not (tmp_path / "runs").exists() and done.stdout == ""
    first, *lines, last = done.stderr.splitlines()
    assert first.startswith("error: --set: ") and "python -m training settings" in last
    return [line.strip() for line in lines]


def names_of(config: Any, prefix: str = "") -> list[str]:
    """Names of all fields of a dataclass value that are no dataclasses themselves."""
    names = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        deeper = dataclasses.is_dataclass(value)
        names += names_of(value, f"{prefix}{field.name}.") if deeper else [prefix + field.name]
    return names


def test_three_typos_are_all_named_with_what_was_meant(drawn_cells: Path, tmp_path: Path) -> None:
    typos = ("classifier.normalisation=grup", "classifier.schedule=cosin", "classifier.epochs=-3")
    assert sorted(refused(drawn_cells, tmp_path, *typos)) == [
        "classifier.epochs=-3: must be a whole number from 1 to 10000; the nearest is 1",
        "classifier.normalisation=grup: must be batch or group; did you mean group?",
        "classifier.schedule=cosin: must be constant or cosine; did you mean cosine?",
    ]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("clasifier.epochs=3", "no such setting; did you mean classifier.epochs?"),
        ("vae.epoch=3", "no such setting; did you mean vae.epochs?"),
        ("vae.normalisation=group", "no such setting; did you mean classifier.normalisation?"),
        ("epochs=3", "no such setting; did you mean classifier.epochs or vae.epochs?"),
        ("augmentation.zoom=0.1", "no such setting; did you mean classifier.augmentation.zoom?"),
        ("qqq=3", "no such setting"),
        ("classifier=3", "classifier is a group of settings; name one of them, as classifier.width"),
        ("orientations", "no value; write orientations=VALUE, and VALUE is 1, 2, 4 or 8"),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest(drawn_cells: Path, tmp_path: Path, setting: str, said: str) -> None:
    assert refused(drawn_cells, tmp_path, setting) == [f"{setting}: {said}"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("classifier.epochs=many", "must be a whole number from 1 to 10000"),
        ("classifier.epochs=1.5", "must be a whole number from 1 to 10000; the nearest is 2"),
        ("classifier.epochs=true", "must be a whole number from 1 to 10000"),
        ('classifier.epochs="3"', "must be a whole number from 1 to 10000"),
        ("classifier.epochs=null", "must be a whole number from 1 to 10000"),
        ("classifier.batch_size=0", "must be a whole number from 1 to 65536; the nearest is 1"),
        ("classifier.learning_rate=0", "must be a number above 0 and up to 1"),
        ("classifier.learning_rate=10", "must be a number above 0 and up to 1; the nearest is 1"),
        ("classifier.label_smoothing=1", "must be a number from 0 to below 1"),
        ("classifier.input_size=100", "must be a multiple of 32 from 32 to 512; the nearest is 96"),
        ("classifier.input_size=8", "must be a multiple of 32 from 32 to 512; the nearest is 32"),
        ("classifier.class_weights=even", "must be none, sqrt or balanced"),
        ("classifier.mixed_precision=True", "must be true or false; did you mean true?"),
        ("classifier.mixed_precision=0", "must be true or false; did you mean false?"),
        ("classifier.augmentation.rotation_degrees=360", "must be a number from 0 to 180; the nearest is 180"),
        ("classifier.augmentation.blur=20", "must be a number from 0 to 1; the nearest is 1"),
        ("classifier.augmentation.zoom=1", "must be a number from 0 to below 1"),
        ("classifier.augmentation.contrast_low=0", "must be a number above 0 and up to 10"),
        ("vae.beta=NaN", "must be a number of 0 or more"),
        ("vae.beta=Infinity", "must be a number of 0 or more"),
        ("vae.class_weight=-1", "must be a number of 0 or more; the nearest is 0"),
        ("vae.pooling=Orbit", "must be flatten or orbits; did you mean orbits?"),
        ("orientations=3", "must be 1, 2, 4 or 8; the nearest is 2"),
        ("holdout=1", "must be a number from 0 to below 1"),
        ("seed=-1", "must be a whole number from 0 to 2000000; the nearest is 0"),
        ("name=", "must be text, not empty"),
        ("domains=pbc,chula", 'must be a list of names, as ["pbc","bonemarrow"]'),
        ('domains=["pbc",""]', 'must be a list of names, as ["pbc","bonemarrow"]'),
        ('domains=["pbc","pbc"]', "names 'pbc' twice"),
        ('domains=["../pbc"]', "names '../pbc', which is no folder of the data folder itself"),
        ('aliases={"a":1}', 'must be pairs of names, as {"promyelocyte":"ig"}'),
    ],
)
def test_a_value_that_cannot_be_is_refused(drawn_cells: Path, tmp_path: Path, setting: str, said: str) -> None:
    shown = 'name=""' if setting == "name=" else setting
    assert refused(drawn_cells, tmp_path, setting) == [f"{shown}: {said}"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["classifier.augmentation.contrast_low=1.5", "classifier.augmentation.contrast_high=0.5"],
            "classifier.augmentation.contrast_high=0.5: must not be below contrast_low, which is 1.5",
        ),
        (
            ["classifier.augmentation.neighbour_near=140"],
            "classifier.augmentation.neighbour_far=130.0: must not be below neighbour_near, which is 140",
        ),
        (
            ["classifier.warmup_epochs=3", "classifier.epochs=2"],
            "classifier.warmup_epochs=3: must not be above epochs, which is 2",
        ),
        (
            ["classifier.break_channels=100", "classifier.normalisation=group"],
            "classifier.normalisation=group: needs break_channels to be a multiple of 8, and it is 100",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    drawn_cells: Path, tmp_path: Path, settings: list[str], said: str
) -> None:
    assert refused(drawn_cells, tmp_path, *settings) == [said]


def test_all_that_is_wrong_is_listed_at_once(drawn_cells: Path, tmp_path: Path) -> None:
    """Names, values, and what does not go together, in every group; what is right is not named."""
    wrong = (
        "vae.bta=1", "classifier.augmentation.contrast_low=2", "classifier.augmentation.zoom=7", "classifier.width=-1",
        "vae.layers=-1", "seed=1.5", "vae.width=64",
    )  # fmt: skip
    lines = refused(drawn_cells, tmp_path, *wrong, preset="optics")
    assert [line.split("=")[0] for line in lines] == [
        "vae.bta", "seed", "classifier.width", "classifier.augmentation.zoom", "classifier.augmentation.contrast_high",
        "vae.layers",
    ]  # fmt: skip


def test_a_long_value_is_cut_in_the_message(drawn_cells: Path, tmp_path: Path) -> None:
    (line,) = refused(drawn_cells, tmp_path, "vae.epochs=" + "9" * 5000)
    assert len(line) < 200 and line.endswith("…: must be a whole number from 1 to 10000")


@pytest.mark.parametrize(
    "words",
    [
        ("sweep", "latent", "RUN", "--set", "vae.epochs=0", "--set", "vae.wdth=3"),
        ("folds", "RUN", "--try", "vae.epochs=0 vae.wdth=3"),
        ("folds", "RUN", "--set", "vae.epochs=0", "--set", "vae.wdth=3"),
        ("unseen", "RUN", "--leave", "a", "--leave", "b", "--set", "vae.epochs=0", "--set", "vae.wdth=3"),
        ("adopt", starter_bundle(), "DATA", "--run", "NEW", "--set", "vae.epochs=0", "--set", "vae.wdth=3"),
    ],
    ids=lambda words: str(words[0]),
)
def test_every_command_that_takes_settings_refuses_and_writes_nothing(
    drawn_cells: Path, tmp_path: Path, words: tuple[object, ...]
) -> None:
    run = Run.create(tmp_path / "run", drawn_cells, PRESETS["starter"]).folder
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    places = {"RUN": run, "DATA": drawn_cells, "NEW": tmp_path / "new"}
    done = command(*(places.get(str(word), word) for word in words), code=1)
    assert "vae.epochs=0: must be a whole number from 1 to 10000; the nearest is 1" in done.stderr
    assert "vae.wdth=3: no such setting; did you mean vae.width?" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_variants_that_a_setting_forbids_are_refused_before_any_is_trained(drawn_cells: Path, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", drawn_cells, PRESETS["starter"]).folder
    done = command("unseen", run, "--leave", "a", "--leave", "b", "--set", "classifier.break_channels=100", code=1)
    assert "needs break_channels to be a multiple of 8" in done.stderr and not (run / "unseen").exists()


@pytest.mark.parametrize("again", ["resume", "repeat"])
def test_a_run_json_with_a_typo_is_named(drawn_cells: Path, tmp_path: Path, again: str) -> None:
    run = Run.create(tmp_path / "run", drawn_cells, PRESETS["starter"]).folder
    values = json.loads((run / "run.json").read_text())
    values["config"]["classifier"]["shedule"] = values["config"]["classifier"].pop("schedule")
    values["config"]["vae"]["epochs"] = "60"
    del values["config"]["classifier"]["augmentation"]
    (run / "run.json").write_text(json.dumps(values))
    done = command(again, run, *([tmp_path / "new"] if again == "repeat" else []), code=1)
    assert f"{run / 'run.json'}: 3 settings cannot be used" in done.stderr
    for line in (
        "classifier.shedule: no such setting; did you mean classifier.schedule?",
        'vae.epochs="60": must be a whole number from 1 to 10000',
        "classifier.augmentation: missing; it holds a group of settings",
    ):
        assert line in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_json_of_a_preset_is_byte_for_byte_what_it_was(preset: str, drawn_cells: Path, tmp_path: Path) -> None:
    text = json.dumps(PRESETS[preset].to_json(), indent=1, ensure_ascii=False) + "\n"
    assert hashlib.sha256(text.encode()).hexdigest().startswith(WRITTEN_BEFORE[preset])
    run = Run.create(tmp_path / "run", drawn_cells, PRESETS[preset])
    assert Run.open(run.folder).config == PRESETS[preset]
    assert json.dumps(Run.open(run.folder).config.to_json(), indent=1, ensure_ascii=False) + "\n" == text


def test_an_earlier_run_reads_with_its_numbers_as_they_were_written() -> None:
    values = PRESETS["thesis"].to_json()
    augmentation = values["classifier"]["augmentation"]
    for name in [name for name in augmentation if name.startswith("neighbour")]:
        del augmentation[name]  # a setting that is younger than the run
    augmentation["zoom"] = 0
    read = RunConfig.from_json(json.loads(json.dumps(values)))
    written = read.to_json()["classifier"]["augmentation"]
    assert json.dumps([written["rotation_degrees"], written["zoom"], written["shift"]]) == "[90, 0, 0.0]"
    assert read.classifier.augmentation.neighbour_far == 130.0


def test_the_settings_of_the_shipped_bundle_read_and_are_written_as_they_are() -> None:
    shipped = json.dumps(read_bundle(starter_bundle()).manifest.training["config"], sort_keys=True)
    assert json.dumps(RunConfig.from_json(json.loads(shipped)).to_json(), sort_keys=True) == shipped


def test_every_setting_is_listed_with_what_it_does() -> None:
    listed = json.loads(command("settings", "--json").stdout)["settings"]
    assert [one["name"] for one in listed] == names_of(RunConfig())
    lines = command("settings").stdout.splitlines()
    for one in listed:
        assert one["description"].endswith(".") and "\n" not in one["description"], one["name"]
        assert one["type"] in ("boolean", "integer", "number", "string", "array", "object")
        if one["type"] in ("integer", "number"):
            assert any(digit in one["allowed"] for digit in "0123456789"), f"{one['name']} has no range"
        (number,) = (n for n, line in enumerate(lines) if line.startswith(f"{one['name']}: {one['allowed']} (default "))
        assert lines[number + 1].strip() == one["description"]
    assert len(lines) == 2 * len(listed)


def test_the_list_says_what_presets_have_instead() -> None:
    listed = {one["name"]: one for one in json.loads(command("settings", "--json").stdout)["settings"]}
    assert listed["classifier.epochs"] == {
        "name": "classifier.epochs",
        "type": "integer",
        "allowed": "a whole number from 1 to 10000",
        "default": 50,
        "presets": {"starter": 24, "optics": 14, "experts": 9},
        "description": "Passes over all training cells.",
    }
    for preset, config in PRESETS.items():
        made: dict[str, Any] = {}
        for name, one in listed.items():
            *groups, last = name.split(".")
            place = made
            for group in groups:
                place = place.setdefault(group, {})
            place[last] = one["presets"].get(preset, one["default"])
        assert RunConfig.from_json(made) == config
    assert 'classifier.schedule: constant or cosine (default "cosine", thesis "constant")' in command("settings").stdout
    assert "python -m training settings" in " ".join(command("--help").stdout.split())


def test_the_preset_thesis_has_what_the_thesis_chose() -> None:
    """Model B of its table 3 (section 5.1), its table 4, and the VAE of section 5.2."""
    thesis = PRESETS["thesis"]
    classifier, augmentation, vae = thesis.classifier, thesis.classifier.augmentation, thesis.vae
    assert (augmentation.zoom, augmentation.rotation_degrees) == (0.1, 90)
    assert (augmentation.flip, augmentation.shift) == (False, 0.0)
    assert (augmentation.gain, augmentation.brightness, augmentation.blur, augmentation.neighbour) == (0, 0, 0, 0)
    assert not augmentation.changes_optics
    assert (classifier.learning_rate, classifier.schedule) == (0.001, "constant")
    assert (classifier.batch_size, classifier.epochs, classifier.input_size) == (32, 50, 224)
    assert (classifier.width, classifier.middle_repeats, classifier.break_channels) == (1.0, 3, 256)
    assert (classifier.label_smoothing, classifier.class_weights, classifier.normalisation) == (0.0, "none", "batch")
    assert (classifier.attribute_weight, classifier.domain_weight, thesis.orientations) == (0.0, 0.0, 1)
    assert (vae.latent_size, vae.batch_size, vae.epochs, vae.pooling) == (50, 32, 20, "flatten")
    assert (vae.beta, vae.class_weight, vae.attribute_weight, vae.neighbour_weight, vae.views) == (1.0, 0, 0, 0, 1)


@pytest.mark.parametrize(
    ("folder", "settings", "name"),
    [
        ("hospital-2", [], "hospital-2"),
        ("123", [], "123"),
        ("hospital-2", ["name=mine"], "mine"),
        ("x" * 120, [], "starter"),  # no name for a bundle: the preset's
        ("run:1", [], "starter"),
        ("nul", [], "starter"),
        ("-1", [], "starter"),
        ("a\\b", [], "starter"),
        (" a", [], "starter"),
        ("a\u202eb", [], "starter"),
        ("Bla\u030a prov 2", [], "Bl\u00e5 prov 2"),
    ],
)
def test_a_model_is_named_after_its_runs_folder(
    drawn_cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, settings: list[str], name: str
) -> None:
    begun: list[Run] = []
    monkeypatch.setattr("training.cli.app._train", lambda run, workers: begun.append(run))
    sets = [word for setting in settings for word in ("--set", setting)]
    command("train", drawn_cells, "--run", tmp_path / folder, *sets)
    assert begun[0].config.name == name
    command("train", drawn_cells, "--run", tmp_path / folder, *sets)  # gone on with
    assert begun[1].config == begun[0].config


def test_a_run_begun_by_an_earlier_labref_keeps_its_name(
    drawn_cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Run.create(tmp_path / "mine", drawn_cells, PRESETS["starter"])
    begun: list[Run] = []
    monkeypatch.setattr("training.cli.app._train", lambda run, workers: begun.append(run))
    command("train", drawn_cells, "--run", tmp_path / "mine")
    assert begun[0].config.name == "starter"


@pytest.mark.parametrize("name", ["a/b", "a\\b", " a", "a\x1b[2J", "x" * 101, "run:1", "CON", "-a", "..", "a.", "~"])
def test_a_name_that_no_bundle_may_have_is_refused_before_training(
    drawn_cells: Path, tmp_path: Path, name: str
) -> None:
    done = command("train", drawn_cells, "--run", tmp_path / "mine", "--set", f"name={name}", code=2)
    said = "one line of up to 100 characters" in done.stderr or "a bundle may not be called so" in done.stderr
    assert said and not (tmp_path / "mine").exists()
    with pytest.raises(ValueError, match="must|Windows"):
        check_name(name)


def test_a_folder_that_no_system_takes_is_an_error(drawn_cells: Path, tmp_path: Path) -> None:
    done = command("train", drawn_cells, "--run", tmp_path / ("x" * 300), code=1)
    assert "cannot be a run's folder" in " ".join(done.stderr.split())
