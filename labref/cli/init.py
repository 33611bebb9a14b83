"""`labref init`: a lab folder, ready for its agent."""

from pathlib import Path
from typing import Annotated

import typer

from labref.cli._shared import JsonOption, a_path, print_json, program, quoted, say
from labref.cli.bundle import BundleOption, KeyOption, UnsignedOption
from labref.cli.key import signature_line

__all__ = ["add_to"]

_HELP = """Make a lab: a new folder with its configuration, an empty store and a bundle.

DIR is made where it is missing, and must not be a lab yet. --watch names the analyser's export folder (several may be given); labref only
ever reads there. Without --bundle the starter bundle that ships with labref is installed.

\b
Examples:
  labref init lab --watch /mnt/analyser/export
  labref init C:/labref/lab --watch "D:/Export" --watch "E:/Old exports"
  labref init lab --watch /mnt/dm96 --analyser DM96 --watch /mnt/dc1 --analyser DC-1
  labref init lab --watch export --bundle hospital-2.labref --key hospital.key.pub --analyser DC-1

The bundle has to be signed by labref's own key, or by one that --key names; see `labref key --help`.

The lab is for the user who makes it: its folders are 700 and its files 600, whatever the umask. [access] group = true in
its labref.toml shares it with its group. On Windows a lab in a user's profile is that user's and the administrators'; one made
elsewhere, such as C:/labref, can be read by every user of the computer until its rights are changed there.

With --json, one object.

@lab.LabMade
"""


def init(
    folder: Annotated[
        Path, typer.Argument(parser=a_path, metavar="DIR", help="The lab folder to make.", show_default=False)
    ],
    watch: Annotated[
        list[Path],
        typer.Option(
            "--watch",
            parser=a_path,
            metavar="FOLDER",
            help="The analyser's export folder; give it once for each folder.",
            show_default=False,
        ),
    ],
    bundle: BundleOption = None,
    key: KeyOption = None,
    unsigned: UnsignedOption = False,
    analyser: Annotated[
        list[str] | None,
        typer.Option(
            "--analyser",
            metavar="NAME",
            help="What to call the analyser whose cells these are; shown beside each reference. For several, one for each --watch, in their order.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab
    from labref.lab.trust import standing

    lab = Lab.create(folder, watch, bundle, analyser=analyser or (), keys=key or (), unsigned=unsigned)
    with lab.open_store() as store:
        installed = lab.bundle(store)
        signature = standing(store, installed.digest).to_json()
    if json:
        print_json(
            {
                "lab": str(lab.folder),
                "config": str(lab.config_file),
                "store": str(lab.store_file),
                "bundle": {
                    "name": installed.manifest.name,
                    "version": installed.manifest.version,
                    "digest": installed.digest,
                },
                "signature": signature,
                "watch": [str(f) for f in lab.watched],
            }
        )
        return
    classes = ", ".join(installed.manifest.labels)
    say(f"lab     {lab.folder}")
    say(f"watches {', '.join(map(str, lab.watched))}")
    say(f"bundle  {installed.manifest.name} {installed.manifest.version} ({installed.short}): {classes}")
    say(f"        {signature_line(signature)}")
    typer.echo("\nNext, take in what is there and keep watching (Ctrl-C ends it):")
    say(f"  {program()} agent --lab {quoted(lab.folder)}")


def add_to(app: typer.Typer) -> None:
    app.command(help=_HELP, short_help="Make a lab: configuration, store, bundle.", no_args_is_help=True)(init)
