"""What ``tenfold top`` shows: two readings of /v1/status as tables of plain text.

Asks nobody and draws nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tenfold.cli.residency import state

Status = dict[str, Any]


_PAGES = ("weight_pages", "kv_pages", "cached_pages")
_CELLS = "█▓▒░"

LEGEND = "█ weights  ▓ keys and values  ▒ cached prefixes  ░ ready  · free"


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
    from tenfold.core.durations import format_seconds

    if status["draining"]:
        state = "draining"
    else:
        state = "ready" if status["ready"] else "not ready"
    live = len(status["queue"])
    return (
        f"Tenfold {status['version']}, {state}, up {format_seconds(status['uptime'])}, "
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


def memory(
    status: Status, moved: dict[tuple[str, str], int], speed: dict[str, float], width: int
) -> Section:
    """Every device with its models below it: a bar of ``width`` cells, the pages behind it, what
    moved since the last look, and the load. Speeds are of a model on all its devices."""
    rows: list[tuple[str, ...]] = []
    known = {model["name"]: model for model in status["models"]}
    for device in status["devices"]:
        sums = {key: sum(each[key] for each in device["models"]) for key in _PAGES}
        ready = device["reserved_pages"]
        drawn = bar(sums, device["capacity_pages"], width, ready)
        rows.append((device["name"], drawn, f"{ready} ready", *_pages(sums), "", "", ""))
        for each in device["models"]:
            name = each["name"]
            marks = {"held": each["held"], "pinned": known.get(name, {}).get("pinned", False)}
            one = {"state": "ready", "residency": {"": each["residency"]}, **marks}
            change = moved.get((device["name"], name), 0)
            rows.append(
                (
                    f"  {name}",
                    bar(each, device["capacity_pages"], width),
                    state(one),
                    *_pages(each),
                    f"{change:+d}" if change else "-",
                    f"{each['running']}/{each['waiting']}",
                    f"{speed[name]:.1f}" if name in speed else "-",
                )
            )
    for model in status["models"]:
        if not model["devices"]:  # on its way, or failed
            rows.append((f"  {model['name']}", "", model["state"], *[""] * 6))
    pages = ("weights>", "KV>", "cached>", "moved>")
    return Section(("pages", "", "", *pages, "run/wait>", "tokens/s>"), rows)


def bar(pages: dict[str, Any], capacity: int, width: int, ready: int = 0) -> str:
    """Weights, keys and values, cached prefixes, and ready pages, of a device's capacity."""
    cached = pages["cached_pages"]
    parts = (pages["weight_pages"], pages["kv_pages"] - cached, cached, ready)
    drawn, sofar = "", 0
    for count, cell in zip(parts, _CELLS, strict=True):
        sofar += count
        ends = min(width, round(sofar / capacity * width)) if capacity else 0
        drawn += cell * (ends - len(drawn))
    return drawn.ljust(width, "·")


def movement(before: Status, now: Status) -> dict[tuple[str, str], int]:
    """Pages that each model gained or lost on each device between two readings."""

    def held(status: Status) -> dict[tuple[str, str], int]:
        return {
            (device["name"], model["name"]): model["weight_pages"] + model["kv_pages"]
            for device in status["devices"]
            for model in device["models"]
        }

    then = held(before)
    return {key: pages - then.get(key, 0) for key, pages in held(now).items()}


def _pages(pages: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(pages[key]) for key in _PAGES)


def clients(status: Status, most: int | None = None) -> Section:
    """``most``: so many rows at most; the last one then says how many are left out."""
    from tenfold.core.durations import format_seconds

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
            format_seconds(one["oldest_wait"]) if one["waiting"] else "-",
        )
        for one in listed[:most]
    ]
    if len(rows) < len(listed):
        rows[-1:] = [(f"and {len(listed) - len(rows) + 1} more", *[""] * 8)]
    names = ("client", "share>", "fair>", "service>", "credit>", "drift>", "hits>")
    return Section((*names, "run/wait>", "oldest>"), rows)


def as_data(before: Status, now: Status) -> dict[str, Any]:
    """The same for programs: the status's own fields, with ``tokens_per_second`` of models and
    ``pages_moved`` of their parts of devices."""
    speed, moved = speeds(before, now), movement(before, now)
    listed = [{**one, "tokens_per_second": speed.get(one["name"])} for one in now["models"]]
    parts = [
        {
            **device,
            "models": [
                {**one, "pages_moved": moved[device["name"], one["name"]]}
                for one in device["models"]
            ],
        }
        for device in now["devices"]
    ]
    kept = {key: now[key] for key in ("version", "ready", "draining", "now", "uptime")}
    return {**kept, "devices": parts, "models": listed, "clients": by_share(now)}


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value * 100:.0f} %"


def _jain(device: dict[str, Any]) -> str:
    return "-" if device["jain"] is None else f"{device['jain']:.3f}"
