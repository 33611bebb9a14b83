"""`labref web`: a reading room's pages over a shared store."""

import signal
import threading
from typing import Annotated

import typer

from labref.cli._shared import counted, say
from labref.cli.bundle import BundleOption, KeyOption, UnsignedOption
from labref.cli.shared import FileOption

__all__ = ["add_to"]

_HELP = """Serve pages over a shared store on this computer, without a lab: for a reading room.

They show which labs there are, their cells by optics and class, and the references of all labs for a picture that somebody
chooses. Nothing is written, and the picture is not stored. The link that is printed signs in whoever opens it first, in a browser of
this computer; Ctrl-C ends it all.

The role only reads: `labref shared lab add "reading room" --reader` makes it, once, as the owner of the shared store.

\b
  labref web --shared postgresql://labref_reader_reading_room@db.example.org/labref --password-file password

A picture is compared in the space of one bundle: the starter, or what --bundle names. It has to be the one that the labs use.
"""


def web(
    shared: Annotated[
        str,
        typer.Option(
            "--shared", metavar="URL", help="The shared store: postgresql://USER@HOST/DATABASE.", show_default=False
        ),
    ],
    password_file: FileOption = None,
    bundle: BundleOption = None,
    key: KeyOption = None,
    unsigned: UnsignedOption = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; 0 takes any free one.", show_default=True)
    ] = 0,
) -> None:
    from labref.shared.address import Address, read_password
    from labref.web.room import open_room

    address, password = Address.of(shared), read_password(password_file)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with open_room(address, password, bundle=bundle, keys=key or (), unsigned=unsigned, port=port) as room:
        labs = f"{counted(room.cells, 'cell')} of {counted(room.labs, 'lab')}"
        say(f"The shared store {room.server} has {labs}. Open this in a browser of this computer:")
        say(room.link)
        say(f"It signs in whoever opens it first. Ctrl-C ends the pages. Until then their log is {room.log}.")
        try:
            while not ended.wait(1.0):
                pass
        except KeyboardInterrupt:
            pass


def add_to(app: typer.Typer) -> None:
    app.command("web", help=_HELP, short_help="Pages over a shared store, for a reading room.", no_args_is_help=True)(
        web
    )
