"""What the measurements say: the claims beside what was found, and tables of the curves.

Reads a ``Store``'s body and nothing else, so a report can be made of any file of results.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tenfold.bench.estimate import Estimate
from tenfold.bench.models.curves import Rival, best, sustained
from tenfold.bench.models.modes import BASELINES, ELASTIC

NEAR = 0.99

LEAST_RATIO = {"A": 1.5, "B": 2.0}


@dataclass(slots=True)
class Claim:
    """``met``: None where it is not a matter of yes or no."""

    what: str
    least: str
    found: str
    met: bool | None


def rivals(parts: dict[str, Any], budget: str) -> list[Rival]:
    """The curves of a budget, of modes that fit."""
    curves: dict[str, dict[int, dict[float, float]]] = {}
    for key, point in parts.get(budget, {}).items():
        mode, load, seed = key.split("|")
        if point["fits"]:
            curves.setdefault(mode, {}).setdefault(int(seed), {})[float(load)] = point["attainment"]
    return [Rival(name, [seeds[n] for n in sorted(seeds)]) for name, seeds in curves.items()]


def baselines(parts: dict[str, Any], budget: str) -> list[Rival]:
    return [one for one in rivals(parts, budget) if one.name in BASELINES[budget]]


def half_load(parts: dict[str, Any], budget: str) -> float:
    """Where the attainment of the baseline that holds out longest falls to a half, all seeds
    together; 0 where no load that was run is high enough."""
    found = _last_above_half(baselines(parts, budget))
    if found is None or min(found.mean.values()) >= 0.5:
        return 0.0
    return round(sustained(found.mean, 0.5), 2)


def _last_above_half(rivals: list[Rival]) -> Rival | None:
    known = [one for one in rivals if one.mean]
    return max(known, key=lambda one: sustained(one.mean, 0.5), default=None)


def claims(parts: dict[str, Any]) -> list[Claim]:
    """All that can be said of what was measured so far."""
    found: list[Claim] = []
    for budget in ("A", "B"):
        found += _curve_claims(parts, budget)
    found += _wake_claims(parts)
    found += _overhead_claim(parts)
    for name, one in parts.get("burst", {}).items():
        seconds = one["p50"]
        found.append(Claim(f"64 MiB from an idle model to a busy one, {name}", "< 50 ms",
                           f"{1000 * seconds:.1f} ms", seconds < 0.05))  # fmt: skip
    found += _devices_claims(parts)
    return found


def _curve_claims(parts: dict[str, Any], budget: str) -> Iterator[Claim]:
    ours = next((one for one in rivals(parts, budget) if one.name == ELASTIC), None)
    others = baselines(parts, budget)
    if ours is None or not others:
        return
    load = half_load(parts, budget)
    if load and (reached := ours.at(load)) is not None:
        champion = _last_above_half(others)
        assert champion is not None
        yield Claim(
            f"{budget}: in time at {load:g} requests/s, where {champion.name} reaches 50 %",
            "90 %",
            _percent(reached),
            reached.mean >= 0.9,
        )
    champion = best(others, NEAR)
    assert champion is not None
    mine, theirs = ours.sustains(NEAR), champion.sustains(NEAR)
    least = LEAST_RATIO[budget]
    yield Claim(
        f"{budget}: load at {NEAR:.0%} in time, against {champion.name}",
        f"{least:g} x",
        _ratio(mine, theirs, "" if ours.falls_below(NEAR) else "at least "),
        mine.mean >= least * theirs.mean if theirs.mean else (mine.mean > 0 or None),
    )


def _percent(value: Estimate) -> str:
    return f"{value.mean:.1%} ± {value.half:.1%}"


def _ratio(mine: Estimate, theirs: Estimate, least: str) -> str:
    said = f"{least}{mine.mean:.2f} ± {mine.half:.2f} against {theirs.mean:.2f} ± {theirs.half:.2f}"
    if not theirs.mean:
        return f"{said} requests/s; no load that was run is low enough for a baseline"
    return f"{least}{mine.mean / theirs.mean:.2f} x ({said} requests/s)"


def _wake_claims(parts: dict[str, Any]) -> Iterator[Claim]:
    for name, one in parts.get("wake", {}).items():
        seconds = one["beyond_p50"]
        yield Claim(
            f"wake {name} ({one['weights'] >> 20} MiB) to its first token, beyond prefill",
            "< 0.5 s" if name.startswith("smol") else "-",
            f"{1000 * seconds:.0f} ms, worst {1000 * one['beyond_worst']:.0f}",
            seconds < 0.5 if name.startswith("smol") else None,
        )


def _overhead_claim(parts: dict[str, Any]) -> Iterator[Claim]:
    rates = parts.get("overhead", {})
    if ELASTIC in rates and "static" in rates:
        pairs = zip(rates[ELASTIC], rates["static"], strict=True)
        cost = Estimate.of([1 - mine / theirs for mine, theirs in pairs])
        known = cost.half < abs(0.03 - cost.mean)  # else its interval holds the limit
        yield Claim("throughput lost to static memory at a constant load", "<= 3 %",
                    _percent(cost), cost.mean <= 0.03 if known else None)  # fmt: skip


def _devices_claims(parts: dict[str, Any]) -> Iterator[Claim]:
    """Keys of the simulated part are mode|seed; values say how many devices are needed."""
    counts: dict[str, list[float]] = {}
    for key, one in parts.get("simulated", {}).items():
        if one.get("needed"):
            counts.setdefault(key.partition("|")[0], []).append(one["needed"])
    if ELASTIC not in counts:
        return
    mine = Estimate.of(counts.pop(ELASTIC))
    for name, values in counts.items():
        theirs = Estimate.of(values)
        yield Claim(
            f"simulated, 58 models: devices for 99 % in time, against {name}",
            "half",
            f"{mine.mean:.1f} ± {mine.half:.1f} against {theirs.mean:.1f} ± {theirs.half:.1f}",
            mine.mean <= theirs.mean / 2,
        )


def curve_rows(parts: dict[str, Any], budget: str) -> tuple[list[str], list[list[str]]]:
    """Column titles, and a row a mode: attainment at every load, and the load at 99 %."""
    known = rivals(parts, budget)
    loads = sorted({load for one in known for curve in one.curves for load in curve})
    rows = []
    for one in known:
        cells = [_percent(at) if (at := one.at(load)) else "-" for load in loads]
        near = Estimate.of([sustained(curve, NEAR) for curve in one.curves])
        rows.append([one.name, *cells, f"{near.mean:.2f} ± {near.half:.2f}"])
    for key, point in parts.get(budget, {}).items():
        name = key.partition("|")[0]
        if not point["fits"] and all(row[0] != name for row in rows):
            rows.append([name, "does not fit", *[""] * len(loads)])
    return ["", *(f"{load:g}/s" for load in loads), "99 % up to"], rows


def sweep_rows(parts: dict[str, Any], what: str) -> dict[float, Estimate]:
    """Attainment by the value that was swept."""
    found: dict[float, list[float]] = {}
    for key, point in parts.get(what, {}).items():
        found.setdefault(float(key.partition("|")[0]), []).append(point["attainment"])
    return {value: Estimate.of(found[value]) for value in sorted(found)}
