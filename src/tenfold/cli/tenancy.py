"""What ``tenfold clients`` and ``tenfold clients groups`` share: options, calls and tables."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from tenfold.cli.output import note, print_json, print_pairs

Weight = Annotated[float | None, typer.Option(help="Share among its siblings. [1]")]
Group = Annotated[str | None, typer.Option(help='The group it is in; "" takes it out of any.')]
Requests = Annotated[int | None, typer.Option(help="Requests in any 60 seconds, at most.")]
Tokens = Annotated[
    int | None, typer.Option(help="Tokens in any 60 seconds, prompts and answers together.")
]
Concurrent = Annotated[int | None, typer.Option(help="Requests waiting or running at once.")]
Reset = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SETTING",
        help="Take a live change back, as --reset weight: the config file's value, or the default, "
        "is in force again. May be repeated.",
    ),
]

_LIMITS = ("requests_per_minute", "tokens_per_minute", "max_concurrent")

COLUMNS = ("name", "group", "weight>", "requests/min>", "tokens/min>", "at once>")


def row(entry: dict[str, Any]) -> tuple[str, ...]:
    """A client or a group as a line under ``COLUMNS``."""
    limits = ("-" if entry[name] is None else str(entry[name]) for name in _LIMITS)
    return entry["name"], entry["group"] or "-", f"{entry['weight']:g}", *limits


def ask_admin(
    method: str, path: str, url: str, key: str | None, body: dict[str, Any] | None = None
) -> Any:
    """The answer of ``/v1/admin/PATH``. Raises the error that the server tells."""
    from tenfold.cli.http import call

    return call(url, method, f"/v1/admin/{path}", key=key, body=body)


def given(**values: Any) -> dict[str, Any]:
    """The options that were given, as a body."""
    return {name: value for name, value in values.items() if value is not None}


def quoted(name: str) -> str:
    """A name as one step of a path."""
    return quote(name, safe="")


def change(
    path: str,
    body: dict[str, Any],
    reset: list[str] | None,
    url: str,
    key: str | None,
    as_json: bool,
) -> None:
    """Send changes, those of ``reset`` as null, and print what came of them."""
    from tenfold.core.errors import ConfigError

    taken_back: dict[str, Any] = {name.replace("-", "_"): None for name in reset or ()}
    if both := taken_back.keys() & body.keys():
        raise ConfigError(f"{min(both)} is set and reset at once; do one of them")
    if not (body or taken_back):
        raise ConfigError("nothing to change; give at least one option, as --weight 2")
    answer = ask_admin("PATCH", path, url, key, body | taken_back)
    if as_json:
        print_json(answer)
    else:
        print_settings(answer)


def remove(path: str, name: str, url: str, key: str | None, as_json: bool) -> None:
    """Delete a client or a group."""
    answer = ask_admin("DELETE", path, url, key)
    if as_json:
        print_json(answer)
    else:
        note(f"{name} is gone.")


def print_settings(entry: dict[str, Any]) -> None:
    """Name, origin and settings, those set live over the config file marked."""
    origin = "in the config file" if entry["source"] == "config" else "live"
    pairs = [("name", entry["name"]), ("defined", origin)]
    settings = [name for name in entry if name not in ("name", "source", "live", "keys")]
    for name in settings:
        value = entry[name]
        shown = "-" if value in (None, "") else str(value).lower()
        live = name in entry["live"] and entry["source"] == "config"
        pairs.append((name, shown + (" (set live, over the config file)" if live else "")))
    print_pairs(pairs)
