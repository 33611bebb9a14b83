"""How help is written to the terminal: prose is wrapped, and so is what stands beside an example; a model of an answer
is listed field by field."""

import re
import textwrap
from typing import TYPE_CHECKING, Any

import typer

from labref.cli._fields import described

__all__ = ["format_help_of"]

_AS_IT_STANDS = "\b"  # the first line of a paragraph that is not wrapped, as Click has it
_MODEL = "@"  # begins a paragraph that names models, below labref.operations, whose fields stand in its place
_BESIDE = re.compile(r"(\s*\S.*?)(?:\s{2,}(\S.*))?")
_GAP = 3

if TYPE_CHECKING:
    _HelpFormatter = Any
else:
    _HelpFormatter = typer.Context.formatter_class


class _Formatter(_HelpFormatter):  # type: ignore[misc]  # Click's own or Typer's copy of it
    def write_text(self, text: str) -> None:
        for number, paragraph in enumerate(re.split(r"\n(?:[ \t]*\n)+", text)):
            if number:
                self.write("\n")
            first, _, rest = paragraph.partition("\n")
            if first.strip(" \t") == _AS_IT_STANDS:
                self._write_lines(rest.splitlines())
            elif first.startswith(_MODEL):
                for at, path in enumerate(paragraph.split()):
                    self.write("\n" if at else "")
                    self._write_fields(path.removeprefix(_MODEL))
            else:
                super().write_text(paragraph)

    def _write_fields(self, path: str) -> None:
        stands_for, rows = described(path)
        super().write_text(stands_for)
        with self.indentation():
            self.width -= self.indent_increment  # Click's own lists are indented once
            self.write_dl(rows, col_max=28)
            self.width += self.indent_increment

    def _write_lines(self, lines: list[str]) -> None:
        """Lines as they stand, where they fit; else what stands to the right of a command is wrapped in a column."""
        room = self.width - self.current_indent
        margin = " " * self.current_indent
        if all(len(line) <= room for line in lines):
            self.write("".join(f"{margin}{line}\n" for line in lines))
            return
        parts = [found.groups() for line in lines if (found := _BESIDE.fullmatch(line))]
        widths = [len(left) for left, right in parts if right and len(left) <= room // 2]
        column = max(widths, default=room // 3) + _GAP
        for left, right in parts:
            if right is None:
                further = " " * (len(left) - len(left.lstrip()) + 4)
                wrapped = textwrap.wrap(
                    left, room, subsequent_indent=further, break_long_words=False, break_on_hyphens=False
                )
            elif len(left) + _GAP > column:
                beside = " " * column
                wrapped = [left, *textwrap.wrap(right, room, initial_indent=beside, subsequent_indent=beside)]
            else:
                wrapped = textwrap.wrap(right, room, initial_indent=" " * column, subsequent_indent=" " * column)
                wrapped[0] = left.ljust(column) + wrapped[0][column:]
            self.write("".join(f"{margin}{line}\n" for line in wrapped))


class _Context(typer.Context):
    formatter_class = _Formatter


def format_help_of(command: Any) -> None:
    """Let a command, and all below it, write their help by this module."""
    command.context_class = _Context
    for below in getattr(command, "commands", {}).values():
        format_help_of(below)
