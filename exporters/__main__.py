"""`python -m exporters`: ship a trained run as a bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

if TYPE_CHECKING:
    from exporters.keys import SigningKey

app = typer.Typer(help="Ship a trained run as a bundle that labs run without TensorFlow.", no_args_is_help=True)


_keys = typer.Typer(
    help="""The keys that bundles are signed with: make one, sign, hand over to the next.

    A lab takes in what a key that it trusts has signed. deploy/training.md says how a key is kept, and what to do where it is lost or stolen.

    python -m exporters key new hospital.key --name "Our hospital, blood lab"

    python -m exporters bundle runs/mine --out mine.labref --key hospital.key

    python -m exporters key sign mine.labref --key hospital.key

    python -m exporters key rotate hospital.key hospital-2.key.pub --out hospital-2.rotation
    """,
    no_args_is_help=True,
)
app.add_typer(_keys, name="key")

_Key = Annotated[
    Path | None, typer.Option("--key", help="Sign it with the private key in this file, as `key new` made it.")
]
_Number = Annotated[
    int | None,
    typer.Option(
        "--number",
        min=1,
        help="Its number among the bundles of its name; labs take in growing ones only. Default: date and time, UTC.",
        show_default=False,
    ),
]
_Rotations = Annotated[
    list[Path] | None,
    typer.Option(
        "--rotation",
        help="A record of `key rotate` that the bundle carries, so that labs that trust the key before follow by themselves; "
        "the oldest first, one --rotation for each.",
        show_default=False,
    ),
]


@app.callback()
def _commands() -> None:
    """Ship a trained run as a bundle that labs run without TensorFlow."""


@_keys.command(name="new")
def key_new(
    file: Annotated[Path, typer.Argument(help="The file of the private key; the public one is FILE.pub.")],
    name: Annotated[str, typer.Option(help="Whose key it is; labs show it.")],
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Ask for a passphrase, without which the key is of no use.")
    ] = False,
) -> None:
    """Make a key. The private one stays here, readable by its owner alone; the public one goes to labs.

    Keep a copy of the private key where nobody gets at it: a lost one cannot be made again.
    """
    from exporters.keys import PASSPHRASE, KeyFileError, new_key

    secret = os.environ.get(PASSPHRASE)
    if passphrase and not secret:
        secret = typer.prompt("passphrase", hide_input=True, confirmation_prompt=True, err=True)
    try:
        made = new_key(file, name, secret if passphrase else None)
    except KeyFileError as error:
        _fail(error)
    print(f"{file}: the private key; give it to nobody, and keep a copy in a safe place")
    print(
        f"{file}.pub: the public key {made.id}, for labs: `labref key trust {file.name}.pub`; tell its id by telephone"
    )


@_keys.command(name="sign")
def key_sign(
    bundle: Annotated[Path, typer.Argument(help="The bundle file.")],
    key: Annotated[Path, typer.Option("--key", help="The file of the private key.")],
    number: _Number = None,
    rotation: _Rotations = None,
    out: Annotated[
        Path | None, typer.Option(help="The signed file to write; default: the bundle file itself.", show_default=False)
    ] = None,
    detached: Annotated[
        bool, typer.Option("--detached", help="Leave the file as it is, and write the signature to FILE.sig.")
    ] = False,
) -> None:
    """Verify a bundle, and sign it. A signature that it carries is replaced."""
    from labref.errors import LabrefError

    if detached and out is not None:
        raise typer.BadParameter("a detached signature stands beside the bundle: leave --out away")
    try:
        _sign(bundle, _opened(key), number, rotation, out=out, detached=detached)
    except (LabrefError, OSError) as error:
        _fail(error)


@_keys.command(name="rotate")
def key_rotate(
    old: Annotated[Path, typer.Argument(help="The private key that labs trust.")],
    new: Annotated[Path, typer.Argument(help="The public key that takes over from it, as hospital-2.key.pub.")],
    out: Annotated[Path, typer.Option(help="The rotation record to write.")],
) -> None:
    """Say by the old key that a new one takes over from it. A lab that follows trusts the old one no more.

    Labs get the record in the next bundle (`key sign --rotation`), or as a file (`labref key trust`). Keep the
    records: a lab that missed one needs it.
    """
    from exporters.keys import rotate
    from labref.bundles.signing import MAX_DOCUMENT_BYTES, read_public_key
    from labref.errors import LabrefError
    from labref.files import read_file

    try:
        taking_over = read_public_key(read_file(new, MAX_DOCUMENT_BYTES), new)
        made = rotate(_opened(old), taking_over, out)
    except (LabrefError, OSError) as error:
        _fail(error)
    print(f"{out}: the key {made.new.title} takes over from the key {made.old}")


def _opened(file: Path) -> SigningKey:
    """The private key in a file; a passphrase that it has is asked for where the environment does not hold it."""
    from exporters.keys import PASSPHRASE, SigningKey

    secret = os.environ.get(PASSPHRASE)
    if not secret and SigningKey.has_passphrase(file):
        secret = typer.prompt(f"passphrase of {file}", hide_input=True, err=True)
    return SigningKey.open(file, secret if SigningKey.has_passphrase(file) else None)


def _key(key: Path | None, number: int | None, rotations: list[Path] | None) -> SigningKey | None:
    """The private key to sign with, opened before hours of work; None where nobody wants to sign. Raises
    `KeyFileError`."""
    from exporters.keys import KeyFileError

    if key is None and (number is not None or rotations):
        raise KeyFileError("--number and --rotation are of a signature: name the private key with --key.")
    return None if key is None else _opened(key)


def _sign(
    bundle: Path,
    key: SigningKey,
    number: int | None,
    rotations: list[Path] | None,
    *,
    out: Path | None = None,
    detached: bool = False,
) -> None:
    """Sign a bundle's file, and say so."""
    from exporters.keys import DETACHED, sign

    signed, made = sign(bundle, key, number=number, rotations=rotations or (), out=out, detached=detached)
    where = f"{bundle}{DETACHED}" if detached else str(out or bundle)
    print(f"{where}: bundle {signed.short} “{made.name}”, signed by the key {key.public.title} as number {made.number}")


def _fail(error: Exception) -> NoReturn:
    Console(stderr=True).print(f"error: {error}", style="red", highlight=False)
    raise typer.Exit(1) from None


@app.command()
def bundle(
    run: Annotated[Path, typer.Argument(help="Folder of a run that `python -m training train` made.")],
    out: Annotated[Path, typer.Option(help="The bundle file to write, as starter.labref.")],
    figures: Annotated[
        Path | None, typer.Option(help="JSON of `python -m training evaluate`, for the manifest and the model card.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The run's images, where they lie elsewhere by now.")] = None,
    reduced: Annotated[
        bool, typer.Option(help="Also ship float16 and int8 trunks, each only if its references are the full one's.")
    ] = True,
    mantissa_bits: Annotated[
        int,
        typer.Option(
            min=8, max=23, help="Round the trunk's weights to so many bits of mantissa: 12 packs 28 % smaller."
        ),
    ] = 23,
    agreement_queries: Annotated[
        int, typer.Option(min=1, help="Held-out cells that reduced trunks are judged on.")
    ] = 500,
    agreement_references: Annotated[
        int, typer.Option(min=9, help="Cells trained on that they are compared among.")
    ] = 3000,
    atlas: Annotated[
        Path | None,
        typer.Option(
            help="Let the bundle carry cells of yours, for labs that have too few of a class: a folder of class folders, "
            "with a file atlas.toml that names each source and its licence."
        ),
    ] = None,
    per_class: Annotated[int, typer.Option(min=1, max=1000, help="Cells of each class that the atlas holds.")] = 60,
    key: _Key = None,
    number: _Number = None,
    rotation: _Rotations = None,
) -> None:
    """Convert trunk and encoder to ONNX, check them against Keras on held-out crops, add golden outputs, manifest and
    model card, and pack one file.

    Without --figures the card says that nothing was measured. The usual order:

    python -m exporters bundle runs/mine --out mine.labref

    python -m training evaluate --bundle mine.labref --references DIR --queries DIR --json > runs/mine/figures.json

    python -m exporters bundle runs/mine --out mine.labref --figures runs/mine/figures.json
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"  # what tf2onnx reads, whichever backend trained the run
    console = Console(stderr=True)
    from exporters.bundles import ExportError, export_bundle
    from exporters.precision import PRECISIONS
    from labref.errors import LabrefError
    from training.progress import progress_bars
    from training.run import Run, RunError

    try:
        signing = _key(key, number, rotation)
        with progress_bars(console) as progress:
            shipped, parity = export_bundle(
                Run.open(run, data),
                out,
                progress,
                figures,
                precisions=PRECISIONS if reduced else (),
                agreement_cells=(agreement_queries, agreement_references),
                mantissa_bits=mantissa_bits,
                atlas=atlas,
                per_class=per_class,
            )
        if signing is not None:
            _sign(out, signing, number, rotation)
    except (ExportError, RunError, LabrefError, OSError) as error:
        _fail(error)
    print(
        f"{out}: bundle {shipped.short} “{shipped.manifest.name}”, {out.stat().st_size / 1e6:.1f} MB; largest difference from Keras on "
        f"{parity.crops} held-out crops: probabilities {parity.probabilities:.2g}, latents {parity.latents:.2g}"
    )
    for trunk in shipped.manifest.trunks:
        stay = min(estimate["value"] for estimate in trunk.agreement.values())
        told = trunk.measured
        print(
            f"{trunk.precision} trunk {'shipped' if trunk.admitted else 'not shipped'}: {stay:.2f} of 8 references stay (at least "
            f"{told['limit']} must), {told['ms_per_cell_one_thread']:.1f} ms a cell on one core, the full one "
            f"{told['ms_per_cell_one_thread_full']:.1f}"
        )


@app.command(name="atlas")
def atlas_(
    bundle: Annotated[Path, typer.Argument(help="The bundle that shall carry the atlas.")],
    cells: Annotated[
        Path,
        typer.Option(
            help="Folder of class folders, with a file atlas.toml: a [[source]] with folder, name and licence for each data "
            "set, and [labels] where class folders have other names than the bundle's classes."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The bundle file to write; it may be the same.")],
    per_class: Annotated[int, typer.Option(min=1, max=1000, help="Cells of each class that the atlas holds.")] = 60,
    key: _Key = None,
    number: _Number = None,
    rotation: _Rotations = None,
) -> None:
    """Let a bundle carry cells of the central team's own, for labs that have too few of a class.

    Those of each class are chosen to cover it. What the bundle's run held out, copies, pictures that are doubted, and
    cells whose neighbours mostly carry another label are left out. The networks stay as they are.
    """
    console = Console(stderr=True)
    from exporters.bundles import ExportError, with_atlas
    from labref.errors import LabrefError
    from training.progress import progress_bars

    try:
        signing = _key(key, number, rotation)
        with progress_bars(console) as progress:
            made = with_atlas(bundle, cells, out, progress, per_class)
        if signing is not None:
            _sign(out, signing, number, rotation)
    except (ExportError, LabrefError, OSError, ValueError) as error:
        _fail(error)
    held = made.manifest.atlas
    print(
        f"{out}: bundle {made.short} “{made.manifest.name}”, {out.stat().st_size / 1e6:.1f} MB, with an atlas of {held['cells']} cells: "
        + ", ".join(f"{label} {count}" for label, count in held["classes"].items())
    )


@app.command(name="figures")
def figures_(
    bundle: Annotated[Path, typer.Argument(help="The bundle that was measured.")],
    figures: Annotated[Path, typer.Option(help="JSON of `python -m training evaluate`.")],
    out: Annotated[Path, typer.Option(help="The bundle file to write; it may be the same.")],
    key: _Key = None,
    number: _Number = None,
    rotation: _Rotations = None,
) -> None:
    """Put measured figures into a bundle's manifest and on its model card, without exporting it again."""
    from exporters.bundles import ExportError, with_figures
    from labref.errors import LabrefError

    try:
        signing = _key(key, number, rotation)
        made = with_figures(bundle, figures, out)
        if signing is not None:
            _sign(out, signing, number, rotation)
    except (ExportError, LabrefError, OSError, ValueError) as error:
        _fail(error)
    print(f"{out}: bundle {made.short} “{made.manifest.name}”, with the figures of {figures}")


if __name__ == "__main__":
    app()
