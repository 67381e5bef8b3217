"""``tenfold models``: what the catalogue knows and the store holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenfold.cli.options import ConfigFile, Json
from tenfold.cli.output import note, print_json, print_pairs, print_table

if TYPE_CHECKING:
    from tenfold.fleet.store import Card

app = typer.Typer(help="List, show and remove models.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="MODEL", help="Catalogue name, source or path.")]


@app.command("list")
def list_models(as_json: Json = False, config: ConfigFile = None) -> None:
    """The catalogue, and every other model in the store."""
    from tenfold.core.sizes import format_bytes

    cards = _store(config).list()
    if as_json:
        print_json([_summary(card) for card in cards])
        return
    rows = []
    for card in cards:
        size = card.installed.size if card.installed else card.entry.size
        state = "yes" if card.installed else "no"
        shown = format_bytes(size) if size else "?"
        name, kind = card.entry.name, card.entry.kind
        rows.append((name, kind, state, shown, card.entry.licence.name, card.entry.description))
    print_table(("name", "kind", "pulled", "size>", "licence", "description"), rows)


@app.command()
def show(
    name: Name,
    licence: Annotated[
        bool, typer.Option("--licence", help="Print the licence's whole text.")
    ] = False,
    as_json: Json = False,
    config: ConfigFile = None,
) -> None:
    """A model's licence, sources, files, hashes, size, and what its checkpoint says of itself."""
    from tenfold.core.sizes import format_bytes

    store = _store(config)
    card = store.show(name)
    if licence:
        text = store.licence_text(card.entry)
        typer.echo(text or f"{card.entry.licence.name}: {card.entry.licence.url}")
        return
    if as_json:
        print_json(_full(card))
        return
    entry = card.entry
    pairs = [("name", entry.name), ("kind", entry.kind), ("description", entry.description)]
    pairs.append(("licence", f"{entry.licence.name} ({entry.licence.url})"))
    pairs += [("source", source) for source in entry.sources]
    pairs.append(("path", str(card.path) if card.path else f"not here; tenfold pull {name}"))
    if card.installed:
        pairs.append(("pulled", f"{card.installed.pulled} from {card.installed.source}"))
    pairs += [(label, str(fact)) for label, fact in card.facts.items()]
    print_pairs(pairs)
    files = card.installed.files if card.installed else entry.files
    if files:
        typer.echo()
        rows = [(f.name, format_bytes(f.size) if f.size else "?", f.sha256 or "?") for f in files]
        print_table(("file", "size>", "sha256"), rows)


@app.command()
def remove(name: Name, config: ConfigFile = None) -> None:
    """Delete a model from the store, with what unfinished pulls left of it."""
    from tenfold.core.sizes import format_bytes

    freed = _store(config).remove(name)
    note(f"Removed {name}; {format_bytes(freed)} are free again.")


def _store(config: Any) -> Any:
    from tenfold.cli.fetch import open_store
    from tenfold.core.config import load_config

    return open_store(load_config(config))


def _summary(card: Card) -> dict[str, Any]:
    entry, installed = card.entry, card.installed
    return {
        "name": entry.name,
        "kind": entry.kind,
        "description": entry.description,
        "licence": entry.licence.name,
        "licence_url": entry.licence.url,
        "pulled": installed.pulled if installed else None,
        "size": installed.size if installed else entry.size or None,
        "path": card.path,
    }


def _full(card: Card) -> dict[str, Any]:
    files = card.installed.files if card.installed else card.entry.files
    return {
        **_summary(card),
        "sources": card.entry.sources,
        "source": card.installed.source if card.installed else None,
        "files": [{"name": f.name, "sha256": f.sha256, "size": f.size} for f in files],
        "checkpoint": card.facts,
    }


def register(main: typer.Typer) -> None:
    main.add_typer(app, name="models")
