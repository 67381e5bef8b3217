"""``tenfold bench …``: one short command a benchmark. Each writes JSON and a plot."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Annotated

import typer

from tenfold.bench.workload import Arrivals

app = typer.Typer(help="Measure servers and compare engines.", no_args_is_help=True)

Out = Annotated[Path, typer.Option(help="Folder for the JSON and the plot.")]
Url = Annotated[str, typer.Option(help="Any server that speaks the OpenAI protocol.")]
Key = Annotated[str | None, typer.Option(help="API key.", envvar="TENFOLD_KEY")]
Served = Annotated[str, typer.Argument(help="Model name as the server knows it.")]
Threads = Annotated[int, typer.Option(help="Threads for each engine; 0: every core.")]
Rounds = Annotated[int, typer.Option(help="Interleaved rounds that count.")]
Repeats = Annotated[int, typer.Option("--rounds", help="Times to repeat it.")]


@app.command()
def serve(
    model: Served,
    url: Url = "http://127.0.0.1:8000",
    key: Key = None,
    requests: Annotated[int, typer.Option(help="How many requests.")] = 64,
    arrivals: Annotated[Arrivals, typer.Option(help="When requests leave.")] = "poisson",
    rate: Annotated[float, typer.Option(help="Requests a second in all (open loop).")] = 4.0,
    cv: Annotated[float, typer.Option(help="Burstiness of gamma arrivals.")] = 1.0,
    concurrency: Annotated[int, typer.Option(help="Requests in flight (closed loop).")] = 8,
    clients: Annotated[int, typer.Option(help="Clients that take turns.")] = 1,
    groups: Annotated[int, typer.Option(help="Different shared prefixes.")] = 1,
    shared: Annotated[int, typer.Option(help="Words of shared prefix.")] = 0,
    prompt: Annotated[int, typer.Option(help="Words of own prompt.")] = 128,
    output: Annotated[int, typer.Option(help="Tokens to generate.")] = 128,
    chat: Annotated[bool, typer.Option(help="Send chat messages, not plain prompts.")] = False,
    trace: Annotated[Path | None, typer.Option(help="Replay this JSONL trace instead.")] = None,
    scale: Annotated[float, typer.Option(help="Replay a trace this much faster.")] = 1.0,
    save: Annotated[Path | None, typer.Option(help="Write the workload as a trace.")] = None,
    seed: Annotated[int, typer.Option(help="Draws the whole workload.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    out: Out = Path("bench"),
) -> None:
    """Load a server and report latencies and throughput."""
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.progress import Progress

    from tenfold.bench.load import LoadGenerator
    from tenfold.bench.plot import latency_plot
    from tenfold.bench.report import print_summary, summarise, write_json
    from tenfold.bench.workload import Shape, load_trace, save_trace, synthesise
    from tenfold.client import connect

    shape = Shape(
        requests, arrivals, rate, cv, concurrency, clients, groups, shared, prompt, output, seed
    )
    asks = load_trace(trace, scale) if trace else synthesise(shape)
    if save:
        save_trace(asks, save)
    console = Console(stderr=True)

    async def run() -> list[object]:
        async with connect(url, key) as client:
            with Progress(console=console, transient=True) as bar:
                task = bar.add_task(f"{len(asks)} requests", total=len(asks))
                generator = LoadGenerator(client, model, chat=chat, seed=seed)
                closed = concurrency if arrivals == "closed" and not trace else None
                return list(
                    await generator.run(
                        asks,
                        concurrency=closed,
                        progress=lambda done: bar.update(task, completed=done),
                    )
                )

    records = asyncio.run(run())
    summary = summarise(records)  # type: ignore[arg-type]
    workload = {"trace": str(trace), "scale": scale} if trace else asdict(shape)
    write_json(out / "serve.json", "serve", {"workload": workload, "summary": asdict(summary)})
    latency_plot(records, out / "serve.png", f"{model}: {len(asks)} requests")  # type: ignore[arg-type]
    if as_json:
        typer.echo(json.dumps(asdict(summary)))
    else:
        print_summary(summary, model, Console())
        typer.echo(f"written: {out / 'serve.json'}, {out / 'serve.png'}")
    if summary.failed:
        raise typer.Exit(1)


@app.command()
def peers(
    model: Annotated[str, typer.Argument(help="Catalogue name or GGUF path.")] = "smollm2-135m",
    python: Annotated[
        list[str] | None,
        typer.Option(
            help="FAMILY=PATH, the Python that has a peer: llama, vllm, transformers, sglang. "
            "Default: the running one."
        ),
    ] = None,
    only: Annotated[
        str, typer.Option("--peers", help="Only these peers or families, with commas between.")
    ] = "",
    cases: Annotated[
        str, typer.Option(help="Only these: decode,prefill,streams,chat,busy,memory,first.")
    ] = "",
    streams: Annotated[str, typer.Option(help="How many streams, beside one.")] = "4,16,32,64",
    tenfold_modes: Annotated[
        str,
        typer.Option(
            help="Kernel modes of Tenfold to measure, such as exact,fast,fast@avx2 (held to an "
            "instruction set). Default: all it can run."
        ),
    ] = "",
    threads: Threads = 0,
    rounds: Rounds = 3,
    limit: Annotated[float, typer.Option(help="Seconds that one answer may take.")] = 1800.0,
    quick: Annotated[bool, typer.Option(help="Tiny cases, one round: does it all run?")] = False,
    fresh: Annotated[bool, typer.Option(help="Replace results that are there.")] = False,
    out: Out = Path("bench"),
) -> None:
    """Tenfold and other engines side by side: same tokens, same threads, rounds interleaved.

    Writes peers.json after every case, then peers.md and peers.png. Run again with the same words
    and --out it goes on where it ended; other --cases are added to the same file.
    """
    import signal
    import sys

    from rich.console import Console

    from tenfold.bench.sidebyside.report import write_report
    from tenfold.bench.sidebyside.results import Results
    from tenfold.bench.sidebyside.run import Comparison
    from tenfold.bench.sidebyside.setup import plan_of

    plan = plan_of(
        model,
        pythons=python or (),
        peers=_words(only),
        cases=_words(cases),
        streams=[int(word) for word in _words(streams)],
        modes=_words(tenfold_modes),
        threads=threads,
        rounds=rounds,
        limit=limit,
        quick=quick,
    )
    results = Results(out / "peers.json", plan.key(), fresh=fresh)
    # A stopped peer would outlive a run that is ended: leave through the blocks that close them.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console(stderr=True)
    Comparison(plan, results, lambda line: console.print(line, markup=False, highlight=False)).run()
    for path in write_report(results.body, out, Console()):
        typer.echo(f"written: {path}")
    if any(case["errors"] for case in results.body["cases"].values()):
        raise typer.Exit(1)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


@app.command()
def interference(
    model: Served,
    url: Url = "http://127.0.0.1:8000",
    key: Key = None,
    streams: Annotated[int, typer.Option(help="Streams that are decoding.")] = 8,
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt that arrives.")] = 4096,
    target: Annotated[float, typer.Option(help="Wished seconds between tokens.")] = 0.2,
    rounds: Repeats = 3,
    out: Out = Path("bench"),
) -> None:
    """How much a long prompt that arrives slows the streams that run."""
    from tenfold.bench.interference import Interference, interfere
    from tenfold.bench.plot import gaps_plot
    from tenfold.bench.report import write_json
    from tenfold.client import connect

    async def run() -> list[Interference]:
        async with connect(url, key) as client:
            return [
                await interfere(
                    client, model, streams=streams, prompt_tokens=prompt, target=target,
                    salt=round_ * 1000,
                )
                for round_ in range(rounds)
            ]  # fmt: skip

    found = asyncio.run(run())
    for one in found:
        typer.echo(
            f"{streams} streams, prompt of {prompt} tokens: first token after {one.ttft:.2f} s; "
            f"gaps before p50 {1000 * one.before.p50:.0f} p99 {1000 * one.before.p99:.0f} ms, "
            f"during p50 {1000 * one.during.p50:.0f} p99 {1000 * one.during.p99:.0f} ms "
            f"= {one.during.p99 / target:.2f} x target"
        )
    write_json(out / "interference.json", "interference", {"rounds": [o.to_json() for o in found]})
    last = found[-1]
    series = [(row[1:], [b - a for a, b in itertools.pairwise(row)]) for row in last.times]
    title = f"{model}: a {prompt}-token prompt arrives at {last.arrived:.1f} s"
    gaps_plot(series, target, out / "interference.png", title)
    typer.echo(f"written: {out / 'interference.json'}, {out / 'interference.png'}")


@app.command()
def step(
    model: Served,
    url: Url = "http://127.0.0.1:8000",
    key: Key = None,
    prompt: Annotated[int, typer.Option(help="Prompt tokens.")] = 128,
    output: Annotated[int, typer.Option(help="Output tokens.")] = 256,
    rounds: Repeats = 5,
    out: Out = Path("bench"),
) -> None:
    """Where the time between two tokens of one stream goes (Tenfold servers only)."""
    from dataclasses import asdict
    from statistics import median

    from tenfold.bench.plot import stacked_plot
    from tenfold.bench.report import write_json
    from tenfold.bench.steps import StepParts, step_parts
    from tenfold.client import connect

    async def run() -> list[StepParts]:
        async with connect(url, key) as client:
            await step_parts(client, url, key, model, prompt=prompt, output=32)
            return [
                await step_parts(client, url, key, model, prompt=prompt, output=output)
                for _ in range(rounds)
            ]

    found = sorted(asyncio.run(run()), key=lambda one: one.between_tokens)
    middle = found[len(found) // 2]
    share = median(one.kernel_share for one in found)
    for name, seconds in [*middle.parts.items(), ("= between tokens", middle.between_tokens)]:
        typer.echo(f"{name:18s} {1e6 * seconds:9.0f} us")
    typer.echo(f"kernels are {share:.1%} of a token's time (median of {rounds})")
    typer.echo(f"the server process used {1e6 * middle.server:.0f} us of its own core a token")
    body = {"kernel_share": share, "rounds": [asdict(one) for one in found]}
    write_json(out / "step.json", "step", body)
    bars = {"worker": middle.parts, "server process": {"server": middle.server}}
    stacked_plot(bars, out / "step.png", f"{model}: the time of one token, one stream")
    typer.echo(f"written: {out / 'step.json'}, {out / 'step.png'}")


@app.command()
def speculation(
    model: Annotated[str, typer.Option(help="Catalogue name or path.")] = "smollm2-135m",
    threads: Threads = 2,
    memory: Annotated[str, typer.Option(help="Memory of each setting's device.")] = "1GiB",
    output: Annotated[int, typer.Option(help="Output tokens a stream.")] = 128,
    rounds: Rounds = 3,
    mode: Annotated[str, typer.Option(help="Kernels: exact or fast.")] = "exact",
    out: Out = Path("bench"),
) -> None:
    """Decoding with speculation off, always ("ngram") and where it pays ("auto")."""
    from rich.console import Console
    from rich.table import Table

    from tenfold.bench.plot import bars_plot
    from tenfold.bench.report import write_json
    from tenfold.bench.speculation import MODES, speculate
    from tenfold.core.sizes import parse_bytes
    from tenfold.fleet.assemble import find_source

    path = Path(find_source(model, None).path)
    settings = {"threads": threads, "memory_bytes": parse_bytes(memory), "kernels_mode": mode}
    found = asyncio.run(speculate(path, settings=settings, output=output, rounds=rounds))
    table = Table(title=f"{model}, {threads} threads, tokens a second (median of {rounds})")
    for column in ("prompt", "streams", *MODES, "ngram ratio", "auto ratio", "identical"):
        table.add_column(column)
    bars: dict[str, dict[str, float]] = {}
    for kind, rows in found["kinds"].items():
        for streams, row in rows.items():
            bars[f"{kind}\n{streams}"] = row["median"]
            rates = [f"{row['median'][name]:.1f}" for name in MODES]
            ratios = [f"{row['ratio'][name]:.2f}" for name in ("ngram", "auto")]
            table.add_row(kind, streams, *rates, *ratios, str(row["identical"]))
    Console().print(table)
    write_json(out / "speculation.json", "speculation", found)
    bars_plot(bars, out / "speculation.png", f"{model}, {threads} threads", "tokens a second")
    typer.echo(f"written: {out / 'speculation.json'}, {out / 'speculation.png'}")


@app.command()
def quality(
    model: Annotated[str, typer.Argument(help="Catalogue name, GGUF file or model folder.")],
    modes: Annotated[str, typer.Option(help="Kernel modes, with commas.")] = "exact,fast",
    kv: Annotated[str, typer.Option(help="Types of keys and values.")] = "f32,f16,bf16,int8",
    requantise: Annotated[
        str, typer.Option(help="Also with weights rewritten: f32,f16,bf16,q4_0,q4_1,q5_0,q8_0.")
    ] = "",
    tokens: Annotated[int, typer.Option(help="Tokens of the text to use; 0 for all.")] = 0,
    threads: Threads = 0,
    out: Out = Path("bench"),
) -> None:
    """What modes and types of keys and values cost in perplexity, against float32."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from tenfold.bench.plot import changes_plot
    from tenfold.bench.quality import COLUMNS, all_met, changes, measure_quality, table_rows
    from tenfold.bench.report import write_json
    from tenfold.fleet.assemble import find_source

    lists = [[word for word in text.split(",") if word] for text in (modes, kv, requantise)]
    found = measure_quality(
        Path(find_source(model).path),
        *lists,
        tokens=tokens,
        threads=threads,
        progress=lambda weights: typer.echo(f"measuring {model}, weights {weights}", err=True),
    )
    title = f"{model}: perplexity against exact mode, KV f32"
    table = Table(title=title, box=box.SIMPLE, padding=0, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in COLUMNS[:3] else "right")
    for row in table_rows(found):
        table.add_row(*row)
    Console().print(table)
    write_json(out / "quality.json", "quality", found)
    changes_plot(changes(found), found["limit"], out / "quality.png", f"{model}: perplexity")
    typer.echo(f"written: {out / 'quality.json'}, {out / 'quality.png'}")
    if not all_met(found):
        raise typer.Exit(1)


@app.command("simulate-check")
def simulate_check(
    model: Annotated[
        str, typer.Option(help="Catalogue name or path; SmolLM2-135M's shape.")
    ] = "smollm2-135m",
    costs: Annotated[
        Path | None, typer.Option(help="What doctor --calibrate wrote. Default: calibrate first.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Of each run, real and simulated.")] = 40.0,
    threads: Threads = 0,
    seed: Annotated[int, typer.Option(help="Draws the workload.")] = 0,
    out: Out = Path("bench"),
) -> None:
    """Does a simulation rank the policies as this machine does (smollm2-135m, a few clients)?"""
    from rich.console import Console
    from rich.table import Table

    from tenfold.bench.calibrate import calibrate
    from tenfold.bench.plot import check_plot
    from tenfold.bench.report import write_json
    from tenfold.bench.simulate_check import RANKED, check
    from tenfold.costs.calibrated import load_costs, save_costs
    from tenfold.fleet.assemble import find_source

    path = Path(find_source(model).path)
    if costs is None:
        costs = out / "step-costs.json"
        typer.echo("calibrating", err=True)
        save_costs(asyncio.run(calibrate(path, name=model, threads=threads)), costs)

    def say(policy: str) -> None:
        typer.echo(f"{policy}: {seconds:g} s on this machine, then simulated", err=True)

    found = asyncio.run(
        check(path, costs, seconds=seconds, threads=threads, seed=seed, progress=say)
    )
    table = Table(title=f"{model}: real | simulated")
    for column in ("policy", *RANKED, "latency_p50", "error"):
        table.add_column(column)
    for name, real in found.real.items():
        pairs = [(getattr(real, m), getattr(found.simulated[name], m)) for m in RANKED]
        pairs.append((real.latency_p50, found.simulated[name].latency_p50))
        shown = [f"{a:,.3g} | {b:,.3g}" for a, b in pairs]
        table.add_row(name, *shown, f"{found.latency_error[name]:+.1%}")
    Console().print(table)
    for measure, a, b in found.swapped:
        typer.echo(f"{measure}: {a} and {b} are ranked otherwise")
    body = found.to_json() | {"seconds": seconds, "costs": load_costs(costs).to_json()}
    write_json(out / "simulate-check.json", "simulate-check", body)
    check_plot(found.to_json(), RANKED, out / "simulate-check.png", f"{model}: real and simulated")
    typer.echo(f"written: {out / 'simulate-check.json'}, {out / 'simulate-check.png'}")
    if not found.passed:
        raise typer.Exit(1)


@app.command()
def fair(
    model: Annotated[str, typer.Option(help="For real cells: SmolLM2-135M or its like.")] = (
        "smollm2-135m"
    ),
    simulated: Annotated[
        bool, typer.Option("--simulated", help="Clusters at the papers' scale, in simulation.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each rival.")] = 3,
    seconds: Annotated[float, typer.Option(help="Of each run; 0: as each cell says.")] = 0.0,
    cells: Annotated[
        str, typer.Option(help="Only cells whose name holds one of these, with ; between.")
    ] = "",
    rivals: Annotated[str, typer.Option(help="Only these policies, with ; between.")] = "",
    threads: Threads = 0,
    out: Out = Path("bench"),
) -> None:
    """Fair scheduling policies side by side: speed, evenness, and who has to wait."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from tenfold.bench.fair.run import COLUMNS, Plan, compare, table
    from tenfold.bench.plot import fairness_plot
    from tenfold.bench.report import write_json
    from tenfold.fleet.assemble import find_source

    name = "fair-simulated" if simulated else "fair"
    parts = [[part for part in text.split(";") if part] for text in (cells, rivals)]
    plan = Plan(simulated, seeds, seconds, parts[0], parts[1], threads)
    path = None if simulated else Path(find_source(model).path)
    found = []
    for one in compare(plan, path, lambda line: typer.echo(line, err=True)):
        found.append(one)
        write_json(out / f"{name}.json", name, {"model": model, "cells": found})
        shown = Table(title=one["cell"], title_justify="left", box=box.SIMPLE, pad_edge=False)
        for column in COLUMNS:
            shown.add_column(column, justify="right" if column else "left")
        for row in table(one):
            shown.add_row(*row)
        Console().print(shown)
    fairness_plot(found, out / f"{name}.png")
    typer.echo(f"written: {out / f'{name}.json'}, {out / f'{name}.png'}")


@app.command()
def models(
    cells: Annotated[
        str,
        typer.Option(help="Only these: targets,A,B,wake,overhead,burst,margin,idle,tau,simulated."),
    ] = "",
    modes: Annotated[
        str, typer.Option(help="In place of those that compete, with ; between.")
    ] = "",
    loads: Annotated[str, typer.Option(help="Requests a second, ascending.")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each point.")] = 3,
    seconds: Annotated[float, typer.Option(help="Least length of a point.")] = 60.0,
    requests: Annotated[int, typer.Option(help="Least requests of a point.")] = 500,
    smol: Annotated[str, typer.Option(help="Catalogue name or file.")] = "smollm2-135m",
    gemma: Annotated[str, typer.Option(help="Catalogue name or file.")] = "gemma3-270m",
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Made models only: does it all run?")
    ] = False,
    threads: Threads = 0,
    fresh: Annotated[bool, typer.Option(help="Replace results that are there.")] = False,
    out: Out = Path("bench"),
) -> None:
    """Many models in one memory: who answers in time, at which load, and what waking costs.

    Writes models.json after every run and goes on where it ended; models.md and plots at the end.
    """
    from dataclasses import replace

    from tenfold.bench.models.command import Files, compare_models
    from tenfold.bench.models.run import CELLS, Plan

    plan = Plan(
        cells=_words(cells) or CELLS,
        modes=[word.strip() for word in modes.split(";") if word.strip()],
        seeds=seeds,
        seconds=seconds,
        requests=requests,
    )
    if loads:
        plan = replace(plan, loads=[float(word) for word in _words(loads)])
    files = Files(out, {"smollm2-135m": smol, "gemma3-270m": gemma}, fresh=fresh)
    compare_models(plan, files, tiny=tiny, threads=threads)
