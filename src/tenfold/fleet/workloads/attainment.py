"""Which requests were inside their targets, whoever answered. Knows only what became of calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tenfold.fleet.workloads.outcome import Outcome, Spread


@dataclass(slots=True)
class Attained:
    """One model's requests. ``met``: those whose first token came within the target; ``both``: and
    whose later tokens did, on average. What was not answered, or was refused, is missed."""

    asked: int = 0
    met: int = 0
    both: int = 0
    failed: int = 0
    unanswered: int = 0
    ttft: Spread = field(default_factory=Spread)
    tpot: Spread = field(default_factory=Spread)

    def count(self, calls: Sequence[Outcome], ttft: float, tpot: float) -> None:
        """Targets in seconds; 0 is none, which every answer meets."""
        begun = [one for one in calls if one.first >= 0]
        met = [one for one in begun if not one.error and (not ttft or one.first - one.at <= ttft)]
        done = [one for one in calls if one.finished]
        self.asked, self.met = len(calls), len(met)
        self.both = sum(one.finished and (not tpot or between(one) <= tpot) for one in met)
        self.failed = sum(bool(one.error) for one in calls)
        self.unanswered = sum(not one.error and one.first < 0 for one in calls)
        self.ttft = Spread.of([one.first - one.at for one in begun])
        self.tpot = Spread.of([between(one) for one in done])


def between(one: Outcome) -> float:
    """Seconds between its tokens, on average; 0 for an answer of one."""
    return (one.last - one.first) / (one.output_tokens - 1) if one.output_tokens > 1 else 0.0


def by_model(calls: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """The calls of each model, by name."""
    found: dict[str, list[Outcome]] = {}
    for one in calls:
        found.setdefault(one.model, []).append(one)
    return dict(sorted(found.items()))
