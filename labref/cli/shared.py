"""`labref shared`: the store that several labs ask, in PostgreSQL with pgvector."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labref.cli._shared import JsonOption, LabOption, a_path, counted, perform, print_json, say, without_progress
from labref.times import local

if TYPE_CHECKING:
    from collections.abc import Iterator

    from labref.operations.shared import SharedBundle, SharedLab
    from labref.progress import Row
    from labref.shared import labs as shared_labs
    from labref.shared.address import Address
    from labref.shared.indexing import Partition

__all__ = ["add_to"]

_HELP = """The shared store: references from several labs, or from several analysers of one.

It is a PostgreSQL database with pgvector, to which each lab publishes its cells, and which `labref query --shared` asks. The
lab's own store stays the truth: the shared one can be thrown away and made again, and a lab works alone while it is out of reach.
No slide, patient, path or reviewer is published, unless [shared] send_names says so.

\b
Once, by the owner of the database, who may make roles:
  labref shared init --url postgresql://postgres@db.example.org/labref
  labref shared lab add "Lund DC-1" --url postgresql://postgres@db.example.org/labref

\b
In each lab: what `lab add` prints goes into labref.toml, and the agent is started anew.
  labref status

The password is in the variable LABREF_SHARED_PASSWORD, or in a file; never in the URL. Over a network the server has to show a
certificate that is verified (sslmode=verify-full). deploy/shared.md has the whole set-up.
"""
_URL = "Where: postgresql://USER@HOST/DATABASE. Default: the [shared] url of the lab."
_FILE = "A file whose first line is the password. Default: the variable LABREF_SHARED_PASSWORD."
_INIT = """Make a shared store in an empty database, as its owner.

The server needs pgvector 0.8 or later, and the user the right to make roles. A second time does nothing.

\b
  createdb labref
  labref shared init --url postgresql://postgres@db.example.org/labref
"""
_MIGRATE = """Bring a shared store up to date, as its owner. Questions are answered meanwhile; what labs publish waits.

What was dropped of it by hand is made again; labs then publish what is missing.

\b
  labref shared migrate --url postgresql://postgres@db.example.org/labref
"""
_CHECK = """Look whether a shared store is whole, as its owner; exit code 1 where it is not.

\b
  labref shared check --url postgresql://postgres@db.example.org/labref

With --json, one object.

@shared.SharedCheck
"""
_INDEX = """Make an index for questions over very many cells, as the shared store's owner.

Without one every cell is compared, and none is missed; it is for more than 300,000 cells of one bundle. Questions that mean more
than 70,000 cells then take it, are answered far sooner, and say that a near cell can be missing. Questions that mean fewer (of one
lab, of one optics) compare all as before. It is made while labs publish and ask; their publishing is slower from then on.

\b
  labref shared index --url postgresql://postgres@db.example.org/labref

With --json, one object for each bundle that got one.

@shared.SharedBundle
"""
_PUBLISH = """Tell the shared store everything that it does not know of this lab. An agent does so by itself, within seconds.

--rebuild publishes every cell again and takes out what else is there of this lab; questions of others go on meanwhile.

\b
  labref shared publish
  labref shared publish --rebuild

With --json, one object.

@shared.PublishedNow
"""
_LAB = """The labs of a shared store: each has a role of PostgreSQL that writes its own rows alone. Its owner makes them.

\b
  labref shared lab add "Lund DC-1" --url postgresql://postgres@db.example.org/labref
"""
_ADD = """Make the role of a lab, and print what goes into that lab. For a name that is there already: a new password.

--reader makes a role that reads all and writes nothing.

\b
  labref shared lab add "Lund DC-1" --url postgresql://postgres@db.example.org/labref

With --json, one object.

@shared.LabAccess
"""
_LIST = """List the labs, how many cells each has there, and when it published last; then the readers.

\b
  labref shared lab list --url postgresql://postgres@db.example.org/labref

With --json, one object a lab or reader.

@shared.SharedLab
"""
_REMOVE = """Take a lab out of a shared store: its cells there, and its role. The lab's own store stays as it is. With --reader
a reader's role is taken away.

\b
  labref shared lab remove "Lund DC-1" --url postgresql://postgres@db.example.org/labref
  labref shared lab remove "reading room" --reader --url postgresql://postgres@db.example.org/labref

With --json, one object.

@shared.LabTakenOut
"""

UrlOption = Annotated[str | None, typer.Option("--url", metavar="URL", help=_URL, show_default=False)]
FileOption = Annotated[
    Path | None,
    typer.Option("--password-file", parser=a_path, metavar="FILE", help=_FILE, show_default=False),
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="What the others see it called.", show_default=False)]


def init(url: UrlOption = None, password_file: FileOption = None, lab: LabOption = None) -> None:
    from labref.shared.migrations import make

    address, password = _where(url, password_file, lab)
    version = make(address, password)
    say(f"{address} is a shared store, version {version}. Now add labs:")
    say("  labref shared lab add NAME" + (f' --url "{url}"' if url else ""))


def migrate(url: UrlOption = None, password_file: FileOption = None, lab: LabOption = None) -> None:
    from labref.shared.migrations import migrate as bring

    address, password = _where(url, password_file, lab)
    say(f"{address} is up to date, version {bring(address, password)}.")


def check(
    url: UrlOption = None, password_file: FileOption = None, lab: LabOption = None, json: JsonOption = False
) -> None:
    from labref.errors import SharedError
    from labref.operations.shared import SharedCheck
    from labref.shared.check import check as look

    address, password = _where(url, password_file, lab)
    found = look(address, password)
    if json:
        rows = {"labs": [_lab_row(one) for one in found.labs], "bundles": [_bundle_row(one) for one in found.bundles]}
        print_json(SharedCheck(**vars(found) | rows).model_dump())
    else:
        cells = sum(one.cells for one in found.labs)
        say(
            f"{address}: version {found.version}, {counted(len(found.labs), 'lab')}, {counted(cells, 'cell')}, {found.bytes / 1e6:.0f} MB"
        )
        if found.version < found.newest:
            say(f"  this labref knows version {found.newest}: labref shared migrate brings it there, when it suits")
        for one in found.bundles:
            index = "no index" if one.index_bytes is None else f"an index of {one.index_bytes / 1e6:.0f} MB"
            wants = "; questions want one: labref shared index" if one.wants_index else ""
            say(f"  bundle {one.name} ({one.bundle[:12]}): {one.cells} cells, {one.bytes / 1e6:.0f} MB, {index}{wants}")
        for what, number in found.faults.items():
            say(f"  {number} {what}")
    if found.faults:
        raise SharedError(
            f"{address} is not whole. Nothing is lost: `labref shared migrate` makes again what was dropped of it, and each lab "
            "publishes its cells again with `labref shared publish --rebuild`."
        )


def index(
    above: Annotated[
        int | None, typer.Option(min=0, help="Cells of one bundle past which it gets one.", show_default="300000")
    ] = None,
    memory_mb: Annotated[
        int | None,
        typer.Option(min=64, max=100_000, help="What the server may use for it, MB.", show_default="1000"),
    ] = None,
    url: UrlOption = None,
    password_file: FileOption = None,
    lab: LabOption = None,
    json: JsonOption = False,
) -> None:
    from labref.progress import rows_of
    from labref.shared.indexing import INDEX_ABOVE, MEMORY_MB
    from labref.shared.indexing import index as make

    address, password = _where(url, password_file, lab)
    above = INDEX_ABOVE if above is None else above

    def rows() -> "Iterator[Row]":
        made = yield from rows_of(
            make(address, password, above=above, memory_mb=MEMORY_MB if memory_mb is None else memory_mb)
        )
        for one in made:
            yield _bundle_row(one).model_dump()

    found = list(without_progress(rows()))
    for row in found:
        if json:
            print_json(row)
        else:
            say(f"bundle {row['name']}: {row['cells']} cells have an index of {row['index_bytes'] / 1e6:.0f} MB")
    if not found and not json:
        say(f"No bundle has more than {above} cells without an index.")


def publish(
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Publish every cell again.", show_default=False)] = False,
    lab: LabOption = None,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab

    (row,) = perform(Lab.find(lab), "shared.publish", rebuild=rebuild)
    if json:
        print_json(row)
    else:
        say(f"The shared store knows all {row['cells']} cells of this lab.")


def add(
    name: NameArgument,
    reader: Annotated[bool, typer.Option("--reader", help="Reads all, writes nothing.", show_default=False)] = False,
    url: UrlOption = None,
    password_file: FileOption = None,
    lab: LabOption = None,
    json: JsonOption = False,
) -> None:
    from labref.operations.shared import LabAccess
    from labref.shared.address import PASSWORD, Address
    from labref.shared.labs import add as make

    access = make(*_where(url, password_file, lab), name, reads_only=reader)
    if json:
        print_json(LabAccess(**vars(access)).model_dump())
        return
    if reader:
        say(f"{access.name} reads, and writes nothing. Its pages, on the computer of the reading room:")
        say(f'  labref web --shared "{access.url}" --password-file password')
    else:
        say(f"In labref.toml of {access.name}, whose agent is then started anew:")
        say("  [shared]")
        say(f"  url = '{access.url}'")
        say("  password_file = 'shared-password'")
    if dict(Address.of(access.url).parameters).get("sslrootcert", "system") != "system":
        say("The file after sslrootcert= is read on that computer: copy it there, and write where it lies.")
    say(f"The password, for the first line of that file or the variable {PASSWORD}; it is shown this once:")
    say(f"  {access.password}")
    if access.renewed:
        say("It was there already: the password of before lets nobody in any more.")


def list_(
    url: UrlOption = None, password_file: FileOption = None, lab: LabOption = None, json: JsonOption = False
) -> None:
    from labref.operations.shared import SharedLab
    from labref.shared.labs import labs, readers

    where = _where(url, password_file, lab)
    found, reading = labs(*where), readers(*where)
    for one in found:
        row = _lab_row(one)
        if json:
            print_json(row.model_dump())
        else:
            when = "nothing published yet" if row.published_at is None else f"published {local(row.published_at)}"
            say(f"{one.name}: {counted(one.cells, 'cell')}, {when}, role {one.role}")
    for reader in reading:
        if json:
            row = SharedLab(name=reader.name, role=reader.role, cells=0, published_at=None, reads_only=True)
            print_json(row.model_dump())
        else:
            say(f"{reader.name}: reads only, role {reader.role}")
    if not (found or reading or json):
        say(f"{where[0]} has no lab yet: labref shared lab add NAME")


def remove(
    name: NameArgument,
    reader: Annotated[bool, typer.Option("--reader", help="A reader, and no lab.", show_default=False)] = False,
    url: UrlOption = None,
    password_file: FileOption = None,
    lab: LabOption = None,
    json: JsonOption = False,
) -> None:
    from labref.operations.shared import LabTakenOut
    from labref.shared.labs import remove as take_out
    from labref.shared.labs import remove_reader

    where, gone = _where(url, password_file, lab), 0
    if reader:
        remove_reader(*where, name)
    else:
        gone = take_out(*where, name)
    if json:
        print_json(LabTakenOut(name=name, cells=gone).model_dump())
    elif reader:
        say(f"{name} reads the shared store no more.")
    else:
        say(f"{name} and its {counted(gone, 'cell')} are taken out.")


def _where(url: str | None, password_file: Path | None, lab: Path | None) -> "tuple[Address, str | None]":
    """The shared store that is meant, and the password. Raises `LabrefError` where none is named."""
    from labref.errors import LabError, SharedError
    from labref.lab import Lab
    from labref.shared.address import Address, read_password

    if url is not None:
        return Address.of(url), read_password(password_file)
    try:
        found = Lab.find(lab)
    except LabError as error:
        if lab is not None:
            raise
        raise SharedError(
            f"name the shared store: --url postgresql://USER@HOST/DATABASE, or the lab that has one: {error}"
        ) from None
    if not found.config.shared.url:
        raise SharedError("this lab has no shared store; name one: --url postgresql://USER@HOST/DATABASE.")
    return Address.of(found.config.shared.url), read_password(password_file, of_lab=found.shared_password_file)


def _lab_row(one: "shared_labs.SharedLab") -> "SharedLab":
    from labref.operations.shared import SharedLab
    from labref.times import utc

    published = None if one.published_at is None else utc(one.published_at)
    return SharedLab(name=one.name, role=one.role, cells=one.cells, published_at=published)


def _bundle_row(one: "Partition") -> "SharedBundle":
    from labref.operations.shared import SharedBundle

    fields = {name: value for name, value in vars(one).items() if name not in ("number", "latent_size")}
    return SharedBundle(**fields, wants_index=one.wants_index)


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(
        help=_HELP, short_help="References from several labs.", no_args_is_help=True, rich_markup_mode=None
    )
    group.command("init", help=_INIT, short_help="Make a shared store.")(init)
    group.command("migrate", help=_MIGRATE, short_help="Bring it up to date.")(migrate)
    group.command("check", help=_CHECK, short_help="Whether it is whole.")(check)
    group.command("index", help=_INDEX, short_help="For questions over very many cells.")(index)
    group.command("publish", help=_PUBLISH, short_help="Tell it everything of this lab.")(publish)
    labs = typer.Typer(help=_LAB, short_help="Its labs.", no_args_is_help=True, rich_markup_mode=None)
    labs.command("add", help=_ADD, short_help="Make the role of a lab.", no_args_is_help=True)(add)
    labs.command("list", help=_LIST, short_help="List them.")(list_)
    labs.command("remove", help=_REMOVE, short_help="Take one out.", no_args_is_help=True)(remove)
    group.add_typer(labs, name="lab")
    app.add_typer(group, name="shared")
