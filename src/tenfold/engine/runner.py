"""The torch executor: a step plan becomes tensors, logits, and chosen tokens.

Shape letters as in ``models.batch``. Knows nothing of queues, clients or why these sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from tenfold.core.types import EngineRequest, FinishReason
from tenfold.engine.executor import StepTime
from tenfold.engine.sampler_state import SamplerState, TokenMatcher
from tenfold.engine.sampling import Sampler
from tenfold.engine.sequence import Choice, Sequence, StepPlan
from tenfold.engine.tapes import Scores, StepTapes
from tenfold.kvcache.cache import KVCache
from tenfold.models.batch import ForwardBatch
from tenfold.models.decoder import Decoder


class TorchRunner:
    """Executor over a real model. ``kv``: one cache tensor per KV group, over the page pool."""

    def __init__(
        self,
        model: Decoder,
        cache: KVCache,
        kv: list[Tensor],
        sampler: Sampler,
        new_state: Callable[[EngineRequest, TokenMatcher | None], SamplerState],
    ) -> None:
        self.model = model
        self.cache = cache
        self.kv = kv
        self.sampler = sampler
        self.new_state = new_state
        self.states: dict[str, SamplerState] = {}
        self.time = StepTime()
        self.tapes: StepTapes | None = None
        if model.recordable and model.kernels.tape() is not None:
            self.tapes = StepTapes(model, cache, kv, cache.block_tokens)

    def execute(self, plan: StepPlan) -> list[Choice]:
        tokens = sum(piece.count for piece in plan.slices)
        busy = self.model.kernels.busy_seconds()
        with torch.inference_mode(), self.model.kernels.scope():
            if self.tapes is not None and self.tapes.takes(plan.slices, tokens):
                scores = self.tapes.scores(plan.slices, tokens)
            else:
                scores = Scores.of(self.model.forward(self._batch(plan)), self.model.kernels)
            self.time.kernels = self.model.kernels.busy_seconds() - busy
            began = perf_counter()
            sampling = [piece.seq for piece in plan.slices if piece.samples]
            choices = self._choose(scores, sampling) if sampling else []
            self.time.sampling = perf_counter() - began
        return choices

    def _batch(self, plan: StepPlan) -> ForwardBatch:
        slices = plan.slices
        counts = np.array([piece.count for piece in slices], dtype=np.int32)
        context = np.array([piece.start for piece in slices], dtype=np.int32)
        starts = np.zeros(len(slices) + 1, dtype=np.int32)
        np.cumsum(counts, out=starts[1:])
        tokens = np.concatenate([p.seq.tokens.view(p.start, p.start + p.count) for p in slices])
        positions = np.concatenate([np.arange(p.start, p.start + p.count) for p in slices])
        rows = [int(starts[i + 1]) - 1 for i, piece in enumerate(slices) if piece.samples]
        return ForwardBatch(
            tokens_T=torch.from_numpy(tokens),
            positions_T=torch.from_numpy(positions.astype(np.int32)),
            starts_S1=torch.from_numpy(starts),
            context_S=torch.from_numpy(context),
            tables=[self._tables(slices_seqs(plan), group) for group in range(len(self.kv))],
            logit_rows_L=torch.tensor(rows, dtype=torch.int32),
            kv=self.kv,
        )

    def _tables(self, sequences: list[Sequence], group: int) -> Tensor:
        rows = [self.cache.table(seq.kv, group) for seq in sequences if seq.kv is not None]
        padded = np.full((len(rows), max(len(row) for row in rows)), -1, dtype=np.int32)
        for out, row in zip(padded, rows, strict=True):
            out[: len(row)] = row
        return torch.from_numpy(padded)

    def _choose(self, scores: Scores, sequences: list[Sequence]) -> list[Choice]:
        choices: list[Choice] = [Choice() for _ in sequences]
        ready: list[int] = []
        for row, seq in enumerate(sequences):
            try:
                self._state(seq)
                ready.append(row)
            except Exception as error:  # settings that cannot be fail their own request only
                choices[row].error = error
        states = [self.states[sequences[row].request.id] for row in ready]
        if ready:
            wanted = scores if len(ready) == len(sequences) else scores.rows(ready)
            found = self.sampler.sample(wanted.logits_LV, states, wanted.largest)
            for row, sampled in zip(ready, found, strict=True):
                done = self.states[sequences[row].request.id].finished_by_grammar
                finish: FinishReason | None = "stop" if done else None
                choices[row] = Choice(sampled.token, sampled.logprob, finish, sampled.error)
        return choices

    def _state(self, seq: Sequence) -> SamplerState:
        state = self.states.get(seq.request.id)
        if state is None:
            state = self.states[seq.request.id] = self.new_state(seq.request, None)
        return state

    def keep(self, request: EngineRequest, matcher: TokenMatcher) -> None:
        """The grammar that a request's tokens must follow; given before its first step."""
        self.states[request.id] = self.new_state(request, matcher)

    def forget(self, request_id: str) -> None:
        self.states.pop(request_id, None)


def slices_seqs(plan: StepPlan) -> list[Sequence]:
    return [piece.seq for piece in plan.slices]
