"""`labref key`: whose bundles the lab takes in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from labref.cli._shared import JsonOption, LabOption, a_path, perform, print_json, say
from labref.times import local

__all__ = ["add_to", "read_key_file", "signature_line"]

_HELP = """Keys: whose bundles the lab takes in.

Whoever makes bundles signs each with a private key, and gives labs the public key, a small file. A lab takes in what a
key that it trusts has signed. It trusts labref's own from the beginning, which signs the starter, and others when an
administrator says so. Nothing expires.

The lab also has a key of its own, with which it signs the cells that it gives to the centre (`labref contribute`): `own`.

\b
  labref key trust hospital.key.pub      after its id was compared by telephone
  labref key list
  labref key revoke 157e6767fd6b5cb0     it is lost, or stolen
  labref key own --out lund.pub          for the centre
"""
_TRUST = """Take in bundles that a key signs, from now on.

FILE is a public key, or a rotation record, by which a key that the lab trusts says that another takes over from it; that
key is then trusted no more. A bundle can carry such records itself, and then nothing has to be done. A public key is
trusted as it is: compare its id with whoever made it by another way than the file came by, such as the telephone.

\b
  labref key trust hospital.key.pub
  labref key trust hospital-2.rotation

With --json, one object.

@key.Key
"""
_OWN = """Show the lab's own key, with which it signs the packs that it gives to the centre (`labref contribute`).

It is made when it is first asked for, and stays in the lab's folder, in the files key and key.pub. The centre trusts the lab by the public
one: give it that file, and the id by another way. Keep a copy of both in a safe place: they are in no backup, and a lab that
lost its key counts as another.

\b
  labref key own --name "Haematology, Lund" --out lund.pub

With --json, one object.

@key.OwnKey
"""
_LIST = """List the keys that the lab knows, and what it thinks of each.

With --json, one object a key.

@key.Key
"""
_REVOKE = """Take in nothing more that a key signs, and follow no rotation record of its: where it was lost or stolen.

A bundle that it signed and that answers goes on answering, and `labref status` says so until the lab changes to another.
The new key of whoever made it has to come by a way that a thief of the old one does not have: `labref key trust FILE`.

\b
  labref key revoke 157e6767fd6b5cb0

With --json, one object.

@key.Key
"""


def trust(
    file: Annotated[
        Path,
        typer.Argument(parser=a_path, metavar="FILE", help="A public key, or a rotation record.", show_default=False),
    ],
    lab: LabOption = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="Although the key was revoked or replaced here before.", show_default=False),
    ] = False,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab

    (row,) = perform(Lab.find(lab), "key.trust", document=read_key_file(file), again=again)
    if json:
        print_json(row)
        return
    say(f"The key {row['name']} ({row['id']}) is {row['state']}.")
    if row["because"] is not None:
        say(f"It took over from the key {row['because']}, which is trusted no more.")
    elif row["state"] == "trusted":
        say("Compare the id with whoever made the key, by another way than the file came by.")


def own(
    lab: LabOption = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Whose it is, for people at the centre.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", parser=a_path, metavar="FILE.pub", help="Write the public key there.", show_default=False
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    from labref.errors import LabrefError
    from labref.lab import Lab

    where = Lab.find(lab)
    if out is not None:
        where.refuse_output(out)
    (row,) = perform(where, "key.own", name=name)
    if out is not None:
        try:
            out.write_text(row["document"], encoding="ascii", newline="\n")
        except OSError as error:
            raise LabrefError(f"{out} cannot be written: {error.strerror or error}.") from None
    if json:
        print_json(row)
        return
    say(f"{'A key was made for this lab' if row['made'] else 'The key of this lab'}: {row['name']} ({row['id']}).")
    if row["made"]:
        say(f"It lies in {where.folder} as the files key and key.pub, and in no backup: keep a copy of both in a safe.")
    if out is not None:
        say(
            f"Its public key is in {out}. Give that to the centre, and tell it the id by another way, such as the telephone."
        )
    else:
        say("The centre needs its public file: `labref key own --out FILE.pub`.")


def list_(lab: LabOption = None, json: JsonOption = False) -> None:
    from labref.lab import Lab

    for row in perform(Lab.find(lab), "key.list"):
        if json:
            print_json(row)
            continue
        since = f" since {local(row['changed_at'], day=True)}" if row["changed_at"] else ", comes with labref"
        because = f", by the word of the key {row['because']}" if row["because"] else ""
        say(f"{row['id']}  {row['state']}{since}{because}  {row['name']}")


def revoke(
    key: Annotated[str, typer.Argument(metavar="ID", help="Id of the key, 16 characters.", show_default=False)],
    lab: LabOption = None,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab

    (row,) = perform(Lab.find(lab), "key.revoke", key=key.strip().lower())
    if json:
        print_json(row)
    else:
        say(f"The key {row['name']} ({row['id']}) is {row['state']}: nothing more that it signs is taken in.")


def read_key_file(file: Path) -> str:
    """The text of a public key's file, or of a rotation record's. Raises `LabrefError`."""
    from labref.errors import LabrefError
    from labref.files import read_file

    try:
        return read_file(file, 32_000).decode("ascii")
    except OSError as error:
        raise LabrefError(f"{file} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise LabrefError(f"{file} is no public key and no rotation record: it is no text.") from None


def signature_line(signature: Mapping[str, Any]) -> str:
    """Who signed a bundle, for people."""
    by = f"{signature['key_name']} ({signature['key']})"
    return {
        "signed": f"signed by {by}, number {signature['number']}",
        "revoked": f"signed by {by}, whose key WAS REVOKED here",
        "unsigned": "NOT SIGNED: somebody said that it may come in so",
        "before": "not signed: it came in when labref knew no signatures",
        "unknown": "NOT TAKEN IN: it lies in the lab's folder, and nothing says why",
    }[signature["state"]]


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(
        help=_HELP, short_help="Whose bundles the lab takes in.", no_args_is_help=True, rich_markup_mode=None
    )
    group.command("trust", help=_TRUST, short_help="Trust a key, or a rotation record.")(trust)
    group.command("own", help=_OWN, short_help="The lab's own key, for the centre.")(own)
    group.command("list", help=_LIST, short_help="The keys, and what the lab thinks of them.")(list_)
    group.command("revoke", help=_REVOKE, short_help="Trust a key no more.")(revoke)
    app.add_typer(group, name="key")
