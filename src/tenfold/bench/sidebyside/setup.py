"""From what was asked on the command line to a plan."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from tenfold.bench.sidebyside.cases import GROUPS, QUICK, Sizes, build_cases
from tenfold.bench.sidebyside.run import Plan
from tenfold.bench.sidebyside.specs import accepted_modes, choose, specs
from tenfold.bench.sidebyside.specs import pythons as python_table
from tenfold.core.errors import ConfigError


def plan_of(
    model: str,
    *,
    pythons: Iterable[str] = (),
    peers: Iterable[str] = (),
    cases: Iterable[str] = (),
    streams: Iterable[int] = Sizes().streams,
    modes: Iterable[str] = (),
    threads: int = 0,
    rounds: int = 3,
    limit: float = 1800.0,
    quick: bool = False,
) -> Plan:
    """Raises ConfigError for names nobody knows and numbers that make no sense."""
    from tenfold.fleet.assemble import find_source
    from tenfold.fleet.store import Store

    counts = tuple(sorted({n for n in streams if n != 1}))
    if rounds < 1 or threads < 0 or any(n < 1 for n in counts):
        raise ConfigError(
            f"rounds and streams must be 1 or more and threads 0 or more, not rounds={rounds}, "
            f"streams={counts}, threads={threads}"
        )
    sizes = QUICK if quick else replace(Sizes(), streams=counts)
    gguf = Path(find_source(model, None).path)
    if gguf.suffix != ".gguf":
        raise ConfigError(f"the comparison starts from one GGUF file, and {model} is {gguf}")
    cache = Store().root / "bench" / f"{gguf.stem}-{gguf.stat().st_size}"
    return Plan(
        model=gguf.stem if "/" in model else model,
        gguf=gguf,
        cache=cache,
        specs=choose(specs(list(modes) or accepted_modes()), peers),
        pythons=python_table(pythons, sys.executable),
        cases=build_cases(sizes, tuple(cases) or GROUPS),
        sizes=sizes,
        threads=threads or len(os.sched_getaffinity(0)),
        rounds=1 if quick else rounds,
        quick=quick,
        limit=limit,
    )
