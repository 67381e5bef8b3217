"""Steps that decide nothing, several at a time: for simulations only.

While every request there is does nothing but decode, one step is like the one before, a token on.
How many such steps lie ahead until a request ends can be told in advance, and so can their times.
``LeapingInstance`` takes them in one go and leaves everything - blocks, prefix tree, accounts,
clocks - as if it had taken them one by one; a test compares the two. Not for devices: nothing is
computed.
"""

from __future__ import annotations

from itertools import accumulate

from tenfold.core.messages import Event, StepDone, TokenOutput
from tenfold.engine.batcher import Batcher
from tenfold.engine.instance import GenerateInstance
from tenfold.engine.sequence import Sequence, Tokens
from tenfold.engine.simulated import SimulatedRunner
from tenfold.kvcache.hashing import extend_hashes

FEWEST = 2
"""Shorter leaps are steps."""


class LeapingInstance(GenerateInstance):
    """A simulated instance whose next ``step`` goes ``leap`` steps ahead, where that is set: at
    most as many as ``ahead`` told just before."""

    leap = 0
    _ends: list[float]

    def ahead(self) -> list[float]:
        """When each of the next steps ends, as far as nothing can happen in them but tokens and
        nothing arrives: with the last of them a request may end. Empty: that cannot be told."""
        batcher, runner = self.batcher, self.executor
        plan = batcher.settle()
        if plan is None or not isinstance(runner, SimulatedRunner) or batcher.cache.windowed:
            return []
        steps = _steps_left(batcher)
        if steps < FEWEST:
            return []
        times = runner.costs.predict_decodes(plan.shape, steps)
        self._ends = list(accumulate(times, initial=runner.clock.now()))[1:]
        return self._ends.copy()

    def step(self, peers: int) -> list[Event] | None:
        steps, self.leap = self.leap, 0
        if not steps:
            return super().step(peers)
        batcher, runner = self.batcher, self.executor
        plan = batcher.settle()
        assert plan is not None and isinstance(runner, SimulatedRunner)
        began = runner.clock.now()
        seqs = [piece.seq for piece in plan.slices]
        ended = self._ends[steps - 1]
        runner.clock.move_to(ended)
        for piece in plan.slices:
            piece.start += steps
        plan.shape.decode_context += steps * plan.shape.decode_rows
        outputs = _Leap(batcher, runner, seqs, steps).run()
        self._count(steps, ended - began, outputs)
        done = StepDone(self.facts.name, ended, [], outputs)
        ending = any(output.finish for output in outputs)
        news = self.news.changes(ended, at_once=ending)
        return self._close_out([done] if news is None else [news, done], [])

    def _count(self, steps: int, seconds: float, outputs: list[TokenOutput]) -> None:
        totals = self.totals
        totals.steps += steps
        totals.step_seconds += seconds
        totals.predicted_seconds += seconds
        totals.generated_tokens += steps * len(outputs)


def _steps_left(batcher: Batcher) -> int:
    """Steps until the first of the running requests ends, by its length alone; 0 where one may end
    in another way, or where memory for all of them is not sure."""
    block = batcher.settings.block_tokens
    left = min(seq.limit - seq.tokens.length for seq in batcher.running)
    wanted, longest = 0, 0
    for seq in batcher.running:
        sampling = seq.request.sampling
        if not sampling.ignore_eos or sampling.stop_token_ids or seq.request.deadline is not None:
            return 0
        assert seq.kv is not None
        upto = seq.computed + left
        longest = max(longest, upto)
        wanted += -(-upto // block) - seq.kv.tables[0].size
    cache = batcher.cache
    if not cache.can_ever_hold(longest + 1) or wanted * block > cache.free_tokens():
        return 0
    return left


class _Leap:
    """One leap of sequences that all decode: what so many single steps would do, in their order."""

    def __init__(
        self, batcher: Batcher, runner: SimulatedRunner, seqs: list[Sequence], steps: int
    ) -> None:
        self.batcher = batcher
        self.seqs = seqs
        self.steps = steps
        self.tokens = [runner.tokens_ahead(seq, steps) for seq in seqs]

    def run(self) -> list[TokenOutput]:
        for seq, tokens in zip(self.seqs, self.tokens, strict=True):
            seq.tokens.extend(tokens)
        self._blocks()
        counts: dict[str, int] = {}
        for seq in self.seqs:
            counts[seq.request.client] = counts.get(seq.request.client, 0) + 1
        self._decoded({client: n * (self.steps - 1) for client, n in counts.items()})
        outputs = [
            self._land(seq, tokens) for seq, tokens in zip(self.seqs, self.tokens, strict=True)
        ]
        self._decoded(counts)
        return outputs

    def _decoded(self, counts: dict[str, int]) -> None:
        self.batcher.policy.decoded(counts)
        self.batcher.books.decoded(counts)

    def _blocks(self) -> None:
        """Take blocks, and hand full ones to the tree, in the order of single steps: those that a
        step needs before it, those that it fills behind it. The last step's are ``_land``'s."""
        block, steps = self.batcher.settings.block_tokens, self.steps
        due: list[tuple[int, int, int]] = []
        for place, seq in enumerate(self.seqs):
            inside = seq.computed % block
            due += [(step, 0, place) for step in range((-inside) % block, steps, block)]
            due += [(step, 1, place) for step in range(block - inside - 1, steps - 1, block)]
        due.sort()
        cache = self.batcher.cache
        for step, fills, place in due:
            seq = self.seqs[place]
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

    def _land(self, seq: Sequence, tokens: Tokens) -> TokenOutput:
        assert seq.kv is not None
        seq.computed += self.steps
        self._hash(seq)
        self.batcher.cache.advance(seq.kv, seq.tokens.view(), seq.hashes, seq.computed)
        ends = seq.tokens.length >= seq.limit
        if ends:
            self.batcher.drop(seq.request.id)
        return TokenOutput(seq.request.id, tokens.tolist(), "length" if ends else None)
