"""`labref label`: what people call the cells."""

import codecs
import contextlib
import csv
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from labref.cli._shared import JsonOption, LabOption, a_path, here, named, perform, print_json, say
from labref.errors import AgentError, LabrefError
from labref.files import LargeFileError, read_file
from labref.printing import printable
from labref.times import local

if TYPE_CHECKING:
    from labref.lab import Lab

__all__ = ["add_to"]

_HELP = """Labels that people give: one by one, or from a list; and how each cell came to its label.

A label from a person (reviewed) counts more than the analyser's, and that more than a prediction. A cell whose file
moves from `Unsigned slides` to `Signed slides` becomes reviewed by itself: it is the same cell. Where the file that gave
a label moves to another class folder, or another patient's, the cell follows, unless a person gave it a label here. A
file that is deleted takes no label away. Nothing is overwritten:
`labref label history` tells who gave which label, when, and what it was before.

Reviewed cells are preferred as references: among cells that are about as near (within 5 % of the distance), a reviewed
one is shown rather than one from the analyser, and that rather than a predicted one. A clearly nearer cell is never
pushed out.

\b
  labref label set 3f2a9c0d11e87b64 monocyte --who "A. Lind"
  labref label import review.csv --dry-run
  labref label history 3f2a9c0d11e87b64
"""
_SET = """Give a cell a label: it is reviewed from now on.

CELL is the cell's id or its first characters (4 or more), or the path or SHA-256 of its file. Classes are named as the
bundle, the lab's cells or CellaVision call them; a class that is new to the lab needs --new, so that a slip of the keyboard
does not become one.

To say what the cell was reviewed as already is a review as well: it is kept in the history, and stands above what files and
older lists say. A name (--who) has at most 200 characters.

With --json, one object.

@label.LabelSet
"""
_IMPORT = """Give many cells labels from a list.

FILE.csv is UTF-8 and has a header with the columns path (as `labref ledger` shows it, or below a watched folder), cell_id
(or its first characters) or sha256 (of the file), label, and if you like who and when (2026-03-31, or 2026-03-31T14:05 in
this computer's time zone). Commas, semicolons and tabs all separate. A list has at most 200,000 rows. It may
come through a pipe (/dev/stdin), which is read to its end.

The whole list is checked first. It is refused, and nothing of it is written, where it cannot be trusted: a row has more or
fewer values than the header, a column is named twice, two rows (or the path and the cell_id of one) contradict each other,
a path or the beginning of an id is that of several cells, a review is more than 10 minutes in the future, a row names no
reviewer although there is a column who (and no --who), or a character cannot be seen.

Of the rows that contradict each other one or both may be of no use by themselves (no date, no such class): the list is
refused all the same. A row that confirms what its cell was reviewed as already is kept in the cell's history, once for each
person and date.

A row that cannot be used by itself (no such cell, no such class, no date) is named by its line, with the reason; the
others are written, and the exit code is 1. A label older than the one a person gave since does not replace it. --dry-run
writes nothing.

A list is written in parts, and the agent takes in files between them. Where it is cut off, what is written stays; `labref
label imports` tells how far it is, and importing the same list again writes the rest. That never undoes what people said
after it was first imported.

\b
  labref label import review.csv --dry-run
  labref label import review.csv --who "morning round"

With --json, one object for each row that cannot be used, and one at the end; none at the end where the list is refused.

@label.ImportRefused @label.Imported
"""
_IMPORTS = """List the lists of labels that were imported, the last first, and how far each is.

With --json, one object a line.

@label.ImportState
"""
_HISTORY = """Tell how a cell came to its label: who gave it, when, and what it was before.

With --json, one object.

@label.LabelHistory
"""
_MOST_BYTES: Final = 100_000_000
_COLUMNS = ("path", "cell_id", "label", "who", "when")
_ALSO_CELL_ID = frozenset({"digest", "sha256"})  # a digest names a cell as its id does

NewOption = Annotated[bool, typer.Option("--new", help="Allow classes that are new to this lab.", show_default=False)]
CellArgument = Annotated[str, typer.Argument(metavar="CELL", help="A cell's id, or its file.", show_default=False)]


def set_(
    cell: CellArgument,
    label: Annotated[str, typer.Argument(metavar="LABEL", help="The class.", show_default=False)],
    lab: LabOption = None,
    who: Annotated[
        str | None,
        typer.Option("--who", metavar="NAME", help="Who gives it. Default: your login name.", show_default=False),
    ] = None,
    new: NewOption = False,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab

    (row,) = perform(Lab.find(lab), "label.set", cell=cell, label=label, who=named(who), new=new, folder=here())
    if json:
        print_json(row)
        return
    row = printable(row)
    if row["outcome"] == "same":
        say(f"{row['cell_id']} was reviewed as {row['label']} already; its history has your review too")
    else:
        say(f"{row['cell_id']}: {row['label']} (was {row['previous']}, {row['previous_source']})")


def import_(
    file: Annotated[Path, typer.Argument(parser=a_path, metavar="FILE.csv", help="The list.", show_default=False)],
    lab: LabOption = None,
    who: Annotated[
        str | None,
        typer.Option(
            "--who", metavar="NAME", help="Who gave the labels, where a row does not say.", show_default=False
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would happen, and write nothing.", show_default=False)
    ] = False,
    new: NewOption = False,
    json: JsonOption = False,
) -> None:
    from labref.lab import Lab

    def tell(problem: dict[str, Any]) -> None:
        if json:
            print_json(problem)
        else:
            say(f"{file}:{problem['line']}: {problem['problem']}", err=True)

    try:
        rows = _read(file, named(who), chosen=who is not None)
    except _RefusedError as refused:
        for problem in refused.problems:
            tell(problem)
        raise
    found = Lab.find(lab)
    summary: dict[str, Any] = {}
    number: int | None = None
    try:
        for row in perform(found, "label.import", rows=rows, dry_run=dry_run, new=new, folder=here()):
            if "problem" in row:
                tell(row)
            elif "number" in row:
                number = row["number"]
            else:
                summary = row
                if json:
                    print_json(row)
    except LabrefError as error:
        if number is None:
            raise
        raise LabrefError(f"{error} {_how_far(found, number)}") from None
    if not summary:
        raise AgentError(f"the agent's answer ended early. {_how_far(found, number)}")
    if not json:
        done = "would change" if dry_run else "changed"
        say(
            f"{summary['rows']} rows: {summary['changed']} {done}, {summary['same']} were so already, {summary['older']} "
            f"older than the label the cell has, {summary['unknown']} cannot be used"
        )
    if summary["unknown"]:
        raise typer.Exit(1)


def imports(lab: LabOption = None, json: JsonOption = False) -> None:
    from labref.lab import Lab

    for row in perform(Lab.find(lab), "label.imports"):
        if json:
            print_json(row)
            continue
        say(
            f"{row['number']}  {local(row['began_at'])}  {row['state']}  {row['done'] + row['unknown']} of {row['rows']} rows: "
            f"{row['changed']} changed, {row['same']} were so already, {row['older']} older, {row['unknown']} cannot be used"
        )


def _how_far(lab: "Lab", number: int | None) -> str:
    """What was written of a list whose import did not end as it should."""
    again = "Import the same list again: what is written stays, and the rest is written."
    with contextlib.suppress(LabrefError):
        for row in perform(lab, "label.imports"):
            if row["number"] == number:
                if row["state"] == "done":
                    return f"The list was written whole: {row['changed']} changed, {row['same']} were so already."
                return f"{row['done']} of {row['rows'] - row['unknown']} rows were written. {again}"
    return f"How much was written, `labref label imports` tells. {again}"


def history(cell: CellArgument, lab: LabOption = None, json: JsonOption = False) -> None:
    from labref.lab import Lab

    (row,) = perform(Lab.find(lab), "label.history", cell=cell, folder=here())
    if json:
        print_json(row)
        return
    row = printable(row)
    say(f"{row['cell_id']}: {row['label']} ({row['label_source']})")
    say(f"  {local(row['stored_at'])}  stored as {row['stored_as']['label']} ({row['stored_as']['label_source']})")
    for change in row["changes"]:
        by = f" by {change['who']}" if change["who"] else f" from {change['path']}" if change["path"] else ""
        when = f", given {local(change['given_at'])}" if change["given_at"] else ""
        say(
            f"  {local(change['at'])}  {change['label']} ({change['label_source']}){by}{when}; was {change['previous']} "
            f"({change['previous_source']})"
        )
    for path in row["paths"]:
        says = (
            "says nothing of the class" if path["label"] is None else f"says {path['label']} ({path['label_source']})"
        )
        say(f"  {path['path']} {says}")
    for made in row["predictions"]:
        say(f"  bundle {made['bundle'][:12]} predicts {made['label']} {made['probability']:.1%}")


class _RefusedError(LabrefError):
    """A list that is refused; `problems` are its rows' {line, problem}."""

    def __init__(self, file: Path, problems: list[dict[str, Any]]) -> None:
        rows = f"line {problems[0]['line']}" if len(problems) == 1 else f"{len(problems)} lines"
        super().__init__(
            f"{file} is refused because of {rows}, and nothing of it was written; mend it and import it again."
        )
        self.problems = problems


def _read(file: Path, who: str, *, chosen: bool) -> list[dict[str, Any]]:
    """The rows of a list, each with the line it begins on. who : gave the labels, where a row does not say.  chosen :
    whether somebody chose this name for them: else a row of a list with such a column has to say it.

    Raises `LabrefError` where it is no list, `_RefusedError` where it is not clear which value is of which column, or
    who gave a label.
    """
    text = _text(file)
    first_line, _, rest = text.partition("\n")
    said = re.fullmatch(r"sep=(.)\s*", first_line)  # Excel's way to say what separates
    if said is not None:
        text = rest
    header = next(iter(text.splitlines()), "")
    separator = said[1] if said is not None else max(",;\t", key=header.count)
    before = 0 if said is None else 1
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows, problems = [], []
    try:
        columns = [name.strip().lower() for name in next(reader, [])]
        if "cell_id" not in columns:
            columns = ["cell_id" if name in _ALSO_CELL_ID else name for name in columns]
        _check_columns(file, columns)
        line = reader.line_num + 1
        for values in reader:
            try:
                row = _row(columns, [value.strip() for value in values], who, chosen=chosen)
            except LabrefError as error:
                problems.append({"line": before + line, "problem": str(error)})
            else:
                if row:
                    rows.append({"line": before + line} | {name: row[name] for name in _COLUMNS if row.get(name)})
            line = reader.line_num + 1
    except csv.Error as error:
        raise LabrefError(
            f"{file} is refused, line {before + reader.line_num}: {error}; a value with a quotation mark is quoted whole, "
            "with the mark doubled. Nothing was written. Save it as CSV again."
        ) from None
    if problems:
        raise _RefusedError(file, problems)
    return rows


def _text(file: Path) -> str:
    """The text of a list. Raises `LabrefError` where it is none that can be trusted."""
    try:
        data = read_file(file, _MOST_BYTES, streams=True)
    except LargeFileError:
        raise LabrefError(f"{file} is too large: a list has at most {_MOST_BYTES // 1_000_000} MB. Split it.") from None
    except OSError as error:
        raise LabrefError(f"{file} cannot be read: {error.strerror or error}.") from None
    save = "Save it as `CSV UTF-8` and import it again; nothing was written."
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data[:4096]:
        kind = "UTF-16 (in Excel: `Unicode text`)" if b"\0" in data[:4096] else "UTF-16"
        if data.startswith((b"PK", b"\xd0\xcf\x11\xe0")):
            kind = "a workbook of Excel"
        raise LabrefError(f"{file} is {kind}, not UTF-8. {save}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise LabrefError(
            f"{file} is not UTF-8: line {line} holds the byte 0x{data[error.start]:02x}, as a file in Latin-1 or Windows-1252 "
            f"does. {save}"
        ) from None
    if "\ufffd" in text:
        line = text.count("\n", 0, text.index("\ufffd")) + 1
        raise LabrefError(
            f"{file}, line {line}: a letter was lost (U+FFFD) when it was saved in another encoding. {save}"
        )
    return text


def _check_columns(file: Path, columns: list[str]) -> None:
    if "label" not in columns or not {"path", "cell_id"} & set(columns):
        raise LabrefError(
            f"{file} needs a header with the columns label and path or cell_id (and who, when, if you like); it has "
            f"{', '.join(filter(None, columns)) or 'none'}."
        )
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        raise LabrefError(f"{file} names the column {twice[0]} twice, so it is refused; nothing was written.")
    unknown = [name for name in columns if name and name not in _COLUMNS]
    if unknown:
        say(f"{file}: the columns {', '.join(unknown)} are not used", err=True)


def _row(columns: list[str], values: list[str], who: str, *, chosen: bool) -> dict[str, str]:
    """A row by column; empty where it says nothing. Raises `LabrefError` where that is not clear."""
    if not any(values):
        return {}
    if len(values) != len(columns):
        how = "a value that holds a separator has to be quoted" if len(values) > len(columns) else "some are missing"
        raise LabrefError(f"it has {len(values)} values, and the header has {len(columns)} columns; {how}")
    if any(value for name, value in zip(columns, values, strict=True) if not name):
        raise LabrefError("it has a value in a column without a name")
    row = dict(zip(columns, values, strict=True))
    if "\0" in "".join(values):
        raise LabrefError("it holds the character NUL; perhaps this is no CSV file")
    if "who" in columns and not row["who"] and not chosen:
        raise LabrefError("it names no reviewer; fill in who, or say --who")
    row["who"] = row.get("who") or who
    return row


def add_to(app: typer.Typer) -> None:
    group = typer.Typer(
        help=_HELP,
        short_help="Labels that people give, and their history.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command("set", help=_SET, short_help="Give one cell a label.")(set_)
    group.command("import", help=_IMPORT, short_help="Give many cells labels from a list.")(import_)
    group.command("history", help=_HISTORY, short_help="How a cell came to its label.")(history)
    group.command("imports", help=_IMPORTS, short_help="Which lists were imported, and how far.")(imports)
    app.add_typer(group, name="label")
