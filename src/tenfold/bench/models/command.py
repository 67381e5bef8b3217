"""``tenfold bench models`` from its options to its files. Prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from tenfold.bench.models.fleet import FLEET, TINY_FLEET, Member, sources
from tenfold.bench.models.plots import SWEEPS, curves_plot, devices_plot, sweeps_plot
from tenfold.bench.models.point import Before, Machine
from tenfold.bench.models.report import claims, curve_rows, rivals, sweep_rows
from tenfold.bench.models.run import Comparison, Plan
from tenfold.bench.models.store import Store
from tenfold.core.settings import DeviceSettings
from tenfold.fleet.workers import LocalWorker, Worker


@dataclass(slots=True)
class Files:
    """``out``: the folder of results. ``paths``: what stands for a catalogue name, by that name."""

    out: Path
    paths: dict[str, str] = field(default_factory=dict)
    fresh: bool = False


def compare_models(
    plan: Plan,
    files: Files,
    *,
    tiny: bool = False,
    threads: int = 0,
    before: Before | None = None,
    make_worker: Callable[[DeviceSettings], Worker] = LocalWorker,
) -> dict[str, Any]:
    """Run the cells, write and print what they say; gives the body of the file. ``before``: called
    right before each timed run."""
    plan.check()
    machine = the_machine(plan, files, tiny=tiny, threads=threads, make_worker=make_worker)
    store = Store(files.out / "models.json", plan.key(machine), fresh=files.fresh)

    def say(line: str) -> None:
        typer.echo(line, err=True)

    comparison = Comparison(plan, machine, store, before or (lambda what: None), say)
    for cell in comparison.run():
        say(f"{cell}: done")
    write_report(store.body["parts"], files.out)
    body: dict[str, Any] = store.body
    return body


def the_machine(
    plan: Plan,
    files: Files,
    *,
    tiny: bool,
    threads: int,
    make_worker: Callable[[DeviceSettings], Worker],
) -> Machine:
    """The fleet with its files; a plan of simulations only needs none."""
    fleet = TINY_FLEET if tiny else FLEET
    fleet = tuple(Member(one.name, files.paths.get(one.source, one.source)) for one in fleet)
    needs = set(plan.cells) - {"simulated", "tau"}
    found = sources(fleet, files.out / "models", small=tiny) if needs else {}
    machine = Machine(
        fleet, found, folder=str(files.out / "packed"), threads=threads, make_worker=make_worker
    )
    if tiny:
        machine = replace(machine, page_bytes=64 << 10, max_running=4, ample=16 << 20)
    return machine


def write_report(parts: dict[str, Any], out: Path) -> None:
    """models.md and the plots of what there is, and tables on the terminal."""
    console = Console()
    text: list[str] = []

    def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
        if not rows:
            return
        table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
        for column in columns:
            table.add_column(column)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        text.extend([f"**{title}**", "", _line(columns), _line(["---"] * len(columns))])
        text.extend([*map(_line, rows), ""])

    told = [
        [one.what, one.least, one.found, {True: "yes", False: "no", None: "-"}[one.met]]
        for one in claims(parts)
    ]
    show("What was to be shown", ["claim", "at least", "found", "met"], told)
    for budget in ("A", "B"):
        columns, rows = curve_rows(parts, budget)
        show(f"Budget {budget}: first tokens in time", columns, rows)
    for what in SWEEPS:
        swept = sweep_rows(parts, what)
        rows = [[f"{value:g}", f"{at.mean:.1%} ± {at.half:.1%}"] for value, at in swept.items()]
        show(f"{what}: {SWEEPS[what]}", [what, "in time"], rows)
    out.mkdir(parents=True, exist_ok=True)
    (out / "models.md").write_text("\n".join(text))
    written = [out / "models.json", out / "models.md", *_plots(parts, out)]
    typer.echo(f"written: {', '.join(str(path) for path in written)}")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plots(parts: dict[str, Any], out: Path) -> list[Path]:
    found = []
    if any(rivals(parts, budget) for budget in ("A", "B")):
        found.append(out / "models.png")
        curves_plot(parts, found[-1])
    if any(parts.get(what) for what in SWEEPS):
        found.append(out / "models-sweeps.png")
        sweeps_plot(parts, found[-1])
    if parts.get("simulated"):
        found.append(out / "models-simulated.png")
        devices_plot(parts, found[-1])
    return found
