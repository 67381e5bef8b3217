"""Whose prompts a step of one model may hold, where deadlines decide (see ``engine.arbiter``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tenfold.engine.sequence import Sequence

if TYPE_CHECKING:
    from tenfold.engine.batcher import Batcher


@dataclass(slots=True)
class PromptTurn:
    """``seconds``: the most that the step may take; 0 leaves prompts out. ``first``: requests that
    do not wait for the policy's choice, best first. ``late``: requests that run only where no other
    of this model can."""

    seconds: float
    first: list[str] = field(default_factory=list)
    late: frozenset[str] = frozenset()

    def pick(self, batcher: Batcher, *, late: bool = False) -> Iterator[Sequence]:
        """Who may compute a chunk, best first: ``first``, then what has begun, then the policy's
        choice; or of those the ``late`` ones. A client without credit does not come first."""
        tried: set[str] = set()
        if not late:
            for id in self.first:
                seq = batcher.sequences.get(id)
                if seq is None or seq.decoding or not (seq.kv or _may_start(batcher, seq)):
                    continue
                tried.add(id)
                yield seq
        for seq in list(batcher.running):
            id = seq.request.id
            if seq.kv is None or seq.decoding or id in tried or (id in self.late) is not late:
                continue
            tried.add(id)
            yield seq
        for seq in batcher.newcomers():
            id = seq.request.id
            if id not in tried and (id in self.late) is late:
                yield seq


def _may_start(batcher: Batcher, seq: Sequence) -> bool:
    places = len(batcher.running) < batcher.settings.max_running
    return places and batcher.policy.may_run(seq.request.client)
