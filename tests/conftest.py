"""What tests share: real cells where ../shared/data is present, cells drawn by labref everywhere, the starter
bundle."""

from __future__ import annotations

import tests.environment  # noqa: F401

# isort: split
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from labref.bundles.bundle import Bundle, install, starter_bundle
from labref.bundles.inference import Embedder
from labref.cpus import usable_cpus
from labref.demo.cells import LABELS, OPTICS, draw_cell, encode_jpeg, make_slides
from tests.forking import forking, forking_training, starting
from tests.remembered import copying_stores, keeping_commands, packing_once, remembering
from training.data.images import list_images
from training.measure.latents import Latents, embed_latents, load_latents, save_latents

if TYPE_CHECKING:
    from playwright.sync_api import Browser as Chromium
    from xdist.scheduler import LoadFileScheduling

DATA = Path(os.environ.get("LABREF_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


SLOW = {
    "test_training_backends": 160,
    "test_decoding_limits": 110,
    "test_api": 100,
    "test_crash": 90,
    "test_agent": 80,
    "test_soak": 80,
    "test_shared": 80,
    "test_folder_faults": 80,
    "test_label_faults": 80,
    "test_training_workers": 80,
    "test_demo": 70,
    "test_report_lab": 70,
    "test_report": 60,
    "test_training": 60,
    "test_stick": 60,
    "test_training_adopt": 60,
    "test_docs": 60,
    "test_bundles_changing": 50,
    "test_strangers": 50,
    "test_pool": 50,
    "test_browser_access": 40,
    "test_references": 40,
    "test_retention": 40,
    "test_what_it_says": 40,
    "test_browser_slides": 30,
    "test_bundle_sense": 30,
    "test_map": 30,
    "test_map_benchmarks": 30,
    "test_pages_review": 30,
    "test_bench": 30,
    "test_no_tracebacks": 30,
    "test_labs_left_out": 30,
    "test_benchmark_web": 20,
    "test_browser_cell": 20,
    "test_training_upright": 20,
    "test_browser_map": 20,
    "test_browser_review": 20,
    "test_central": 20,
    "test_contribute": 20,
    "test_duplicates": 20,
    "test_duplicates_lab": 20,
    "test_mutated": 20,
    "test_packs_training": 20,
    "test_novelty": 20,
    "test_pages_hostile": 20,
    "test_slides_alike": 20,
    "test_store_check": 20,
    "test_store_model": 20,
    "test_store_opening": 20,
    "test_training_optics": 20,
    "test_upkeep_ledger": 20,
    "test_map_store": 20,
    "test_recaptures": 20,
    "test_atlas": 10,
    "test_bad_input": 10,
    "test_browser": 10,
    "test_browser_shared": 10,
    "test_centring": 10,
    "test_doctor": 10,
    "test_exporters": 10,
    "test_exporters_keys": 10,
    "test_inference": 10,
    "test_labels": 10,
    "test_labs_page": 10,
    "test_optics": 10,
    "test_pages": 10,
    "test_pages_cell": 10,
    "test_pages_map": 10,
    "test_pages_slides": 10,
    "test_scale": 10,
    "test_service": 10,
    "test_signing": 10,
    "test_som": 10,
    "test_som_parts": 10,
    "test_suspects": 10,
    "test_svomen": 10,
    "test_training_devices": 10,
    "test_training_neighbours": 10,
    "test_trust": 10,
    "test_upkeep_store": 10,
    "test_web_elsewhere": 10,
    "test_watch_over": 10,
}
"""Files whose tests train networks, measure, or start and kill agents and commands, and about how many seconds of a
core each takes."""

TENSORFLOW = {
    "test_atlas",
    "test_exporters",
    "test_labs_left_out",
    "test_packs_training",
    "test_report",
    "test_training",
    "test_training_adopt",
    "test_training_backends",
    "test_training_neighbours",
    "test_training_optics",
    "test_training_upright",
    "test_training_workers",
}
"""Files whose tests load TensorFlow, which takes 11 s of a core, and 40 where it was not compiled: they go to one
worker. None loads it when it is collected, as all workers collect all files."""

LOADED_TO_COLLECT: set[str] = set()
"""Of what takes long to load, and only some tests need, what was loaded when all files were collected: nothing
(`test_imports.py`)."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make test-fast` leaves out, and begin with the longest file: no worker is left alone with it at the
    end."""
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)
    # stable: files stay together
    items.sort(key=lambda item: (item.path.stem not in TENSORFLOW, -SLOW.get(item.path.stem, 0)))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """`--dist loadfile`, with the files that load TensorFlow as if they were one."""
    if config.option.dist != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "TensorFlow" if Path(file).stem in TENSORFLOW else file

    return Scheduling(config, log)


def pytest_collection_finish() -> None:
    """Note what was loaded. What was imported for all files stays to the end, so that garbage collection need not look
    at it again: some hundred thousand objects."""
    LOADED_TO_COLLECT.update({"tensorflow", "keras", "jax", "matplotlib", "schemathesis"} & set(sys.modules))
    gc.collect()
    gc.freeze()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """`-n logical` is one worker more than there are cores: slow tests wait for files to settle, for agents and for a
    browser, and a core would be idle meanwhile. The fast ones hardly wait: with them two cores were 3 % idle."""
    return usable_cpus() + (config.option.markexpr != "not slow")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`make test-fast` does not even import them: TensorFlow alone takes longer than most of its files."""
    return True if config.option.markexpr == "not slow" and collection_path.stem in SLOW else None


@pytest.fixture(scope="session")
def real_cells() -> Path:
    """Folder with pbc/, chula/, bccd/ and bonemarrow/ of real cell images."""
    if not (DATA / "pbc").is_dir():
        pytest.skip(f"real cell images are absent: {DATA} (set LABREF_TEST_DATA to a folder that holds pbc/)")
    return DATA


def _made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, with what `make` writes into it, once for all workers of a run: the one that makes the folder calls it,
    and the others wait."""
    done = folder.with_name(f"{folder.name}.done")
    try:
        folder.mkdir()
    except FileExistsError:
        deadline = time.monotonic() + 300
        while not done.exists():
            assert time.monotonic() < deadline, f"the worker that began {folder} did not end"
            time.sleep(0.2)
        return folder
    make(folder)
    done.touch()
    return folder


@pytest.fixture(scope="session")
def drawn_cells(run_folder: Path) -> Path:
    """Class folders of drawn cells: `<class>/<slide>_<nnn>.jpg`, four of each of the eight classes."""
    return _made_once(run_folder / "drawn", _draw_cells)


def _draw_cells(folder: Path) -> None:
    slides = make_slides(4, seed=3)
    for label in LABELS:
        (folder / label).mkdir()
        for number, slide in enumerate(slides):
            picture = draw_cell(
                label, OPTICS[slide.optics], slide, np.random.default_rng([number, LABELS.index(label)])
            )
            (folder / label / f"{slide.name}_{number:03d}.jpg").write_bytes(encode_jpeg(picture))


@pytest.fixture(scope="session")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The starter bundle, installed."""
    return install(starter_bundle(), tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="session", autouse=True)
def _done_once(starter: Bundle, run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    answers = run_folder / "answers"
    stores = tmp_path_factory.mktemp("stores")
    with (
        remembering(starter, answers),
        copying_stores(stores),
        packing_once(run_folder / "packed"),
        keeping_commands(),
        forking(starter, answers),
    ):
        yield


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the workers of one run of the tests share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture
def processes_started() -> Iterator[None]:
    """Labref's own processes are started, and not forked: for what is about such a process."""
    with starting():
        yield


@pytest.fixture(scope="session")
def start_on_jax() -> Iterator[Callable[..., subprocess.Popen[Any]]]:
    """Starts a process that trains on JAX: `tests.forking.forking_training`."""
    with forking_training() as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    """A headless Chromium."""
    from tests.browser import chromium

    with chromium() as launched:
        yield launched


@pytest.fixture(scope="session")
def embedder(starter: Bundle) -> Iterator[Embedder]:
    """The starter bundle on the CPU."""
    with Embedder.open(starter, device="cpu") as opened:
        yield opened


@pytest.fixture(scope="session")
def real_latents(real_cells: Path, embedder: Embedder, run_folder: Path) -> Latents:
    """Latents of the first 20 real cells of each of the eight classes, and where they come from."""

    def embed(folder: Path) -> None:
        chosen: dict[str, list[str]] = {}
        for item in list_images(real_cells / "pbc"):
            chosen.setdefault(item.label, []).append(item.path)
        first = [path for paths in chosen.values() for path in paths[:20]]
        save_latents(embed_latents(embedder, real_cells / "pbc", first), folder / "real.npz")

    return load_latents(_made_once(run_folder / "latents", embed) / "real.npz")
