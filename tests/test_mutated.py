"""Mutated pictures: what the benchmark says of its figures holds, on some of its pictures."""

from __future__ import annotations

import json
import random
import signal
import struct
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from labref.cells.decoding import _TOO_LONG, Decoder, Limits, _Worker
from labref.cells.image import decode
from labref.demo.analyser import FolderSource
from labref.errors import DecodingLimitError, UnreadableImageError
from tests.benchmarks import mutated
from tests.benchmarks.exports import choose_source
from tests.benchmarks.mutated import Tally
from tests.benchmarks.mutations import FORMATS, Original, mutate, originals
from tests.hostile import many_scans

QUICK = Limits(seconds=5.0, memory_megabytes=512, megapixels=40)


@pytest.fixture(scope="module")
def choices() -> list[Original]:
    source, _ = choose_source(None, 3)
    return originals([decode(specimen.data) for specimen in source.take(2)])


def test_every_picture_that_is_mutated_is_sound_before_or_refused_by_name(choices: list[Original]) -> None:
    """Of each format there are at least seven kinds that labref reads."""
    read = dict.fromkeys(FORMATS, 0)
    for original in choices:
        try:
            read[original.kind] += decode(original.data).shape[2] == 3
        except UnreadableImageError as error:
            assert "1 bit a pixel" in str(error) or "not enough image data" in str(error), original.name
    assert min(read.values()) >= 2 * 7, read


def test_a_number_and_a_seed_say_what_a_picture_is(choices: list[Original]) -> None:
    made = [mutate(random.Random(number), choices) for number in range(300)]
    assert made == [mutate(random.Random(number), choices) for number in range(300)]
    assert {original.kind for original, _ in made} == set(FORMATS)
    assert len({data for _, data in made}) > 280
    assert sum(data == original.data for original, data in made) < 15


@pytest.fixture
def cells(drawn_cells: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few cells to make pictures of: what is tested is the run."""
    monkeypatch.setattr(mutated, "_CELLS", 2)
    monkeypatch.setattr(mutated, "choose_source", lambda *_: (FolderSource(drawn_cells, seed=1), "drawn"))


def test_mutated_pictures_become_crops_or_are_rejected_with_a_reason(tmp_path: Path) -> None:
    figures = mutated.run(300, seed=7, limits=QUICK, keep=tmp_path / "faults")
    assert figures["listed"] == []
    assert figures["ok"]
    assert figures["decoded"] + figures["rejected"] == figures["done"] == 300
    for kind in FORMATS:
        found = figures["by_format"][kind]
        assert found["decoded"] >= 5 and found["rejected"] >= 5, (kind, found)
    assert not (tmp_path / "faults").exists()


@pytest.mark.usefixtures("cells")
def test_a_run_goes_on_from_its_counts_and_no_other_does(tmp_path: Path) -> None:
    state = tmp_path / "counts.json"
    first = mutated.run(20, seed=7, limits=QUICK, state=state)
    again = mutated.run(50, seed=7, limits=QUICK, state=state)
    assert (first["done"], again["done"]) == (20, 50)
    at_once = mutated.run(50, seed=7, limits=QUICK)
    assert (again["decoded"], again["by_format"]) == (at_once["decoded"], at_once["by_format"])
    assert sum(again["reasons"].values()) == again["rejected"] > first["rejected"]
    with pytest.raises(ValueError, match="of seed 7"):
        mutated.run(50, seed=8, limits=QUICK, state=state)
    left = mutated.run(10_000, seed=7, limits=QUICK, state=state, seconds=0.1)
    assert 50 <= left["done"] < 10_000 and not left["ok"], "pictures are left"
    assert json.loads(state.read_text())["done"] == left["done"]


class _OneProcess:
    """Stands in for a `Decoder` whose processes answer as they should."""

    def __init__(self, limits: Limits, *, most: int) -> None:
        self.close = lambda: None
        self._idle: list[_Worker] = []

    def examine(self, data: bytes) -> Any:
        return self.prepare(data)

    def prepare(self, data: bytes) -> Any:
        raise UnreadableImageError("not an image: it is one of a test")


@pytest.mark.usefixtures("cells")
@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (DecodingLimitError("damaged image: the decoder crashed on it (signal 11)"), "signal 11"),
        (DecodingLimitError("damaged image: cannot be used (AttributeError while it was prepared)"), "AttributeError"),
        (UnreadableImageError("damaged image: \x1b[2J"), "not a reason to print"),
        (UnreadableImageError(""), "not a reason to print"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError"),
    ],
)
def test_what_nobody_foresaw_is_a_fault_and_its_picture_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, fault: str
) -> None:
    asked: list[bytes] = []

    class Failing(_OneProcess):
        def prepare(self, data: bytes) -> Any:
            asked.append(data)
            if len(asked) == 12:
                raise error
            return super().prepare(data)

    monkeypatch.setattr(mutated, "Decoder", Failing)
    monkeypatch.setattr(mutated._Run, "_require_sound", lambda *_: None)
    figures = mutated.run(30, seed=7, limits=QUICK, keep=tmp_path)
    assert not figures["ok"]
    (listed,) = figures["listed"]
    assert fault in listed["fault"]
    (kept,) = tmp_path.iterdir()
    assert kept.read_bytes() == asked[11] and kept.stem == f"7-{listed['number']}"


class _Stopped(Decoder):
    """One whose process is stopped by the system when it has a picture: it uses no time, and does not answer."""

    def _ask(self, worker: _Worker, task: str, data: bytes, stopped: Any) -> tuple[int, bytes]:
        if worker.answered and task == "prepare":
            worker._process.send_signal(signal.SIGSTOP)
        return super()._ask(worker, task, data, stopped)


@pytest.mark.skipif(sys.platform == "win32", reason="no signal stops a process there")
def test_a_slow_picture_hangs_only_where_it_uses_no_time_or_more_than_it_may(
    choices: list[Original], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(seconds=1.0, memory_megabytes=512, megapixels=40)
    run = mutated._Run(Tally(7, asdict(limits)), 1, choices, limits, None)
    try:
        assert run._hangs(1, choices[0].data) == "", "it was slow for the other work of this computer"
        # it uses all the time that it may, and is ended
        assert run._hangs(1, many_scans(30_000, 4000)) == ""
        assert (run.tally.asked_again, run.tally.ended_by_limit) == (2, 1)
        assert 0 <= run.tally.most_processor_seconds < 2
        monkeypatch.setattr(mutated, "_TRIES", 1)
        with monkeypatch.context() as patched:
            patched.setattr(mutated, "Decoder", _Stopped)
            assert "it hangs" in run._hangs(1, choices[0].data)
        monkeypatch.setattr(run, "_measured", lambda *_: (3.0, 0.0, 3.0, ""))
        assert "a processor for 3.0" in run._hangs(1, choices[0].data), "the limit did not end it"
    finally:
        run.decoder.close()


@pytest.mark.usefixtures("cells")
def test_slow_pictures_are_asked_again_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []
    beside: list[int] = []
    alone: list[bytes] = []
    found = [(0.1, 0.0, 9.0, _TOO_LONG)] * 3

    class Slow(_OneProcess):
        def prepare(self, data: bytes) -> Any:
            asked.append(data)
            if len(asked) in (5, 12):
                raise DecodingLimitError(f"{_TOO_LONG}: more than 1 s")
            return super().prepare(data)

    def measured(self: mutated._Run, number: int, data: bytes) -> tuple[float, float, float, str]:
        beside.append(self._beside)
        before = len(asked)
        time.sleep(0.2)
        assert len(asked) == before, "others wait"
        alone.append(data)
        return found.pop() if found else (0.1, 8.0, 9.0, _TOO_LONG)

    monkeypatch.setattr(mutated, "Decoder", Slow)
    monkeypatch.setattr(mutated._Run, "_require_sound", lambda *_: None)
    monkeypatch.setattr(mutated._Run, "_measured", measured)
    state = tmp_path / "counts.json"
    figures = mutated.run(30, seed=7, limits=QUICK, state=state)
    assert (figures["asked_again"], figures["faults"], figures["done"]) == (2, 1, 30)
    assert len(alone) == 4 and set(alone) == {asked[4], asked[11]} and set(beside) == {0}
    assert "it hangs: of 9.0 s it had a processor for 0.1 and" in figures["listed"][0]["fault"]
    assert mutated.run(30, seed=7, limits=QUICK, state=state)["faults"] == 1, "a fault stays"
    settled = mutated.run(30, seed=7, limits=QUICK, state=state, again=True)
    assert (settled["faults"], settled["listed"], settled["settled"]) == (0, [], figures["listed"])
    assert settled["ok"]


def test_a_reason_holds_nothing_of_the_file(choices: list[Original]) -> None:
    """A TIFF whose tag of JPEG tables is named to be of text: Python's error shows all of them."""
    data = next(original.data for original in choices if original.name == "TIFF jpeg 0")
    tables = struct.pack("<HH", 347, 7)
    at = data.index(tables)
    for tag in (281, 341):  # numbers that Pillow or labref read
        with pytest.raises(UnreadableImageError) as caught:
            decode(data[:at] + struct.pack("<HH", tag, 7) + data[at + 4 :])
        assert "b'" not in str(caught.value) and len(str(caught.value)) < 160, str(caught.value)


def test_a_crop_that_is_none_is_a_fault(choices: list[Original]) -> None:
    decoder = Decoder(QUICK, most=1)
    try:
        made, crop = decoder.examine(choices[0].data), decoder.prepare(choices[0].data)
    finally:
        decoder.close()
    assert mutated._unsound(made) == mutated._unsound(crop) == ""
    made.measures[2] = float("nan")
    assert "finite" in mutated._unsound(made)
    object.__setattr__(crop, "crop", crop.crop[:255])
    assert "255" in mutated._unsound(crop)
    assert asdict(QUICK)["seconds"] == 5.0


@pytest.mark.parametrize(
    ("late", "grown"), [([100.0] * 20, 0.0), ([100.0 + n for n in range(20)], 12.0), ([90.0] * 20, 0.0)]
)
def test_memory_that_grows_after_the_first_fifth_is_told(late: list[float], grown: float) -> None:
    watch = mutated._Watch()
    watch._memory = {
        1: [20.0, 90.0, 150.0, 100.0] + [100.0] * 16 + [value for value in late for _ in range(2)],
        2: [5.0],
    }
    assert watch.growth_mb() == pytest.approx(grown, abs=8.0)
    assert (watch.growth_mb() > 0) is (grown > 0)
