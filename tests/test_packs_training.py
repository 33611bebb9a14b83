"""From the labs to the centre and back: two labs give packs, the centre trains on the pool, both install the bundle."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typer.testing import CliRunner

from labref.bundles.bundle import Bundle
from labref.bundles.keyfile import SigningKey, write_new
from labref.cli import app
from labref.demo.cells import LABELS
from labref.lab import Lab
from labref.web.desk import run
from tests.labs import make_lab, once
from tests.trainings import command, eager, shallow  # noqa: F401
from training.data.pool import Pool
from training.run import Run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("eager", "shallow"),
    pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`"),
]
SMALL = [
    *("classifier.width=0.125", "classifier.input_size=32", "classifier.epochs=1", "classifier.batch_size=8"),
    *("classifier.middle_repeats=0", "holdout=0.3", "validation=0.2", "orientations=1"),
    *("vae.epochs=1", "vae.width=16", "vae.batch_size=8", "vae.views=1"),
]


def with_a_key(lab: Lab, number: int) -> None:
    """Give a lab the same key in each run of the test, so that the same cells are held out."""
    private = Ed25519PrivateKey.from_private_bytes(bytes([number + 1] * 32))
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_new(lab.folder / "key", pem, 0o600)
    write_new(lab.folder / "key.pub", SigningKey(private, f"Lab {number}").public.to_bytes(), 0o600)


def labref(lab: Lab, *words: object) -> str:
    done = CliRunner().invoke(app, [*map(str, words), "--lab", str(lab.folder)])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def test_two_labs_give_packs_the_centre_trains_and_both_install_the_bundle(
    tmp_path: Path, drawn_cells: Path, starter: Bundle
) -> None:
    given: list[Lab] = []
    for number, name in enumerate(("Lund", "Oslo")):
        for label in LABELS:
            folder = tmp_path / f"export {name}" / "Svensson, Anna" / "Signed slides" / label
            folder.mkdir(parents=True)
            files = sorted((drawn_cells / label).iterdir())
            for file in files[number : number + 3]:  # two of three are in both labs
                shutil.copy(file, folder / f"{label[:2].upper()}_{file.stem[-3:]}.jpg")
        lab = make_lab(tmp_path / name, tmp_path / f"export {name}", starter)
        once(lab)
        with_a_key(lab, number)
        labref(lab, "contribute", "--out", tmp_path / f"{name}.pack", "--consent", "CC BY 4.0")
        labref(lab, "key", "own", "--out", tmp_path / f"{name}.pub")
        given.append(lab)
    pool, trained = tmp_path / "pool", tmp_path / "runs" / "of-the-labs"
    command("training", "pool", pool, "--trust", tmp_path / "Lund.pub", "--trust", tmp_path / "Oslo.pub")
    done = command("training", "ingest", tmp_path / "Lund.pack", tmp_path / "Oslo.pack", "--into", pool, "--json")
    assert [(row["cells"], row["recaptures"]) for row in json.loads(done.stdout)["packs"]] == [(24, 0), (24, 16)]
    assert len(Pool.open(pool).cells) == 32

    sets = [word for setting in SMALL for word in ("--set", setting)]
    command("training", "train", pool, "--run", trained, *sets)
    made = Run.open(trained)
    assert made.config.domains == Pool.open(pool).domains and len(made.config.domains) == 2
    assert sum(len(made.split.part(part)) for part in ("train", "validation", "holdout")) == 32
    assert list((pool / "cache").glob("crops-32-*.npy")) and not (trained.parent / "cache").exists()

    # what needs whole pictures is left out of the report, and that is said
    (told,) = json.loads(command("training", "report", trained, "--json").stdout).values()
    assert told["parts"]["rotmes"] is None and told["parts"]["space"]["by_optics"].keys() == set(made.config.domains)
    assert "holds crops of them" in (trained / "report.html").read_text("utf-8")

    command("exporters", "key", "new", tmp_path / "centre.key", "--name", "Our centre")
    bundle = tmp_path / "of-the-labs.labref"
    command("exporters", "bundle", trained, "--out", bundle, "--key", tmp_path / "centre.key")
    with zipfile.ZipFile(bundle) as archive:
        card = archive.read("MODEL_CARD.md").decode()
    for domain in made.config.domains:
        assert f"of one of its analysers (`{domain}` in the pool), under: CC BY 4.0." in card
    for lab in given:
        labref(lab, "key", "trust", tmp_path / "centre.key.pub")
        assert "signed by Our centre" in labref(lab, "bundle", "install", bundle)
        labref(lab, "bundle", "activate", "of-the-labs", "--yes")
        told: dict[str, Any] = next(run(lab, "status"))
        assert told["bundle"]["name"] == "of-the-labs" and told["cells"] == 24
        # the next pack has what is new, and latents of the bundle in use
        preview = json.loads(labref(lab, "contribute", "--preview", "--json"))
        assert (preview["cells"], preview["given_before"]) == (0, 24)
