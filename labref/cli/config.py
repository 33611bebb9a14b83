"""`labref config`: every setting of a lab, its value, and where that comes from."""

from typing import TYPE_CHECKING, Annotated

import typer

from labref.cli._shared import JsonOption, LabOption, print_json
from labref.printing import printable

if TYPE_CHECKING:
    from labref.config import Setting

__all__ = ["add_to"]

_HELP = """The lab's settings: those of its labref.toml, and of the LABREF_* variables, which stand above it.

\b
  labref config show
  labref config check

labref.toml is changed with any editor; labref.example.toml explains every key (in `pages` of the stick, in `deploy` of the source). The agent takes a change when it
is started again.
"""
_SHOW = """Show every setting, its value, and where that comes from: the default, labref.toml, or a variable.

\b
  labref config show
  labref config show --changed                    only those that are not the default
  labref config show --json                       one object a setting

With --json, one object a setting.

@condition.SettingShown
"""
_CHECK = """Say whether the settings can be used: every key known, every value of its type and in its range.

What is wrong is named with the key, the file or variable, and what to do; exit code 1. Whether what the settings name is
there, such as the export folder, `labref doctor` says.

With --json, one object.

@condition.ConfigChecked
"""


def show(
    lab: LabOption = None,
    changed: Annotated[
        bool, typer.Option("--changed", help="Only what is not the default.", show_default=False)
    ] = False,
    json: JsonOption = False,
) -> None:
    from dataclasses import asdict

    from labref.config import every_setting
    from labref.lab import Lab

    file = Lab.find(lab).config_file
    section = None
    for setting in every_setting(file):
        if changed and setting.source == "default":
            continue
        if json:
            print_json(asdict(setting))
            continue
        if setting.section != section:
            typer.echo(f"{'' if section is None else chr(10)}[{setting.section}]")
            section = setting.section
        source = "labref.toml" if setting.source == str(file) else setting.source
        typer.echo(printable(f"{setting.key} = {_written(setting.value)}") + f"    ({printable(source)})")


def check(lab: LabOption = None, json: JsonOption = False) -> None:
    from labref.config import every_setting
    from labref.lab import Lab

    file = Lab.find(lab).config_file
    changed = [setting for setting in every_setting(file) if _is_changed(setting)]
    if json:
        print_json({"ok": True, "file": str(file), "changed": len(changed)})
    else:
        typer.echo(
            printable(f"{file} can be used; {_counted(len(changed))} not the default (`labref config show --changed`)")
        )


def _is_changed(setting: "Setting") -> bool:
    return setting.source != "default"


def _counted(number: int) -> str:
    return "1 setting is" if number == 1 else f"{number} settings are"


def _written(value: object) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(
        help=_HELP, short_help="Every setting and where it comes from.", no_args_is_help=True, rich_markup_mode=None
    )
    group.command(help=_SHOW, short_help="Show every setting and where it comes from.")(show)
    group.command(help=_CHECK, short_help="Say whether the settings can be used.")(check)
    app.add_typer(group, name="config")
