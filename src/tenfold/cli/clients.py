"""``tenfold clients``: who may call a running server, with what share and which limits."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tenfold.cli import groups
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
    help="Clients of a running server: keys, shares and limits.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(groups.app, name="groups")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The client.")]

QueueRequests = Annotated[
    int | None, typer.Option("--max-requests", help="Requests that may wait.")
]
QueueTokens = Annotated[
    int | None, typer.Option("--max-tokens", help="Prompt tokens that may wait.")
]
Isolate = Annotated[
    bool | None,
    typer.Option("--isolate/--no-isolate", help="Share no cached prefixes with other clients."),
]


@app.command("list")
def list_clients(url: Url = DEFAULT_URL, key: AdminKey = None, as_json: Json = False) -> None:
    """Every client with its share and its limits."""
    answer = ask_admin("GET", "clients", url, key)
    if as_json:
        print_json(answer)
        return
    rows = []
    for client in answer["data"]:
        marks = [mark for mark in ("isolate", "disabled") if client[mark]]
        rows.append((*row(client), str(len(client["keys"])), ", ".join(marks)))
    print_table((*COLUMNS, "keys>", ""), rows)
    if not answer["keys_required"]:
        note("This server is open: nobody needs a key. The first client made closes it.")


@app.command()
def show(name: Name, url: Url = DEFAULT_URL, key: AdminKey = None, as_json: Json = False) -> None:
    """One client: settings, which of them were set live, and its keys."""
    client = ask_admin("GET", f"clients/{quoted(name)}", url, key)
    if as_json:
        print_json(client)
        return
    print_settings(client)
    typer.echo()
    print_table(
        ("key", "made", "ends"),
        [
            (k["id"], _when(k["created"], "config file"), _when(k["ends"], ""))
            for k in client["keys"]
        ],
    )


@app.command()
def add(
    name: Name,
    weight: Weight = None,
    group: Group = None,
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    max_concurrent: Concurrent = None,
    max_requests: QueueRequests = None,
    max_tokens: QueueTokens = None,
    isolate: Isolate = None,
    url: Url = DEFAULT_URL,
    key: AdminKey = None,
    as_json: Json = False,
) -> None:
    """Make a client. Prints its key, which is told this once."""
    body = given(
        name=name,
        weight=weight,
        group=group,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        max_concurrent=max_concurrent,
        max_requests=max_requests,
        max_tokens=max_tokens,
        isolate=isolate,
    )
    _print_key(ask_admin("POST", "clients", url, key, body), as_json)


@app.command("set")
def set_client(
    name: Name,
    weight: Weight = None,
    group: Group = None,
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    max_concurrent: Concurrent = None,
    max_requests: QueueRequests = None,
    max_tokens: QueueTokens = None,
    isolate: Isolate = None,
    disabled: Annotated[
        bool | None,
        typer.Option("--disable/--enable", help="Refuse its keys with 403, or take them again."),
    ] = None,
    reset: Reset = None,
    url: Url = DEFAULT_URL,
    key: AdminKey = None,
    as_json: Json = False,
) -> None:
    """Change a client, in force at once."""
    body = given(
        weight=weight,
        group=group,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        max_concurrent=max_concurrent,
        max_requests=max_requests,
        max_tokens=max_tokens,
        isolate=isolate,
        disabled=disabled,
    )
    change(f"clients/{quoted(name)}", body, reset, url, key, as_json)


@app.command()
def rotate(
    name: Name,
    grace: Annotated[
        float | None, typer.Option(help="Seconds for which the older keys stay good. [0]")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="The older keys stay as they are.")] = False,
    url: Url = DEFAULT_URL,
    key: AdminKey = None,
    as_json: Json = False,
) -> None:
    """Make another key for a client and print it; the older ones end."""
    body = given(grace_seconds=grace, keep=keep or None)
    _print_key(ask_admin("POST", f"clients/{quoted(name)}/rotate", url, key, body), as_json)


@app.command()
def revoke(
    name: Name,
    key_id: Annotated[
        str, typer.Argument(metavar="KEY_ID", help="The key, by its id in tenfold clients show.")
    ],
    url: Url = DEFAULT_URL,
    key: AdminKey = None,
    as_json: Json = False,
) -> None:
    """End one key of a client at once."""
    path = f"clients/{quoted(name)}/keys/{quoted(key_id)}"
    answer = ask_admin("DELETE", path, url, key)
    if as_json:
        print_json(answer)
    else:
        note(f"{key_id} of {name} is good no more; {len(answer['keys'])} left.")


@app.command()
def rm(name: Name, url: Url = DEFAULT_URL, key: AdminKey = None, as_json: Json = False) -> None:
    """Forget a client that was made live, with its keys."""
    remove(f"clients/{quoted(name)}", name, url, key, as_json)


def _print_key(answer: dict[str, Any], as_json: bool) -> None:
    """The key alone on stdout, so that a script can take it; the rest is for people."""
    if as_json:
        print_json(answer)
        return
    if answer["note"]:
        note(answer["note"])
    note(f"The new key of {answer['name']}. It is shown this once and kept nowhere:")
    typer.echo(answer["key"])


def _when(seconds: float | None, otherwise: str) -> str:
    import time

    if seconds is None:
        return otherwise
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def register(main: typer.Typer) -> None:
    main.add_typer(app, name="clients")
