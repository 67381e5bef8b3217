"""Numbers out of records: percentiles, rates, the machine and the commit they were taken on."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tenfold.bench.load import Record


@dataclass(slots=True)
class Spread:
    """Percentiles of one measure, by linear interpolation, in its own unit."""

    mean: float
    p50: float
    p90: float
    p99: float
    worst: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        if not values:
            return Spread(0.0, 0.0, 0.0, 0.0, 0.0)
        ranked = sorted(values)
        return Spread(
            sum(ranked) / len(ranked),
            percentile(ranked, 0.5),
            percentile(ranked, 0.9),
            percentile(ranked, 0.99),
            ranked[-1],
        )


def percentile(ranked: Sequence[float], share: float) -> float:
    """Of ascending values; the same rule as numpy's default."""
    place = share * (len(ranked) - 1)
    low = int(place)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (ranked[high] - ranked[low]) * (place - low)


@dataclass(slots=True)
class Summary:
    """One run, condensed. Times in seconds, rates per second over the whole run."""

    requests: int
    failed: int
    seconds: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    request_rate: float
    output_rate: float
    total_rate: float
    ttft: Spread
    itl: Spread
    e2e: Spread
    errors: dict[str, int]


def summarise(records: list[Record]) -> Summary:
    good = [r for r in records if not r.error]
    seconds = max((r.done for r in records), default=0.0) - min((r.due for r in records), default=0)
    prompt = sum(r.prompt_tokens for r in good)
    output = sum(r.output_tokens for r in good)
    errors: dict[str, int] = {}
    for record in records:
        if record.error:
            errors[record.error] = errors.get(record.error, 0) + 1
    span = max(seconds, 1e-9)
    return Summary(
        requests=len(records),
        failed=len(records) - len(good),
        seconds=seconds,
        prompt_tokens=prompt,
        output_tokens=output,
        cached_tokens=sum(r.cached_tokens for r in good),
        request_rate=len(good) / span,
        output_rate=output / span,
        total_rate=(prompt + output) / span,
        ttft=Spread.of([r.ttft for r in good]),
        itl=Spread.of([gap for r in good for gap in r.gaps]),
        e2e=Spread.of([r.done - r.due for r in good]),
        errors=errors,
    )


def machine() -> dict[str, Any]:
    """The hardware and software a number belongs to."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "commit": commit(),
        "command": _command(),
    }


def _command() -> str:
    """As anybody would type it: a path of this machine is cut to its last part."""
    words = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    return shlex.join(["tenfold", *words])


def _cpu_name() -> str:
    """Vendor string and the vector extensions that decide speed."""
    text = Path("/proc/cpuinfo").read_text()
    fields = {
        key.strip(): value.strip()
        for key, _, value in (line.partition(":") for line in text.splitlines())
        if key.strip()
    }
    flags = set(fields.get("flags", "").split())
    wide = [f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile") if f in flags]
    name = fields.get("model name", platform.processor() or platform.machine())
    return f"{name} ({', '.join(wide)})" if wide else name


def commit() -> str:
    """Short hash of the checkout this code runs from, "+" if it was changed; "" outside one."""
    here = Path(__file__).parent
    try:
        revision = _git(here, "rev-parse", "--short", "HEAD")
        return revision + ("+" if _git(here, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def write_json(path: Path, name: str, body: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"benchmark": name, "machine": machine(), **body}, indent=2) + "\n")


def print_summary(summary: Summary, title: str, console: Console) -> None:
    """A table for a terminal: milliseconds for latencies, tokens a second for rates."""
    table = Table(title=title, title_justify="left")
    for column in ("", "mean", "p50", "p90", "p99", "worst"):
        table.add_column(column, justify="left" if not column else "right")
    for name, spread in (
        ("time to first token, ms", summary.ttft),
        ("between tokens, ms", summary.itl),
        ("whole request, ms", summary.e2e),
    ):
        values = (spread.mean, spread.p50, spread.p90, spread.p99, spread.worst)
        table.add_row(name, *(f"{1000 * v:,.1f}" for v in values))
    console.print(table)
    console.print(
        f"{summary.requests - summary.failed} of {summary.requests} requests in "
        f"{summary.seconds:.1f} s: {summary.output_rate:,.1f} output tokens/s, "
        f"{summary.total_rate:,.1f} with prompts, {summary.request_rate:.2f} requests/s, "
        f"{summary.cached_tokens} of {summary.prompt_tokens} prompt tokens from the cache"
    )
    for error, count in summary.errors.items():
        console.print(f"[red]{count} failed:[/red] {error}")
