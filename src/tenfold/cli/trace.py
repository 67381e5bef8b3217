"""``tenfold trace …``: traces of many models made, looked at, and scaled."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tenfold.cli.options import Json
from tenfold.cli.output import print_json, print_table

MOST_ROWS = 30

Trace = Annotated[Path, typer.Argument(metavar="TRACE", help="A trace (JSON Lines).")]

app = typer.Typer(help="Make, describe and scale traces of many models.", no_args_is_help=True)


@app.command()
def make(
    path: Annotated[Path, typer.Argument(metavar="TRACE", help="The file to write.")],
    seconds: Annotated[float, typer.Option(help="How long it is.")] = 3600.0,
    seed: Annotated[int, typer.Option(help="Draws all of it.")] = 0,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of bursty, as models=8."),
    ] = None,
) -> None:
    """Write a trace in bursts, with the statistics that the Prism paper publishes.

    docs/models.md has the settings and the format.
    """
    from tenfold.core.layers import read_value
    from tenfold.fleet.simulator.config import read_workload
    from tenfold.fleet.workloads.bursty import Bursty
    from tenfold.fleet.workloads.trace import save_trace

    chosen = {"kind": "bursty"}
    for text in sets or ():
        key, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set {text!r} must be written key=value, as models=8")
        chosen[key.strip()] = read_value(value.strip())
    workload = read_workload(chosen, "--set")
    assert isinstance(workload, Bursty)
    about = {"kind": "bursty", "seed": seed, "seconds": seconds, "set": sets or []}
    count = save_trace(path, workload.rows(seed, seconds), about)
    typer.echo(f"written: {path}, {count} requests")


@app.command()
def show(
    path: Trace,
    day: Annotated[float, typer.Option(help="Seconds of a day.")] = 86_400.0,
    as_json: Json = False,
) -> None:
    """Describe a trace in the statistics in which published traces are described."""
    from dataclasses import asdict

    from tenfold.fleet.workloads.statistics import describe
    from tenfold.fleet.workloads.trace import about_trace, load_trace

    found = describe(load_trace(path), day=day)
    if as_json:
        print_json({"about": about_trace(path), **asdict(found)})
        return
    rows = [
        (name, str(one.requests), f"{one.rate:.3g}", f"{one.cv:.1f}" if one.cv else "-",
         f"{one.idle_gaps:.0f}", f"{one.idle:.0%}", f"{one.prompt_tokens:.0f}",
         f"{one.output_tokens:.0f}")
        for name, one in list(found.models.items())[:MOST_ROWS]
    ]  # fmt: skip
    columns = ("model", "requests>", "a second>", "CV of gaps>", "gaps > 10 s an hour>", "idle>")
    print_table((*columns, "prompt>", "output>"), rows)
    if len(found.models) > MOST_ROWS:
        typer.echo(f"and {len(found.models) - MOST_ROWS} more models")
    days = "" if found.days is None else f", day-to-day correlation {found.days:.2f}"
    typer.echo(
        f"{found.requests} requests in {found.seconds:,.0f} s; {found.active:.0%} of "
        f"{len(found.models)} models active at a time, {found.changes:.0f} changes an hour{days}"
    )
    prompts, outputs = found.prompts, found.outputs
    typer.echo(
        f"most popular {found.top:.1%} of requests, least {found.last:.2%}; prompt tokens p50 "
        f"{prompts[0]:.0f} p99 {prompts[1]:.0f}, output tokens p50 {outputs[0]:.0f} p99 "
        f"{outputs[1]:.0f}"
    )


@app.command()
def scale(
    path: Trace,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.")],
    load: Annotated[float, typer.Option(help="Replicate requests by this factor.")] = 1.0,
    speed: Annotated[float, typer.Option(help="Compress time by this factor.")] = 1.0,
    prompts: Annotated[float, typer.Option(help="Multiply lengths of prompts.")] = 1.0,
    outputs: Annotated[float, typer.Option(help="Multiply lengths of answers.")] = 1.0,
    jitter: Annotated[float, typer.Option(help="A copy comes up to so many seconds later.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Draws the copies.")] = 0,
) -> None:
    """Scale a trace: more requests at the same times, or the same requests faster."""
    from tenfold.fleet.workloads.trace import (
        about_trace,
        compress,
        load_trace,
        replicate,
        rescale_lengths,
        save_trace,
    )

    rows = compress(rescale_lengths(load_trace(path), prompts, outputs), speed)
    if load != 1:
        rows = replicate(rows, load, seed, jitter)
    scaled = {"load": load, "speed": speed, "prompts": prompts, "outputs": outputs}
    count = save_trace(out, rows, {**about_trace(path), "scaled": scaled})
    typer.echo(f"written: {out}, {count} requests")


def register(main: typer.Typer) -> None:
    main.add_typer(app, name="trace")
