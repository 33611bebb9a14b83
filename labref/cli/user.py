"""`labref user`: who may look at the lab's pages."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from labref.cli._shared import JsonOption, LabOption, perform, print_json
from labref.printing import printable
from labref.roles import Role
from labref.times import local

if TYPE_CHECKING:
    from labref.lab import Lab

__all__ = ["add_to"]

_HELP = """People who may look at the lab's pages in a browser, and what they may do there.

While the agent runs it serves pages: the cells that come in, each with its references, the slides, the map, what awaits
review. Somebody who is let in gets a code, and a link that holds it; they need no account on this computer and no access
to the lab's folder. Every review that they give carries their name.

\b
  labref user add "A. Lind" --role review
  labref user list
  labref user revoke "A. Lind"
"""
_ADD = """Let somebody in. The code, and the link that signs them in, are shown this once.

\b
view     looks at everything
review   gives labels, decides about duplicates, approves slides
admin    as well lets others in

\b
  labref user add "A. Lind" --role review
  labref user add Students --days 30

With --json, one object.

@user.UserCode
"""
_RENEW = """Give somebody a new code, where theirs is lost or known to others. The one before ends, and so do the sessions in
which they are signed in.

With --json, one object.

@user.UserCode
"""
_REVOKE = """Let somebody in no more. Wherever they are signed in, that ends at once. Their reviews stay.

With --json, one object.

@user.User
"""
_LIST = """List who is let in, and who was.

With --json, one object a person.

@user.User
"""

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Their name.", show_default=False)]
DaysOption = Annotated[
    int | None,
    typer.Option("--days", metavar="N", help="For so many days. Default: until they are revoked.", show_default=False),
]


def add(
    name: NameArgument,
    lab: LabOption = None,
    role: Annotated[Role, typer.Option("--role", help="What they may do.")] = Role.VIEW,
    days: DaysOption = None,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab

    found = Lab.find(lab)
    (row,) = perform(found, "user.add", name=name, role=str(role), days=days)
    _show_code(found, row, json)


def renew(name: NameArgument, lab: LabOption = None, days: DaysOption = None, json: JsonOption = False) -> None:
    from labref.lab import Lab

    found = Lab.find(lab)
    (row,) = perform(found, "user.renew", name=name, days=days)
    _show_code(found, row, json)


def revoke(name: NameArgument, lab: LabOption = None, json: JsonOption = False) -> None:
    from labref.lab import Lab

    (row,) = perform(Lab.find(lab), "user.revoke", name=name)
    if json:
        print_json(row)
    else:
        typer.echo(printable(f"{row['name']} is let in no more"))


def list_(lab: LabOption = None, json: JsonOption = False) -> None:
    from labref.lab import Lab

    for row in perform(Lab.find(lab), "user.list"):
        if json:
            print_json(row)
            continue
        until = f" until {local(row['expires_at'])}" if row["expires_at"] else ""
        typer.echo(
            printable(
                f"{row['name']}  {row['role']}  {row['state']}{until}  since {local(row['created_at'], day=True)}"
            )
        )


def _show_code(lab: "Lab", row: dict[str, Any], json: bool) -> None:
    from labref.web.client import AgentClient

    if json:
        print_json(row)
        return
    agent = AgentClient.find(lab)
    typer.echo(printable(f"{row['name']} ({row['role']}) signs in with the code"))
    typer.echo(f"  {row['code']}")
    if agent is not None:
        typer.echo("or by this link, on this computer:")
        typer.echo(f"  {agent.link(row['code'])}")
    else:
        typer.echo("on the page that `labref agent` serves; no agent runs now.")
    if row["links"]:
        typer.echo(
            "or by one of these, on other computers:" if len(row["links"]) > 1 else "or by this, on other computers:"
        )
        for link in row["links"]:
            typer.echo(f"  {link}")
    typer.echo("Give it to nobody else: it is shown this once, and reviews carry the name.")


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(
        help=_HELP, short_help="Who may look at the lab's pages.", no_args_is_help=True, rich_markup_mode=None
    )
    group.command("add", help=_ADD, short_help="Let somebody in.")(add)
    group.command("list", help=_LIST, short_help="Who is let in.")(list_)
    group.command("renew", help=_RENEW, short_help="Give somebody a new code.")(renew)
    group.command("revoke", help=_REVOKE, short_help="Let somebody in no more.")(revoke)
    app.add_typer(group, name="user")
