"""``tenfold keep``: how long a model stays awake, and what is kept for it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tenfold.cli.options import DEFAULT_URL, AdminKey, Json, Url
from tenfold.cli.residency import NOTHING, Model, tell


def keep(
    model: Model,
    ttl: Annotated[
        str | None,
        typer.Option(help='It sleeps after so long without work, as 5m; "none" takes it away.'),
    ] = None,
    floor: Annotated[
        str | None,
        typer.Option(help='KV memory that no other model takes, as 256MiB; "none" takes it away.'),
    ] = None,
    evict_cost: Annotated[
        float | None,
        typer.Option("--evict-cost", min=0, help="How dear it is to put to sleep; others cost 1."),
    ] = None,
    url: Url = DEFAULT_URL,
    key: AdminKey = None,
    as_json: Json = False,
) -> None:
    """Say how long a model stays awake without work, and what memory is kept for it."""
    from tenfold.core.durations import parse_seconds
    from tenfold.core.errors import ConfigError
    from tenfold.core.sizes import parse_bytes

    body: dict[str, Any] = {}
    if ttl is not None:
        body["ttl"] = None if ttl == NOTHING else parse_seconds(ttl)
    if floor is not None:
        body["floor"] = None if floor == NOTHING else parse_bytes(floor)
    if evict_cost is not None:
        body["evict_cost"] = evict_cost
    if not body:
        raise ConfigError("nothing to change; give at least one option, as --ttl 5m")
    tell(model, "residency", body, url, key, as_json, method="PATCH")


def register(app: typer.Typer) -> None:
    app.command()(keep)
