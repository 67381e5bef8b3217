"""The torch executor: a step plan becomes tensors, logits, and chosen tokens.

Shape letters as in ``models.batch``. Knows nothing of queues, clients or why these sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tenfold.core.types import EngineRequest, FinishReason
from tenfold.engine.executor import StepTime
from tenfold.engine.sampler_state import SamplerState, TokenMatcher
from tenfold.engine.sampling import Sampled, Sampler
from tenfold.engine.sequence import Choice, Sequence, Slice, StepPlan
from tenfold.engine.tapes import Scores, StepTapes
from tenfold.kvcache.cache import KVCache
from tenfold.models.batch import ForwardBatch
from tenfold.models.decoder import Decoder


class StepRecorder(Protocol):
    """Steps that were recorded and are replayed with other data; see ``tapes.StepTapes``."""

    def takes(self, slices: list[Slice], tokens: int) -> bool:
        """Whether a step of these slices can be replayed."""
        ...

    def scores(self, slices: list[Slice], tokens: int) -> Scores:
        """Of every token of the slices; valid until the next call."""
        ...

    def again(self, slices: list[Slice]) -> Scores | None:
        """``scores`` of the slices of the call before, each of them one token, now the next one.
        None where there is no shorter way to that."""
        ...


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
        self.tapes = self._recorder()
        self._plain: list[SamplerState] | None = None
        """The states of the last plan, if ``again`` may take it up: it was recorded, and every
        sequence asks for nothing but its best token."""

    def _recorder(self) -> StepRecorder | None:
        model, cache = self.model, self.cache
        if not model.recordable or model.kernels.tape() is None:
            return None
        return StepTapes(model, cache, self.kv, cache.block_tokens)

    def prepare(self) -> None:
        """Nothing to prepare: steps are recorded when they first come."""

    def execute(self, plan: StepPlan) -> list[Choice]:
        if plan.again and self._plain is not None:
            choices = self._again(plan.slices, self._plain)
            if choices is not None:
                return choices
        self._plain = None
        tokens = sum(piece.count for piece in plan.slices)
        busy = self.model.kernels.busy_seconds()
        with torch.inference_mode(), self.model.kernels.scope():
            recorded = self.tapes is not None and self.tapes.takes(plan.slices, tokens)
            if self.tapes is not None and recorded:
                scores = self.tapes.scores(plan.slices, tokens)
            else:
                scores = Scores.of(self.model.forward(self._batch(plan)), self.model.kernels)
            self.time.kernels = self.model.kernels.busy_seconds() - busy
            began = perf_counter()
            sampling = [piece for piece in plan.slices if piece.samples]
            choices = self._choose(scores, sampling) if sampling else []
            if recorded and tokens == len(plan.slices):
                states = [self.states.get(piece.seq.request.id) for piece in plan.slices]
                plain = [state for state in states if state is not None and state.plain]
                self._plain = plain if len(plain) == len(states) else None
            self.time.sampling = perf_counter() - began
        return choices

    def _again(self, slices: list[Slice], states: list[SamplerState]) -> list[Choice] | None:
        """``execute`` for the plan of the step before, moved on by a token: its tape takes no
        operation of torch, and sampling no look at the logits. None: it must go the whole way."""
        if self.tapes is None:
            return None
        kernels, time = self.model.kernels, self.time
        busy = kernels.busy_seconds()
        scores = self.tapes.again(slices)
        if scores is None:
            return None
        time.kernels = kernels.busy_seconds() - busy
        began = perf_counter()
        choices = [
            _choice([sampled], state)
            for sampled, state in zip(self.sampler.best(scores.best(), states), states, strict=True)
        ]
        time.sampling = perf_counter() - began
        return choices

    def _batch(self, plan: StepPlan) -> ForwardBatch:
        slices = plan.slices
        counts = np.array([piece.count for piece in slices], dtype=np.int32)
        context = np.array([piece.start for piece in slices], dtype=np.int32)
        starts = np.zeros(len(slices) + 1, dtype=np.int32)
        np.cumsum(counts, out=starts[1:])
        tokens = np.concatenate([piece.new_tokens for piece in slices])
        positions = np.concatenate([np.arange(p.start, p.start + p.count) for p in slices])
        rows = [
            row
            for piece, end in zip(slices, starts[1:].tolist(), strict=True)
            if piece.samples
            for row in range(end - 1 - len(piece.draft), end)
        ]
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

    def _choose(self, scores: Scores, slices: list[Slice]) -> list[Choice]:
        """A choice for each slice, from its 1 + len(draft) rows of ``scores``."""
        choices: list[Choice] = [Choice() for _ in slices]
        ready: list[int] = []
        rows: list[int] = []
        row = 0
        for i, piece in enumerate(slices):
            try:
                self._state(piece.seq)
                ready.append(i)
                rows += range(row, row + 1 + len(piece.draft))
            except Exception as error:  # settings that cannot be fail their own request only
                choices[i].error = error
            row += 1 + len(piece.draft)
        if ready:
            states = [self.states[slices[i].seq.request.id] for i in ready]
            wanted = scores if len(ready) == len(slices) else scores.rows(rows)
            drafts = [slices[i].draft for i in ready]
            runs = self.sampler.verify(wanted.logits_LV, states, drafts, wanted.largest)
            for i, state, run in zip(ready, states, runs, strict=True):
                choices[i] = _choice(run, state)
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


def _choice(run: list[Sampled], state: SamplerState) -> Choice:
    chosen = [sampled for sampled in run if sampled.error is None]
    logprobs = [sampled.logprob for sampled in chosen if sampled.logprob is not None]
    finish: FinishReason | None = "stop" if state.finished_by_grammar else None
    return Choice([s.token for s in chosen], logprobs or None, finish, run[-1].error)


def slices_seqs(plan: StepPlan) -> list[Sequence]:
    return [piece.seq for piece in plan.slices]
