"""``tenfold ps``: what a running server holds."""

from __future__ import annotations

from typing import Any

import typer

from tenfold.cli.options import DEFAULT_URL, Json, Key, Url
from tenfold.cli.output import print_json, print_table


def ps(url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False) -> None:
    """What a running server holds: models, their memory and load, devices, live requests."""
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
        state = model["state"] + (" (pinned)" if model["pinned"] else "")
        load = (str(model["running"]), str(model["waiting"]), str(model["generated_tokens"]))
        where = ", ".join(model["devices"]) or model["device"]
        rows.append((model["name"], state, where, weights, cache, *load))
    print_table(
        ("model", "state", "device", "weights>", "KV>", "running>", "waiting>", "generated>"), rows
    )
    for device in status["devices"]:
        page = device["page_bytes"]
        held, room = device["mapped_pages"] * page, device["capacity_pages"] * page
        typer.echo(f"{device['name']}: {format_bytes(held)} of {format_bytes(room)} mapped")
    requests = len(status["queue"])
    typer.echo(f"{requests} live request{'' if requests == 1 else 's'}; {_state(status)}")


def _state(status: dict[str, Any]) -> str:
    if status["draining"]:
        return "draining"
    return "ready" if status["ready"] else "not ready"


def register(app: typer.Typer) -> None:
    app.command()(ps)
