"""``tenfold unload``: a model off a running server."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from tenfold.cli.options import DEFAULT_URL, AdminKey, Json, Url
from tenfold.cli.output import note, print_json


def unload(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name as the server knows it.")],
    force: Annotated[
        bool, typer.Option("--force", help="Even when it is pinned or busy; its requests fail.")
    ] = False,
    url: Url = DEFAULT_URL,
    key: AdminKey = None,
    as_json: Json = False,
) -> None:
    """Unload a model from a running server and give its memory back."""
    from tenfold.cli.http import call

    path = f"/v1/admin/models/{quote(model)}/unload"
    answer = call(url, "POST", path, key=key, body={"force": force})
    if as_json:
        print_json(answer)
    else:
        note(f"{model} is unloaded.")


def register(app: typer.Typer) -> None:
    app.command()(unload)
