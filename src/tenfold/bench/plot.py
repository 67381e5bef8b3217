"""Plots of benchmark results. matplotlib (the ``bench`` extra) is imported when first asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tenfold.bench.load import Record
from tenfold.core.errors import ConfigError
from tenfold.fleet.workloads.outcome import RunSummary, Series


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError("plots need matplotlib: pip install 'tenfold[bench]'") from error
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def latency_plot(records: list[Record], path: Path, title: str) -> None:
    """Left: shares of time to first token and of gaps. Right: output tokens over time."""
    pyplot = _pyplot()
    good = [r for r in records if not r.error]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, values in (
        ("time to first token", [r.ttft for r in good]),
        ("between tokens", [gap for r in good for gap in r.gaps]),
    ):
        if values:
            ranked = sorted(1000 * v for v in values)
            left.step(ranked, [(i + 1) / len(ranked) for i in range(len(ranked))], label=name)
    left.set(xscale="log", xlabel="milliseconds", ylabel="share of requests or gaps", ylim=(0, 1))
    left.legend(frameon=False)
    times = sorted(t for r in good for t in r.token_times)
    if times:
        seconds = range(int(times[-1]) + 1)
        right.step(
            list(seconds), [sum(s <= t < s + 1 for t in times) for s in seconds], where="post"
        )
    right.set(xlabel="seconds", ylabel="output tokens a second", ylim=(0, None))
    figure.suptitle(title)
    _save(figure, pyplot, path)


def peers_plot(
    panels: list[tuple[str, dict[str, float]]],
    lines: tuple[str, dict[str, dict[int, float]]],
    path: Path,
    title: str,
) -> None:
    """A panel a measure, one bar an engine with its value; the last panel is a rate over the
    number of streams, a line an engine. An engine keeps its colour everywhere."""
    pyplot = _pyplot()
    everybody = [*(name for _, bars in panels for name in bars), *lines[1]]
    engines = list(dict.fromkeys(everybody))
    colours = {name: f"C{place % 10}" for place, name in enumerate(engines)}
    count = len(panels) + bool(lines[1])
    columns = min(4, max(1, count))
    height = -(-count // columns)
    figure, grid = pyplot.subplots(
        height, columns, figsize=(4.2 * columns, 0.9 + 2.7 * height), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    free = list(grid.flat)
    for label, bars in panels:
        axes = free.pop(0)
        names = list(bars)
        drawn = axes.barh(names, list(bars.values()), color=[colours[name] for name in names])
        shown = [f"{v:,.0f}" if v >= 100 else f"{v:.3g}" for v in bars.values()]
        axes.bar_label(drawn, labels=shown, padding=2, fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.18)
        axes.set_title(label, fontsize=10)
    if lines[1]:
        axes = free.pop(0)
        for name, points in lines[1].items():
            axes.plot(list(points), list(points.values()), "o-", label=name, color=colours[name])
        axes.set_xscale("log", base=2)
        ticks = sorted({x for points in lines[1].values() for x in points})
        axes.set(
            xticks=ticks, xticklabels=[str(x) for x in ticks], xlabel="streams", ylim=(0, None)
        )
        axes.set_title(lines[0], fontsize=10)
        axes.legend(frameon=False, fontsize=8)
    for axes in free:
        axes.set_axis_off()
    figure.suptitle(title)
    _save(figure, pyplot, path)


def stacked_plot(bars: dict[str, dict[str, float]], path: Path, title: str) -> None:
    """One horizontal bar an entry, its parts in seconds side by side, shown in microseconds."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(9, 1.4 + 0.7 * len(bars)), layout="constrained")
    for row, parts in enumerate(bars.values()):
        left = 0.0
        for part, seconds in parts.items():
            width = 1e6 * seconds
            axes.barh(row, width, left=left, label=f"{part}: {width:,.0f}")
            left += width
    axes.set(yticks=range(len(bars)), yticklabels=list(bars), xlabel="microseconds", title=title)
    axes.invert_yaxis()
    axes.legend(frameon=False, ncols=4, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.35))
    _save(figure, pyplot, path)


def bars_plot(groups: dict[str, dict[str, float]], path: Path, title: str, unit: str) -> None:
    """One cluster of bars a measure, one bar an engine; the value stands on each bar."""
    pyplot = _pyplot()
    engines = list(dict.fromkeys(engine for values in groups.values() for engine in values))
    figure, axes = pyplot.subplots(figsize=(2 + 2.2 * len(groups), 4), layout="constrained")
    width = 0.8 / max(1, len(engines))
    for place, engine in enumerate(engines):
        xs = [i + (place - (len(engines) - 1) / 2) * width for i in range(len(groups))]
        heights = [values.get(engine, 0.0) for values in groups.values()]
        bars = axes.bar(xs, heights, width * 0.92, label=engine)
        axes.bar_label(bars, fmt="{:,.0f}", fontsize=8)
    axes.set(xticks=range(len(groups)), xticklabels=list(groups), ylabel=unit, title=title)
    axes.legend(frameon=False)
    _save(figure, pyplot, path)


def gaps_plot(
    series: list[tuple[list[float], list[float]]], target: float, path: Path, title: str
) -> None:
    """Gaps between tokens over time, a line a stream, with the target and its double."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(9, 4), layout="constrained")
    for times, gaps in series:
        axes.plot(times, [1000 * g for g in gaps], linewidth=0.8, alpha=0.7)
    axes.axhline(1000 * target, color="black", linewidth=1, label="target")
    axes.axhline(2000 * target, color="black", linewidth=1, linestyle="--", label="2 x target")
    axes.set(xlabel="seconds", ylabel="milliseconds between tokens", ylim=(0, None), title=title)
    axes.legend(frameon=False)
    _save(figure, pyplot, path)


def changes_plot(
    changes: dict[str, tuple[float, float]], limit: float, path: Path, title: str
) -> None:
    """One row a name: its change and two standard errors either way, in percent; the limits."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 1.2 + 0.3 * len(changes)), layout="constrained")
    rows, values = range(len(changes)), list(changes.values())
    axes.errorbar(
        [100 * change for change, _ in values],
        rows,
        xerr=[200 * error for _, error in values],
        fmt="o",
        markersize=4,
        capsize=2,
    )
    for side in (-limit, limit):
        axes.axvline(100 * side, color="black", linewidth=1, linestyle="--")
    axes.axvline(0, color="black", linewidth=0.5)
    axes.set(yticks=rows, yticklabels=list(changes), xlabel="percent, ± 2 errors", title=title)
    axes.invert_yaxis()
    _save(figure, pyplot, path)


def simulation_plot(summary: RunSummary, line: Series, path: Path, title: str) -> None:
    """Service over time a client, latencies and hit rates; with many clients, the extremes."""
    pyplot = _pyplot()
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(14, 4), layout="constrained")
    ranked = sorted(summary.clients, key=lambda name: -summary.clients[name].service)
    shown = ranked if len(ranked) <= 8 else [*ranked[:4], *ranked[-4:]]
    for name in shown:
        total = 0.0
        points = [(0.0, 0.0)]
        for end, value in zip(line.ends, line.service[name].tolist(), strict=True):
            total += value
            points.append((end, total))
        left.plot(*zip(*points, strict=True), label=name, linewidth=1.2)
    left.set(xlabel="simulated seconds", ylabel="service so far (input + 2 output)", ylim=(0, None))
    left.legend(frameon=False, fontsize=8)
    left.set_title(f"Jain {summary.jain:.3f} while all are busy", fontsize=10)
    for place, name in enumerate(shown):
        spread = summary.clients[name].latency
        middle.plot([place, place], [spread.p50, spread.p99], color="grey")
        middle.plot(place, spread.p50, "o", color="C0")
        middle.plot(place, spread.p99, "_", color="C1", markersize=12)
    middle.set(xticks=range(len(shown)), ylabel="seconds, median and 99 %", ylim=(0, None))
    middle.set_xticklabels(shown, rotation=45, ha="right", fontsize=8)
    middle.set_title("latency of calls", fontsize=10)
    rates = [
        summary.clients[name].cached_tokens / max(1, summary.clients[name].prompt_tokens)
        for name in shown
    ]
    right.bar(range(len(shown)), rates)
    right.set(xticks=range(len(shown)), ylabel="share of prompt tokens", ylim=(0, 1))
    right.set_xticklabels(shown, rotation=45, ha="right", fontsize=8)
    right.set_title(f"from the cache: {summary.hit_rate:.0%} in all", fontsize=10)
    figure.suptitle(title)
    _save(figure, pyplot, path)


def check_plot(found: dict[str, Any], measures: Sequence[str], path: Path, title: str) -> None:
    """A panel a measure, a pair of bars a policy: real and simulated."""
    pyplot = _pyplot()
    count = len(measures)
    figure, panels = pyplot.subplots(1, count, figsize=(3.6 * count, 3.6), layout="constrained")
    for axes, measure in zip(panels, measures, strict=True):
        names = list(found["real"])
        for offset, side in ((-0.2, "real"), (0.2, "simulated")):
            heights = [found[side][name][measure] for name in names]
            axes.bar([i + offset for i in range(len(names))], heights, 0.38, label=side)
        axes.set(xticks=range(len(names)), xticklabels=names, title=measure)
    panels[0].legend(frameon=False)
    figure.suptitle(title)
    _save(figure, pyplot, path)


def fairness_plot(cells: list[dict[str, Any]], path: Path) -> None:
    """A panel a cell: Jain's index over service a second, a point a policy; up and right is
    better. Bars are 95 % intervals."""
    pyplot = _pyplot()
    width = 5 * len(cells)
    figure, panels = pyplot.subplots(1, len(cells), figsize=(width, 4.2), layout="constrained")
    for axes, cell in zip([panels] if len(cells) == 1 else panels, cells, strict=True):
        for place, (name, one) in enumerate(cell["rivals"].items()):
            rate, jain = one["rate"], one["jain"]
            axes.errorbar(
                rate["mean"], jain["mean"], xerr=rate["half"], yerr=jain["half"],
                fmt="o", color=f"C{place}", label=name, capsize=3,
            )  # fmt: skip
        axes.set(xlabel="service a second (input + 2 output)", xlim=(0, None), ylim=(0, 1.05))
        axes.set_title(cell["cell"] + (" (simulated)" if cell["simulated"] else ""), fontsize=10)
        axes.legend(frameon=False, fontsize=8, loc="lower left")
    figure.axes[0].set_ylabel("Jain's index while all are busy")
    _save(figure, pyplot, path)


def _save(figure: Any, pyplot: Any, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
