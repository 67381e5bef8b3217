"""``tenfold clients groups``: what clients of a running server have together."""

from __future__ import annotations

from typing import Annotated

import typer

from tenfold.cli.options import DEFAULT_URL, AdminKey, Json, Url
from tenfold.cli.output import note, print_json, print_table
from tenfold.cli.tenancy import (
    COLUMNS,
    Concurrent,
    Group,
    Requests,
    Reset,
    Tokens,
    Weight,
    ask_admin,
    change,
    given,
    print_settings,
    quoted,
    remove,
    row,
)

app = typer.Typer(
    help="Groups of clients: shares and limits they have together.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The group.")]


@app.command("list")
def list_groups(url: Url = DEFAULT_URL, key: AdminKey = None, as_json: Json = False) -> None:
    """Every group with its share and its limits."""
    answer = ask_admin("GET", "groups", url, key)
    if as_json:
        print_json(answer)
    else:
        print_table(COLUMNS, [row(group) for group in answer["data"]])


@app.command("show")
def show_group(
    name: Name, url: Url = DEFAULT_URL, key: AdminKey = None, as_json: Json = False
) -> None:
    """One group, and which of its settings were set live."""
    group = ask_admin("GET", f"groups/{quoted(name)}", url, key)
    if as_json:
        print_json(group)
    else:
        print_settings(group)


@app.command("add")
def add_group(
    name: Name,
    weight: Weight = None,
    group: Group = None,
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    max_concurrent: Concurrent = None,
    url: Url = DEFAULT_URL,
    key: AdminKey = None,
    as_json: Json = False,
) -> None:
    """Make a group. Its limits count all that is in it."""
    body = given(
        name=name,
        weight=weight,
        group=group,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        max_concurrent=max_concurrent,
    )
    answer = ask_admin("POST", "groups", url, key, body)
    if as_json:
        print_json(answer)
    else:
        note(
            f"The group {name} is there; put clients in with: tenfold clients set … --group {name}"
        )


@app.command("set")
def set_group(
    name: Name,
    weight: Weight = None,
    group: Group = None,
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    max_concurrent: Concurrent = None,
    reset: Reset = None,
    url: Url = DEFAULT_URL,
    key: AdminKey = None,
    as_json: Json = False,
) -> None:
    """Change a group, in force at once."""
    body = given(
        weight=weight,
        group=group,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        max_concurrent=max_concurrent,
    )
    change(f"groups/{quoted(name)}", body, reset, url, key, as_json)


@app.command("rm")
def remove_group(
    name: Name, url: Url = DEFAULT_URL, key: AdminKey = None, as_json: Json = False
) -> None:
    """Forget a group that was made live and that nobody is in."""
    remove(f"groups/{quoted(name)}", name, url, key, as_json)
