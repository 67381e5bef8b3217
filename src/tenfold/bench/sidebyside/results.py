"""The file a comparison leaves: written after every case, read again to go on where it ended."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from tenfold.core.errors import ConfigError

Metrics = dict[str, float]
Round = dict[str, Metrics]
"""By peer."""


class Results:
    """``body`` is what the file holds. ``key`` says which runs may share a file."""

    def __init__(self, path: Path, key: dict[str, Any], *, fresh: bool = False) -> None:
        """Raises ConfigError if the file is of another run, unless ``fresh`` replaces it."""
        self.path = path
        self.body: dict[str, Any] = {
            "benchmark": "peers", "key": key, "machine": {}, "commands": [], "peers": {},
            "absent": {}, "limits": [], "work": {}, "cases": {},
        }  # fmt: skip
        if fresh or not path.exists():
            return
        body = json.loads(path.read_text())
        theirs = body.get("key", {})
        differ = [word for word in {*key, *theirs} if key.get(word) != theirs.get(word)]
        if differ:
            raise ConfigError(
                f"{path} is of a run with another {', '.join(sorted(differ))}: give --fresh to "
                "replace it, or another --out"
            )
        self.body = body

    def done(self, case: str, peers: list[str]) -> bool:
        """Whether the case has rounds of all these peers, and no peer failed."""
        found = self.body["cases"].get(case)
        return bool(found) and not found["errors"] and set(found["peers"]) >= set(peers)

    def record(
        self, case: dict[str, Any], peers: list[str], rounds: list[Round], errors: dict[str, str]
    ) -> None:
        """One case, replacing what there was of it, and write everything."""
        self.body["cases"][case["name"]] = {
            "case": case, "peers": peers, "median": medians(rounds), "errors": errors,
            "rounds": rounds,
        }  # fmt: skip
        self.write()

    def write(self) -> None:
        """All or nothing: a run that is cut off leaves the last whole file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.body, indent=1) + "\n")
        part.rename(self.path)


def medians(rounds: list[Round]) -> Round:
    """Of each peer's metrics over the rounds that have them."""
    peers = dict.fromkeys(peer for one in rounds for peer in one)
    found: Round = {}
    for peer in peers:
        rows = [one[peer] for one in rounds if peer in one]
        keys = dict.fromkeys(key for row in rows for key in row)
        found[peer] = {
            key: statistics.median(row[key] for row in rows if key in row) for key in keys
        }
    return found


def advantage(rounds: list[Round], ours: str, theirs: str, metric: str, *, more: bool) -> float:
    """How many times better ``ours`` is: the median over rounds of the ratios within a round, as a
    round's parts lie close in time. ``more``: a larger value is better. 0.0 where no round has
    both."""
    ratios = []
    for one in rounds:
        a, b = one.get(ours, {}).get(metric, 0.0), one.get(theirs, {}).get(metric, 0.0)
        if a > 0 and b > 0:
            ratios.append(a / b if more else b / a)
    return statistics.median(ratios) if ratios else 0.0
