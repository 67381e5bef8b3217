"""``tenfold ps``: what a running server holds, awake and asleep."""

from __future__ import annotations

from typing import Any

import typer

from tenfold.cli.options import DEFAULT_URL, Json, Key, Url
from tenfold.cli.output import print_json, print_table
from tenfold.cli.residency import state


def ps(url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False) -> None:
    """What a running server holds: models awake and asleep, their memory and load, devices.

    Idle: since a model's last request. Sleeps in: what is left of its ttl or of a request's
    keep_alive; without a time it sleeps where others need its memory.
    """
    from tenfold.cli.http import call
    from tenfold.core.sizes import format_bytes

    status: dict[str, Any] = call(url, "GET", "/v1/status", key=key)
    if as_json:
        print_json(status)
        return
    devices = {device["name"]: device for device in status["devices"]}
    rows = []
    for model in status["models"]:
        page = devices.get(model["device"], {}).get("page_bytes", 0)
        weights = format_bytes(model["weight_pages"] * page)
        cache = format_bytes(model["kv_pages"] * page)
        counts = tuple(str(model[key]) for key in ("running", "waiting", "generated_tokens"))
        where = ", ".join(model["devices"]) or model["device"]
        rows.append((model["name"], state(model), where, weights, cache, *counts, *_times(model)))
    memory = ("weights>", "KV>")
    load = ("running>", "waiting>", "generated>")
    print_table(("model", "state", "device", *memory, *load, "idle>", "sleeps in>"), rows)
    for device in status["devices"]:
        page = device["page_bytes"]
        held, room = device["mapped_pages"] * page, device["capacity_pages"] * page
        typer.echo(f"{device['name']}: {format_bytes(held)} of {format_bytes(room)} mapped")
    requests = len(status["queue"])
    typer.echo(f"{requests} live request{'' if requests == 1 else 's'}; {_server(status)}")


def _times(model: dict[str, Any]) -> tuple[str, str]:
    from tenfold.core.durations import format_seconds

    busy = model["running"] + model["waiting"] > 0
    idle = "-" if busy else format_seconds(model["idle_seconds"])
    left = model["sleeps_in"]
    awake = any(each == "resident" for each in model["residency"].values())
    return idle, "-" if left is None or busy or not awake else format_seconds(left)


def _server(status: dict[str, Any]) -> str:
    if status["draining"]:
        return "draining"
    return "ready" if status["ready"] else "not ready"


def register(app: typer.Typer) -> None:
    app.command()(ps)
