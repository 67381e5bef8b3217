"""What sleep, wake, pin, limit and residency share: one call, and what is said of a model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tenfold.cli.output import note, print_json

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Name as the server knows it.")]

NOTHING = "none"
"""Takes a value away."""

_STATES = {
    "cold": "asleep (disk)",
    "host": "asleep (host)",
    "waking": "waking",
    "resident": "awake",
}


def tell(
    model: str,
    action: str,
    body: dict[str, Any],
    url: str,
    key: str | None,
    as_json: bool,
    method: str = "POST",
) -> None:
    """Send it, and print what has become of the model."""
    from urllib.parse import quote

    from tenfold.cli.http import call

    path = f"/v1/admin/models/{quote(model)}/{action}"
    answer: dict[str, Any] = call(url, method, path, key=key, body=body)
    if as_json:
        print_json(answer)
    else:
        note(sentence(answer))


def sentence(model: dict[str, Any]) -> str:
    """Where a model is and what it may hold, in a line."""
    from tenfold.core.durations import format_seconds
    from tenfold.core.sizes import format_bytes

    where = [f"{_STATES[state]} on {device}" for device, state in model["residency"].items()]
    words = [f"{model['id']} is {', '.join(where) or model['status']}"]
    words += ["held until tenfold wake"] if model["held"] else []
    words += ["pinned"] if model["pinned"] else []
    if model["limit_bytes"] is not None:
        words.append(f"KV limit {format_bytes(model['limit_bytes'])}")
    if model["floor_bytes"]:
        words.append(f"KV floor {format_bytes(model['floor_bytes'])}")
    if model["ttl"] is not None:
        words.append(f"sleeps {format_seconds(model['ttl'])} after its last request")
    if model["evict_cost"] != 1:
        words.append(f"evict cost {model['evict_cost']:g}")
    return "; ".join(words) + "."


def state(model: dict[str, Any]) -> str:
    """A model of /v1/status in a word or two: its state, and where its weights are."""
    found = set(model["residency"].values())
    if model["state"] != "ready" or not found:
        word = str(model["state"])
    elif len(found) == 1:
        word = _STATES[min(found)]
    else:
        awake = sum(each == "resident" for each in model["residency"].values())
        word = f"awake on {awake} of {len(model['residency'])}"
    marks = [mark for mark in ("held", "pinned") if model[mark]]
    return word + (f" ({', '.join(marks)})" if marks else "")
