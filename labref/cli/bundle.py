"""`labref bundle`: bring another model version in, change to it without a gap, and go back."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from labref.cli._shared import JsonOption, LabOption, a_path, perform, print_json, say
from labref.cli.key import signature_line
from labref.printing import printable
from labref.times import local

__all__ = ["add_to"]

_HELP = """Bundles: bring another model version in, change to it without a gap, and go back.

A bundle has its own latent space, so changing to one means embedding every cell again, from its kept bytes. That
happens in the background while the lab's agent runs (or in the command, where none does); queries are answered from
the old space meanwhile, and it goes on after any interruption. When all cells are embedded, a report says how many of
each cell's eight references change; then the switch is one moment. The old latents stay until `labref bundle drop`,
so `labref bundle rollback` takes seconds.

\b
  labref bundle install new.labref                bring it in
  labref bundle activate new                      embed every cell in its space
  labref status                                   how far that is
  labref bundle activate new --switch             read the report, then switch
  labref bundle rollback                          back to the one before
"""

_INSTALL = """Bring a bundle file into the lab. It is verified, and not used until it is activated.

It has to be signed by a key that the lab trusts (`labref key list`), in the file itself or in FILE.sig beside it, and its
number has to be larger than that of every bundle of its name that came in before. --unsigned takes in one that nobody
signed; a signature that does not hold is refused all the same.

\b
  labref bundle install hospital-2.labref
  labref bundle install starter

With --json, one object.

@bundle.BundleRow
"""
_VERIFY = """Verify a bundle file, or without one all installed bundles: somebody whom the lab trusts signed it, every file
has its digest, and the networks give on this computer what they gave when they were exported. Exit code 1 where not.

\b
  labref bundle verify new.labref
  labref bundle verify

With --json, one object a bundle: of one that is sound, or of one that is not.

@bundle.BundleSound @bundle.BundleFaulty
"""
_LIST = """List the lab's bundles.

With --json, one object a bundle.

@bundle.BundleRow
"""
_SHOW = """Show a bundle's model card: what it is for, what it was trained on, and how it was measured.

\b
  labref bundle show
  labref bundle show hospital/2

With --json, one object.

@bundle.BundleCard
"""
_ACTIVATE = """Change to another bundle: embed every cell in its space, report, switch.

BUNDLE is a name, name/version, or the beginning of a digest, as `labref bundle list` shows them; of two bundles of one
name the one that is not active is meant. Its golden cells are run first. While the agent runs
the work is done in the background and the command returns at once (--wait stays); without an agent it is done here.
It can be ended at any time and goes on with the agent, or with this command said again. The switch waits for --switch,
so that somebody reads the report first, unless --yes (or [bundles] switch_when_ready in labref.toml) says otherwise.

\b
  labref bundle activate hospital/2
  labref bundle activate hospital/2 --wait
  labref bundle activate hospital/2 --switch
  labref bundle activate hospital/2 --yes                all in one

Cells whose kept bytes are missing or damaged cannot be embedded. The switch then waits: restore them from a backup and
activate again, or leave those cells out with --switch --leave-out; they stay in the store.

With --json, one object.

@bundle.BundleChange
"""
_ROLLBACK = """Give up the change that is under way; where none is, go back to the bundle that was active before.

Going back takes seconds: the latents are still there. Cells that came since the switch are embedded in the old space
right afterwards. Said a second time, it goes forward again.

With --json, one object.

@bundle.BundleChange
"""
_DROP = """Delete the latents of a bundle, and its files; it cannot be gone back to any more. The active one cannot be dropped.

\b
  labref bundle drop starter/1

With --json, one object.

@bundle.BundleDropped
"""

BundleArgument = Annotated[
    str, typer.Argument(metavar="BUNDLE", help="Name, name/version, or beginning of the digest.", show_default=False)
]
BundleOption = Annotated[
    Path | None,
    typer.Option(
        "--bundle",
        parser=a_path,
        metavar="FILE",
        help="A bundle file (.labref). Default: the starter, which comes with labref.",
        show_default=False,
    ),
]
KeyOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--key",
        parser=a_path,
        metavar="FILE.pub",
        help="A public key to trust beside labref's own; give it once for each.",
        show_default=False,
    ),
]
UnsignedOption = Annotated[
    bool, typer.Option("--unsigned", help="Take the bundle also where nobody signed it.", show_default=False)
]
WaitOption = Annotated[bool, typer.Option("--wait", help="Stay until the agent has done it.", show_default=False)]


def install(
    file: Annotated[
        Path,
        typer.Argument(
            parser=a_path,
            metavar="FILE",
            help="A .labref file, or the word starter: the one that comes with this labref.",
            show_default=False,
        ),
    ],
    lab: LabOption = None,
    unsigned: UnsignedOption = False,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab, absolute

    given = file if str(file) == "starter" and not file.exists() else absolute(file)
    row = _last(perform(Lab.find(lab), "bundle.install", file=str(given), unsigned=unsigned))
    if json:
        print_json(row)
    else:
        say(f"{_name(row)} is {signature_line(row['signature'])}.")
        if row["state"] == "active":
            say(f"{_name(row)} is installed, and is the one in use.")
        else:
            say(f"{_name(row)} is installed; it is used after `labref bundle activate {row['name']}/{row['version']}`.")


def verify(
    file: Annotated[
        Path | None,
        typer.Argument(
            parser=a_path, metavar="[FILE]", help="A .labref file; without, all installed.", show_default=False
        ),
    ] = None,
    lab: LabOption = None,
    unsigned: UnsignedOption = False,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab, absolute

    wrong = False
    given = None if file is None else str(absolute(file))
    for row in perform(Lab.find(lab), "bundle.verify", file=given, unsigned=unsigned):
        wrong |= "problem" in row
        if json:
            print_json(row)
        elif "problem" in row:
            say(row["problem"], err=True)
        else:
            say(
                f"{_name(row['bundle'])} is sound; golden outputs differ by {row['difference']:.2g}, "
                f"{row['allowed']:.2g} is allowed ({row['provider_line']}); {signature_line(row['signature'])}"
            )
    if wrong:
        raise typer.Exit(1)


def list_(lab: LabOption = None, json: JsonOption = False) -> None:
    from labref.lab import Lab

    for row in perform(Lab.find(lab), "bundle.list"):
        if json:
            print_json(row)
            continue
        cells = "no latents" if row["cells"] is None else f"{row['cells']} cells"
        failed = f", {row['failed']} cannot be embedded" if row["failed"] else ""
        since = f" since {local(row['active_since'])}" if row["active_since"] else ""
        gone = "" if row["installed"] else "  CANNOT BE USED: labref bundle verify says why"
        say(
            f"{row['state'] + since:<10}  {_name(row)}  {cells}{failed}, {row['latent_size']} latents; {signature_line(row['signature'])}{gone}"
        )


def show(
    bundle: Annotated[
        str | None,
        typer.Argument(
            metavar="[BUNDLE]",
            help="Name, name/version, or beginning of the digest; without, the active one.",
            show_default=False,
        ),
    ] = None,
    lab: LabOption = None,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab

    row = _last(perform(Lab.find(lab), "bundle.show", bundle=bundle))
    if json:
        print_json(row)
    else:
        typer.echo(f"{printable(_name(row['bundle']))}\n\n{row['card']}")


def activate(
    bundle: BundleArgument,
    lab: LabOption = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Switch by itself once all cells are embedded.", show_default=False)
    ] = False,
    switch: Annotated[
        bool, typer.Option("--switch", help="The report was read: switch now.", show_default=False)
    ] = False,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Switch though some cells cannot be embedded.", show_default=False)
    ] = False,
    wait: WaitOption = False,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab

    rows = perform(
        Lab.find(lab), "bundle.activate", bundle=bundle, yes=yes, switch_now=switch, leave_out=leave_out, wait=wait
    )
    _show(_last(rows), json)


def rollback(lab: LabOption = None, wait: WaitOption = False, json: JsonOption = False) -> None:
    from labref.lab import Lab

    last: dict[str, Any] = {}
    for row in perform(Lab.find(lab), "bundle.rollback", wait=wait):
        if "cancelled" in row and not json:
            say(f"The change to {_name(row['cancelled']['bundle'])} is given up; its latents are kept.")
        elif "switched" in row and not json:
            say(f"{_name(row['switched']['bundle'])} answers again.")
        last = row
    if json:
        print_json(last)
    elif last["cells"] > last["embedded"] + last["failed"] and last["state"] == "active":
        say(f"{last['cells'] - last['embedded'] - last['failed']} newer cells are being embedded in its space.")


def drop(bundle: BundleArgument, lab: LabOption = None, json: JsonOption = False) -> None:
    from labref.lab import Lab

    row = _last(perform(Lab.find(lab), "bundle.drop", bundle=bundle))
    if json:
        print_json(row)
    else:
        say(f"{_name(row['dropped'])} is gone, with the latents of {row['cells']} cells.")


def change_lines(change: Mapping[str, Any]) -> list[str]:
    """A change of bundle for people."""
    name, state = _name(change["bundle"]), change["state"]
    done = change["embedded"] + change["failed"]
    share = f"{done} of {change['cells']} cells" + (f" ({done / change['cells']:.0%})" if change["cells"] else "")
    wish = f"labref bundle activate {change['bundle']['digest'][:12]}"
    lines = {
        "active": [f"{name} is active"],
        "re-embedding": [f"changing to {name}: {share} embedded; queries are answered by the old one meanwhile"],
        "comparing": [f"changing to {name}: all cells embedded, the references are being compared"],
        "held": [
            f"changing to {name} waits: {change['failed']} cells cannot be embedded; restore them from a backup and "
            f"activate again, or leave them out: {wish} --switch --leave-out"
        ],
        "ready": [f"{name} is ready: {share} embedded. Switch: {wish} --switch   Give up: labref bundle rollback"],
        "none": [f"no change to {name} is under way"],
    }[state]
    lines += [f"  {failure['cell_id']}: {failure['reason']}" for failure in change["failures"]]
    report = change["report"]
    if report is not None and report.get("problem"):
        lines.append(f"  the references before and after cannot be compared: {report['problem']}")
    if report is not None and report["sampled"]:
        sampled = (
            ""
            if report["sampled"] == report["cells"]
            else f" (a sample of {report['sampled']} of {report['cells']} cells)"
        )
        lines.append(f"  of each cell's eight references {report['changed']:.1f} change{sampled}; by class:")
        width = max(len(label) for label in report["classes"])
        for label, entry in report["classes"].items():
            lines.append(
                f"  {label:<{width}}  {entry['changed']:.1f} of 8 change; own class {entry['same_class_before']:.1%} "
                f"before, {entry['same_class_after']:.1%} after"
            )
    return lines


def _show(change: Mapping[str, Any], json: bool) -> None:
    if json:
        print_json(change)
        return
    for line in change_lines(change):
        say(line)


def _last(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    *_, last = rows
    return last


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['name']}/{row['version']} ({row['digest'][:12]})"


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(
        help=_HELP, short_help="Change the model version, and go back.", no_args_is_help=True, rich_markup_mode=None
    )
    group.command("install", help=_INSTALL, short_help="Bring a bundle file in.")(install)
    group.command("verify", help=_VERIFY, short_help="Verify a file, or all installed bundles.")(verify)
    group.command("list", help=_LIST, short_help="The lab's bundles.")(list_)
    group.command("show", help=_SHOW, short_help="What a bundle says of itself.")(show)
    group.command("activate", help=_ACTIVATE, short_help="Change to another bundle.")(activate)
    group.command("rollback", help=_ROLLBACK, short_help="Give up a change, or go back.")(rollback)
    group.command("drop", help=_DROP, short_help="Delete a bundle's latents.")(drop)
    app.add_typer(group, name="bundle")
