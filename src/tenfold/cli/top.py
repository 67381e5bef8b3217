"""``tenfold top``: a running server at a glance, drawn anew every second."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenfold.cli import top_view as view
from tenfold.cli.options import DEFAULT_URL, Json, Key, Url
from tenfold.cli.output import make_table, print_json, print_table

if TYPE_CHECKING:
    from rich.console import ConsoleDimensions, Group


_BAR = 32
_BESIDE = 90
"""Columns of the screen that the widest table needs beside its bars."""


def top(
    url: Url = DEFAULT_URL,
    key: Key = None,
    once: Annotated[bool, typer.Option("--once", help="Print one look and leave.")] = False,
    every: Annotated[
        float, typer.Option("--every", min=0.1, help="Seconds from one look to the next.")
    ] = 1.0,
    as_json: Json = False,
) -> None:
    """Watch a running server: pages of devices and models, their load, who is served how much.

    A device's bar shows weights (full), keys and values, cached prefixes and pages that are ready
    (lightest); moved counts the pages that a model gained or lost since the last look.

    Share is a client's part of the service of the last ten seconds, fair what it is due among
    those that have work; drift is how far its service is from its share, as a part of the bound
    that is proven. q leaves. Where the output is no terminal, one look is printed.
    """
    from tenfold.cli.http import call

    def ask() -> view.Status:
        status: view.Status = call(url, "GET", "/v1/status", key=key)
        return status

    before = ask()
    if not (once or as_json) and sys.stdout.isatty():
        _watch(before, ask, every)
        return
    time.sleep(every)
    now = ask()
    if as_json:
        print_json(view.as_data(before, now))
        return
    typer.echo(view.headline(now))
    for section in _sections(before, now, None, _BAR):
        typer.echo()
        print_table(*section)
    typer.echo(f"\n{view.LEGEND}")


def _sections(
    before: view.Status, now: view.Status, lines: int | None, width: int
) -> list[view.Section]:
    """``lines``: of the screen, for all tables; clients get what the others leave. ``width``: of
    bars."""
    speed = view.speeds(before, now)
    first = [view.devices(now), view.memory(now, view.movement(before, now), speed, width)]
    most = None
    if lines is not None:
        taken = sum(len(section.rows) + 2 for section in first) + 5
        most = max(3, lines - taken)
    return [*first, view.clients(now, most)]


def _watch(before: view.Status, ask: Callable[[], view.Status], every: float) -> None:
    """Draw until q or Ctrl-C. A server that goes away is said, and waited for."""
    from rich.console import Console
    from rich.live import Live

    from tenfold.core.errors import Unavailable

    console = Console(highlight=False)
    now, trouble = before, ""
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(_draw(before, now, trouble, console.size), refresh=True)
            if pressed(every) in ("q", "Q"):
                return
            try:
                now, before, trouble = ask(), now, ""
            except Unavailable as error:
                trouble = error.message


def _draw(before: view.Status, now: view.Status, trouble: str, size: ConsoleDimensions) -> Group:
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [Text(trouble, style="red") if trouble else Text(view.headline(now))]
    bars = min(_BAR, max(_BAR // 4, size.width - _BESIDE))
    for section in _sections(before, now, size.height, bars):
        parts += [Text(""), make_table(*section, width=size.width)]
    parts += [Text(""), Text(view.LEGEND, style="dim")]
    return Group(*parts)


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """A function that waits so many seconds for a key, and gives it or an empty string."""
    import select
    import termios
    import tty

    if not sys.stdin.isatty():

        def pause(seconds: float) -> str:
            time.sleep(seconds)
            return ""

        yield pause
        return
    file = sys.stdin.fileno()
    kept = termios.tcgetattr(file)

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([file], [], [], seconds)
        return os.read(file, 1).decode("ascii", "replace") if ready else ""

    tty.setcbreak(file)
    try:
        yield pressed
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, kept)


def register(app: typer.Typer) -> None:
    app.command()(top)
