"""What tests share: real cells where ../shared/data is present, cells drawn by labref everywhere, the starter
bundle."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from labref.bundles.bundle import Bundle, install, starter_bundle
from labref.bundles.inference import Embedder
from labref.demo.cells import LABELS, OPTICS, draw_cell, encode_jpeg, make_slides
from training.data.images import list_images
from training.measure.latents import Latents, embed_latents

if TYPE_CHECKING:
    from playwright.sync_api import Browser as Chromium

# networks in tests take a few steps: XLA would compile for longer than it saves
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

DATA = Path(os.environ.get("LABREF_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


SLOW = {
    "test_agent",
    "test_api",
    "test_browser",
    "test_browser_access",
    "test_browser_slides",
    "test_bundles_changing",
    "test_crash",
    "test_decoding_limits",
    "test_demo",
    "test_docs",
    "test_exporters",
    "test_folder_faults",
    "test_label_faults",
    "test_map",
    "test_map_benchmarks",
    "test_no_tracebacks",
    "test_optics",
    "test_pages",
    "test_browser_cell",
    "test_browser_map",
    "test_browser_review",
    "test_pages_cell",
    "test_pages_review",
    "test_pages_hostile",
    "test_pages_slides",
    "test_pages_map",
    "test_references",
    "test_report",
    "test_retention",
    "test_scale",
    "test_som",
    "test_som_parts",
    "test_store_check",
    "test_store_model",
    "test_store_opening",
    "test_strangers",
    "test_svomen",
    "test_training",
    "test_training_adopt",
    "test_training_backends",
    "test_training_devices",
    "test_training_neighbours",
    "test_training_optics",
    "test_upkeep_ledger",
    "test_upkeep_store",
    "test_web_elsewhere",
    "test_what_it_says",
}
"""Files whose tests train networks, measure, or start and kill agents and commands: each takes a minute or more."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make test-fast` leaves out, and begin with it: no worker is left alone with a long file at the end."""
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.path.stem not in SLOW)  # stable: files stay together


@pytest.fixture(scope="session")
def real_cells() -> Path:
    """Folder with pbc/, chula/, bccd/ and bonemarrow/ of real cell images."""
    if not (DATA / "pbc").is_dir():
        pytest.skip(f"real cell images are absent: {DATA} (set LABREF_TEST_DATA to a folder that holds pbc/)")
    return DATA


@pytest.fixture(scope="session")
def drawn_cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of drawn cells: `<class>/<slide>_<nnn>.jpg`, four of each of the eight classes."""
    folder = tmp_path_factory.mktemp("drawn")
    slides = make_slides(4, seed=3)
    for label in LABELS:
        (folder / label).mkdir()
        for number, slide in enumerate(slides):
            picture = draw_cell(
                label, OPTICS[slide.optics], slide, np.random.default_rng([number, LABELS.index(label)])
            )
            (folder / label / f"{slide.name}_{number:03d}.jpg").write_bytes(encode_jpeg(picture))
    return folder


@pytest.fixture(scope="session")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The starter bundle, installed."""
    return install(starter_bundle(), tmp_path_factory.mktemp("bundles"))


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
def real_latents(real_cells: Path, embedder: Embedder) -> Latents:
    """Latents of the first 20 real cells of each of the eight classes, and where they come from."""
    chosen: dict[str, list[str]] = {}
    for item in list_images(real_cells / "pbc"):
        chosen.setdefault(item.label, []).append(item.path)
    return embed_latents(embedder, real_cells / "pbc", [path for paths in chosen.values() for path in paths[:20]])
