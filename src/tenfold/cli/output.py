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


def make_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A plain table. A column whose name ends in ">" is set flush right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(columns))
    for column in columns:
        justify: Any = "right" if column.endswith(">") else "left"
        table.add_column(column.rstrip(">"), justify=justify, overflow="fold")
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
