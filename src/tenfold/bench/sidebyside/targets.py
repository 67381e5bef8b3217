"""The rows of the report, what Tenfold is to reach in each, and how near it is to the machine's
own limit. Knows nothing of how a table looks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenfold.bench.sidebyside.results import advantage
from tenfold.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Row:
    """One measure. ``at_least``: by peer, how many times better than it Tenfold has to be; for a
    measure where less is better, that is the peer's value over ours. ``share``: the least value of
    the measure itself. ``scale`` and ``unit`` are for showing it."""

    title: str
    case: str
    metric: str
    more: bool = True
    unit: str = "tok/s"
    scale: float = 1.0
    at_least: dict[str, float] = field(default_factory=dict)
    share: float = 0.0


_BEST = {"llama.cpp-q4_0": 1.0}
"""llama.cpp in its best format is to be reached in every row that has a target."""


def rows(body: dict[str, Any]) -> list[Row]:
    """The rows that a run's cases can fill, in the report's order."""
    runs = {
        name: found["case"]["streams"]
        for name, found in body["cases"].items()
        if found["case"]["kind"] == "run" and name != "prefill"
    }
    runs = dict(sorted(runs.items(), key=lambda item: item[1]))
    every = [
        Row("decode, one stream", "decode", "decode", at_least={"llama.cpp": 1.0, **_BEST}),
        Row("prefill, one stream", "prefill", "prefill",
            at_least={"llama.cpp": 1.5, "vllm": 1.0, **_BEST}),
        *(Row(f"output with prompts, {_streams(n)}", name, "output",
              at_least={"llama.cpp": 2.0, "vllm": 1.5, **_BEST} if n == 32 else {})
          for name, n in runs.items()),
        Row("shared-prefix chat, total", "chat", "seconds", False, "s",
            at_least={"llama.cpp": 2.0, "vllm": 1.5, **_BEST}),
        Row("decode beside a busy core, of the idle rate", "busy", "share", unit="%", scale=100,
            share=0.4),
        Row("command to first token", "first", "seconds", False, "s",
            at_least={"vllm": 1 / 0.3, **_BEST}),
        Row("peak memory less weight file", "memory", "less_weights", False, "MiB", 2**-20,
            at_least={"vllm": 1.0, **_BEST}),
        Row("peak memory", "memory", "peak", False, "MiB", 2**-20),
        *(Row(f"{what} {p}, {_streams(n)}", name, f"{key}_{p}", False, "ms", 1000)
          for what, key in (("first token", "ttft"), ("between tokens", "itl"))
          for name, n in runs.items() for p in ("p50", "p99")),
    ]  # fmt: skip
    return [row for row in every if row.case in body["cases"]]


def _streams(count: int) -> str:
    return "one stream" if count == 1 else f"{count} streams"


def value(body: dict[str, Any], row: Row, peer: str) -> float | None:
    """The median, unscaled; None where it was not measured."""
    found = body["cases"][row.case]["median"].get(peer, {}).get(row.metric)
    return None if found is None else float(found)


def times_better(body: dict[str, Any], row: Row, ours: str, theirs: str) -> float:
    """See ``advantage``; 0.0 where one of them has no value."""
    return advantage(body["cases"][row.case]["rounds"], ours, theirs, row.metric, more=row.more)


def verdict(body: dict[str, Any], row: Row, ours: str, theirs: str) -> bool | None:
    """Whether the target against a peer is met; None where there is none, or no value."""
    found = times_better(body, row, ours, theirs)
    target = row.at_least.get(theirs)
    return None if target is None or not found else found >= target


def work_of(gguf: Path) -> dict[str, float]:
    """What a token costs at least: bytes of weights, and weights in the layers' and the head's
    matrices. Attention's own products are not counted. Raises ConfigError for no GGUF."""
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(gguf).tensors
    except (ValueError, OSError) as error:
        raise ConfigError(f"{gguf} is no GGUF file: {error}") from error
    names = {tensor.name for tensor in tensors}
    head = "output.weight" if "output.weight" in names else "token_embd.weight"
    found = {"bytes": 0.0, "layers": 0.0, "head": 0.0}
    for tensor in tensors:
        if tensor.name == head:
            found["head"] += int(tensor.n_elements)
        elif tensor.name == "token_embd.weight":
            continue  # looked up, not multiplied
        elif len(tensor.shape) == 2:
            found["layers"] += int(tensor.n_elements)
        found["bytes"] += int(tensor.n_bytes)
    return found


@dataclass(frozen=True, slots=True)
class Closeness:
    """One rate of Tenfold's in the unit of a limit, beside that limit."""

    title: str
    peer: str
    reached: float
    limit: float
    unit: str


def closeness(body: dict[str, Any], peer: str) -> list[Closeness]:
    """How near a Tenfold peer comes to the machine's limits (the best seen in any of the run's
    measurements)."""
    work, cases = body["work"], body["cases"]
    limits = {
        key: max(found.get(key, 0.0) for found in body["limits"])
        for key in ("read_gb_s", "f32_gflop_s", "int8_gop_s")
    }
    fast = peer.endswith("-fast")
    product, unit = ("int8_gop_s", "GOP/s int8") if fast else ("f32_gflop_s", "GFLOP/s f32")
    found = []

    def add(title: str, case: str, metric: str, work_per_token: float, limit: str, u: str) -> None:
        rate = cases.get(case, {}).get("median", {}).get(peer, {}).get(metric)
        if rate and limits[limit]:
            found.append(Closeness(title, peer, rate * work_per_token / 1e9, limits[limit], u))

    add("decode, one stream", "decode", "decode", work["bytes"], "read_gb_s", "GB/s read")
    add("prefill, one stream", "prefill", "prefill", 2 * work["layers"], product, unit)
    for name, one in cases.items():
        if name.startswith("streams-"):
            prompt, output = one["case"]["prompt"], one["case"]["output"]
            each = 2 * work["layers"] * (prompt + output) / output + 2 * work["head"]
            add(f"output with prompts, {_streams(one['case']['streams'])}", name, "output", each,
                product, unit)  # fmt: skip
    return found
