"""``tenfold schedule``: who is next on a running server, and why."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tenfold.cli.options import DEFAULT_URL, AdminKey, Json, Url
from tenfold.cli.output import print_json, print_table

_COLUMNS = ("request", "client", "prompt>", "cached>", "waited>", "why")


def schedule(
    model: Annotated[str, typer.Argument(help="Only this model.")] = "",
    most: Annotated[
        int, typer.Option("--most", min=1, max=1000, help="Waiting requests to show, of each.")
    ] = 20,
    url: Url = DEFAULT_URL,
    key: AdminKey = None,
    as_json: Json = False,
) -> None:
    """Why the latest requests were chosen, and who is next, of each model.

    Needs the admin key where one is set.
    """
    from urllib.parse import urlencode

    from tenfold.cli.http import call

    query = urlencode({"most": most} | ({"model": model} if model else {}))
    reply: dict[str, Any] = call(url, "GET", f"/v1/admin/schedule?{query}", key=key)
    if as_json:
        print_json(reply["data"])
        return
    for number, each in enumerate(reply["data"]):
        if number:
            typer.echo()
        typer.echo(f"{each['model']} on {each['device']}: {each['policy']}, {_waiting(each)}")
        for title, places in (("Next", each["next"]), ("Chosen last", each["chosen"])):
            if places:
                typer.echo(f"\n{title}:")
                print_table(_COLUMNS, [_row(place) for place in places])
    if not reply["data"]:
        typer.echo("No model generates here, or its worker is busy with a long step.")


def _waiting(each: dict[str, Any]) -> str:
    shown = len(each["next"])
    rest = f", the first {shown} shown" if shown < each["waiting"] else ""
    return f"{each['waiting']} waiting{rest}"


def _row(place: dict[str, Any]) -> tuple[str, ...]:
    counts = str(place["prompt_tokens"]), str(place["matched_tokens"])
    waited = f"{place['waited']:.1f} s"
    return place["request_id"], place["client"], *counts, waited, place["why"]


def register(app: typer.Typer) -> None:
    app.command()(schedule)
