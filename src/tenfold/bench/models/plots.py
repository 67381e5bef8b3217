"""Plots of the comparison. Knows only what the report says of a file of results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tenfold.bench.estimate import Estimate
from tenfold.bench.models.report import rivals, sweep_rows
from tenfold.bench.plot import _pyplot, _save

SWEEPS = {
    "margin": "factor on estimated prefill times",
    "idle": "seconds without work that are idle",
    "tau": "part by which pressure must fall for a move",
}


BESIDE = 0.03
"""Requests a second by which the points of a mode are shifted, so that bars do not cover others."""


def _line(axes: Any, at: Mapping[float, Estimate], name: str, shift: float = 0.0) -> None:
    """Shares as per cent, with the part of their intervals that shares can have."""
    means = [100 * one.mean for one in at.values()]
    low = [min(mean, 100 * one.half) for mean, one in zip(means, at.values(), strict=True)]
    high = [min(100 - mean, 100 * one.half) for mean, one in zip(means, at.values(), strict=True)]
    places = [place + shift for place in at]
    axes.plot(places, means, marker="o", markersize=3.5, label=name)
    color = axes.lines[-1].get_color()
    axes.errorbar(places, means, (low, high), fmt="none", ecolor=color, elinewidth=0.8, alpha=0.5)


def curves_plot(parts: dict[str, Any], path: Path) -> None:
    """A panel a budget: the share in time over load, a line a mode, bars the 95 % intervals."""
    pyplot = _pyplot()
    shown = [budget for budget in ("A", "B") if rivals(parts, budget)]
    figure, panels = pyplot.subplots(
        1, len(shown), figsize=(6 * len(shown), 4.2), layout="constrained", squeeze=False
    )
    for axes, budget in zip(panels[0], shown, strict=True):
        for number, one in enumerate(rivals(parts, budget)):
            loads = sorted({load for curve in one.curves for load in curve})
            known = {load: at for load in loads if (at := one.at(load)) is not None}
            _line(axes, known, one.name, shift=BESIDE * number)
        axes.axhline(99, color="black", linewidth=0.5, linestyle="--")
        axes.set(xlabel="requests a second", ylabel="% of first tokens in time", ylim=(0, 101))
        axes.set_title({"A": "A: all weights and 25 % of peak KV",
                        "B": "B: a third of the weights"}[budget], fontsize=10)  # fmt: skip
        axes.legend(frameon=False, fontsize=8)
    _save(figure, pyplot, path)


def sweeps_plot(parts: dict[str, Any], path: Path) -> None:
    """A panel a setting that was swept: the share in time over its value."""
    pyplot = _pyplot()
    shown: dict[str, dict[float, Estimate]] = {
        what: rows for what in SWEEPS if (rows := sweep_rows(parts, what))
    }
    figure, panels = pyplot.subplots(
        1, len(shown), figsize=(5 * len(shown), 3.8), layout="constrained", squeeze=False
    )
    for axes, (what, rows) in zip(panels[0], shown.items(), strict=True):
        axes.errorbar(
            list(rows),
            [100 * at.mean for at in rows.values()],
            yerr=[100 * at.half for at in rows.values()],
            marker="o",
            capsize=3,
        )
        title = f"{what} (simulated)" if what == "tau" else what
        axes.set(xlabel=SWEEPS[what], ylabel="% of first tokens in time", title=title)
    _save(figure, pyplot, path)


def devices_plot(parts: dict[str, Any], path: Path) -> None:
    """Simulated: the share in time over the number of devices, a line a mode."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(6, 4.2), layout="constrained")
    modes: dict[str, dict[int, list[float]]] = {}
    for key, one in parts["simulated"].items():
        mine = modes.setdefault(key.partition("|")[0], {})
        for count, share in one["attainment"].items():
            mine.setdefault(int(count), []).append(share)
    for name, counts in modes.items():
        _line(axes, {count: Estimate.of(counts[count]) for count in sorted(counts)}, name)
    axes.axhline(99, color="black", linewidth=0.5, linestyle="--")
    axes.set(xlabel="devices (simulated H100-80G)", ylabel="% of first tokens in time")
    axes.legend(frameon=False, fontsize=8)
    _save(figure, pyplot, path)
