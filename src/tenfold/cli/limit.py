"""``tenfold limit``: how much memory a model's keys and values may take."""

from __future__ import annotations

from typing import Annotated

import typer

from tenfold.cli.options import DEFAULT_URL, AdminKey, Json, Url
from tenfold.cli.residency import NOTHING, Model, tell


def limit(
    model: Model,
    size: Annotated[str, typer.Argument(metavar="SIZE", help='As 512MiB; "none" lifts it.')],
    url: Url = DEFAULT_URL,
    key: AdminKey = None,
    as_json: Json = False,
) -> None:
    """Limit the memory of a model's KV cache. One that holds more gives it up at once."""
    from tenfold.core.sizes import parse_bytes

    body = {"limit": None if size == NOTHING else parse_bytes(size)}
    tell(model, "limit", body, url, key, as_json)


def register(app: typer.Typer) -> None:
    app.command()(limit)
