"""Modes, types of keys and values, and precisions of weights against float32, by a fixed text.

Each file is measured by a process of its own, ``python -m tenfold.engine.quality``, against itself
in exact mode with float32 keys and values. Knows nothing of how it is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tenfold.bench.requantise import requantise
from tenfold.core.errors import ConfigError, TenfoldError

AS_IT_IS = "as it is"
"""Names the file's own precision among those it is rewritten to."""


def measure_quality(
    path: Path,
    modes: Sequence[str],
    kv_types: Sequence[str],
    precisions: Sequence[str],
    *,
    tokens: int = 0,
    threads: int = 0,
    progress: Callable[[str], None] = lambda weights: None,
) -> dict[str, Any]:
    """What the process said of the file as it is and then in each precision, by its name.

    Raises ConfigError for precisions that cannot be made, or where a process fails."""
    options = [word for mode in modes for word in ("--mode", mode)]
    options += [word for kv in kv_types for word in ("--kv", kv)]
    options += ["--tokens", str(tokens), "--threads", str(threads)]
    found = {}
    with tempfile.TemporaryDirectory(prefix="tenfold-quality-") as folder:
        for precision in (AS_IT_IS, *precisions):
            progress(precision)
            file = path
            if precision != AS_IT_IS:
                file = Path(folder) / f"{path.stem}-{precision}.gguf"
                requantise(path, file, precision)
            found[precision] = _process(file, options)
            if file != path:
                file.unlink()
    return {"model": path.name, "limit": found[AS_IT_IS]["limit"], "weights": found}


def _process(file: Path, options: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "tenfold.engine.quality", str(file), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        error = TenfoldError if done.returncode == TenfoldError.exit_code else ConfigError
        raise error(f"{file.name} could not be measured: {last[0]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def table_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """(weights, mode, kv, perplexity, change, prefill, decode, divergence, agreement, verdict) of
    every run; of one that was refused, the reason in place of the verdict."""
    rows = []
    for weights, one in found["weights"].items():
        for run in one["runs"]:
            name = (weights, run["mode"], run["kv"])
            if run["refused"]:
                rows.append((*name, *[""] * 6, run["refused"]))
                continue
            whole = run["parts"]["all"]
            rows.append(
                (
                    *name,
                    f"{whole['perplexity']:.2f}",
                    *(_change(run["parts"][part]) for part in ("all", "prefill", "decode")),
                    f"{whole['divergence']:.0e}",
                    f"{whole['agreement']:.1%}",
                    "met" if run["met"] else "missed",
                )
            )
    return rows


COLUMNS = (
    "weights", "mode", "KV", "ppl", "change", "prefill", "decode", "KL", "agree", "limit",
)  # fmt: skip


def _change(summary: dict[str, Any]) -> str:
    return f"{summary['ratio'] - 1.0:+.2%}±{summary['error']:.2%}"


def changes(found: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Change of the perplexity and its standard error, as shares, of each run by its name."""
    return {
        f"{weights}, {run['mode']}, KV {run['kv']}": (
            run["parts"]["all"]["ratio"] - 1.0,
            run["parts"]["all"]["error"],
        )
        for weights, one in found["weights"].items()
        for run in one["runs"]
        if not run["refused"]
    }


def all_met(found: dict[str, Any]) -> bool:
    """Whether every run that this build has met the limit."""
    runs = [run for one in found["weights"].values() for run in one["runs"]]
    return all(run["met"] for run in runs if not run["refused"])
