"""The agent at work, as a lab meets it: passes, watching, asking, ending, and what happens when the disk is full."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labref.bundles.bundle import Bundle
from labref.errors import AgentError, LabrefError, UnreadableImageError
from labref.lab import Lab
from labref.web.client import AgentClient, read_agent_record
from labref.web.desk import Desk, ask, ledger_rows, status
from tests.benchmarks.exports import labref_process
from tests.benchmarks.ingest import measure
from tests.benchmarks.kill import kill_again_and_again
from tests.labs import ledger, make_lab, once, running_agent, wait_until


def real_export(real_cells: Path, folder: Path, n: int) -> list[Path]:
    """`n` real cells of each of the eight classes, in class folders."""
    copied = []
    for source in sorted(path for path in (real_cells / "pbc").iterdir() if path.is_dir()):
        target = folder / source.name
        target.mkdir(parents=True)
        for image in sorted(source.iterdir())[:n]:
            copied.append(Path(shutil.copy2(image, target)))
    return copied


@pytest.fixture
def export(tmp_path: Path, drawn_cells: Path) -> Path:
    """A flat export of eight drawn cells."""
    folder = tmp_path / "export"
    folder.mkdir()
    for number, path in enumerate(sorted(drawn_cells.rglob("*.jpg"))[::4]):
        shutil.copy(path, folder / f"{number}.jpg")
    return folder


@pytest.fixture
def lab(tmp_path: Path, export: Path, starter: Bundle) -> Lab:
    return make_lab(tmp_path / "lab", export, starter)


def more(drawn_cells: Path, export: Path, number: int) -> Path:
    """One more drawn cell for the export, a different one for each number."""
    path = export / f"more-{number}.jpg"
    shutil.copy(sorted(drawn_cells.rglob("*.jpg"))[4 * number + 1], path)
    return path


def test_real_cells_are_taken_in_whole_and_a_second_pass_embeds_nothing(
    real_cells: Path, tmp_path: Path, starter: Bundle
) -> None:
    files = real_export(real_cells, tmp_path / "export", 6)
    lab = make_lab(tmp_path / "lab", tmp_path / "export", starter, analyser="DM96")
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ctime_ns) for path in (tmp_path / "export").rglob("*")}
    first = once(lab)
    assert (first.found, first.embedded, first.rejected) == (len(files), len(files), 0)
    rows = ledger(lab)
    assert rows.keys() == {path.relative_to(tmp_path / "export").as_posix() for path in files}
    for name, row in rows.items():
        assert (row["label"], row["label_source"]) == (Path(name).parent.name, "analyser")
        data = (tmp_path / "export" / name).read_bytes()
        assert row["cell_id"] == hashlib.sha256(data).hexdigest()[:16]
        assert lab.kept_image(row["cell_id"]) == data
    second = once(lab)
    assert (second.found, second.unchanged, second.embedded) == (len(files), len(files), 0)
    assert ledger(lab) == rows
    after = {path: (path.stat().st_mtime_ns, path.stat().st_ctime_ns) for path in (tmp_path / "export").rglob("*")}
    assert after == before, "the export folder is never written to"


def test_the_same_bytes_elsewhere_are_one_cell_that_a_person_s_copy_names(
    tmp_path: Path, drawn_cells: Path, starter: Bundle
) -> None:
    export = tmp_path / "export"
    unsigned, signed = export / "P1/Unsigned slides/S1_001.jpg", export / "P1/Signed slides/Monocyte/MO_1.jpg"
    for path in (unsigned, signed):
        path.parent.mkdir(parents=True)
    shutil.copy(next((drawn_cells / "monocyte").iterdir()), unsigned)
    lab = make_lab(tmp_path / "lab", export, starter)
    assert once(lab).embedded == 1
    shutil.copy(unsigned, signed)
    summary = once(lab)
    assert (summary.embedded, summary.duplicate, summary.unchanged) == (0, 1, 1)
    with lab.open_store() as store:
        (row,) = store.ledger(outcome="duplicate")
        cell = store.cell(row.cell_id or "")
        assert cell is not None
        assert (cell.label, cell.label_source, cell.slide) == ("monocyte", "reviewed", "P1")
        assert store.counts().cells == 1


def test_a_lab_inside_the_export_folder_is_not_taken_for_it(tmp_path: Path, drawn_cells: Path, starter: Bundle) -> None:
    cell = next(drawn_cells.rglob("*.jpg"))
    shutil.copy(cell, tmp_path / "a.jpg")
    lab = make_lab(tmp_path / "lab", tmp_path, starter)
    shutil.copy(cell, lab.folder / "not an export.jpg")
    shutil.copy(cell, lab.images / "b.jpg")
    assert once(lab).found == 1
    assert once(lab).found == 1


def test_an_export_folder_inside_the_lab_is_taken_in(tmp_path: Path, drawn_cells: Path, starter: Bundle) -> None:
    export = tmp_path / "lab" / "incoming"
    export.mkdir(parents=True)
    shutil.copy(next(drawn_cells.rglob("*.jpg")), export / "a.jpg")
    lab = make_lab(tmp_path / "lab", export, starter)
    assert once(lab).stored == 1


def test_a_pass_over_a_folder_that_is_not_there_fails_and_loses_nothing(lab: Lab, export: Path) -> None:
    once(lab)
    rows = ledger(lab)
    export.rename(export.with_name("away"))
    with pytest.raises(AgentError, match="could not be read"):
        once(lab)
    export.with_name("away").rename(export)
    assert once(lab).unchanged == len(rows)
    assert ledger(lab) == rows


def test_the_agent_watches_goes_on_when_its_folder_goes_and_ends_when_asked(
    lab: Lab, export: Path, drawn_cells: Path
) -> None:
    with running_agent(lab) as agent:
        wait_until(lambda: len(ledger(lab)) == 8)
        more(drawn_cells, export, 0)
        wait_until(lambda: "more-0.jpg" in ledger(lab))
        (export / "new folder").mkdir()
        more(drawn_cells, export / "new folder", 1)
        wait_until(lambda: "new folder/more-1.jpg" in ledger(lab))
        (export / "half.jpg").write_bytes((export / "0.jpg").read_bytes()[:2000])
        wait_until(lambda: "half.jpg" in ledger(lab))
        assert ledger(lab)["half.jpg"]["outcome"] == "rejected"
        shutil.copy(more(drawn_cells, export, 2), export / "half.jpg")
        wait_until(lambda: ledger(lab)["half.jpg"]["outcome"] != "rejected")

        export.rename(export.with_name("away"))
        wait_until(lambda: status(lab)["watch"][0]["how"] == "missing")
        more(drawn_cells, export.with_name("away"), 3)
        export.with_name("away").rename(export)
        wait_until(lambda: "more-3.jpg" in ledger(lab))
        assert len(ledger(lab)) == 13

        found = status(lab)
        assert found["agent"]["pid"] == agent.pid
        assert found["watch"][0]["how"] in ("events", "polling")
        agent.send_signal(signal.CTRL_BREAK_EVENT if sys.platform == "win32" else signal.SIGTERM)
        out, err = agent.communicate(timeout=60)
        assert (agent.returncode, err) == (0, "")
        assert json.loads(out)["embedded"] == found["agent"]["embedded"]
    assert not lab.agent_file.exists()
    assert status(lab)["agent"] is None
    assert len(ledger(lab)) == 13


def test_a_polled_folder_is_watched_too(lab: Lab, export: Path, drawn_cells: Path) -> None:
    with running_agent(lab, polling="true", poll_seconds=0.2):
        wait_until(lambda: len(ledger(lab)) == 8)
        more(drawn_cells, export, 0)
        wait_until(lambda: "more-0.jpg" in ledger(lab))
        assert status(lab)["watch"][0]["how"] == "polling"


def test_ctrl_c_in_the_middle_of_a_pass_ends_it_whole(tmp_path: Path, drawn_cells: Path, starter: Bundle) -> None:
    export = tmp_path / "export"
    shutil.copytree(drawn_cells, export)
    (export / "growing.jpg").write_bytes(b"\xff\xd8")  # waited for: the pass does not end by itself
    (export / "empty.jpg").write_bytes(b"")
    lab = make_lab(tmp_path / "lab", export, starter)
    agent = labref_process("agent", "--once", "--json", "--lab", lab.folder, complete_seconds=600, stable_seconds=0.1)
    try:
        wait_until(lambda: AgentClient.find(lab) is not None and len(ledger(lab)) == 32)
        agent.send_signal(signal.CTRL_BREAK_EVENT if sys.platform == "win32" else signal.SIGINT)
        out, err = agent.communicate(timeout=60)
    finally:
        agent.kill()
    assert (agent.returncode, err) == (0, "")
    assert json.loads(out)["interrupted"] is True
    assert len(ledger(lab)) == 32
    assert once(lab).unchanged == 32


def test_a_second_agent_is_refused_with_the_first_one_s_number(lab: Lab) -> None:
    with running_agent(lab) as agent:
        second = labref_process("agent", "--once", "--lab", lab.folder)
        out, err = second.communicate(timeout=60)
        assert (second.returncode, out) == (1, "")
        assert f"an agent (pid {agent.pid}, since 2" in err
        assert "already runs on this lab" in err
        assert AgentClient.find(lab) is not None, "the first one goes on"


def test_an_agent_s_leftover_record_misleads_nobody(lab: Lab) -> None:
    once(lab)
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0.2)
        port = other.getsockname()[1]
        record = {"pid": os.getpid(), "port": port, "started_at": "2024-01-01T00:00:00+00:00"}
        lab.agent_file.write_text(json.dumps(record))
    assert AgentClient.find(lab) is None
    assert status(lab)["agent"] is None
    assert once(lab).unchanged == 8
    assert not lab.agent_file.exists()


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, drawn_cells: Path, starter: Bundle) -> tuple[Lab, Path]:
    """A lab that holds all drawn cells but those of the last slide; those are in the folder beside."""
    folder = tmp_path_factory.mktemp("asked")
    export, queries = folder / "export", folder / "queries"
    shutil.copytree(drawn_cells, export)
    queries.mkdir()
    for path in sorted(export.glob("*/*_003.jpg")):
        path.rename(queries / f"{path.parent.name}.jpg")
    lab = make_lab(folder / "lab", export, starter)
    once(lab)
    return lab, queries


def answers(lab: Lab, images: list[Path], k: int = 8) -> list[dict[str, Any]]:
    with Desk.open(lab) as desk:
        return [desk.ask(path.read_bytes(), name=str(path), k=k) for path in images]


def without_timings(answer: dict[str, Any]) -> dict[str, Any]:
    assert answer["timings_ms"].keys() == {"prepare", "embed", "search", "total"}
    return {key: value for key, value in answer.items() if key != "timings_ms"}


@pytest.fixture(scope="module")
def agent_of_asked(asked: tuple[Lab, Path]) -> Iterator[tuple[list[dict[str, Any]], Lab, Path]]:
    """The answers without an agent, then an agent that runs."""
    lab, queries = asked
    images = [*sorted(queries.iterdir()), next(lab.watched[0].rglob("*.jpg"))]
    alone = [without_timings(answer) for answer in answers(lab, images)]
    with running_agent(lab):
        yield alone, lab, queries


def test_the_answer_is_the_same_with_and_without_an_agent(
    agent_of_asked: tuple[list[dict[str, Any]], Lab, Path],
) -> None:
    alone, lab, queries = agent_of_asked
    images = [*sorted(queries.iterdir()), next(lab.watched[0].rglob("*.jpg"))]
    asked = [without_timings(answer) for answer in answers(lab, images)]
    assert asked == alone
    assert json.loads(json.dumps(alone, allow_nan=False)) == alone


def test_an_answer_holds_all_that_is_documented(agent_of_asked: tuple[list[dict[str, Any]], Lab, Path]) -> None:
    alone, lab, queries = agent_of_asked
    answer = alone[0]
    assert answer["image"] == str(sorted(queries.iterdir())[0])
    assert answer["bundle"] == status(lab)["bundle"]["digest"]
    assert answer["predicted"]["probability"] == max(answer["probabilities"].values())
    assert answer["probabilities"][answer["predicted"]["label"]] == answer["predicted"]["probability"]
    assert answer["cell"].keys() == {"found", "row", "column", "moved", "others"}
    references = answer["references"]
    assert len(references) == 8
    assert references[0].keys() >= {
        "cell_id",
        "label",
        "label_source",
        "distance",
        "slide",
        "analyser",
        "captured_at",
        "path",
    }
    distances = [reference["distance"] for reference in references]
    assert distances == sorted(distances)
    assert answer["distribution"]["n"] == len(list(lab.watched[0].rglob("*.jpg")))
    assert sum(answer["distribution"]["weights"].values()) == pytest.approx(1.0)
    assert answer["novelty"].keys() == {"score", "is_novel", "p", "class_p", "class_label", "no_class", "words"}
    assert answer["map"] is None


def test_a_stored_image_is_not_its_own_reference(agent_of_asked: tuple[list[dict[str, Any]], Lab, Path]) -> None:
    alone, lab, _ = agent_of_asked
    itself = hashlib.sha256(next(lab.watched[0].rglob("*.jpg")).read_bytes()).hexdigest()[:16]
    assert alone[-1]["duplicate_of"] == itself
    assert itself not in [reference["cell_id"] for reference in alone[-1]["references"]]


@pytest.mark.parametrize("with_agent", [True, False])
def test_what_cannot_be_asked_fails_alike_with_and_without_an_agent(
    with_agent: bool, lab: Lab, agent_of_asked: tuple[list[dict[str, Any]], Lab, Path]
) -> None:
    where = agent_of_asked[1] if with_agent else lab
    image = next(agent_of_asked[2].iterdir()).read_bytes()
    with pytest.raises(UnreadableImageError, match="not an image"):
        ask(where, b"no image", name="x")
    with pytest.raises(UnreadableImageError, match="empty"):
        ask(where, b"", name="x")
    with pytest.raises(LabrefError, match="no map has been trained"):
        ask(where, image, name="x", by="map")
    with pytest.raises(LabrefError, match="1 to 100"):
        ask(where, image, name="x", k=0)


def test_an_empty_lab_answers_that_the_cell_is_new(lab: Lab, export: Path) -> None:
    answer = ask(lab, (export / "0.jpg").read_bytes(), name="caf\udce9.jpg")
    assert answer["references"] == []
    assert answer["distribution"] == {"n": 0, "weights": {}}
    assert (answer["novelty"]["score"], answer["novelty"]["is_novel"]) == (None, True)
    assert answer["novelty"]["words"] == "nothing here resembles this cell"
    assert (answer["prediction"]["shown"], answer["prediction"]["because"]) == (False, "nothing")
    assert answer["image"] == r"caf\xe9.jpg"


@pytest.mark.parametrize("with_agent", [True, False])
def test_the_ledger_can_be_asked_for_a_part(
    with_agent: bool, asked: tuple[Lab, Path], request: pytest.FixtureRequest, lab: Lab, export: Path
) -> None:
    if with_agent:
        request.getfixturevalue("agent_of_asked")
        lab = asked[0]
    else:
        once(lab)
    rows = list(ledger_rows(lab))
    assert rows[0].keys() == {
        "path",
        "outcome",
        "reason",
        "cell_id",
        "label",
        "label_source",
        "slide",
        "at",
        "duplicate_of",
        "conflict",
        "neighbours",
    }
    assert list(ledger_rows(lab, outcome="rejected")) == []
    assert list(ledger_rows(lab, path=rows[0]["path"])) == rows[:1]
    assert len(list(ledger_rows(lab, limit=3))) == 3


def request(
    lab: Lab, method: str, path: str, *, token: str | None = None, body: bytes | None = None, **headers: str
) -> tuple[int, bytes]:
    record = read_agent_record(lab)
    assert record is not None
    connection = http.client.HTTPConnection("127.0.0.1", record.port, timeout=30)
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    connection.request(method, path, body=body, headers=headers)
    response = connection.getresponse()
    found = response.status, response.read()
    connection.close()
    return found


def test_without_the_lab_s_token_nothing_of_the_lab_is_told(
    agent_of_asked: tuple[list[dict[str, Any]], Lab, Path],
) -> None:
    lab = agent_of_asked[1]
    for path in ("/api/v1/status", "/api/v1/ledger", "/api/v1/reference/0123456789abcdef/image", "/", "/nothing"):
        assert request(lab, "GET", path)[0] == 401
        assert request(lab, "GET", path, token="wrong")[0] == 401
    assert request(lab, "POST", "/api/v1/query", body=b"x")[0] == 401
    code, health = request(lab, "GET", "/health")
    assert (code, json.loads(health)["status"]) == (200, "ok")
    assert lab.token().encode() not in health
    code, metrics = request(lab, "GET", "/metrics")
    assert code == 200
    assert b"labref_cells_embedded_total" in metrics
    for secret in (lab.token(), "S0", "monocyte", "export", str(lab.folder)):
        assert secret.encode() not in metrics


def test_a_web_page_that_rebinds_its_name_to_this_computer_is_refused(
    agent_of_asked: tuple[list[dict[str, Any]], Lab, Path],
) -> None:
    lab = agent_of_asked[1]
    assert request(lab, "GET", "/api/v1/status", token=lab.token(), Host="evil.example:80")[0] == 421
    assert request(lab, "GET", "/api/v1/status", token=lab.token(), Host="localhost:1")[0] == 200


def test_the_original_bytes_of_a_reference_are_served(agent_of_asked: tuple[list[dict[str, Any]], Lab, Path]) -> None:
    alone, lab, _ = agent_of_asked
    reference = alone[0]["references"][0]
    code, data = request(lab, "GET", f"/api/v1/reference/{reference['cell_id']}/image", token=lab.token())
    assert (code, data) == (200, Path(reference["path"]).read_bytes())
    for nothing in ("0" * 16, "..%2F..%2Ftoken", "x"):
        assert request(lab, "GET", f"/api/v1/reference/{nothing}/image", token=lab.token())[0] == 404


@pytest.mark.parametrize("target", ["/api/v1/query?k=x", "/api/v1/query?k=1000", "/api/v1/query?by=eye"])
def test_a_wrong_question_is_answered_with_what_is_wrong(
    agent_of_asked: tuple[list[dict[str, Any]], Lab, Path], target: str
) -> None:
    lab = agent_of_asked[1]
    code, body = request(lab, "POST", target, token=lab.token(), body=b"x")
    assert code == 400
    assert json.loads(body)["error"]["kind"] == "LabrefError"


if sys.platform == "linux":  # elsewhere nobody can change another process' limits
    import resource

    def test_a_full_disk_is_said_and_nothing_is_lost_or_half_recorded(
        lab: Lab, export: Path, drawn_cells: Path
    ) -> None:
        # as on a full disk, no file can grow beyond some size: neither the store's nor a kept image
        least = min(path.stat().st_size for path in drawn_cells.rglob("*.jpg"))
        with running_agent(lab) as agent:
            wait_until(lambda: len(ledger(lab)) == 8)
            resource.prlimit(agent.pid, resource.RLIMIT_FSIZE, (least // 2, resource.RLIM_INFINITY))
            for number in range(6):
                more(drawn_cells, export, number)
            wait_until(lambda: status(lab)["agent"]["problem"] is not None)
            assert "File too large" in status(lab)["agent"]["problem"]
            assert json.loads(request(lab, "GET", "/health")[1])["status"] == "storage"
            assert len(ledger(lab)) == 8
            assert ask(lab, (export / "0.jpg").read_bytes(), name="x")["references"], "it still answers"

            resource.prlimit(agent.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            wait_until(lambda: len(ledger(lab)) == 14)
            assert status(lab)["agent"]["problem"] is None
        for row in ledger(lab).values():
            assert lab.kept_image(row["cell_id"]) is not None
        assert not [path for path in lab.images.rglob("*") if ".incoming" in path.parts and path.is_file()]
        assert once(lab).unchanged == 14


def test_a_short_run_of_kills_loses_nothing_and_doubles_nothing(tmp_path: Path, starter: Bundle) -> None:
    figures = kill_again_and_again(tmp_path, bundle=starter.folder, rounds=3, cells=6, seed=5)
    assert figures["faults"] == []
    assert figures["killed"] == 3
    assert figures["store_opened"] == 3 + figures["ended_before_the_kill"]


def test_the_ingest_benchmark_takes_every_cell_both_ways(tmp_path: Path, drawn_cells: Path, starter: Bundle) -> None:
    figures = measure(tmp_path, bundle_file=starter.folder, cells=8, repeats=1, images=drawn_cells, seed=1)
    assert figures["cells"] == 8
    assert figures["ratio"] == pytest.approx(
        figures["agent_cells_per_s"] / figures["onnxruntime_cells_per_s"], rel=0.01
    )
    assert figures["onnxruntime_batch_size"] in figures["onnxruntime_cells_per_s_by_batch_size"]
