"""The report: the same tables for a terminal and as Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from tenfold.bench.sidebyside.targets import (
    Row,
    closeness,
    rows,
    times_better,
    value,
    verdict,
)

MET, MISSED = "✓", "✗"


@dataclass(slots=True)
class Grid:
    """A table before it is drawn: the first column is words, the others are numbers."""

    title: str
    header: list[str]
    lines: list[list[str]]
    note: str = ""


def grids(body: dict[str, Any]) -> list[Grid]:
    """Everything the report shows, in order; what a run has nothing of is left out."""
    found = [values_grid(body)]
    for ours in tenfolds(body):
        found += [ratios_grid(body, ours), limits_grid(body, ours)]
    found += [settings_grid(body), absent_grid(body), errors_grid(body)]
    return [grid for grid in found if grid.lines]


def tenfolds(body: dict[str, Any]) -> list[str]:
    return [peer for peer in peers(body) if peer.startswith("tenfold-")]


def peers(body: dict[str, Any]) -> list[str]:
    """Those that have a number, in the order in which they ran."""
    return list(dict.fromkeys(p for case in body["cases"].values() for p in case["median"]))


def headline(body: dict[str, Any]) -> str:
    key = body["key"]
    if key["quick"]:
        return f"{key['model']}, a quick run: these numbers mean nothing"
    return f"{key['model']}, {key['threads']} threads, medians of {key['rounds']} rounds"


def values_grid(body: dict[str, Any]) -> Grid:
    names = peers(body)
    lines = []
    for row in rows(body):
        found = [value(body, row, peer) for peer in names]
        if any(one is not None for one in found):
            cells = ["" if one is None else _number(one * row.scale) for one in found]
            lines.append([f"{row.title}, {row.unit}", *cells])
    return Grid(headline(body), ["measure", *names], lines)


def ratios_grid(body: dict[str, Any], ours: str) -> Grid:
    others = [peer for peer in peers(body) if not peer.startswith("tenfold-")]
    lines = []
    for row in rows(body):
        if not (row.at_least or row.share or row.metric == "output"):
            continue
        cells = [_ratio(body, row, ours, peer) for peer in others]
        title = row.title
        if row.share and (found := value(body, row, ours)) is not None:
            mark = MET if found >= row.share else MISSED
            title += f" (≥ {row.share:.0%}: {found:.0%} {mark})"
        lines.append([title, *cells])
    note = (
        "Times better (for seconds and bytes: the peer's over ours), the median of the rounds' "
        f"ratios; in brackets what it is to be at least, {MET} met, {MISSED} missed."
    )
    return Grid(f"{ours} against each peer", ["measure", *others], lines if others else [], note)


def _ratio(body: dict[str, Any], row: Row, ours: str, theirs: str) -> str:
    found = times_better(body, row, ours, theirs)
    if not found:
        return ""
    met = verdict(body, row, ours, theirs)
    if met is None:
        return f"{found:.2f}"
    return f"{found:.2f} (≥ {row.at_least[theirs]:.3g}) {MET if met else MISSED}"


def limits_grid(body: dict[str, Any], ours: str) -> Grid:
    lines = [
        [one.title, f"{one.reached:,.1f}", f"{one.limit:,.1f}", one.unit,
         f"{one.reached / one.limit:.0%}"]
        for one in closeness(body, ours)
    ]  # fmt: skip
    note = (
        "Counted: the bytes of the weight file once for each step of one stream; products with the "
        "weights, without attention's own. The limits were measured in the same run, by torch."
    )
    header = ["measure", "reached", "the machine's limit", "unit", "share"]
    return Grid(f"{ours} and the machine's limits", header, lines, note)


def settings_grid(body: dict[str, Any]) -> Grid:
    lines = []
    for name, found in body["peers"].items():
        words = [f"{key}={_plain(one)}" for key, one in found.get("settings", {}).items()]
        if "server" in found:
            words.append(f"server: {found['server']}")
        lines.append([name, str(found.get("version", "")), ", ".join(words)])
    return Grid("settings", ["peer", "version", "settings"], lines)


def absent_grid(body: dict[str, Any]) -> Grid:
    lines = [[name, one["why"], one["install"]] for name, one in body["absent"].items()]
    return Grid("absent, so not run", ["peer", "why", "to install it"], lines)


def errors_grid(body: dict[str, Any]) -> Grid:
    lines = [
        [case, peer, message]
        for case, found in body["cases"].items()
        for peer, message in found["errors"].items()
    ]
    return Grid("failed", ["case", "peer", "what it said"], lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _plain(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def print_grids(found: list[Grid], console: Console) -> None:
    for grid in found:
        words = grid.header[-1] in ("settings", "to install it", "what it said")
        table = RichTable(title=grid.title, title_justify="left", caption=grid.note or None,
                          caption_justify="left")  # fmt: skip
        for place, column in enumerate(grid.header):
            table.add_column(
                column, justify="left" if words or not place else "right", overflow="fold"
            )
        for line in grid.lines:
            table.add_row(*line)
        console.print(table)


def markdown(body: dict[str, Any], found: list[Grid]) -> str:
    """The report as a page; hardware, commit and command stand on top."""
    machine = body["machine"]
    parts = [
        f"# {body['key']['model']}: engines side by side",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; "
        f"commit {machine['commit'] or 'unknown'}.",
        "\n".join(f"    {command}" for command in body["commands"]),
    ]
    for grid in found:
        words = grid.header[-1] in ("settings", "to install it", "what it said")
        rule = ["---", *["---" if words else "---:"] * (len(grid.header) - 1)]
        lines = [grid.header, rule, *grid.lines]
        table = "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)
        parts += [f"## {grid.title}", table]
        if grid.note:
            parts.append(grid.note)
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
