"""The commands that compare: `sweep`, `folds`, `unseen`, `report` and `compare`; `training.cli.app` takes them in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from labref.errors import LabrefError
from training.environment import prepare_environment
from training.measure.compare import format_estimate
from training.measure.folds import cross_validate
from training.measure.quality import calibrate
from training.measure.sweep import SWEEPS, default_attributes, run_sweep
from training.measure.unseen import LIMIT, VARIANTS, leave_out
from training.progress import progress_bars
from training.report.collect import PER_CLASS
from training.run import Run, RunError

__all__ = ["compare", "folds", "quality", "report", "sweep", "unseen"]

console = Console(stderr=True)
Attributes = Annotated[
    Path | None,
    typer.Option(
        help="CSV of expert attributes with a column `path`; left out: attributes.csv among the run's images."
    ),
]


@contextmanager
def _said(again: str) -> Iterator[None]:
    try:
        prepare_environment()
        yield
    except (RunError, LabrefError, ValueError, OSError) as error:
        console.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print(f"stopped; {again} goes on")
        raise typer.Exit(130) from None


def sweep(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(SWEEPS)}.")],
    run: Annotated[Path, typer.Argument(help="Folder of a trained run.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting of every row, as classifier.width=0.25; repeatable."),
    ] = None,
    row: Annotated[list[str] | None, typer.Option(help="Only this row; repeatable.")] = None,
    attributes: Attributes = None,
    data: Annotated[Path | None, typer.Option(help="The run's images, where they lie elsewhere by now.")] = None,
) -> None:
    """Train and measure variants of a run, one change a row, on its own split; the report shows them.

    `latent` (sizes 2 to 100) and `models` (plain AE, β-VAE, PCA) train on the run's features and take minutes;
    `augmentation` (A, B, C) and `balance` (class weights) train the whole network again: make them small, as
    `--set classifier.input_size=96 --set classifier.width=0.25 --set classifier.epochs=8`, which the tables then say.

    Rows that are done are kept, so the same command goes on after a stop.
    """
    if name not in SWEEPS:
        raise typer.BadParameter(f"no sweep {name!r}; there are {', '.join(SWEEPS)}", param_hint="NAME")
    with _said("the same command"), progress_bars(console) as progress:
        opened = Run.open(run, data)
        done = run_sweep(opened, name, settings or [], row, default_attributes(opened, attributes), progress)
    print(
        f"{run}: {len(done)} of {len(SWEEPS[name][1])} rows of {name} are done; see `python -m training report {run}`"
    )


def quality(
    data: Annotated[Path, typer.Argument(help="Folder with a folder of class folders for each set of pictures.")],
    sets: Annotated[list[str], typer.Option("--set", help="A set, as the folder is called; repeatable.")],
    out: Annotated[
        Path | None, typer.Option(help="Write them there: as RUN/quality.json, `exporters bundle RUN` takes them in.")
    ] = None,
    most: Annotated[int | None, typer.Option(min=1, help="At most so many cells of a set.")] = None,
) -> None:
    """Calibrate when a picture is none of one cell: the strictest thresholds that doubt at most 0.5 % of the real cells
    of each set, on half of its cells.

    Prints them as JSON; `labref.cells.quality` says what they mean.
    """
    with _said("the same command"):
        text = json.dumps(calibrate(data, sets, most).to_json(), indent=1)
        if out is not None:
            out.write_text(text + "\n", encoding="utf-8")
    print(text)


def unseen(
    run: Annotated[Path, typer.Argument(help="Folder of a trained run: its settings and its domains.")],
    leave: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave this folder of the run's images out in its turn, or with --labs this lab, by the beginning of its id; repeatable. "
            "Left out: each of them."
        ),
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help=f"Only this one of {', '.join(VARIANTS)}; repeatable.")
    ] = None,
    labs: Annotated[
        bool, typer.Option("--labs", help="Leave out labs of the run's pool, each with all its optics.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, max=20, help="With --labs: so many trainings of each.")] = 1,
    limit: Annotated[
        int, typer.Option(min=1, help="With --labs: at most so many cells of each class and optics are asked about.")
    ] = LIMIT,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting of every row, as classifier.width=0.25; repeatable."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The run's images, where they lie elsewhere by now.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The figures as one JSON object on standard output and nothing else there.")
    ] = False,
) -> None:
    """Leave one optics or one lab out: train on all others, then ask about its cells, with its own and with central
    references.

    Each row trains the whole network from scratch: make them small, as `--set classifier.input_size=96 --set
    classifier.width=0.25 --set classifier.epochs=5`, which the table then says. Rows that are done are kept, so the
    same command goes on after a stop; `python -m training report` shows them.

    With --labs, for a run on a pool, each lab is left out in its turn and asked as it would ask itself: each cell once,
    its own store without the cell. Figures are given by class and optics, with intervals over cells, and over seeds
    with --seeds. A lab of one class, or of fewer than nine cells, is not judged, and that is said. The variant is
    `run` where no other is named.

    JSON: `rows` [{`variant`, `left`, `trained_on`, `own_store`, `central_store` {`micro`, `macro`, `per_class`}, `won`,
    `accuracy`, `digest`, `split`, `size`}]. With --labs: `command`, `size`, `settings`, `limit`, `rows` [{`variant`,
    `left`, `seed`, `trained_on`, `domains`, `queries`, `central`, `classes`, `not_trained_on`, `digest`, `split`}],
    `labs` [{`variant`, `left`, `seeds`, `queries`, `own_store`, `central_store` {`micro`, `macro`, `by_class`,
    `by_optics`}, `won`, `accuracy`, `not_trained_on`}], `means` [{`variant`, `labs`, `own_store`, `central_store`,
    `won`, `accuracy`}], `not_judged` {lab: why}; every estimate is {`value`, `low`, `high` (95 %), `n`, `how`}.
    """
    with _said("the same command"), progress_bars(console) as progress:
        opened = Run.open(run, data)
        if labs:
            from training.measure.labs import leave_labs_out

            chosen = variant or ["run"]
            found = leave_labs_out(opened, leave or [], chosen, seeds, settings or [], progress, limit=limit)
            rows = found["labs"]
        else:
            rows = leave_out(opened, leave or opened.config.domains, variant or [*VARIANTS], settings or [], progress)
            found = {"rows": rows}
    for lab, why in found.get("not_judged", {}).items():
        console.print(f"the lab {lab} is not judged: {why}", highlight=False, markup=False, soft_wrap=True)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    for row in rows:
        own, central, won = row["own_store"]["micro"], row["central_store"]["micro"], row["won"]
        print(
            f"{row['left']}, {row['variant']}: own store {own['value']:.3f} ({own['low']:.3f} to {own['high']:.3f}), central "
            f"{central['value']:.3f} ({central['low']:.3f} to {central['high']:.3f}), won {won['value']:+.3f}"
        )


def folds(
    run: Annotated[Path, typer.Argument(help="Folder of a trained run: its settings, and the cells it trains on.")],
    number: Annotated[int, typer.Option("--folds", min=2, help="So many folds.")] = 5,
    tries: Annotated[
        list[str] | None,
        typer.Option(
            "--try", help='Settings to compare with the run\'s own, as "vae.beta=1 vae.class_weight=20"; repeatable.'
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting of every row, as classifier.width=0.25; repeatable."),
    ] = None,
    attributes: Attributes = None,
    data: Annotated[Path | None, typer.Option(help="The run's images, where they lie elsewhere by now.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The figures as one JSON object on standard output and nothing else there.")
    ] = False,
) -> None:
    """Choose settings by cross-validation over the cells that a run trains on; those it holds out are not looked at.

    Each fold trains the whole network from scratch, and a VAE for each row: make them small, as `--set
    classifier.input_size=64 --set classifier.width=0.25 --set classifier.epochs=4`, which the table then says. Rows
    that are done are kept, so the same command goes on after a stop, and later ones add rows; `python -m training
    report` shows them.

    JSON: `folds`, `size`, `split`, `command`, `rows` [{`row`, `cells`, `done`, `precision_at_8` {`macro`, `micro`},
    `share_of_the_way`, `accuracy`, `won` {`micro`, `share_of_the_way`}}], estimates over the cells of all folds.
    """
    with _said("the same command"), progress_bars(console) as progress:
        opened = Run.open(run, data)
        found = cross_validate(
            opened, number, tries or [], settings or [], default_attributes(opened, attributes), progress
        )
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    for row in found["rows"]:
        way = row["share_of_the_way"]
        print(
            f"{row['row']}: class precision@8 {format_estimate(row['precision_at_8']['macro'])}, accuracy "
            f"{format_estimate(row['accuracy'])}, attributes {format_estimate(way, 1, '.3f')} of the way"
        )


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of trained runs.")],
    out: Annotated[Path | None, typer.Option(help="The page to write; left out: report.html in the first run.")] = None,
    attributes: Attributes = None,
    per_class: Annotated[
        int, typer.Option(min=1, help="Images of each class that ROTMES takes; the thesis took 100.")
    ] = PER_CLASS,
    again: Annotated[bool, typer.Option("--again", help="Measure everything again.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="The figures as one JSON object on standard output and nothing else there.")
    ] = False,
) -> None:
    """Every experiment of the thesis on a run: one HTML page that needs nothing beside it, and its JSON.

    What a run itself can tell is measured now (minutes); the comparisons are those of `python -m training sweep` that
    are done, and the page says which command makes those that are not. Each run's figures are kept in its
    `report.json`.

    JSON: {run: {`split`, `command`, `parts` {`classifier`, `classes`, `space`, `rotmes`, `pca`, `map`, `plane`,
    `sweeps`, `shipped`}}}; every estimate is {`value`, `low`, `high` (95 %), `n`, `how`}.
    """
    from training.report.collect import collect
    from training.report.page import write_page

    with _said("the same command"), progress_bars(console) as progress:
        reports = [collect(Run.open(folder), attributes, progress, again, per_class) for folder in runs]
        page = write_page(reports, out or runs[0] / "report.html")
    if as_json:
        print(json.dumps({str(folder): found for folder, found in zip(runs, reports, strict=True)}, ensure_ascii=False))
    else:
        print(
            f"{page}: {page.stat().st_size / 1e6:.1f} MB; figures in {', '.join(str(f / 'report.json') for f in runs)}"
        )


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs that have a report.")],
    html: Annotated[Path | None, typer.Option(help="Write the table as a page of its own.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output and nothing else there.")
    ] = False,
) -> None:
    """Runs side by side: their figures, and the settings in which they differ.

    JSON: `runs` [name], `figures` [{`name`, `better` ("higher" or "lower"), `values` [estimate or null]}], `settings`
    [{`name`, `values`}], `same_split`.
    """
    from training.measure.compare import compare_runs, show
    from training.report.collect import load_report
    from training.report.page import write_comparison

    with _said("the same command"):
        table = compare_runs([load_report(folder) for folder in runs], [str(folder) for folder in runs])
        if html is not None:
            write_comparison(table, html)
    if as_json:
        print(json.dumps(table, indent=1, ensure_ascii=False))
    else:
        show(table)
