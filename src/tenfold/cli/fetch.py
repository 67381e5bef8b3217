"""Pulling with a progress bar and a question about the licence: what several verbs share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tenfold.cli.output import note

if TYPE_CHECKING:
    from tenfold.core.config import LoadedConfig
    from tenfold.fleet.catalogue import Licence
    from tenfold.fleet.sources.base import Progress
    from tenfold.fleet.store import Store


def open_store(loaded: LoadedConfig | None = None) -> Store:
    """The user's store, with the catalogue entries of the config where one is given."""
    from tenfold.fleet.catalogue import Catalogue, entries_of
    from tenfold.fleet.store import Store

    return Store(catalogue=Catalogue(entries_of(loaded.config.catalogue) if loaded else ()))


def fetch(store: Store, name: str, *, accept: bool = False) -> Path:
    """Pull a model where it is missing, showing its licence first and the progress on stderr."""
    from tenfold.core.errors import ModelFileError, PullError

    try:
        return store.path(name)
    except PullError:
        pass
    except ModelFileError as exc:
        if not _is_stored(store, name):
            raise
        note(f"{exc.message}; fetching it again")
    entry = store.entry(name)
    licence = entry.licence
    note(f"Fetching {entry.name}. Licence of its weights: {licence.name} ({licence.url})")
    with _bar() as progress:
        return store.pull(name, progress, lambda *asked: accept or _ask(*asked))


def _is_stored(store: Store, name: str) -> bool:
    models = store.root / "models"
    return (models / name).parent == models and (models / name).is_dir()  # name may be a path


def _ask(name: str, licence: Licence, text: str) -> bool:
    """Show the terms and ask; without a terminal nobody can agree."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    note(text or f"The text of the {licence.name} could not be fetched; read it at {licence.url}")
    return typer.confirm(f"{name} is under the {licence.name}. Do you agree?", err=True)


@contextmanager
def _bar() -> Iterator[Progress]:
    """A bar on a terminal; elsewhere one line for each thing that is done."""
    if not sys.stderr.isatty():
        said: set[str] = set()

        def lines(what: str, done: int, total: int | None) -> None:
            if what not in said:
                said.add(what)
                note(f"  {what}")

        yield lines
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def draw(what: str, done: int, total: int | None) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield draw
