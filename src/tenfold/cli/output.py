"""How verbs print: tables for people, JSON for programs, notes on stderr. rich is imported late."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

_GAP = 2
"""Blanks between the columns of a table."""
_NARROWEST = 8


def note(message: str) -> None:
    """A line for the person at the terminal. stdout stays free for results."""
    typer.echo(message, err=True)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def make_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], width: int | None = None
) -> Table:
    """A plain table. A column whose name ends in ">" is set flush right. ``width``: of the screen;
    the first column then gives way where there is too little room. Without it, cells are folded."""
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(columns))
    names = [column.rstrip(">") for column in columns]
    room = None
    if width is not None:
        wide = [max([len(name), *(len(row[at]) for row in rows)]) for at, name in enumerate(names)]
        room = max(_NARROWEST, width - sum(wide[1:]) - _GAP * len(wide[1:]))
    for at, column in enumerate(columns):
        justify: Any = "right" if column.endswith(">") else "left"
        table.add_column(
            names[at],
            justify=justify,
            overflow="fold" if width is None else "ellipsis",
            no_wrap=width is not None,
            max_width=None if at else room,
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """``make_table`` on stdout."""
    from rich.console import Console

    table = make_table(columns, rows)
    if sys.stdout.isatty():
        Console(highlight=False).print(table)
        return
    # A pipe has no width of its own, and a folded cell or trailing blanks are of no use to it.
    drawn = StringIO()
    Console(file=drawn, width=500, highlight=False).print(table)
    typer.echo("\n".join(line.rstrip() for line in drawn.getvalue().splitlines()))


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Names and values, one pair a line, aligned."""
    listed = list(pairs)
    width = max((len(name) for name, _ in listed), default=0)
    for name, value in listed:
        typer.echo(f"{name.ljust(width)}  {value}")
