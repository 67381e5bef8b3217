"""``tenfold pin``: a model that is never put to sleep to make room."""

from __future__ import annotations

from typing import Annotated

import typer

from tenfold.cli.options import DEFAULT_URL, AdminKey, Json, Url
from tenfold.cli.residency import Model, tell


def pin(
    model: Model,
    off: Annotated[bool, typer.Option("--off", help="Let it go again.")] = False,
    url: Url = DEFAULT_URL,
    key: AdminKey = None,
    as_json: Json = False,
) -> None:
    """Keep a model awake and loaded, whatever others need."""
    tell(model, "pin", {"pinned": not off}, url, key, as_json)


def register(app: typer.Typer) -> None:
    app.command()(pin)
