"""`labref report`: what a lab's references are worth, before it goes live, analyser by analyser.

The report that was made last is kept in LAB/logs/report.json, for the page. It names no slide and no file."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError

from labref.asking.prediction import Because
from labref.asking.report import EXAMPLES, REFERENCES, SAMPLE, Called, make, without_names
from labref.errors import LabrefError
from labref.files import replace_file
from labref.lab.contributing import Pseudonyms, known_key
from labref.operations import operation
from labref.operations.classes import known_names
from labref.operations.models import Answer, BundleName, JobRunning, Progress
from labref.operations.optics import Measures, OpticsWarning
from labref.progress import Row, progress, rows_of
from labref.roles import Role
from labref.tasks.context import Context
from labref.tasks.jobs import Job, Running
from labref.times import utc_now
from labref.words import LabelSource, Reason

__all__ = ["JOB", "LabReport", "ReportState"]

JOB: Final = "report"
"""Name of the agent's job that makes a report."""
_LEAST, _MOST = 20, 20_000  # cells of an analyser that can be asked


class ReportShare(Answer):
    """A share with its 95 % interval (Wilson); null where there is nothing to measure."""

    value: float | None = Field(description="The share, 0 to 1.")
    low: float | None = Field(description="Lower end of its interval.")
    high: float | None = Field(description="Upper end.")
    n: int = Field(description="Number of cells that it is made of.")


class ReportClass(Answer):
    """A class of one analyser's cells."""

    label: str = Field(description="The class.")
    cells: int = Field(description="Its distinct cells whose class counts.")
    asked: int = Field(description="How many of these were asked.")
    precision: ReportShare = Field(
        description=f"Share of the {REFERENCES} references with the cell's own class, the mean over cells."
    )
    central: ReportShare | None = Field(
        default=None, description="The same with the cells of the bundle's atlas alone; null without an atlas."
    )
    both: ReportShare | None = Field(default=None, description="The same with both, as a query gives them.")
    best: float = Field(description="The highest share that so few cells allow.")
    enough: bool = Field(description="Whether there are enough cells to trust the share.")
    instead: str | None = Field(description="The other class that most of the references have.")
    instead_share: float = Field(description="Share of that class among the references.")


class ReportReference(Answer):
    """A reference in an example."""

    cell_id: str = Field(description="The cell.")
    label: str = Field(description="Its class.")
    label_source: LabelSource = Field(description="Who gave the class.")
    captured_at: str | None = Field(description="When it was captured, ISO 8601, UTC.")
    distance: float = Field(description="Mean squared error between the latents.")
    right: bool = Field(description="Whether it has the class of the cell that was asked.")


class ReportPrecision(Answer):
    """The precision of an analyser's cells with other references than the lab's own."""

    precision: ReportShare = Field(description="Precision over cells: each class counts by its number of cells.")
    precision_of_classes: ReportShare = Field(description="Precision over classes: each class counts alike.")


class ReportExample(Answer):
    """A cell that was asked, and its references."""

    cell_id: str = Field(description="The cell.")
    label: str = Field(description="Its class.")
    label_source: LabelSource = Field(description="Who gave the class.")
    captured_at: str | None = Field(description="When it was captured, ISO 8601, UTC.")
    right: int = Field(description="How many of the references that count have its class.")
    counted: int = Field(description="How many references have a class that counts.")
    is_novel: bool = Field(description="Whether nothing in the lab resembles it.")
    no_class: bool = Field(description="Whether no class of the lab resembles it.")
    predicted: str = Field(description="The class that the networks give.")
    probability: float = Field(description="The probability of that.")
    because: Because | None = Field(description="Why the networks' class is withheld; null where it is shown.")
    references: list[ReportReference] = Field(description="The references, nearest first.")


class ReportRecaptures(Answer):
    """How many cells of an analyser repeat others."""

    found: int = Field(description="Cells that are linked as duplicates of an earlier one.")
    possible: int = Field(description="Cells that may repeat another and that wait for a decision.")
    confirmed: int = Field(description="Pairs that people called one cell.")
    rejected: int = Field(description="Pairs that people called two cells.")


class ReportPictures(Answer):
    """What the pictures of an analyser's cells are."""

    judged: int = Field(description="Cells whose picture was judged.")
    no_cell: ReportShare = Field(description="Share that cannot be read as one cell.")
    reasons: dict[Reason, int] = Field(description="What is wrong, and in how many pictures.")
    waiting: int = Field(description="Cells that are no reference until a person decides on their picture.")


class ReportOptics(Answer):
    """Background, focus and colour of an analyser's cells, as in `status`."""

    median: Measures | None = Field(description="Medians of its latest cells; null before any is measured.")
    from_training: Measures | None = Field(
        description="How far they are off the cells that the bundle was trained on, in robust standard deviations of "
        "single cells; null with too few cells, or where the bundle does not tell."
    )
    drift: Measures | None = Field(description="Likewise, today's cells off those before.")
    warnings: list[OpticsWarning] = Field(description="What is far off.")


class ReportFinding(Answer):
    """Something to settle before the lab goes live, or to know."""

    level: Literal["settle", "know"] = Field(description="Whether it should be settled first, or only known.")
    what: Literal[
        "nothing reviewed",
        "not embedded",
        "wrong classes",
        "optics training",
        "optics past",
        "many novel",
        "many no cell",
        "small classes",
        "lacking classes",
        "possible recaptures",
        "doubted pictures",
    ] = Field(description="What it is.")
    n: int = Field(description="How many cells, classes or measures it is about.")
    labels: list[str] = Field(description="The classes that it is about.")


class ReportAnalyser(Answer):
    """What the cells of one analyser are worth as references."""

    analyser: str | None = Field(description="The analyser; null for one without a name.")
    cells: int = Field(description="Its stored cells.")
    distinct: int = Field(description="Its distinct cells: one captured several times counts once.")
    reviewed: int = Field(description="Distinct cells whose class a person gave.")
    basis: Literal["reviewed", "analyser"] | None = Field(
        description="Whose classes count: people's; the analyser's, where nobody reviewed a cell; null without either."
    )
    asked: int = Field(description="Cells that were asked for the precision.")
    not_counted: int = Field(description="Of these, those none of whose references has a class that counts.")
    without_latent: int = Field(
        description="Cells that could not be asked, as the bundle in use has not embedded them."
    )
    precision: ReportShare = Field(description="Precision over cells: each class counts by its number of cells.")
    precision_of_classes: ReportShare = Field(description="Precision over classes: each class counts alike.")
    central: ReportPrecision | None = Field(
        default=None, description="The same with the cells of the bundle's atlas alone; null without an atlas."
    )
    both: ReportPrecision | None = Field(default=None, description="The same with both, as a query gives them.")
    classes: list[ReportClass] = Field(description="Class by class.")
    lacking: list[str] = Field(description="Classes of the bundle that no cell of this analyser was given.")
    prediction_shown: ReportShare = Field(
        description="Share of the asked cells for which the networks' class is shown."
    )
    prediction_right: ReportShare = Field(description="Share of these in which it is the cell's own.")
    novel: ReportShare = Field(description="Share of a random sample of its cells that nothing else resembles.")
    no_class: ReportShare = Field(
        description="Share of the same sample that something resembles, but no class of the lab."
    )
    drawn: list[ReportExample] = Field(description=f"{EXAMPLES} answers drawn at random.")
    worst: list[ReportExample] = Field(description=f"The {EXAMPLES} worst answers.")
    optics: ReportOptics = Field(description="Background, focus and colour.")
    recaptures: ReportRecaptures = Field(description="Cells that repeat others.")
    pictures: ReportPictures = Field(description="Whether the pictures show cells.")
    findings: list[ReportFinding] = Field(description="What to settle, and what to know.")
    pseudonym: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")] | None = Field(
        default=None,
        description="The analyser as the lab's packs call it, with numbers alone: the centre knows it again in the next report. Null "
        "where the lab has no key of its own.",
    )


class LabReport(Answer):
    """What a lab's references are worth."""

    made_at: str = Field(description="When it was made, ISO 8601, UTC.")
    version: str = Field(description="labref's version.")
    bundle: BundleName = Field(description="The bundle in use.")
    atlas: bool = Field(
        description="Whether the bundle carries cells of the central team. They count in `central` and `both` alone."
    )
    atlas_shown: bool = Field(default=False, description="Whether the lab's setting shows them among references.")
    sample: int = Field(description="Cells of each analyser that were asked, at most.")
    seed: int = Field(description="Seed of what was drawn.")
    k: int = Field(description="References of an answer.")
    counts_only: bool = Field(description="Whether it holds numbers alone: no cell, and no name that the lab gave.")
    lab: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = Field(
        default=None,
        description="Id of the lab's own key, with numbers alone, as its packs carry it; null where it has none.",
    )
    cells: int = Field(description="Stored cells.")
    outcomes: dict[str, int] = Field(description="What became of the files found.")
    analysers: list[ReportAnalyser] = Field(description="Each analyser, the one with the most cells first.")


class ReportState(Answer):
    """The report that was made last, and whether one is being made."""

    report: LabReport | None = Field(description="The report; null while none has been made.")
    making: JobRunning | None = Field(description="How far the next one is; null while none is made.")
    problem: str | None = Field(description="Why the last one could not be made; else null.")


_CountsOnly = Annotated[
    bool,
    Field(description="Numbers alone, to send to the centre: no cell, and no name of an analyser or of a lab's class."),
]


@operation("report.make", Progress, LabReport, role=Role.REVIEW)
def make_report(
    context: Context,
    *,
    sample: Annotated[
        int, Field(ge=_LEAST, le=_MOST, description="Cells of each analyser that are asked, at most.")
    ] = SAMPLE,
    seed: Annotated[int, Field(ge=0, le=2**32 - 1, description="Seed of what is drawn.")] = 1,
    counts_only: _CountsOnly = False,
    wait: Annotated[
        bool, Field(description="Whether the answer waits for the report; else it is made in the background.")
    ] = True,
) -> Iterator[Row]:
    """Make the report of a lab: precision by class, recaptures, novelty, optics, examples, for each analyser."""
    if context.jobs is None:
        bundle = context.lab.bundle(context.store)
        yield progress(0, 1, "the latents are read")
        context.store.build_index(bundle.digest)  # for hundreds of searches; an agent has it
        made = yield from rows_of(make(context.lab, context.store, bundle, sample=sample, seed=seed))
        _keep(context, made)
        yield _asked_for(context, made, counts_only)
        return
    reports: list[Row] = []
    if not context.jobs.submit(_job(context, sample, seed, reports)):
        raise LabrefError("a report is being made already; look at the page /report, or ask again when it is there")
    yield progress(0, 1, "waiting for other work of the agent")
    if not wait:
        return
    while not reports and context.jobs.has(JOB):  # another may have been asked for as soon as this one was made
        running = context.jobs.status()["running"]
        if running is not None and running["name"] == JOB:
            yield progress(running["done"], running["total"], running["text"])
        else:
            yield progress(0, 1, "waiting for other work of the agent")
        time.sleep(0.3)
    if not reports:
        ended = context.jobs.status()["ended"].get(JOB)
        why = "it was stopped" if ended is None else ended["message"] or "it was stopped"
        raise LabrefError(f"no report was made: {why}")
    yield _asked_for(context, reports[0], counts_only)


@operation("report.show", ReportState, single=True, role=Role.VIEW)
def show(context: Context, *, counts_only: _CountsOnly = False) -> Iterator[Row]:
    """Show the report that was made last."""
    status = None if context.jobs is None else context.jobs.status()
    running, ended = (None, None) if status is None else (status["running"], status["ended"].get(JOB))
    waits = status is not None and JOB in status["waiting"]
    if waits:
        text = "waiting for other work of the agent"
        making: Row | None = {"name": JOB, "done": 0, "total": 0, "text": text, "started_at": utc_now()}
    else:
        making = running if running is not None and running["name"] == JOB else None
    kept = _kept(context)
    yield {
        "report": None if kept is None else _asked_for(context, kept, counts_only),
        "making": making,
        "problem": ended["message"] if ended is not None and ended["outcome"] == "failed" else None,
    }


def _job(context: Context, sample: int, seed: int, reports: list[Row]) -> Job:
    def work(running: Running) -> None:
        steps = make(context.lab, context.store, context.lab.bundle(context.store), sample=sample, seed=seed)
        with contextlib.closing(steps):
            try:
                while not running.stopped:
                    running.report(*next(steps))
            except StopIteration as ended:
                _keep(context, ended.value)
                reports.append(ended.value)

    return Job(JOB, work)


def _asked_for(context: Context, report: Row, counts_only: bool) -> Row:
    if not counts_only:
        return report
    known = {*context.lab.bundle(context.store).manifest.labels, *known_names()}
    key = known_key(context.lab)
    return without_names(report, known, None if key is None else Called(key.public.id, Pseudonyms(key).optics))


def _file(context: Context) -> Path:
    return context.lab.folder / "logs" / "report.json"


def _keep(context: Context, report: Row) -> None:
    """Raises `LabrefError` where it cannot be written."""
    file = _file(context)
    try:
        file.parent.mkdir(exist_ok=True)
        replace_file(file, json.dumps(report, allow_nan=False))
    except OSError as error:
        raise LabrefError(
            f"the report could not be kept in {file.parent}: {error.strerror or error}. Look at the free disk space and "
            "the rights of the folder, and make it again."
        ) from error


def _kept(context: Context) -> Row | None:
    """The report that was made last; None where there is none, or the file is damaged or another version's."""
    with contextlib.suppress(OSError, ValueError, RecursionError, ValidationError):
        found: dict[str, Any] = json.loads(_file(context).read_bytes())
        LabReport.model_validate(found)
        return found
    return None
