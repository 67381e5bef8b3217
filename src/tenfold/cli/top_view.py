"""What ``tenfold top`` shows: two readings of /v1/status as tables of plain text.

Asks nobody and draws nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Status = dict[str, Any]


class Section(NamedTuple):
    """A table. ``columns`` as ``output.make_table`` takes them."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def speeds(before: Status, now: Status) -> dict[str, float]:
    """Tokens a second of each model between two readings; none for one that came meanwhile."""
    seconds = now["now"] - before["now"]
    then = {model["name"]: model["generated_tokens"] for model in before["models"]}
    if seconds <= 0:
        return {}
    return {
        model["name"]: max(0, model["generated_tokens"] - then[model["name"]]) / seconds
        for model in now["models"]
        if model["name"] in then
    }


def by_share(status: Status) -> list[dict[str, Any]]:
    """Clients: who was served most of late goes first, then who has work, then by name."""

    def order(client: dict[str, Any]) -> tuple[Any, ...]:
        live = client["running"] + client["waiting"]
        return -(client["share"] or 0.0), -live, -client["service"], client["name"]

    return sorted(status["clients"], key=order)


def headline(status: Status) -> str:
    """One line about the server."""
    if status["draining"]:
        state = "draining"
    else:
        state = "ready" if status["ready"] else "not ready"
    live = len(status["queue"])
    return (
        f"Tenfold {status['version']}, {state}, up {seconds(status['uptime'])}, "
        f"{live} live request{'' if live == 1 else 's'}"
    )


def devices(status: Status) -> Section:
    from tenfold.core.sizes import format_bytes

    rows = []
    for one in status["devices"]:
        size = format_bytes(one["capacity_pages"] * one["page_bytes"])
        used = one["mapped_pages"] / one["capacity_pages"] if one["capacity_pages"] else 0.0
        counts = (one["mapped_pages"], one["capacity_pages"], one["scratch_pages"])
        pages = tuple(str(count) for count in counts)
        rows.append((one["name"], *pages, percent(used), size, str(one["rounds"]), _jain(one)))
    names = ("device", "mapped>", "capacity>", "scratch>", "used>", "size>", "refills>", "Jain>")
    return Section(names, rows)


def models(status: Status, speed: dict[str, float]) -> Section:
    rows: list[tuple[str, ...]] = [
        (
            one["name"],
            one["state"],
            one["device"],
            str(one["weight_pages"]),
            str(one["kv_pages"]),
            str(one["running"]),
            str(one["waiting"]),
            f"{speed[one['name']]:.1f}" if one["name"] in speed else "-",
        )
        for one in status["models"]
    ]
    pages = ("weight pages>", "KV pages>", "running>", "waiting>", "tokens/s>")
    return Section(("model", "state", "device", *pages), rows)


def clients(status: Status, most: int | None = None) -> Section:
    """``most``: so many rows at most; the last one then says how many are left out."""
    listed = by_share(status)
    rows: list[tuple[str, ...]] = [
        (
            one["name"],
            percent(one["share"]),
            percent(one["fair"]),
            f"{one['service']:,.0f}",
            "-" if one["credit"] is None else f"{one['credit']:,.0f}",
            percent(one["drift"]),
            percent(one["hit_rate"]),
            f"{one['running']}/{one['waiting']}",
            seconds(one["oldest_wait"]) if one["waiting"] else "-",
        )
        for one in listed[:most]
    ]
    if len(rows) < len(listed):
        rows[-1:] = [(f"and {len(listed) - len(rows) + 1} more", *[""] * 8)]
    names = ("client", "share>", "fair>", "service>", "credit>", "drift>", "hits>")
    return Section((*names, "run/wait>", "oldest>"), rows)


def as_data(before: Status, now: Status) -> dict[str, Any]:
    """The same for programs: the status's own fields, with ``tokens_per_second`` of models."""
    speed = speeds(before, now)
    listed = [{**one, "tokens_per_second": speed.get(one["name"])} for one in now["models"]]
    kept = ("version", "ready", "draining", "now", "uptime", "devices")
    return {**{key: now[key] for key in kept}, "models": listed, "clients": by_share(now)}


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value * 100:.0f} %"


def seconds(value: float) -> str:
    """ "3.2 s", "4 min", "2 h 5 min"."""
    if value < 100:
        return f"{value:.1f} s"
    minutes = int(value // 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _jain(device: dict[str, Any]) -> str:
    return "-" if device["jain"] is None else f"{device['jain']:.3f}"
