"""``tenfold wake``: a sleeping model's weights back into a running server's memory."""

from __future__ import annotations

import typer

from tenfold.cli.options import DEFAULT_URL, AdminKey, Json, Url
from tenfold.cli.residency import Model, tell


def wake(model: Model, url: Url = DEFAULT_URL, key: AdminKey = None, as_json: Json = False) -> None:
    """Wake a sleeping model before requests do, or one that is held asleep."""
    tell(model, "wake", {}, url, key, as_json)


def register(app: typer.Typer) -> None:
    app.command()(wake)
