"""What the agent answers over HTTP; its OpenAPI document and the models of `labref.operations` are true."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from labref.bundles.bundle import Bundle
from labref.config import RetentionConfig, SharedConfig
from labref.demo.cells import LABELS, OPTICS, draw_cell, encode_jpeg, make_slides
from labref.lab import Lab
from labref.operations import every_operation
from labref.operations.models import Answer, Progress
from labref.web.client import read_agent_record
from labref.web.desk import Desk
from tests.bundles import another
from tests.keys import TestKey
from tests.labs import make_lab, once, running_agent
from tests.postgres import database, missing, needs_postgres, server

if TYPE_CHECKING:
    from schemathesis import BaseSchema

OPERATIONS = {operation.name: operation for operation in every_operation()}
PACED = {
    "store.empty_trash",
    "bundle.rollback",
    "duplicates.find",
    "label.import",
    "ledger.check",
    "optics.measure",
    "quality.judge",
}
"""Operations whose rows of progress come only where there is enough to do."""

Answered = dict[str, list[dict[str, Any]]]


def draw(folder: Path, each: int) -> None:
    """Class folders of drawn cells, `each` of a class."""
    slides = make_slides(2, seed=4)
    for label in LABELS:
        (folder / label).mkdir(parents=True)
        for number in range(each):
            slide = slides[number % 2]
            picture = draw_cell(
                label, OPTICS[slide.optics], slide, np.random.default_rng([7, number, LABELS.index(label)])
            )
            (folder / label / f"{slide.name}_{number:03d}.jpg").write_bytes(encode_jpeg(picture))


class Desks:
    """The desk of the lab that was asked last. It stays open for the next question: to open a store takes longer than
    most answers do."""

    def __init__(self) -> None:
        self._at: Lab | None = None
        self._open = contextlib.ExitStack()
        self._desk: Desk | None = None

    def __enter__(self) -> Desks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def of(self, lab: Lab) -> Desk:
        if self._desk is None or self._at is not lab:
            self.close()
            self._desk, self._at = self._open.enter_context(Desk.open(lab)), lab
        return self._desk

    def close(self) -> None:
        self._open.close()
        self._desk = None


Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory, starter: Bundle) -> Answered:
    """Every operation done on a lab of 74 cells, a copy under another class, a cell captured again, and no image; its
    rows."""
    folder = tmp_path_factory.mktemp("api")
    export = folder / "export"
    draw(export, 9)
    for number, order in enumerate(("", "2")):  # two slides of a patient
        signed = export / "P1" / order / "Signed slides" / LABELS[0]
        signed.mkdir(parents=True)
        slide = make_slides(1, seed=5)[0]
        picture = draw_cell(LABELS[0], OPTICS[slide.optics], slide, np.random.default_rng([8, number]))
        (signed / "1.jpg").write_bytes(encode_jpeg(picture))
    first = sorted((export / LABELS[0]).iterdir())[0]
    shutil.copy(first, export / LABELS[1] / "copy.jpg")
    with Image.open(first) as picture:
        again = io.BytesIO()
        picture.transform(picture.size, Image.Transform.AFFINE, (1, 0, 2, 0, 1, 1)).save(again, "JPEG", quality=93)
    (export / LABELS[2] / "again.jpg").write_bytes(again.getvalue())
    (export / LABELS[0] / "notes.jpg").write_text("no image at all")
    Image.new("RGB", (360, 360), (240, 235, 230)).save(export / LABELS[0] / "blank.png")
    lab = make_lab(folder / "lab", export, starter, analyser="DC-1")
    once(lab)
    rows: Answered = defaultdict(list)
    with Desks() as desks:

        def run(name: str, /, *, at: Lab = lab, data: bytes | None = None, **parameters: Any) -> list[dict[str, Any]]:
            found = list(desks.of(at).run(name, data=data, **parameters))
            rows[name] += found
            return found

        ask_all(run, lab, desks, export, folder, first, starter)
    return rows


def ask_all(run: Run, lab: Lab, desks: Desks, export: Path, folder: Path, first: Path, starter: Bundle) -> None:
    """Every operation, each kind of its rows at least once."""
    run("status")
    run("classes.list")
    run("user.add", name="A. Lind", role="review", days=30)
    run("user.renew", name="a. lind")
    run("user.revoke", name="A. Lind")
    run("user.list")
    ledger = run("ledger")
    pairs = run("duplicates.list")
    run("duplicates.list", verdict="conflict")
    pair = next(row for row in pairs if row["kind"] == "pair")["cell_id"]
    run("duplicates.confirm", cell=pair, who="A")
    run("duplicates.undo", cell=pair, who="A")
    run("duplicates.reject", cell=pair, who="A")
    run("duplicates.history", cell=pair)
    run("duplicates.undo", cell=pair, who="A")
    run("duplicates.overlay", cell=pair, other=next(row for row in pairs if row["kind"] == "pair")["duplicate_of"])
    run("duplicates.find")
    cell = next(row for row in ledger if row["outcome"] == "stored")
    run("label.set", cell=cell["cell_id"], label=LABELS[3], who="A")
    listed = [{"line": 2, "path": cell["path"], "label": LABELS[0], "when": "2026-03-31"}, {"line": 3, "label": "x"}]
    run("label.import", rows=listed)
    run("label.undo", cell=cell["cell_id"])
    slide = run("slide.list")[1]["slide"]
    run("event.links", slide=slide)
    run("slide.approve", slide=slide, who="A")
    run("live.cells")
    run("live.marks", cells=[cell["cell_id"]])
    run("slide.show", slide=slide)
    run("slide.unapprove", slide=slide, who="A")
    run("label.imports")
    run("event.give", key="LIS-1", cell=cell["cell_id"], label=LABELS[2], who="LIS")
    run("event.labels")
    run("label.history", cell=cell["path"])
    (shown,) = run("cell.show", cell=cell["cell_id"])
    judged = {"cell": shown["references"][0]["cell_id"], "query": cell["cell_id"], "who": "A"}
    run("reference.reject", **judged)
    run("reference.undo", **judged)
    run("reference.reject", cell=judged["cell"])
    run("reference.undo", cell=judged["cell"])
    run("cell.show", cell=cell["cell_id"])
    run("query", data=first.read_bytes(), name="before there is a map")
    run("map.status")
    unclear = [row["cell_id"] for row in ledger if row["outcome"] == "stored"][1]
    run("label.set", cell=unclear, label="Unidentified", new=True)
    run("map.train", rows=8, columns=8, seed=1)
    run("map.list")
    run("map.use", number=1)
    run("map.status")
    placed = run("map.cells", patients=[LABELS[0]])[1]
    row, column = divmod(placed["node"][0], 8)
    run("map.node", row=row, column=column)
    run("map.suspects")
    assert [row["cell_id"] for row in run("map.unidentified")] == [unclear]
    run("label.undo", cell=unclear)
    run("map.picture", classes=[LABELS[0]], since="2020-01-01", doubtful=True)
    run("map.region", row=row, column=column, last_row=7)
    run("map.spot", cell=placed["cell_id"][0])
    run("map.facets")
    run("report.show")
    run("report.make", sample=20)
    run("report.make", sample=20, counts_only=True)
    run("report.show")
    run("review.queues")
    run("review.cells", queue="suspects")
    doubtful = run("review.cells", queue="doubtful", below=1.0)[0]["cell_id"]
    run("review.decide", cell=doubtful, queue="doubtful", label=LABELS[1], who="A")
    run("review.undo", cell=doubtful, queue="doubtful", who="A")
    read = run("reading.start", title="T", n=8, sources=["reviewed", "analyser"])[-1]["reading"]
    for reader, said in (("A", LABELS[0]), ("B", None)):
        for task in run("reading.next", reading=read, who=reader, limit=10):
            run("reading.cell", reading=read, task=task["task"], arm=task["arm"], part=0)
            run(
                "reading.answer", reading=read, task=task["task"], arm=task["arm"], choice=said, seconds=2.5, who=reader
            )
    run("reading.undo", reading=read, who="B")
    run("reading.report", reading=read)
    run("reading.end", reading=read)
    run("reading.list")
    triplets = run("reading.start", title="S", kind="triplets", n=8, sources=["reviewed", "analyser"])[-1]["reading"]
    run("reading.next", reading=triplets, who="A")
    run("reading.triplets", reading=triplets)
    run("map.classify")
    run("query", data=first.read_bytes(), name="by map", by="map", k=3)
    run("optics.show")
    run("optics.measure")
    run("quality.judge")
    run("ledger.take_in", path=str(export / LABELS[0] / "blank.png"), who="A")
    run("store.check")
    run("store.backup", target=str(folder / "backup"))
    run("store.export", target=str(folder / "cells.parquet"))
    keep = RetentionConfig(cells=8, at_least=0, percent_a_day=100)
    tight = replace(lab, config=lab.config.model_copy(update={"retention": keep}))
    one = next(row["cell_id"] for row in ledger if row["outcome"] == "stored")
    run("store.remove", cells=[one], why="a mistake", dry_run=True)
    run("store.remove", cells=[one], why="a mistake")
    run("store.remove", cells=[one], why="a mistake", erase=True)
    run("store.retain", at=tight, dry_run=True)
    run("store.retain", at=tight)
    run("store.trash")
    run("store.bring_back", every=True)
    run("store.retain", at=tight)
    run("store.empty_trash")
    desks.close()
    with lab.open_store() as store:
        (lab.image_path(next(iter(store.digests())))).unlink()
    run("ledger.check", latents=0)
    run("ledger.check", repair=True)
    key = TestKey.make()
    run("key.trust", document=key.public.to_bytes().decode())
    run("key.revoke", key=key.public.id)
    run("key.list")
    run("key.own")
    run("contribute.preview", shift_dates=True)
    run("contribute.write", target=str(folder / "1.pack"), consent="CC BY 4.0")
    run("bundle.install", file=str(another(starter, folder)), unsigned=True)
    (lab.bundles / "0123456789ab").mkdir()
    run("bundle.verify")
    shutil.rmtree(lab.bundles / "0123456789ab")
    run("bundle.activate", bundle="other")
    run("status")
    run("bundle.rollback")
    run("bundle.activate", bundle="other", yes=True)
    run("bundle.list")
    run("bundle.show")
    run("bundle.rollback")
    run("bundle.drop", bundle="other")
    if missing() is None:
        with server() as running:
            address, secret = database(running).lab("A")
            url = f"postgresql://{address.user}@127.0.0.1:{address.port}/{address.database}"
            (lab.folder / "password").write_text(secret)
            sharing = SharedConfig(url=url, password_file=Path("password"))
            run("shared.publish", at=replace(lab, config=lab.config.model_copy(update={"shared": sharing})))
            desks.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_what_an_operation_answers_is_what_its_models_say(name: str, answered: Answered) -> None:
    if name == "shared.publish":
        needs_postgres()
    operation = OPERATIONS[name]
    adapter: TypeAdapter[Any] = TypeAdapter(Union[operation.answers])  # noqa: UP007  # of a tuple
    assert answered[name]
    told: set[type[Answer]] = {type(adapter.validate_python(row)) for row in answered[name]}
    wanted = set(operation.answers) - ({Progress} if name in PACED else set())
    assert wanted <= told, "every kind of row was seen"


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_an_operation_is_described_field_by_field(name: str) -> None:
    operation = OPERATIONS[name]
    assert operation.description.split("\n\n")[0].endswith(".")
    assert len(operation.summary) < 120
    for parameter, described in operation.request.model_fields.items():
        assert (described.description or "").endswith("."), parameter
    for answer in operation.answers:
        assert (answer.__doc__ or "").endswith((".", ".\n")), answer


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, starter: Bundle) -> Iterator[Lab]:
    """A lab of 16 cells with a running agent, which has a working folder of its own."""
    folder = tmp_path_factory.mktemp("served")
    draw(folder / "export", 2)
    lab = make_lab(folder / "lab", folder / "export", starter)
    once(lab)
    with running_agent(lab):
        yield lab


def request(
    lab: Lab, method: str, path: str, body: bytes | None = None, kind: str = "application/json"
) -> tuple[int, Any]:
    record = read_agent_record(lab)
    assert record is not None
    connection = http.client.HTTPConnection("127.0.0.1", record.port, timeout=60)
    headers = {"Authorization": f"Bearer {lab.token()}"} | ({} if body is None else {"Content-Type": kind})
    connection.request(method, path, body=body, headers=headers)
    response = connection.getresponse()
    found = response.status, json.loads(response.read().splitlines()[0])
    connection.close()
    return found


def test_the_document_is_a_valid_openapi_3_1_and_holds_every_operation(small: Lab) -> None:
    # imported by this test alone: every worker of a run imports this file, and this takes 4 s of a core
    from openapi_spec_validator import OpenAPIV31SpecValidator, validate

    code, document = request(small, "GET", "/api/v1/openapi.json")
    assert code == 200
    assert document["openapi"].startswith("3.1.")
    validate(document, cls=OpenAPIV31SpecValidator)
    for operation in OPERATIONS.values():
        route = document["paths"][operation.path][operation.method.lower()]
        assert {"200", "400", "401", "421", "503"} <= set(route["responses"])
    assert "HTTPValidationError" not in json.dumps(document)
    named = [model.__name__ for model in {a for o in OPERATIONS.values() for a in o.answers}]
    assert len(named) == len(set(named)), "a name stands for one model"


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_no_whole_number_is_larger_than_the_store_takes(name: str) -> None:
    unlimited: list[str] = []

    def look(schema: Any, where: str) -> None:
        if isinstance(schema, dict):
            is_open = schema.get("type") == "integer" and not {"enum", "const"} & set(schema)
            if is_open and not -(2**63) <= schema.get("maximum", 2**64) < 2**63:
                unlimited.append(where)
            for key, part in schema.items():
                look(part, f"{where}/{key}")
        elif isinstance(schema, list):
            for part in schema:
                look(part, where)

    look(OPERATIONS[name].request.model_json_schema(), name)
    assert unlimited == []


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "says"),
    [
        ("GET", "/api/v1/ledger?outcome=lost", None, 400, "outcome has to be 'stored', 'duplicate'"),
        ("GET", "/api/v1/ledger?limit=x", None, 400, "limit has to be a whole number"),
        ("GET", "/api/v1/ledger?page=2", None, 400, "page is no parameter here; there are outcome, path, limit"),
        ("POST", "/api/v1/query?k=101", b"x", 400, "k has to be 1 to 100"),
        ("POST", "/api/v1/query", b"x", 422, "not an image"),
        ("POST", "/api/v1/map/node", b"{}", 400, "row has to be given; column has to be given"),
        ("POST", "/api/v1/map/node", b"nothing", 400, "the body is no JSON object"),
        ("POST", "/api/v1/map/node", b"[1]", 400, "the body is no JSON object"),
        ("POST", "/api/v1/map/train", b'{"trainer": "own"}', 400, "trainer has to be 'batch' or 'minisom'"),
        ("POST", "/api/v1/bundle/verify", b'{"file": "a\\u0000b"}', 400, "file must not hold the character NUL"),
        ("POST", "/api/v1/bundle/praise", b"{}", 404, "nothing is at this address"),
        ("GET", "/api/v1/query", None, 405, "another method"),
        ("GET", "/api/v1/reference/0123456789abcdef/image", None, 404, "no image is kept"),
    ],
)
def test_a_wrong_request_is_refused_in_plain_english(
    small: Lab, method: str, path: str, body: bytes | None, code: int, says: str
) -> None:
    found, answer = request(small, method, path, body)
    assert found == code
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"kind", "message"}
    assert answer["error"]["kind"] in ("LabrefError", "UnreadableImageError")
    assert says in answer["error"]["message"]


def test_parameters_with_defaults_need_no_body(small: Lab) -> None:
    code, row = request(small, "POST", "/api/v1/bundle/list")
    assert (code, row["state"]) == (200, "active")


@pytest.fixture(scope="module")
def described(small: Lab) -> BaseSchema:
    # imported by these tests alone: every worker of a run imports this file, and this takes 2 s of a core
    import schemathesis

    schema = schemathesis.openapi.from_dict(request(small, "GET", "/api/v1/openapi.json")[1])
    record = read_agent_record(small)
    assert record is not None
    schema.config.update(base_url=f"http://127.0.0.1:{record.port}")
    return schema


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize("name", [*sorted(OPERATIONS), "reference.image"])
def test_made_up_requests_meet_no_fault_and_no_status_that_is_not_documented(
    small: Lab, described: BaseSchema, name: str, mode: str
) -> None:
    from hypothesis import HealthCheck, given, settings
    from hypothesis.errors import Unsatisfiable
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    wanted = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]
    route = (
        described["/api/v1/reference/{cell_id}/image"]["GET"]
        if name == "reference.image"
        else described[OPERATIONS[name].path][OPERATIONS[name].method]
    )
    headers = {"Authorization": f"Bearer {small.token()}"}
    written = small.folder.parent / "written"

    examples = 2 if name == "bundle.verify" else 4  # which runs the golden cells in a process of its own each time

    @given(case=route.as_strategy(generation_mode=GenerationMode(mode)))
    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    def ask(case: Any) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("target"), str) and case.body["target"]:
            case.body["target"] = str(written / hashlib.sha256(case.body["target"].encode()).hexdigest()[:12])
        # a busy machine is no fault: an answer that takes long is one all the same
        case.call_and_validate(headers=headers, checks=wanted, timeout=120)

    try:
        ask()
    except Unsatisfiable:
        assert mode == "negative", "there is nothing to get wrong"
