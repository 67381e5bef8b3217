"""``tenfold simulate``: the server's policies, caches and router, over devices that only count."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenfold.cli.options import Json
from tenfold.cli.output import note, print_json, print_table

if TYPE_CHECKING:
    from tenfold.fleet.simulator.simulate import Result

MOST_ROWS = 20


def simulate(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The simulation (TOML).")],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set one setting, as run.seconds=60."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the JSON and the plot. Default: neither.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Simulate a cluster: many workers and clients, the server's own policies, no devices.

    The same settings and seed give the same result. docs/simulator.md has the file's reference.
    """
    import time

    from tenfold.fleet.simulator.config import load_simulation
    from tenfold.fleet.simulator.simulate import simulate as run

    simulation = load_simulation(config, sets or ())
    began = time.perf_counter()
    with _Bar(simulation.run.seconds) as bar:
        result = run(simulation, progress=bar.update)
    wall = time.perf_counter() - began
    body = result.to_json() | {"wall_seconds": round(wall, 2)}
    if out is not None:
        _write(out / config.stem, config, result, body)
    if as_json:
        print_json(body)
    else:
        _print(result, wall)


class _Bar:
    """A progress bar over simulated time, on stderr; gone when done."""

    def __init__(self, seconds: float) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._seconds = seconds
        self._progress = Progress(console=Console(stderr=True), transient=True)

    def __enter__(self) -> _Bar:
        self._progress.start()
        self._task = self._progress.add_task("simulating", total=self._seconds)
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, now: float, ended: int) -> None:
        said = f"{now:,.0f} of {self._seconds:,.0f} s, {ended:,} calls"
        self._progress.update(self._task, completed=now, description=said)


def _write(base: Path, config: Path, result: Result, body: dict[str, Any]) -> None:
    from tenfold.bench.plot import simulation_plot
    from tenfold.bench.report import write_json
    from tenfold.fleet.workloads.summary import series

    line = series(result.run)
    service = {name: values.tolist() for name, values in line.service.items()}
    over_time = {"ends": line.ends, "service": service}
    write_json(
        base.with_suffix(".json"),
        "simulate",
        {"config": config.read_text(), **body, "over_time": over_time},
    )
    simulation_plot(result.summary, line, base.with_suffix(".png"), f"{config.stem} (simulated)")
    note(f"written: {base.with_suffix('.json')}, {base.with_suffix('.png')}")


def _print(result: Result, wall: float) -> None:
    total = result.summary
    rows = []
    ranked = sorted(total.clients.items(), key=lambda item: -item[1].service)
    for name, one in ranked[:MOST_ROWS]:
        hits = one.cached_tokens / max(1, one.prompt_tokens)
        programs = f"{one.program_latency.p50:.2f}" if one.programs else "-"
        counts = (f"{one.finished}", f"{one.service / max(total.seconds, 1e-9):,.0f}")
        times = (f"{one.ttft.p50:.2f}", f"{one.latency.p50:.2f}", f"{one.latency.p99:.2f}")
        rows.append((name, *counts, f"{hits:.0%}", *times, programs))
    columns = ("client", "calls>", "service/s>", "cached>", "TTFT p50>")
    print_table((*columns, "latency p50>", "p99>", "program p50>"), rows)
    if len(ranked) > MOST_ROWS:
        typer.echo(f"and {len(ranked) - MOST_ROWS} more clients")
    typer.echo(
        f"simulated: {total.finished} of {total.requests} calls in {total.seconds:,.0f} s, "
        f"{total.service_rate:,.0f} service/s, {total.output_rate:,.0f} output tokens/s, "
        f"hit rate {total.hit_rate:.0%}, Jain {total.jain:.3f} over "
        f"{total.contended_seconds:,.0f} contended s"
    )
    if result.models:
        _print_models(result)
        typer.echo(f"{result.about}; took {wall:.1f} s")
        return
    worst = max(result.drift, key=lambda one: one.gap)
    bound = f", {worst.share:.3f} of the bound {worst.bound:,.0f}" if worst.bound else ""
    typer.echo(
        f"widest gap {worst.gap:,.0f} ({' and '.join(worst.clients)} at {worst.where}){bound}"
    )
    typer.echo(f"{result.about}; took {wall:.1f} s")


def _print_models(result: Result) -> None:
    rows = []
    ranked = sorted(result.models.items(), key=lambda item: -item[1].asked)
    for name, one in ranked[:MOST_ROWS]:
        met = f"{one.met / one.asked:.1%}" if one.asked else "-"
        both = f"{one.both / one.asked:.1%}" if one.asked else "-"
        times = (f"{one.ttft.p50:.3f}", f"{one.ttft.p99:.3f}")
        homes = one.homes[0] if len(one.homes) == 1 else f"{len(one.homes)} workers"
        rows.append((name, str(one.asked), met, both, *times, f"{one.wakes}", homes))
    columns = ("model", "asked>", "TTFT met>", "and TPOT>", "TTFT p50>", "p99>", "wakes>", "at")
    print_table(columns, rows)
    if len(ranked) > MOST_ROWS:
        typer.echo(f"and {len(ranked) - MOST_ROWS} more models")
    typer.echo(f"first tokens in time: {result.attainment:.2%}; {result.moves} moves")


def register(app: typer.Typer) -> None:
    app.command()(simulate)
