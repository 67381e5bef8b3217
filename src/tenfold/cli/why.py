"""``tenfold why``: what a running server did with its memory, and for what reason."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tenfold.cli.options import DEFAULT_URL, AdminKey, Json, Url
from tenfold.cli.output import print_json, print_table


def why(
    model: Annotated[str, typer.Argument(help="Only this model.")] = "",
    most: Annotated[
        int, typer.Option("--most", min=1, max=1000, help="Decisions to show, the newest.")
    ] = 20,
    limits: Annotated[
        bool, typer.Option("--limits", help="With changes of what models may hold: there are many.")
    ] = False,
    url: Url = DEFAULT_URL,
    key: AdminKey = None,
    as_json: Json = False,
) -> None:
    """Why models woke, slept and moved: the latest decisions about memory, newest last.

    Needs the admin key where one is set. Why requests wait is told by tenfold schedule.
    """
    from urllib.parse import urlencode

    from tenfold.cli.http import call

    asked: dict[str, Any] = {"most": most, "limits": str(limits).lower()}
    query = urlencode(asked | ({"model": model} if model else {}))
    reply: dict[str, Any] = call(url, "GET", f"/v1/admin/decisions?{query}", key=key)
    if as_json:
        print_json(reply["data"])
        return
    if not reply["data"]:
        typer.echo("No memory has moved yet, or the workers are busy with a long step.")
        return
    columns = ("ago>", "device", "decision", "model", "pages>", "took>", "why")
    print_table(columns, [_row(each) for each in reversed(reply["data"])])


def _row(each: dict[str, Any]) -> tuple[str, ...]:
    from tenfold.core.durations import format_seconds

    pages = str(each["pages"]) if each["pages"] else "-"
    took = f"{each['seconds'] * 1000:.0f} ms" if each["seconds"] else "-"
    ago = format_seconds(each["age"])
    return ago, each["device"], each["kind"], each["model"] or "-", pages, took, each["why"]


def register(app: typer.Typer) -> None:
    app.command()(why)
