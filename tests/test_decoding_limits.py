"""One picture never stops the lab: what takes too long, takes too much or crashes the decoder costs that one file."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from labref.agent.retries import Retries
from labref.agent.service import _END_SECONDS
from labref.bundles.bundle import Bundle
from labref.bundles.inference import Described, Embedder, describe_each
from labref.cells import decoding
from labref.cells.decoding import _CRASHED, _TOO_LONG, _TOO_MUCH, Decoder, Limits, StoppedError, _Worker
from labref.cells.examination import TASKS
from labref.config import DecodingConfig
from labref.errors import AgentError, BundleError, DecodingLimitError, LabrefError, UnreadableImageError
from labref.lab import Lab
from labref.lab.suspects import Suspects
from labref.operations.ledger import _compare_latents
from labref.tasks.context import Context
from labref.tasks.reembedding import catch_up
from labref.web.client import AgentClient, read_agent_record
from labref.web.desk import ask, run, status
from tests.benchmarks.exports import REPOSITORY, labref_process, process_of_tests
from tests.hostile import huge_png, many_scans
from tests.labs import ledger, make_lab, once, running_agent, wait_until

pytestmark = pytest.mark.usefixtures("processes_started")
QUICK = Limits(seconds=2.0, memory_megabytes=256, megapixels=40)


@cache
def endless() -> bytes:
    """Some minutes of decoding."""
    return many_scans(30_000, 4000)


# In the decoding process alone: a picture that holds such a word is met by what follows it. No picture known to crash
# Pillow would do so in the next version.
HARM = """
import sys

if "labref.cells.decoding_worker" in sys.orig_argv:
    import ctypes, os, resource, time
    import PIL.Image

    opened = PIL.Image.open
    if "WITHOUT_RLIMIT" in os.environ:
        resource.setrlimit = lambda *_: None

    def harmful(file, *arguments, **named):
        data = file.getvalue()
        if b"SEGFAULT" in data:
            ctypes.string_at(0)
        if b"EXIT" in data:
            os._exit(0)
        if b"SLEEP" in data:
            time.sleep(1000)
        if b"DEADLOCK" in data:  # the interpreter's lock is never given back
            ctypes.PyDLL(None).sleep(1000)
        if b"RAISE" in data:
            raise RuntimeError("a secret of the picture")
        if b"EAT" in data:
            eaten = []
            while True:
                eaten.append(bytearray(1 << 24))
                time.sleep(0.01)
        return opened(file, *arguments, **named)

    PIL.Image.open = harmful
"""


def jpeg(word: str = "", shade: int = 0) -> bytes:
    """A picture of a dark disc; `word` is in its comment."""
    rows, columns = np.mgrid[:128, :128]
    disc = np.where((rows - 64) ** 2 + (columns - 64) ** 2 < 900, 90 + shade, 230).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.dstack([disc, disc // 2, disc])).save(file, "JPEG", comment=word.encode())
    return file.getvalue()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The PYTHONPATH of decoding processes that heed the words of HARM."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(HARM, encoding="utf-8")
    return os.pathsep.join([str(folder), str(REPOSITORY)])


@pytest.fixture
def harm(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding processes that start from now on heed the words of HARM."""
    monkeypatch.setenv("PYTHONPATH", site)


@pytest.fixture(scope="module")
def harmed() -> Iterator[Decoder]:
    """One for all the tests that harm it: what one does to it must not matter to the next."""
    made = Decoder(replace(QUICK, seconds=1.0), most=2)
    yield made
    made.close()


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    made = Decoder(QUICK, most=2)
    yield made
    made.close()


@pytest.fixture
def patient() -> Iterator[Decoder]:
    made = Decoder(replace(QUICK, seconds=20), most=2)
    yield made
    made.close()


linux = pytest.mark.skipif(sys.platform != "linux", reason="the harm is written for Linux")


@linux
@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("SEGFAULT", "damaged image: the decoder crashed on it (signal 11)"),
        ("EXIT", "damaged image: the decoder crashed on it (status 0)"),
        ("SLEEP", "takes too long to decode: more than 1 s (labref.toml, [decoding] seconds)"),
        ("DEADLOCK", "takes too long to decode: more than 1 s (labref.toml, [decoding] seconds)"),
        ("EAT", "takes too much memory to decode: more than 256 MB (labref.toml, [decoding] memory_megabytes)"),
        ("RAISE", "damaged image: cannot be used (RuntimeError while it was prepared)"),
    ],
)
def test_a_picture_that_harms_its_decoder_costs_that_picture_and_is_told_why(
    harm: None, harmed: Decoder, word: str, reason: str
) -> None:
    assert harmed.examine(jpeg()).crop.shape == (256, 256, 3)
    with pytest.raises(DecodingLimitError) as caught:
        harmed.examine(jpeg(word))
    assert str(caught.value) == reason
    assert harmed.examine(jpeg()).crop.shape == (256, 256, 3)


def test_a_decoding_process_that_is_not_ready_in_time_is_no_damaged_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def start_child(*_: str, errors: Any, **__: Any) -> subprocess.Popen[bytes]:
        sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
        return subprocess.Popen(sleep, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)

    monkeypatch.setattr(decoding, "start_child", start_child)
    monkeypatch.setattr(decoding, "_START_SECONDS", 1.0)
    with pytest.raises(OSError, match=r"a decoding process did not start \(it was not ready after 1 s\)"):
        Decoder(QUICK, most=1).examine(jpeg())


@linux
def test_memory_is_watched_where_the_system_limits_none(
    harm: None, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WITHOUT_RLIMIT", "1")
    with pytest.raises(DecodingLimitError, match="too much memory"):
        decoder.examine(jpeg("EAT"))


def test_a_picture_of_many_scans_ends_by_time_and_no_other_waits_for_it() -> None:
    decoder = Decoder(replace(QUICK, seconds=4))  # far longer than a second process takes to start
    decoder.examine(jpeg())
    failed: list[Exception] = []

    def ask_for_endless() -> None:
        try:
            decoder.examine(endless())
        except Exception as error:
            failed.append(error)

    asking = threading.Thread(target=ask_for_endless)
    asking.start()
    decoder.examine(jpeg())
    assert not failed, "the good one came through beside it"
    asking.join(60)
    assert isinstance(failed[0], DecodingLimitError)
    assert "too long" in str(failed[0])
    decoder.close()


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (9000, 9000, "too large: 9000×9000 px, at most 40 million pixels"),
        (6000, 5000, "too much memory"),
    ],
)
def test_a_bomb_of_pixels_is_refused_by_its_size_or_its_memory(width: int, height: int, reason: str) -> None:
    data = huge_png(width, height)
    assert len(data) < 400_000
    decoder = Decoder(replace(QUICK, seconds=10))
    with pytest.raises(DecodingLimitError, match=reason):
        decoder.examine(data)
    decoder.close()


@linux
def test_a_sound_picture_that_got_no_memory_is_not_called_damaged(decoder: Decoder) -> None:
    decoder.examine(jpeg())
    with pytest.raises(DecodingLimitError, match="too much memory"):
        decoder.examine(many_scans(1, 5600))


def test_a_decoding_process_gives_what_would_be_made_here(real_cells: Path, decoder: Decoder) -> None:
    for folder in ("pbc", "chula", "bccd", "bonemarrow", "raabin"):
        data = next((real_cells / folder).rglob("*.jpg")).read_bytes()
        there, here = decoder.examine(data), TASKS["examine"](data, 10**8)
        assert np.array_equal(there.crop, here.crop)
        assert np.array_equal(there.measures, here.measures)
        assert (there.fingerprints, there.landmarks) == (here.fingerprints, here.landmarks)
        cell = decoder.search(data).cell
        assert np.array_equal(cell.crop, decoder.prepare(data).crop)
        assert np.array_equal(decoder.decode(data), TASKS["decode"](data, 10**8))
        assert np.array_equal(decoder.view(data).thumb, decoder.search(data).view.thumb)
    with pytest.raises(UnreadableImageError, match="not an image") as caught:
        decoder.examine(b"text")
    assert type(caught.value) is UnreadableImageError, "it may still become one"


def processes(decoder: Decoder) -> list[psutil.Process]:
    found = [child for child in psutil.Process().children() if "labref.cells.decoding_worker" in child.cmdline()]
    return [child for child in found if json.dumps(QUICK.seconds) in child.cmdline()[-1]]


def test_a_process_that_somebody_else_kills_costs_no_picture(decoder: Decoder) -> None:
    decoder.examine(jpeg())
    (idle,) = processes(decoder)
    idle.kill()
    idle.wait(10)
    assert decoder.examine(jpeg()).size == (128, 128)
    (busy,) = processes(decoder)
    busy.suspend()
    killing = threading.Timer(0.2, busy.kill)
    killing.start()
    assert decoder.examine(jpeg()).size == (128, 128)
    killing.join()


@pytest.mark.parametrize("name", ["labref-decoding-start", "labref-decoding"])
def test_where_no_thread_starts_nobody_waits_for_ever(
    patient: Decoder, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name == name:
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(OSError, match="can't start new thread"):
        patient.examine(jpeg())
    monkeypatch.undo()
    assert patient.examine(jpeg()).size == (128, 128)


def test_a_process_that_cannot_be_watched_is_ended(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(pid: int) -> None:
        raise psutil.NoSuchProcess(pid)

    monkeypatch.setattr(psutil, "Process", lost)
    with pytest.raises(OSError, match="NoSuchProcess"):
        decoder.examine(jpeg())
    monkeypatch.undo()
    assert not processes(decoder)


def test_who_waits_for_a_process_can_be_stopped(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "_grow", lambda: None)
    with pytest.raises(StoppedError):
        decoder.examine(jpeg(), stopped=lambda: True)


def test_a_process_that_is_killed_just_after_its_answer_gets_no_other_picture(
    patient: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = _Worker._receive

    def receive(worker: _Worker) -> tuple[int, bytes]:
        answer = real(worker)
        worker.stop()
        return answer

    monkeypatch.setattr(_Worker, "_receive", receive)
    assert patient.examine(jpeg()).size == (128, 128)
    assert (patient._idle, patient._count) == ([], 0)


def test_the_check_of_latents_decodes_in_processes_that_can_be_ended() -> None:
    asked: list[bytes] = []

    def prepare(data: bytes) -> Any:
        asked.append(data)
        return SimpleNamespace(crop=None)

    networks = SimpleNamespace(
        bundle=SimpleNamespace(manifest=SimpleNamespace(golden_tolerance=1.0)),
        describe=lambda crops: [None] * len(crops),
    )
    store = SimpleNamespace(
        sample=lambda most: [1],
        cells=lambda ids: {1: SimpleNamespace(digest="d")},
        latents=lambda ids, bundle, from_disk: {1: np.zeros(2)} if ids else {},
        queues=SimpleNamespace(predictions=lambda bundle, ids: {}),
        maps=SimpleNamespace(in_space=lambda bundle: []),
    )
    lab = SimpleNamespace(read_image=lambda digest: b"kept", decoder=SimpleNamespace(prepare=prepare))
    context: Any = SimpleNamespace(store=store, embedder=lambda: networks, lab=lab)
    list(_compare_latents(context, {}, "b", 1))
    assert asked == [b"kept"]


def test_processes_that_nobody_needs_any_more_are_ended_but_for_one(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labref.cells.decoding._SPARE_SECONDS", 0.5)
    monkeypatch.setattr("labref.cells.decoding._LOOK_SECONDS", 0.1)
    before = set(psutil.Process().children())

    def processes() -> set[psutil.Process]:
        return {child for child in psutil.Process().children() if child not in before}

    counts = set()

    def together() -> None:
        both = threading.Barrier(2)

        def decode(low: bool) -> None:
            if low and sys.platform == "linux":  # a job of the agent: its process serves no other
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)
            both.wait()
            decoder.decode(jpeg())
            counts.add(decoder._count)

        with ThreadPoolExecutor(2) as threads:
            list(threads.map(decode, (False, True)))

    for _ in range(3):  # those that were ended are started again
        together()
    wait_until(lambda: len(processes()) == 1, 30)
    (kept,) = processes()
    assert decoder._count == 1
    if sys.platform == "linux":
        assert 2 in counts
        assert kept.nice() == psutil.Process().nice(), "whoever comes next need not start one"
    wait_until(lambda: not decoder._watching, 10)
    assert decoder.decode(jpeg()).shape == (128, 128, 3)
    assert processes() == {kept}
    time.sleep(1.0)
    assert processes() == {kept} and kept.is_running()


def test_processes_end_with_the_decoder_and_with_their_parent(decoder: Decoder, tmp_path: Path) -> None:
    decoder.examine(jpeg())
    (own,) = processes(decoder)
    decoder.close()
    assert not own.is_running()
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys\n"
        "from labref.cells.decoding import Decoder, Limits\n"
        "decoder = Decoder(Limits(seconds=1, memory_megabytes=256, megapixels=40))\n"
        "decoder.examine(open(sys.argv[1], 'rb').read())\n"
        "print(decoder._idle[0]._process.pid, flush=True)\n"
        "os._exit(0)\n",  # nothing is closed
        encoding="utf-8",
    )
    (tmp_path / "a.jpg").write_bytes(jpeg())
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "a.jpg")],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    wait_until(lambda: not psutil.pid_exists(int(done.stdout)), 30)


def test_a_picture_in_work_is_given_up_where_its_asker_has_to_end(decoder: Decoder) -> None:
    slow = Decoder(Limits(seconds=100, memory_megabytes=1024, megapixels=40))
    slow.examine(jpeg())
    stopped = threading.Event()
    threading.Timer(0.3, stopped.set).start()
    started = time.monotonic()
    with pytest.raises(StoppedError):
        slow.examine(endless(), stopped=stopped.is_set)

    def leave_off() -> None:
        wait_until(lambda: slow._busy)
        time.sleep(0.2)
        slow.leave_off()

    threading.Thread(target=leave_off).start()
    with pytest.raises(StoppedError):
        slow.examine(endless())
    assert time.monotonic() - started < 30
    slow.close()


# the lab


@pytest.fixture
def export(tmp_path: Path, drawn_cells: Path) -> Path:
    """Six drawn cells of a watched folder."""
    folder = tmp_path / "export"
    folder.mkdir()
    for number, path in enumerate(sorted(drawn_cells.rglob("*.jpg"))[::6][:6]):
        shutil.copy2(path, folder / f"good{number}.jpg")
    return folder


def within(lab: Lab, **limits: Any) -> Lab:
    """The lab with other limits of decoding."""
    values = lab.config.decoding.model_dump() | limits
    return replace(lab, config=lab.config.model_copy(update={"decoding": DecodingConfig(**values)}))


@pytest.mark.slow
def test_hostile_pictures_are_rejected_by_name_once_and_all_others_are_stored(
    tmp_path: Path, export: Path, starter: Bundle
) -> None:
    (export / "a0.jpg").write_bytes(many_scans(2000, 2000))
    (export / "a1.jpg").write_bytes(many_scans(2000, 2000, shade=90))
    (export / "a2.png").write_bytes(huge_png(6000, 6000))
    (export / "a3.png").write_bytes(huge_png(9000, 9000))
    lab = within(make_lab(tmp_path / "lab", export, starter), seconds=2, memory_megabytes=256)
    summary = once(lab)
    assert (summary.stored + summary.possible_duplicate + summary.duplicate, summary.rejected) == (6, 4)
    reasons = {name: row["reason"] for name, row in ledger(lab).items() if row["outcome"] == "rejected"}
    assert {name: reason.split(":")[0] for name, reason in reasons.items()} == {
        "a0.jpg": "takes too long to decode",
        "a1.jpg": "takes too long to decode",
        "a2.png": "takes too much memory to decode",
        "a3.png": "too large",
    }
    started = time.monotonic()
    again = once(lab)
    assert (again.unchanged, again.rejected) == (10, 0), "they are not tried again"
    assert time.monotonic() - started < 10


@pytest.mark.slow
@linux
def test_pictures_that_crash_the_decoder_leave_the_agent_alive_at_every_start(
    harm: None, tmp_path: Path, export: Path, starter: Bundle
) -> None:
    for word in ("SEGFAULT", "EXIT", "RAISE"):
        (export / f"{word}.jpg").write_bytes(jpeg(word))
    lab = make_lab(tmp_path / "lab", export, starter)
    for _ in range(2):
        with running_agent(lab) as agent:
            wait_until(lambda: len(ledger(lab)) == 9)
            with pytest.raises(UnreadableImageError, match="the decoder crashed on it"):
                ask(lab, jpeg("SEGFAULT"), name="x")
            assert ask(lab, jpeg(), name="x")["references"]
            assert agent.poll() is None
    rejected = {name for name, row in ledger(lab).items() if row["outcome"] == "rejected"}
    assert rejected == {"SEGFAULT.jpg", "EXIT.jpg", "RAISE.jpg"}


@pytest.mark.slow
def test_an_agent_in_endless_pictures_stores_the_others_answers_and_ends_when_asked(
    tmp_path: Path, export: Path, starter: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    (export / "a.jpg").write_bytes(endless())
    monkeypatch.setenv("LABREF_DECODING__SECONDS", "300")
    monkeypatch.setenv("LABREF_AGENT__READERS", "2")
    lab = make_lab(tmp_path / "lab", export, starter)
    passed = ("LABREF_DECODING__SECONDS", "LABREF_AGENT__READERS")
    with running_agent(lab, passed=passed) as agent:
        wait_until(lambda: len(ledger(lab)) == 6)
        assert ask(lab, jpeg(), name="x")["references"]

        def ask_for_endless() -> None:
            with contextlib.suppress(LabrefError):
                ask(lab, endless(), name="x")

        asking = threading.Thread(target=ask_for_endless)
        asking.start()
        time.sleep(1.0)
        started = time.monotonic()
        agent.send_signal(signal.CTRL_BREAK_EVENT if sys.platform == "win32" else signal.SIGTERM)
        agent.wait(timeout=60)
        assert time.monotonic() - started < 10
        asking.join(30)
    assert "a.jpg" not in ledger(lab), "nothing is known of it yet"


@pytest.mark.slow
def test_a_question_is_refused_with_the_reason_with_an_agent_and_without(
    tmp_path: Path, export: Path, starter: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab(tmp_path / "lab", export, starter)
    once(lab)
    slow = tmp_path / "slow.jpg"
    slow.write_bytes(many_scans(2000, 2000))
    monkeypatch.setenv("LABREF_DECODING__SECONDS", "0.5")
    alone = labref_process("query", slow, "--lab", lab.folder, passed=["LABREF_DECODING__SECONDS"])
    errors = alone.communicate(timeout=120)[1]
    assert alone.returncode == 1
    assert "takes too long to decode" in errors
    assert "Traceback" not in errors
    with running_agent(lab, passed=["LABREF_DECODING__SECONDS"]):
        record = read_agent_record(lab)
        assert record is not None
        connection = http.client.HTTPConnection("127.0.0.1", record.port, timeout=60)
        connection.request(
            "POST", "/api/v1/query", body=slow.read_bytes(), headers={"Authorization": f"Bearer {lab.token()}"}
        )
        response = connection.getresponse()
        assert response.status == 422
        assert "takes too long to decode" in json.loads(response.read())["error"]["message"]
        connection.close()


def test_kept_bytes_that_an_older_labref_took_in_stop_no_background_task(
    tmp_path: Path, export: Path, drawn_cells: Path, starter: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    (export / "slow.jpg").write_bytes(endless())
    lab = make_lab(tmp_path / "lab", export, starter)
    real, another = Decoder.examine, sorted(drawn_cells.rglob("*.jpg"))[1].read_bytes()

    def without_limits(self: Decoder, data: bytes, **named: Any) -> Any:
        return real(self, another if data == endless() else data, **named)

    monkeypatch.setattr(Decoder, "examine", without_limits)
    assert once(lab).rejected == 0
    monkeypatch.undo()
    strict = within(lab, seconds=2)
    (written,) = [row for row in run(strict, "store.export", target=str(tmp_path / "x.duckdb")) if "target" in row]
    assert (written["cells"], written["without_thumbnail"]) == (7, 1)


@pytest.mark.parametrize(
    ("reason", "again"),
    [
        (f"{_TOO_LONG}: more than 10 s (labref.toml, [decoding] seconds)", True),
        (f"{_TOO_MUCH}: more than 1024 MB (labref.toml, [decoding] memory_megabytes)", True),
        (f"{_CRASHED} (signal 9)", True),
        ("too large: 9000×9000 px, at most 40 million pixels are decoded (a decompression bomb?)", False),
        ("too large: a file of 300 MB, at most 256 MB are read", False),
        ("damaged image: cannot be used (RuntimeError while it was prepared)", False),
    ],
)
def test_a_picture_refused_for_time_or_memory_is_tried_again_for_a_day(reason: str, again: bool) -> None:
    clock = SimpleNamespace(now=1e9)
    limits = Limits(seconds=10, memory_megabytes=1024, megapixels=40)
    running, started = (Retries(limits, lambda: clock.now) for _ in range(2))
    running.note("a", reason)
    started.recall("a", reason, clock.now)
    for retries in (running, started):
        clock.now = 1e9
        assert not retries.take("a")
        tries = 0
        while clock.now < 1e9 + 3 * 86_400:
            tries += retries.take("a")
            clock.now += 60
        assert tries == (24 if again else 0)
        retries.note("a", None)
        assert not retries.take("a")


@pytest.mark.parametrize(
    ("reason", "limit"),
    [
        (f"{_TOO_LONG}: more than 10 s (labref.toml, [decoding] seconds)", {"seconds": 30.0}),
        (
            f"{_TOO_MUCH}: more than 1024 MB (labref.toml, [decoding] memory_megabytes)",
            {"memory_megabytes": 2048},
        ),
        ("too large: 9000×9000 px, at most 40 million pixels are decoded", {"megapixels": 90.0}),
    ],
)
def test_a_picture_refused_by_a_limit_that_was_changed_is_tried_again(reason: str, limit: dict[str, Any]) -> None:
    same = Limits(seconds=10.0, memory_megabytes=1024, megapixels=40.0)
    long_ago = 1e6
    for limits, tried in ((same, False), (replace(same, **limit), True)):
        retries = Retries(limits)
        retries.recall("a", reason, long_ago)
        assert retries.take("a") is tried
        assert not retries.take("a"), "not again at once"


def test_a_lab_tries_a_picture_again_that_got_no_memory(
    tmp_path: Path, export: Path, starter: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in sorted(export.iterdir())[2:]:
        path.unlink()
    poor = (export / "good0.jpg").read_bytes()
    real = Decoder.examine

    def examine(self: Decoder, data: bytes, **named: Any) -> Any:
        if data == poor:
            raise DecodingLimitError(f"{_TOO_MUCH}: more than 1024 MB (labref.toml, [decoding] memory_megabytes)")
        return real(self, data, **named)

    monkeypatch.setattr(Decoder, "examine", examine)
    lab = make_lab(tmp_path / "lab", export, starter)
    once(lab)
    assert sorted(row["outcome"] for row in ledger(lab).values()) == ["rejected", "stored"]
    monkeypatch.setattr(Decoder, "examine", real)
    assert once(lab).unchanged == 2, "not at once"
    monkeypatch.setattr("labref.agent.retries._FIRST_SECONDS", 0.0)
    assert (again := once(lab)).unchanged == 1 and again.rejected == 0
    assert "rejected" not in {row["outcome"] for row in ledger(lab).values()}


# the networks


class Picky(Embedder):
    """An embedder whose networks fail on a batch with a dark upper left pixel in it, as `how` says."""

    how = "raise"

    def embed(self, crops: np.ndarray) -> Any:
        made = super().embed(crops)
        if (crops[:, 0, 0, 0] == 0).any():
            if self.how == "raise":
                raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION")
            made.latents[:] = np.nan  # as where one number scales a whole batch
        return made


@pytest.fixture
def picky(embedder: Embedder) -> Picky:
    made = object.__new__(Picky)
    made.__dict__.update(embedder.__dict__)
    return made


@pytest.mark.parametrize(("how", "reason"), [("raise", "cannot be run on it (RuntimeError)"), ("nan", "finite")])
def test_a_crop_that_the_networks_fail_on_costs_no_other_its_place(
    picky: Picky, drawn_cells: Path, how: str, reason: str
) -> None:
    picky.how = how
    crops = [TASKS["prepare"](path.read_bytes(), 10**8).crop for path in sorted(drawn_cells.rglob("*.jpg"))[:5]]
    bad = crops[2].copy()
    bad[0, 0] = 0
    made = describe_each(picky, [*crops[:2], bad, *crops[3:]])
    assert [isinstance(said, Described) for said in made] == [True, True, False, True, True]
    assert reason in str(made[2])
    alone = describe_each(picky, [bad])
    assert reason in str(alone[0])


def test_where_the_networks_fail_on_everything_no_cell_is_blamed(picky: Picky, drawn_cells: Path) -> None:
    def fail(crops: np.ndarray) -> Any:
        raise RuntimeError("CUDA error 700")

    picky.embed = fail  # type: ignore[method-assign]
    crop = TASKS["prepare"](next(drawn_cells.rglob("*.jpg")).read_bytes(), 10**8).crop
    with pytest.raises(BundleError, match="can no longer be run: RuntimeError"):
        describe_each(picky, [crop, crop])


def add_bad(export: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> bytes:
    """Write bad.jpg, whose crop makes the networks raise this; returns its bytes."""
    real, bad = Embedder.embed, jpeg()
    crop = TASKS["prepare"](bad, 10**8).crop
    (export / "bad.jpg").write_bytes(bad)

    def embed(self: Embedder, crops: np.ndarray) -> Any:
        if any(np.array_equal(crop, one) for one in crops):
            raise error
        return real(self, crops)

    monkeypatch.setattr(Embedder, "embed", embed)
    return bad


def test_the_agent_lives_on_after_a_crop_that_the_networks_fail_on(
    tmp_path: Path, export: Path, starter: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_bad(export, monkeypatch, RuntimeError("[ONNXRuntimeError] : 1 : FAIL"))
    lab = make_lab(tmp_path / "lab", export, starter)
    for _ in range(2):
        once(lab)
        rows = ledger(lab)
        assert [name for name, row in rows.items() if row["outcome"] == "rejected"] == ["bad.jpg"]
        assert "the networks cannot be run on it" in rows["bad.jpg"]["reason"]
        assert len(rows) == 7
    monkeypatch.undo()
    assert once(lab).rejected == 0, "the file is sound, and taken in where the networks can be run on it"


def crash_is_written(file: Path) -> None:
    """As Python's fault handler does in a process that has no other, as pytest's has."""
    file.with_name("crash.txt").write_text("Fatal Python error: Segmentation fault\n")


class Died(BaseException):
    """Stands in for a crash of ONNX Runtime: nothing in the process goes on as after an error."""


def test_a_crop_on_which_the_agent_dies_is_rejected_by_the_third_start(
    tmp_path: Path, export: Path, starter: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = add_bad(export, monkeypatch, Died())
    lab = make_lab(tmp_path / "lab", export, starter)
    for _ in range(2):
        with pytest.raises(AgentError, match="Died"):
            once(lab)
        crash_is_written(lab.folder / "logs" / "embedding.json")
    once(lab)
    rows = ledger(lab)
    assert [name for name, row in rows.items() if row["outcome"] == "rejected"] == ["bad.jpg"]
    assert rows["bad.jpg"]["reason"].startswith("the agent crashed twice while the networks ran on it")
    assert len(rows) == 7
    assert once(lab).unchanged == 7, "it is not tried again"
    (export / "a copy.jpg").write_bytes(bad)
    once(lab)
    assert ledger(lab)["a copy.jpg"]["outcome"] == "rejected"


def test_who_was_at_work_when_an_agent_crashed_goes_alone_and_is_cleared_by_that(tmp_path: Path) -> None:
    file = tmp_path / "embedding.json"
    with pytest.raises(Died), Suspects(file).at_work(["a", "b"]):
        raise Died
    crash_is_written(file)
    again = Suspects(file)
    assert again.order(["a", "x", "b", "y"]) == ([[1, 3], [0], [2]], [])
    with again.at_work(["b"]):
        pass
    with pytest.raises(ValueError, match="foreseen"), again.at_work(["a"]):
        raise ValueError("foreseen")
    with pytest.raises(Died), again.at_work(["a"]):
        raise Died
    crash_is_written(file)
    for _ in range(2):  # an agent that only starts and ends changes nothing
        assert Suspects(file).order(["a", "b"]) == ([[1]], [0])


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("by", "suspected"), [("SIGSEGV", True), ("SIGABRT", True), ("SIGKILL", False)])
def test_who_was_at_work_when_an_agent_was_killed_from_outside_is_not_suspected(
    tmp_path: Path, by: str, suspected: bool
) -> None:
    file = tmp_path / "embedding.json"
    for _ in range(3):
        killed = process_of_tests("killed_at_work", str(file), by)
        errors = killed.communicate()[1]
        assert killed.returncode == -getattr(signal, by), errors
    together = ([[0, 1]], [])
    assert Suspects(file).order(["a", "b"]) == (([], [0, 1]) if suspected else together)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[]",
        "{}",
        '{"at_work": 3, "deaths": {}}',
        '{"at_work": [], "deaths": []}',
        '{"at_work": ["a"], "deaths": {"a": "x"}}',
        '{"at_work": null, "deaths": {"a": 9}}',
        "[" * 9000,
        "\udcff",
    ],
)
def test_a_damaged_record_of_what_was_at_work_blames_nobody(tmp_path: Path, text: str) -> None:
    file = tmp_path / "embedding.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    suspects = Suspects(file)
    assert suspects.order(["a"]) == ([[0]], [])
    with suspects.at_work(["a"]):
        assert json.loads(file.read_text())["at_work"] == ["a"]
    with Suspects(tmp_path / "no such folder" / "x").at_work(["a"]):
        pass


# an agent that is stuck


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name", "says", "end_seconds"),
    [
        ("lab.suspects", "describe_each", "a batch of cells is still in the networks", _END_SECONDS),
        ("agent.pipeline", "read_cell", "a file is still being read", 2.0),
        ("agent.service", "scan", "the watched folders do not answer", 2.0),
    ],
)
def test_a_stuck_agent_is_not_ok_and_still_ends_when_asked(
    tmp_path: Path, export: Path, starter: Bundle, module: str, name: str, says: str, end_seconds: float
) -> None:
    lab = make_lab(tmp_path / "lab", export, starter)
    words = ("agent", "--lab", str(lab.folder))
    agent = process_of_tests("stuck_agent", module, name, str(end_seconds), *words, LABREF_AGENT__STALLED_SECONDS="1")
    try:

        def health() -> str | None:
            record = read_agent_record(lab)
            if record is None or AgentClient.find(lab) is None:
                return None
            connection = http.client.HTTPConnection("127.0.0.1", record.port, timeout=30)
            connection.request("GET", "/health")
            found = json.loads(connection.getresponse().read())["status"]
            connection.close()
            return str(found)

        wait_until(lambda: health() == "no progress", 90)
        # a busy computer may be slow with something else before
        wait_until(lambda: says in (status(lab)["agent"]["problem"] or ""), 90)
        started = time.monotonic()
        agent.send_signal(signal.CTRL_BREAK_EVENT if sys.platform == "win32" else signal.SIGTERM)
        errors = agent.communicate(timeout=60)[1]
        assert time.monotonic() - started < 10
        assert agent.returncode == 1
        assert "ended by force; what is stored is whole" in errors
    finally:
        if agent.poll() is None:
            agent.kill()
            agent.communicate()
    assert once(lab).rejected == 0
    assert len(ledger(lab)) == 6, "the next pass finds all of it"


def test_a_picture_on_which_re_embedding_crashes_is_set_aside_by_name_and_the_others_go_on(
    tmp_path: Path, export: Path, starter: Bundle, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in sorted(export.iterdir())[3:]:
        path.unlink()
    (export / "bad.jpg").write_bytes(jpeg())
    lab = make_lab(tmp_path / "lab", export, starter)
    once(lab)
    cells = {row["cell_id"] for row in ledger(lab).values()}
    culprit = ledger(lab)["bad.jpg"]["cell_id"]
    add_bad(export, monkeypatch, Died())

    def no(*_: object) -> Any:
        raise AssertionError("not asked for here")

    with lab.open_store() as store:
        store.forget_latents(cells, bundle=starter.digest)
        for _ in range(2):
            suspects = Suspects(lab.suspects_file)  # of the next process
            context = Context(lab, store, no, None, no, suspects=lambda made=suspects: made)
            with pytest.raises(Died):
                list(catch_up(context, embedder, stopped=lambda: False))
            crash_is_written(lab.suspects_file)
        suspects = Suspects(lab.suspects_file)
        context = Context(lab, store, no, None, no, suspects=lambda: suspects)
        rows = list(catch_up(context, embedder, stopped=lambda: False))
        assert rows[-1]["progress"]["done"] == rows[-1]["progress"]["total"] == len(cells)
        assert set(store.latents(list(cells), bundle=starter.digest)) == cells - {culprit}
        assert store.changes.failures(starter.digest)[culprit].startswith("labref crashed twice")
        assert not list(catch_up(context, embedder, stopped=lambda: False)), "nothing is left to do"


def test_two_threads_have_cells_at_work_side_by_side(tmp_path: Path) -> None:
    suspects = Suspects(tmp_path / "embedding.json")
    with pytest.raises(Died), suspects.at_work(["new"]):
        with suspects.at_work(["stored"]):
            pass
        with suspects.at_work(["another"]):
            raise Died
    crash_is_written(tmp_path / "embedding.json")
    assert Suspects(tmp_path / "embedding.json").order(["new", "stored", "another"]) == ([[1], [0], [2]], [])
