"""`python -m training`: from a folder of class folders to a trained run, and its figures."""

from __future__ import annotations

import functools
import json
import os
import shlex
import shutil
import sys
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress

from labref.bundles.schema import check_name
from labref.errors import LabrefError
from labref.printing import printable
from training.cli import commands, labs, pool
from training.cli.svomen import app as svomen_app
from training.cli.svomen import embed
from training.config import PRESETS, RunConfig, override
from training.data import ingest as pools
from training.data.images import list_images, make_split, require_pictures
from training.environment import prepare_environment
from training.measure.unseen import LIMIT
from training.networks.workers import Workers, join, train_over
from training.progress import progress_bars
from training.run import Run, RunError
from training.settings import SettingsError, settings_of, show_value, value_at

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""Train labref's networks on a folder of class folders (`DATA/<class>/<image>.jpg`), or on a pool of packs that labs gave.

1. `python -m training train DATA --run runs/mine --preset starter` splits, trains the classifier, takes the features at its
   break, trains the VAE, and draws the curves. Stop it whenever you like: `python -m training resume runs/mine` goes on.

2. `python -m training split DATA --out held` lays out the same split as two trees, `held/references` and `held/queries`.

3. `python -m exporters bundle runs/mine --out mine.labref` ships it.

4. `python -m training evaluate --bundle mine.labref --references held/references --queries held/queries --json` measures
   what was shipped.

Presets: `thesis` (its table 3, model B, and table 4), `full` (the same network with what was found better since), `starter` (half the width at
128 px, for two CPU cores). Every setting of a preset can be changed: `--set classifier.epochs=3`.
`python -m training settings` lists them.

What labs give with `labref contribute` comes into a pool: `python -m training pool POOL --trust lund.pub`, once for each lab, then
`python -m training ingest lund.pack --into POOL`. The pool then stands in the place of DATA.

`KERAS_BACKEND=jax` trains the same run on JAX (`pip install -e ".[train,jax]"`); all GPUs of the computer are used on either.""",
)
app.add_typer(svomen_app, name="svomen")
for _command in (
    embed,
    commands.sweep,
    commands.folds,
    commands.unseen,
    commands.quality,
    commands.report,
    commands.compare,
    labs.labs,
    pool.ingest,
    pool.pool,
):
    app.command()(_command)
console = Console(stderr=True)


def _fail(error: Exception, code: int = 1) -> typer.Exit:
    console.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
    return typer.Exit(code)


def _train(run: Run, workers: Workers | None = None) -> None:
    prepare_environment()
    from training.networks.classifier import evaluate_classifier, train_classifier
    from training.networks.vae import train_vae
    from training.report.pictures import draw_confusion, draw_curves

    console.print(
        f"run {run.folder}, bundle “{run.config.name}”: {len(run.split.train)} images to train on, "
        f"{len(run.split.validation)} for the curves, {len(run.split.holdout)} held out; {len(run.split.labels)} classes, "
        f"split {run.split.digest[:12]}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    with progress_bars(console) as progress:
        train_classifier(run, progress, None if workers is None else functools.partial(train_over, workers))
        figures = evaluate_classifier(run, progress)
        train_vae(run, progress)
    counts = np.array(figures["confusion"])
    drawn = [
        *draw_curves(run.folder),
        draw_confusion(counts, list(run.split.labels), list(run.split.labels), run.folder / "confusion.png"),
    ]
    console.print(f"held-out accuracy of the classifier: {figures['accuracy']:.4f} on {figures['n']} images")
    console.print(f"pictures: {', '.join(str(path) for path in drawn)}")
    console.print(f"next: python -m exporters bundle {run.folder} --out {run.config.name}.labref")


def _name_of(folder: Path, otherwise: str) -> str:
    """The name of the run in `folder`: that of the folder, where no run is there yet that has its own; `otherwise`
    where no bundle may be called so. Raises `RunError` where it cannot be a folder."""
    try:
        if (folder / "run.json").exists():
            return Run.open(folder).config.name
        name = unicodedata.normalize("NFC", folder.resolve().name)
    except (OSError, ValueError) as error:
        raise RunError(f"{folder} cannot be a run's folder: {getattr(error, 'strerror', None) or error}.") from None
    try:
        return check_name(name)
    except ValueError as error:
        console.print(
            f"note: no bundle may be called as the folder is, {printable(name)!r}: it {error}. The model is called {otherwise!r}; "
            "`--set name=NAME` names it.",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        return otherwise


def _again(folder: Path, data: Path | None, workers: Workers | None) -> str:
    """What brings a run that was stopped to its end. data : its images, where the command named them."""
    try:
        known = Run.open(folder).data
    except RunError:
        return "the same command begins anew"
    words = ["python", "-m", "training", "resume", str(folder)]
    words += [] if data is None or data.resolve() == known.resolve() else ["--data", str(data)]
    if workers is None:
        return f"go on with `{shlex.join(words)}`"
    words += ["--processes", str(workers.count)]
    words += [] if workers.here is None else ["--here", str(workers.here)]
    words += [] if workers.coordinator is None else ["--coordinator", workers.coordinator]
    return f"go on with `KERAS_BACKEND=jax {shlex.join(words)}`"


def _to_its_end(
    folder: Path, open_run: Callable[[], Run], workers: Workers | None = None, *, data: Path | None = None
) -> None:
    """Train a run. data : its images, where the command named them."""
    try:
        workers = None if workers is None else workers.check()
        _train(open_run(), workers)
    except (RunError, LabrefError, ValueError, OSError) as error:
        raise _fail(error) from None
    except KeyboardInterrupt:
        console.print(f"stopped; {_again(folder, data, workers)}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(130) from None


Processes = Annotated[
    int | None,
    typer.Option(min=1, help="Train the classifier in so many processes, on JAX.", show_default=False),
]
Here = Annotated[
    int | None, typer.Option(min=1, help="So many of the processes run on this computer.", show_default="all")
]
Coordinator = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT", help="Where the first process is met by those of other computers.", show_default=False
    ),
]


def _workers(processes: int | None, here: int | None, coordinator: str | None) -> Workers | None:
    if processes is None and (here is not None or coordinator is not None):
        raise typer.BadParameter("--here and --coordinator are of several processes: say how many with --processes")
    return None if processes is None else Workers(processes, 0, here, coordinator)


@app.command()
def train(
    data: Annotated[Path, typer.Argument(help="Folder of class folders, or a pool.")],
    run: Annotated[Path, typer.Option(help="Folder of the run; made if it is not there, resumed if it is.")],
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = "starter",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting of the preset, as classifier.epochs=3; repeatable."),
    ] = None,
    processes: Processes = None,
    here: Here = None,
    coordinator: Coordinator = None,
) -> None:
    """Train a run to its end: split, classifier, features, VAE, pictures. Goes on where it was stopped.

    The model is named after the run's folder; `--set name=NAME` names it otherwise. After a few steps it says how long
    the classifier will take.

    With `--processes` the classifier is trained by several processes, each on its part of every batch, with the figures
    of one. One for each computer uses all of its GPUs; the others follow with `python -m training join`. Where one
    ends, all begin again from the last checkpoint.
    """
    if preset not in PRESETS:
        raise typer.BadParameter(f"no preset {preset!r}; there are {', '.join(PRESETS)}", param_hint="--preset")
    try:
        config = override(PRESETS[preset], [f"name={_name_of(run, PRESETS[preset].name)}", *(settings or [])])
    except SettingsError as error:
        raise _fail(error, 2) from None
    except RunError as error:
        raise _fail(error) from None
    _to_its_end(run, lambda: Run.create(run, data, config), _workers(processes, here, coordinator), data=data)


@app.command("settings")
def list_settings(
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output and nothing else there.")
    ] = False,
) -> None:
    """List every setting of a run: what it may be, its default, what presets have instead, and what it does.

    `python -m training train` takes the preset `starter` where no other is named. `--set NAME=VALUE` changes a setting.

    JSON: `settings` [{`name`, `type` (of the JSON value), `allowed`, `default`, `presets` {preset: value, where it is
    not the default}, `description`}].
    """
    default = asdict(RunConfig())
    presets = {preset: asdict(config) for preset, config in PRESETS.items()}
    listed = [
        {
            "name": name,
            "type": setting.type,
            "allowed": setting.allowed,
            "default": (usual := value_at(default, name)),
            "presets": {preset: own for preset in presets if (own := value_at(presets[preset], name)) != usual},
            "description": setting.description,
        }
        for name, setting in settings_of(RunConfig).items()
    ]
    if as_json:
        print(json.dumps({"settings": listed}, indent=1, ensure_ascii=False))
        return
    for one in listed:
        values = [f"default {show_value(one['default'])}"]
        values += [f"{preset} {show_value(value)}" for preset, value in one["presets"].items()]
        print(f"{one['name']}: {one['allowed']} ({', '.join(values)})\n    {one['description']}")
    console.print("`python -m training train` takes the preset starter where --preset names no other", soft_wrap=True)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    data: Annotated[Path | None, typer.Option(help="The images, where they lie elsewhere by now.")] = None,
    processes: Processes = None,
    here: Here = None,
    coordinator: Coordinator = None,
) -> None:
    """Go on with a run from its last checkpoint, with as many processes as there are now (see `train`)."""
    _to_its_end(run, lambda: Run.open(run, data), _workers(processes, here, coordinator), data=data)


@app.command("join")
def join_run(
    run: Annotated[Path, typer.Argument(help="Folder of a run that another computer trains, as seen from this one.")],
    processes: Annotated[int, typer.Option(min=2, help="Of all computers, as `train` was told.")],
    first: Annotated[int, typer.Option(min=1, help="The number of this computer's first process, counted from 0.")],
    coordinator: Annotated[str, typer.Option(metavar="HOST:PORT", help="As `train` was told.")],
    here: Annotated[int, typer.Option(min=1, help="So many of the processes run on this computer.")] = 1,
    data: Annotated[Path | None, typer.Option(help="The images, where this computer sees them elsewhere.")] = None,
) -> None:
    """Help another computer to train the classifier of a run, until it is trained.

    The folder of the run, and of the cached crops beside it, has to be one that both computers see.

    On the first, with `KERAS_BACKEND=jax`: `python -m training train DATA --run RUN --processes 2 --here 1
    --coordinator HOST:7711`

    On the second: `python -m training join RUN --processes 2 --first 1 --coordinator HOST:7711`
    """
    try:
        workers = Workers(processes, first, here, coordinator).check()
        opened = Run.open(run, data)
        console.print(f"processes {first} to {first + here - 1} of {processes} train in {run}", highlight=False)
        with progress_bars(console) as progress:
            join(workers, opened, progress)
    except (RunError, LabrefError, ValueError, OSError) as error:
        raise _fail(error) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    console.print("the classifier is trained; the first computer goes on alone")


@app.command()
def repeat(
    run: Annotated[Path, typer.Argument(help="Folder of the run to repeat; nothing but its run.json is read.")],
    new: Annotated[Path, typer.Argument(help="Folder of the new run.")],
    data: Annotated[Path | None, typer.Option(help="The images, where they lie elsewhere by now.")] = None,
) -> None:
    """Train a run once more from its `run.json` alone, on the same split; stops where the images give another one."""
    _to_its_end(new, lambda: Run.repeat(run, new, data), data=data)


@app.command()
def adopt(
    bundle: Annotated[
        Path, typer.Argument(help="A .labref file, or a bundle's folder; of this preparation or an older one.")
    ],
    data: Annotated[Path, typer.Argument(help="The images that it was trained on, as its settings name them.")],
    run: Annotated[Path, typer.Option(help="Folder of the run to make.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting of the bundle's, as name=mine; repeatable."),
    ] = None,
) -> None:
    """Take the networks of a shipped bundle over into a run, where the run that trained them is lost or its preparation
    is old.

    The weights are read from the bundle's graphs, and the run's networks are checked against these on its golden crops.

    `python -m exporters bundle RUN --out FILE` then ships the same weights for today's preparation, and
    `python -m training train DATA --run NEW --preset experts --set classifier.initial=RUN/classifier.keras` trains them
    further.
    """
    try:
        prepare_environment()
        from training.networks.adopt import adopt as take_over

        with progress_bars(console) as progress:
            named = [f"name={_name_of(run, 'adopted')}", *(settings or [])]
            done = take_over(bundle, data, run, named, progress)
    except (RunError, LabrefError, ValueError, OSError) as error:
        raise _fail(error) from None
    manifest = done.shipped.manifest
    split_told = "as the bundle's" if done.same_split else "not the bundle's: images were added, removed or renamed"
    print(
        f"{run}: networks of bundle {done.shipped.digest[:12]} “{manifest.name}” (preparation "
        f"{manifest.preparation.get('version')}); largest difference from its graphs on golden crops: probabilities "
        f"{done.probabilities:.2g}, latents {done.latents:.2g}; split {split_told}"
    )
    print(f"classifier on {done.cells} cells trained on, prepared as today: accuracy {done.accuracy:.4f}")
    console.print(f"next: python -m exporters bundle {run} --out {done.run.config.name}.labref")


@app.command()
def overlook(
    run: Annotated[Path, typer.Argument(help="Folder of a trained or adopted run; it is only read.")],
    new: Annotated[Path, typer.Option("--run", help="Folder of the run to make.")],
    cells: Annotated[int, typer.Option(help="How many of the cells trained on get neighbours.")] = 3000,
    data: Annotated[Path | None, typer.Option(help="The images, where they lie elsewhere by now.")] = None,
) -> None:
    """Teach a run's encoder to overlook what neighbours leave in a crop: about as long as embedding twice as many
    cells.

    `python -m exporters bundle NEW --out FILE` then ships it.
    """
    try:
        prepare_environment()
        from training.networks.overlook import overlook as teach

        with progress_bars(console) as progress:
            done = teach(Run.open(run, data), new, progress, cells=cells)
    except (RunError, LabrefError, ValueError, OSError) as error:
        raise _fail(error) from None
    print(
        f"{new}: taught on {done.cells} cells. Mean squared error between the latent of a cell beside others and of the cell alone, "
        f"cells left out: {done.before:.4f} before, {done.after:.4f} now; cells that stand alone moved by {done.alone:.4f}"
    )
    console.print(f"next: python -m exporters bundle {new} --out {done.run.config.name}.labref")


@app.command()
def distil(
    run: Annotated[Path, typer.Argument(help="Folder of a trained or adopted run, the teacher; it is only read.")],
    new: Annotated[Path, typer.Option("--run", help="Folder of the run to make, or to go on with.")],
    epochs: Annotated[int, typer.Option(min=1, help="Passes over all training cells.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Crops in a step.")] = 32,
    learning_rate: Annotated[float, typer.Option(min=1e-8, max=1.0, help="Of Adam, at its highest.")] = 5e-4,
    angles: Annotated[int, typer.Option(min=1, help="At which the teacher looks at each crop.")] = 4,
    changed: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of crops with changed optics.")] = 0.4,
    features: Annotated[float, typer.Option(min=0.0, help="Weight of what the trunk gives beside the latents.")] = 0.2,
    drawn: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of the way that cells are drawn to those with their class and similar attributes.",
        ),
    ] = 0.0,
    orientations: Annotated[int, typer.Option(help="Looks at a crop in what is shipped: 1, 2, 4 or 8.")] = 1,
    begin: Annotated[
        Path | None, typer.Option(help="Run of an earlier student, to begin with its weights; else the teacher's.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The images, where they lie elsewhere by now.")] = None,
) -> None:
    """Teach a trunk that looks at a crop once what one that looks many times finds in it, at every angle.

    Stop it whenever you like: the same command goes on from its last checkpoint. `python -m exporters bundle NEW --out
    FILE` then ships it.
    """
    try:
        prepare_environment()
        from training.networks.distil import Lesson
        from training.networks.distil import distil as teach

        lesson = Lesson(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            angles=angles,
            changed=changed,
            features=features,
            drawn=drawn,
            orientations=orientations,
            begin=str(begin.resolve()) if begin else "",
        )
        with progress_bars(console) as progress:
            done = teach(Run.open(run, data), new, progress, lesson)
    except (RunError, LabrefError, ValueError, OSError) as error:
        raise _fail(error) from None
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on")
        raise typer.Exit(130) from None
    print(
        f"{new}: error of the latents of validation cells, turned at random, from the teacher's, as a share of their variance: "
        f"{done.before:.4f} before, {done.after:.4f} now"
    )
    console.print(f"next: python -m exporters bundle {new} --out {_name_of(new, done.run.config.name)}.labref")


@app.command()
def split(
    data: Annotated[Path, typer.Argument(help="Folder of class folders.")],
    out: Annotated[
        Path, typer.Option(help="Folder to make: references/ (trained on, and validation) and queries/ (held out).")
    ],
    holdout: Annotated[float, typer.Option(help="Share held out by name hash; the same as the run's.")] = 0.2,
) -> None:
    """Lay out the split as two trees of class folders, by hard links where the file system has them, else copies.

    A file is held out when the first 8 bytes of SHA-256("labref-holdout:" + its name), read as a fraction of 2⁶⁴, are
    below the share: the name alone decides, so a later, larger folder splits the same way.
    """
    try:
        require_pictures(data)
        parts = make_split(list_images(data), holdout=holdout, validation=0.0)
        for tree, items in (("references", parts.train), ("queries", parts.holdout)):
            for item in items:
                target = out / tree / item.path
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.exists():
                    try:
                        os.link(data / item.path, target)
                    except OSError:
                        shutil.copyfile(data / item.path, target)
    except (ValueError, OSError) as error:
        raise _fail(error) from None
    print(f"{out}: {len(parts.train)} references, {len(parts.holdout)} queries")


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Option(help="A .labref file, or a bundle's folder.")],
    references: Annotated[
        Path | None, typer.Option(help="Folder of class folders that references come from.", show_default=False)
    ] = None,
    queries: Annotated[
        Path | None, typer.Option(help="Folder of class folders whose images are asked for.", show_default=False)
    ] = None,
    pool: Annotated[
        Path | None,
        typer.Option(help="Instead of both: a pool of labs' packs, each of whose labs is asked with its own cells."),
    ] = None,
    attributes: Annotated[
        Path | None,
        typer.Option(help="CSV of expert attributes with a column `path`, as WBCAtt's; adds attribute agreement."),
    ] = None,
    rotations: Annotated[bool, typer.Option(help="Measure how many references stay when a query is turned.")] = True,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"At most so many queries of each class; of a pool, of each class and optics (then {LIMIT})."
        ),
    ] = None,
    distinct: Annotated[
        bool, typer.Option("--distinct", help="Count cells, not images: leave recaptures of the same cell out.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output and nothing else there.")
    ] = False,
    confusion: Annotated[Path | None, typer.Option(help="Draw the confusion matrix as a PNG.")] = None,
) -> None:
    """Measure a shipped bundle on two trees, or in each lab of a pool, through the code that a lab runs. Needs no
    TensorFlow.

    With --pool each cell of a lab is asked once, with the lab's other cells as references. No lab is left out: the
    bundle may know the cells. `python -m training unseen RUN --labs` leaves each out.

    JSON: `n_queries`, `n_references`, `precision_at_8` {`micro`, `macro` (mean over classes), `per_class`}: share of
    the eight nearest that have the query's class; `precision_at_8_by_level`: the same for group, class and fine class,
    with 95 % intervals; `knn_accuracy`: the weighted vote of the eight; `classifier_accuracy` and `confusion` {class:
    {predicted: n}}; `rotation_overlap_at_8` {turn: of 8}; `attribute_agreement_at_8` {`references`,
    `random_same_class`, `n_queries`}; `novel_share`; `recaptures_left_out` {`references`, `queries`} (with --distinct);
    `unreadable`; `queries_digest`, `references_digest`; `bundle`; `command`.

    JSON with --pool: `bundle`, `model_version`, `labs` [{`lab`, `trained_on` (null where the bundle does not say),
    `queries`, `references`, `classes`, `own_store` {`micro`, `macro`, `by_class`, `by_optics`}, `accuracy`, `novel`}],
    `mean` {`micro`, `labs`}, `not_judged` {lab: why}, `left_out` (false), `limit`, `command`; estimates have 95 %
    intervals.
    """
    import tempfile

    from labref.bundles.bundle import Bundle, install
    from labref.bundles.inference import Embedder
    from training.measure.evaluate import evaluate as measure
    from training.measure.labs import evaluate_labs
    from training.report.pictures import draw_confusion

    if device not in ("auto", "cpu", "cuda"):
        raise typer.BadParameter("must be auto, cpu or cuda", param_hint="--device")
    if pool is None and (references is None or queries is None):
        raise typer.BadParameter("name --references and --queries, or --pool")
    if pool is not None and (references or queries or attributes or confusion or distinct):
        raise typer.BadParameter(
            "a pool has its own references and queries, one picture of each cell; name --pool alone"
        )
    try:
        with tempfile.TemporaryDirectory(prefix="labref-evaluate-") as scratch, progress_bars(console) as progress:
            opened = Bundle.open(bundle) if bundle.is_dir() else install(bundle, Path(scratch))
            with Embedder.open(opened, device=device) as embedder:  # type: ignore[arg-type]
                console.print(embedder.provider_line)

                def step(name: str, total: int) -> Callable[[int], None]:
                    return _stage(progress, name, total)

                if pool is not None:
                    figures = evaluate_labs(embedder, pool, limit=limit or LIMIT, step=step)
                elif references is not None and queries is not None:
                    figures = measure(
                        embedder,
                        references,
                        queries,
                        attributes=attributes,
                        rotations=rotations,
                        limit=limit,
                        distinct=distinct,
                        step=step,
                    )
    except (RunError, LabrefError, ValueError, OSError) as error:
        raise _fail(error) from None
    figures["command"] = shlex.join(["python", "-m", "training", *sys.argv[1:]])
    if confusion is not None:
        labels, columns = list(figures["confusion"]), list(next(iter(figures["confusion"].values())))
        counts = np.array([[figures["confusion"][a][b] for b in columns] for a in labels])
        console.print(f"drawn: {draw_confusion(counts, labels, columns, confusion)}")
    if as_json:
        print(json.dumps(figures, indent=1, ensure_ascii=False))
    elif pool is not None:
        _show_labs(figures, {one.key.id: one.key.title for one in pools.labs(pool)})
    else:
        _show(figures)


def _show_labs(figures: dict[str, Any], titles: Mapping[str, str]) -> None:
    """titles : of the pool's labs, by their id."""
    for row in figures["labs"]:
        own = row["own_store"]["micro"]
        knows = {
            True: "trained on it",
            False: "not trained on it",
            None: "the bundle does not say what it was trained on",
        }
        print(
            f"{titles.get(row['lab'], row['lab'])}: class precision@8 {own['value']:.3f} ({own['low']:.3f} to {own['high']:.3f}), {row['queries']} of "
            f"{row['references']} cells asked; {knows[row['trained_on']]}"
        )
    for lab, why in figures["not_judged"].items():
        print(f"{titles.get(lab, lab)}: not judged, {why}")
    mean = figures["mean"]["micro"]
    print(
        f"mean over {figures['mean']['labs']} labs: {mean['value']:.3f} ({mean['low']:.3f} to {mean['high']:.3f}); no lab was left out"
    )


def _stage(progress: Progress, name: str, total: int) -> Callable[[int], None]:
    task = progress.add_task(name, total=total, info="")
    return lambda done: progress.update(task, advance=done)


def _show(figures: dict[str, Any]) -> None:
    from rich.table import Table

    precision = figures["precision_at_8"]
    table = Table("figure", "value", title=f"{figures['n_queries']} queries, {figures['n_references']} references")
    table.add_row("class precision@8, mean over classes", f"{precision['macro']:.4f}")
    table.add_row("class precision@8, mean over queries", f"{precision['micro']:.4f}")
    for label, value in precision["per_class"].items():
        table.add_row(f"  {label}", f"{value:.4f}")
    if figures["classifier_accuracy"] is not None:
        table.add_row("classifier accuracy", f"{figures['classifier_accuracy']:.4f}")
    table.add_row("accuracy of the weighted vote of eight", f"{figures['knn_accuracy']:.4f}")
    for name, value in figures.get("rotation_overlap_at_8", {}).items():
        table.add_row(f"of eight stay, {name}", f"{value:.2f}")
    for name, value in figures.get("attribute_agreement_at_8", {}).items():
        table.add_row(f"attribute agreement, {name}", f"{value:.4f}")
    Console().print(table)
