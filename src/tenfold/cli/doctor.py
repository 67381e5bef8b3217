"""``tenfold doctor``: what this machine offers, what is missing, and where settings came from."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from tenfold.cli.options import DEFAULT_MODEL, ConfigFile, Json, Sets
from tenfold.cli.output import print_json, print_pairs, print_table

if TYPE_CHECKING:
    from tenfold.core.config import LoadedConfig
    from tenfold.fleet.store import Store

Verdict = Literal["ok", "note", "missing"]

_PACKAGES = (
    "torch",
    "numpy",
    "tokenizers",
    "safetensors",
    "gguf",
    "msgspec",
    "llguidance",
)


def _calibrate(model: str, out: Path, as_json: bool) -> None:
    import asyncio

    from rich.console import Console
    from rich.progress import Progress

    from tenfold.bench.calibrate import STREAMS, Standard, calibrate
    from tenfold.costs.calibrated import Measured, save_costs
    from tenfold.costs.step import StepShape
    from tenfold.fleet.assemble import find_source

    path = Path(find_source(model).path)
    standard = Standard()
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"serving {model}", total=len(STREAMS) * standard.seconds)
        found = asyncio.run(
            calibrate(
                path,
                name=model,
                standard=standard,
                progress=lambda behind: bar.update(task, completed=behind),
            )
        )
    save_costs(found, out)
    if as_json:
        print_json(found)
        return
    costs = found.costs
    steps = Measured(costs)
    sizes = [(tokens, StepShape(prefill_tokens=tokens)) for tokens in (1, 8, 64, 512)]
    rows = [
        (f"a step of {tokens} prompt tokens", f"{1e3 * steps.predict(shape):.2f} ms")
        for tokens, shape in sizes
    ]
    rows += [
        ("each decoding sequence, besides", f"{1e6 * costs.row:.1f} us"),
        ("each token that one reads", f"{1e9 * costs.read:.1f} ns"),
        ("each prompt token, a token before it", f"{1e9 * costs.attend:.1f} ns"),
    ]
    print_pairs(rows)
    typer.echo(
        f"{found.steps} steps; on the {found.kept_out} that were kept out the error is "
        f"{found.median_error:.1%} (median), {found.mape:.1%} (mean), {found.total_error:+.1%} of "
        f"their sum"
    )
    typer.echo(f"written: {out}")


class Finding(NamedTuple):
    """One line. "missing" is essential and makes the verb fail; "note" only costs something."""

    what: str
    verdict: Verdict
    value: str


def doctor(
    config: ConfigFile = None,
    sets: Sets = None,
    every: Annotated[
        bool, typer.Option("--all", help="Show settings at their default too.")
    ] = False,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Measure what steps cost here instead (a minute)."),
    ] = False,
    model: Annotated[
        str, typer.Option(help="With --calibrate: the model to measure with.")
    ] = DEFAULT_MODEL,
    out: Annotated[Path, typer.Option(help="With --calibrate: where the costs go.")] = Path(
        "step-costs.json"
    ),
    as_json: Json = False,
) -> None:
    """Look at the machine, the installation, the store and the settings.

    With --calibrate, a model serves a short standard workload, and the costs of its steps are
    written to a file that a simulation's [cluster] can name as its device.

    Exit code 1 when something essential is missing.
    """
    if calibrate:
        _calibrate(model, out, as_json)
        return
    from tenfold.cli.fetch import open_store
    from tenfold.core.config import load_config

    loaded = load_config(config, sets or ())
    store = open_store(loaded)
    findings = [*_machine(), *_packages(), *_native(loaded), *_store(store)]
    settings = [row for row in loaded.rows() if every or row.origin != "default"]
    bad = any(finding.verdict == "missing" for finding in findings)
    if as_json:
        body = {
            "ok": not bad,
            "findings": [finding._asdict() for finding in findings],
            "settings": [row._asdict() for row in settings],
        }
        print_json(body)
    else:
        print_table(("", "", ""), findings)
        if settings:
            typer.echo()
            print_table(("setting", "value", "from"), settings)
        else:
            typer.echo("Every setting is at its default (--all shows them).")
    if bad:
        raise typer.Exit(1)


def _machine() -> Iterator[Finding]:
    import platform

    from tenfold.core import machine
    from tenfold.core.sizes import format_bytes

    yield Finding("system", "ok", f"{platform.system()} {platform.release()} {platform.machine()}")
    yield Finding("python", "ok", f"{platform.python_version()} ({sys.executable})")
    features = ", ".join(machine.cpu_features()) or "no known vector extension"
    yield Finding("processor", "ok", f"{machine.cpu_name()} ({features})")
    yield Finding("cores", "ok", f"{machine.usable_cores()} usable")
    memory = machine.memory()
    enough: Verdict = "ok" if memory.available > 1 << 30 else "note"
    free = f"{format_bytes(memory.available)} of {format_bytes(memory.total)} available"
    yield Finding("memory", enough, free)
    huge = machine.huge_pages()
    if huge in ("always", "madvise"):
        yield Finding("huge pages", "ok", huge)
    else:
        yield Finding("huge pages", "note", f"{huge or 'unknown'}: reading weights costs more")
    maps = machine.max_map_count()
    few = maps is not None and maps < 65530
    advice = "; raise vm.max_map_count to 65530" if few else ""
    yield Finding("max_map_count", "note" if few else "ok", f"{maps or 'unknown'}{advice}")


def _packages() -> Iterator[Finding]:
    from importlib.metadata import PackageNotFoundError, version

    found, lost = [], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            lost.append(name)
    yield Finding("packages", "ok", ", ".join(found))
    if lost:
        yield Finding("packages", "missing", f"{', '.join(lost)}; install Tenfold again")


def _native(loaded: LoadedConfig) -> Iterator[Finding]:
    import shutil

    compiler = next((c for name in ("c++", "g++", "clang++") if (c := shutil.which(name))), None)
    yield Finding("compiler", "ok" if compiler else "note", compiler or "none found")
    if why := _native_trouble():
        hint = "" if compiler else "; install g++, then Tenfold again"
        yield Finding("native kernels", "note", f"not built ({why}): the torch rows run{hint}")
    elif loaded.config.kernels.native:
        yield Finding("native kernels", "ok", "built")
    else:
        yield Finding("native kernels", "note", "built, and switched off by kernels.native")


def _native_trouble() -> str:
    """Why the C++ extension cannot be used; "" when it can."""
    from importlib import import_module

    try:
        import_module("tenfold._native")
    except ImportError as exc:
        return " ".join(str(exc).split())
    return ""


def _store(store: Store) -> Iterator[Finding]:
    import os
    import shutil

    from tenfold.core.sizes import format_bytes

    root = store.root
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    if not os.access(existing, os.W_OK):
        yield Finding("store", "missing", f"{root} cannot be written; set TENFOLD_HOME")
        return
    free = format_bytes(shutil.disk_usage(existing).free)
    yield Finding("store", "ok", f"{root}, {free} free")
    pulled = [card.entry.name for card in store.list() if card.installed]
    yield Finding("models", "ok" if pulled else "note", ", ".join(pulled) or "none pulled yet")


def register(app: typer.Typer) -> None:
    app.command()(doctor)
