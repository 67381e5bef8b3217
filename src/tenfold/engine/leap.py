"""Steps that decide nothing, several at a time: for simulations only.

While every request there is does nothing but decode, or waits for a place in a full batch, one step
is like the one before, a token on.
How many such steps lie ahead until a request ends can be told in advance, and so can their times.
``LeapingInstance`` takes them in one go and leaves everything - blocks, prefix tree, accounts,
clocks - as if it had taken them one by one; a test compares the two. Not for devices: nothing is
computed.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, NamedTuple

from tenfold.core.messages import Event, StepDone, TokenOutput
from tenfold.costs.step import StepShape
from tenfold.engine.instance import GenerateInstance
from tenfold.engine.sequence import Sequence
from tenfold.engine.simulated import SimulatedRunner
from tenfold.kvcache.hashing import extend_hashes

FEWEST = 2
"""Shorter leaps are steps."""


class _BlockEvent(NamedTuple):
    """Before step ``step`` a sequence needs a block, or (``fills``) behind it has filled one."""

    step: int
    fills: bool
    place: int


class LeapingInstance(GenerateInstance):
    """A simulated instance whose next ``step`` goes ``leap`` steps ahead, where that is set: at
    most as many as ``ahead`` told just before."""

    executor: SimulatedRunner

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.leap = 0
        self._ends: list[float] = []

    def ahead(self) -> list[float]:
        """When each of the next steps ends, as far as nothing can happen in them but tokens and
        nothing arrives: with the last of them a request may end. Empty: that cannot be told."""
        batcher = self.batcher
        running, block = batcher.running, batcher.settings.block_tokens
        if batcher.steps is not self.executor.costs:
            return []  # the scheduler learns what steps cost, and must see every one
        if not running or not batcher.settled or batcher.drafts is not None:
            return []
        left, context, longest, held = 1 << 60, 0, 0, 0
        for seq in running:
            length, sampling, kv = seq.tokens.length, seq.request.sampling, seq.kv
            if seq.computed != length - 1 or length <= seq.prompt_tokens or kv is None:
                return []  # a prompt is unfinished
            if not sampling.ignore_eos or sampling.stop_token_ids or seq.request.deadline:
                return []  # the answer may end in another way than by its length
            left = min(left, seq.limit - length)
            longest = max(longest, length)
            context += length - 1
            held += kv.tables[0].size
        # Only as far as there are blocks for all of them for sure, a begun one of each included.
        cache = batcher.cache
        room = held * block + cache.free_tokens() - context
        left = min(left, room // len(running) - block)
        if left < FEWEST or cache.windowed:
            return []
        if not cache.can_ever_hold(longest + left):
            return []
        # As of the step before the first one: each sees itself and what is computed of it.
        shape = StepShape(0, 0, len(running), context, len(running))
        seconds = self.executor.costs.predict_decodes(shape, left)
        self._ends = list(accumulate(seconds, initial=self.executor.clock.now()))
        return self._ends[1:]

    def step(self, peers: int) -> list[Event] | None:
        steps, self.leap = self.leap, 0
        if not steps:
            return super().step(peers)
        clock = self.executor.clock
        began, ended = clock.now(), self._ends[steps]
        clock.move_to(ended)
        self.batcher.unsettle()
        self.batcher.order()
        outputs = self._leap(self.batcher.running.copy(), steps)
        totals = self.totals
        totals.steps += steps
        totals.step_seconds += ended - began
        totals.predicted_seconds += ended - began
        totals.generated_tokens += steps * len(outputs)
        done = StepDone(self.facts.name, ended, [], outputs)
        ending = len(self.batcher.running) < len(outputs)
        news = self.news.changes(ended, at_once=ending)
        return self._close_out([done] if news is None else [news, done], [])

    def _leap(self, seqs: list[Sequence], steps: int) -> list[TokenOutput]:
        """What so many single steps would do, in their order."""
        block, cache = self.batcher.settings.block_tokens, self.batcher.cache
        tokens_ahead = self.executor.tokens_ahead
        events: list[_BlockEvent] = []
        landing: list[Sequence] = []
        counts: dict[str, int] = {}
        outputs, ending = [], False
        for place, seq in enumerate(seqs):
            buffer, client = seq.tokens, seq.request.client
            tokens = tokens_ahead(seq, steps)
            buffer.extend(tokens)
            counts[client] = counts.get(client, 0) + 1
            ends = buffer.length >= seq.limit
            ending = ending or ends
            inside = seq.computed % block
            if not inside or inside + steps >= block or ends:
                events += _block_events(place, inside, steps, block)
                landing.append(seq)
            else:  # nothing happens but tokens
                assert seq.kv is not None
                seq.computed += steps
                cache.advance(seq.kv, buffer.view(), seq.hashes, seq.computed)
            outputs.append(TokenOutput(seq.request.id, tokens.tolist(), "length" if ends else None))
        self._blocks(sorted(events), seqs)
        if ending:  # what was decoded before the last step counts before anybody is gone
            self._decoded({client: n * (steps - 1) for client, n in counts.items()})
        else:
            counts = {client: n * steps for client, n in counts.items()}
        for seq in landing:
            self._land(seq, seq.computed + steps)
        self._decoded(counts)
        return outputs

    def _decoded(self, counts: dict[str, int]) -> None:
        self.batcher.policy.decoded(counts)
        self.batcher.books.decoded(counts)

    def _blocks(self, events: list[_BlockEvent], seqs: list[Sequence]) -> None:
        """Take blocks, and hand full ones to the tree, in the order of single steps."""
        cache = self.batcher.cache
        for step, fills, place in events:
            seq = seqs[place]
            assert seq.kv is not None
            position = seq.computed + step
            if fills:
                self._hash(seq)
                cache.advance(seq.kv, seq.tokens.view(), seq.hashes, position + 1)
            elif not cache.reserve(seq.kv, position + 1):
                raise AssertionError("a leap ran out of blocks that were counted")

    def _hash(self, seq: Sequence) -> None:
        block = self.batcher.settings.block_tokens
        if seq.tokens.length >= (len(seq.hashes) + 1) * block:
            extend_hashes(seq.hashes, seq.tokens.view(), block, seq.request.namespace)

    def _land(self, seq: Sequence, computed: int) -> bool:
        """The last step of one sequence. True: it has ended."""
        assert seq.kv is not None
        seq.computed = computed
        if not computed % self.batcher.settings.block_tokens:
            self._hash(seq)
        self.batcher.cache.advance(seq.kv, seq.tokens.view(), seq.hashes, computed)
        if seq.tokens.length < seq.limit:
            return False
        self.batcher.drop(seq.request.id)
        return True


def _block_events(place: int, inside: int, steps: int, block: int) -> list[_BlockEvent]:
    """``inside``: positions of the current block that are computed. What the last step fills is
    its landing's."""
    taken = [_BlockEvent(step, False, place) for step in range((-inside) % block, steps, block)]
    filled = range(block - inside - 1, steps - 1, block)
    return taken + [_BlockEvent(step, True, place) for step in filled]
