"""``tenfold plan``: what would fit where, from the checkpoints' headers. Starts nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tenfold.cli.options import DEFAULT_MODEL, ConfigFile, Json, Sets
from tenfold.cli.output import note, print_json, print_table

if TYPE_CHECKING:
    from tenfold.core.config import LoadedConfig
    from tenfold.fleet.planning import FleetPlan


def plan(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL…]",
            help="Models, as for serve. Default: those of the config file.",
            show_default=False,
        ),
    ] = None,
    config: ConfigFile = None,
    sets: Sets = None,
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="COUNTxSIZE,…", help="Devices, as 2x8GiB,16GiB. Default: the config's."
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="replicate, static, paper, balanced. Default: the config's."),
    ] = None,
    rate: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL=TOKENS", help="Tokens a second that a model gets and makes."),
    ] = None,
    read_speed: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Bytes a second at which weights are read. [1GiB]"),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure that by reading up to 256 MiB of the models.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What fits where: weights, tokens of KV cache, who would sleep, and how long waking takes.

    Reads no weights and starts nothing. Exit code 1: a model is too large for every device.
    """
    from tenfold.core.config import load_config
    from tenfold.core.errors import ConfigError
    from tenfold.core.sizes import parse_bytes
    from tenfold.fleet.planning import READ_SPEED, measure_read_speed, parse_devices, plan_fleet

    flags = {"placement.policy": policy}
    loaded = load_config(config, sets or (), models=models or (), flags=flags)
    if not loaded.config.models:
        loaded = load_config(config, sets or (), models=[DEFAULT_MODEL], flags=flags)
    if measure and read_speed:
        raise ConfigError("--read-speed says what --measure would measure; give one of them")
    speed = float(parse_bytes(read_speed)) if read_speed else READ_SPEED
    if not speed:
        raise ConfigError("a read speed of 0 bytes a second wakes nothing; give one like 1GiB")
    found = [(setup, _path(loaded, setup.source)) for setup in loaded.to_models()]
    made = loaded.to_devices()
    if devices:
        made = parse_devices(devices, loaded.to_device_settings())
    if measure:
        speed = measure_read_speed([path for _, path in found])
    report = plan_fleet(found, made, loaded.to_placement(), _rates(rate or []), speed)
    if as_json:
        print_json(report)
    else:
        _print(report, "measured" if measure else "as given" if read_speed else "assumed")
    if not report.fits:
        raise typer.Exit(1)


def _path(loaded: LoadedConfig, source: str) -> Path:
    from tenfold.cli.fetch import open_store

    return open_store(loaded).path(source)


def _rates(given: list[str]) -> dict[str, float]:
    from tenfold.core.errors import ConfigError

    rates = {}
    for text in given:
        name, equals, value = text.rpartition("=")
        try:
            rates[name] = float(value)
        except ValueError:
            equals = ""
        if not equals or not name or not 0 <= rates[name] < float("inf"):
            raise ConfigError(f"--rate {text!r} must be written MODEL=TOKENS, as smollm2-135m=500")
    return rates


def _print(report: FleetPlan, said: str) -> None:
    from tenfold.core.sizes import format_bytes

    rows = []
    for model in report.models:
        numbers = f"{model.kv_tokens:,}" if model.kv_bytes_per_token else "-"
        sizes = (format_bytes(model.weight_bytes), format_bytes(model.kv_bytes_per_token), numbers)
        where = ", ".join(model.devices) or "-"
        rows.append((model.name, model.state, where, *sizes, f"{model.wake_seconds:.2f} s"))
    heads = ("model", "state", "device", "weights>", "KV a token>", "KV tokens>", "wakes in>")
    print_table(heads, rows)
    typer.echo()
    lines = []
    for device in report.devices:
        bytes_ = (
            device.capacity_bytes,
            device.weight_bytes,
            device.step_bytes,
            device.kv_bytes,
        )
        pressure = "-" if device.pressure is None else f"{device.pressure:.3g}"
        names = ", ".join(device.models) or "-"
        lines.append((device.name, *(format_bytes(size) for size in bytes_), pressure, names))
    columns = ("device", "memory>", "awake weights>", "steps>", "for KV>", "pressure>", "models")
    print_table(columns, lines)
    for model in report.models:
        if model.why:
            note(f"{model.name}: {model.why}")
    speed = format_bytes(int(report.read_speed))
    typer.echo(f"Placement: {report.policy}. Weights are read at {speed}/s ({said}).")


def register(app: typer.Typer) -> None:
    app.command()(plan)
