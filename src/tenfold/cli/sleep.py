"""``tenfold sleep``: a model's weights out of a running server's memory."""

from __future__ import annotations

from typing import Annotated

import typer

from tenfold.cli.options import DEFAULT_URL, AdminKey, Json, Url
from tenfold.cli.residency import Model, tell


def sleep(
    model: Model,
    cold: Annotated[
        bool, typer.Option("--cold", help="Keep the weights on disk only, not in host memory.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Even when pinned, and at once; what runs goes on later."),
    ] = False,
    hold: Annotated[
        bool, typer.Option("--hold", help="Requests do not wake it; they wait for tenfold wake.")
    ] = False,
    url: Url = DEFAULT_URL,
    key: AdminKey = None,
    as_json: Json = False,
) -> None:
    """Put a model to sleep: its memory goes to the others. The next request wakes it."""
    body = {"to": "cold" if cold else "host", "force": force, "hold": hold}
    tell(model, "sleep", body, url, key, as_json)


def register(app: typer.Typer) -> None:
    app.command()(sleep)
