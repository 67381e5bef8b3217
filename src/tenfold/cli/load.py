"""``tenfold load``: one more model on a running server."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from tenfold.cli.options import DEFAULT_URL, AdminKey, Json, Url
from tenfold.cli.output import note, print_json


def load(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Catalogue name, path, hf:…, or name=source.")
    ],
    pin: Annotated[bool, typer.Option("--pin", help="Keep it loaded.")] = False,
    url: Url = DEFAULT_URL,
    key: AdminKey = None,
    as_json: Json = False,
) -> None:
    """Load a model on a running server; returns when it is ready.

    The server takes the model from its own store: fetch it there first with tenfold pull.
    """
    from pathlib import Path

    from tenfold.cli.http import call
    from tenfold.core.names import split_model

    name, source = split_model(model)
    if Path(source).exists():
        source = str(Path(source).resolve())  # the server may run in another folder
    path = f"/v1/admin/models/{quote(name)}"
    answer = call(url, "POST", f"{path}/load", key=key, body={"source": source})
    if pin:
        answer = call(url, "POST", f"{path}/pin", key=key, body={"pinned": True})
    if as_json:
        print_json(answer)
    else:
        note(f"{answer['id']} is {answer['status']} on {answer['device']}.")


def register(app: typer.Typer) -> None:
    app.command()(load)
