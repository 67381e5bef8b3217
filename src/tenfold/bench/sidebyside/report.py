"""Writes what a comparison found: tables in the terminal and as Markdown, and one plot."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from rich.console import Console

from tenfold.bench.plot import peers_plot
from tenfold.bench.sidebyside.tables import grids, headline, markdown, print_grids
from tenfold.bench.sidebyside.targets import Row, rows, value


def write_report(body: dict[str, Any], out: Path, console: Console) -> list[Path]:
    """peers.md and peers.png into ``out``, tables on the console; gives all files, JSON first."""
    found = grids(body)
    print_grids(found, console)
    page, picture = out / "peers.md", out / "peers.png"
    out.mkdir(parents=True, exist_ok=True)
    page.write_text(markdown(body, found))
    plot(body, picture)
    return [out / "peers.json", page, picture]


def plot(body: dict[str, Any], path: Path) -> None:
    """A panel for each measure with a target, and output over streams."""
    measures = rows(body)
    panels = [
        (_label(row), _bars(body, row))
        for row in measures
        if (row.at_least or row.share) and not row.title.startswith("output")
    ]
    over: dict[str, dict[int, float]] = {}
    for row in measures:
        if row.metric == "output":
            streams = body["cases"][row.case]["case"]["streams"]
            for peer, rate in _bars(body, row).items():
                over.setdefault(peer, {})[streams] = rate
    panels = [panel for panel in panels if panel[1]]
    peers_plot(panels, ("output with prompts, tok/s", over), path, headline(body))


def _label(row: Row) -> str:
    text = f"{row.title}, {row.unit}" + ("" if row.more else " (less is better)")
    return textwrap.fill(text, 34)


def _bars(body: dict[str, Any], row: Row) -> dict[str, float]:
    found = {peer: value(body, row, peer) for peer in body["cases"][row.case]["median"]}
    return {peer: one * row.scale for peer, one in found.items() if one is not None}
