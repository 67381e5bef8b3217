"""Decode steps recorded once per batch shape and replayed: the CPU's counterpart of a CUDA graph.

A step in which every token's logits are wanted does the same operations on the same addresses as
any other of its shape: only token ids, positions and block tables differ. Those are written into
fixed buffers, and the recorded run of native operations does the rest in one call. Shape letters as
in ``models.batch``. Knows nothing of sampling.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold.engine.sequence import Sequence, Slice
from tenfold.kernels.base import Kernels, Tape
from tenfold.kvcache.cache import KVCache
from tenfold.kvcache.hashing import IntArray
from tenfold.models.batch import ForwardBatch
from tenfold.models.decoder import Decoder

MOST_TOKENS = 128
"""Larger steps are long enough for the calls between operations not to matter."""
MOST_TAPES = 192
FIRST_BLOCKS = 64


@dataclass(slots=True)
class Scores:
    """Logits (L, V), and the id and value of each row's largest: (L,), (L,)."""

    logits_LV: Tensor
    largest: tuple[Tensor, Tensor]
    arrays: tuple[NDArray[np.integer], NDArray[np.floating]] | None = None
    """``largest`` as numpy sees it, where that was worked out once for many steps."""

    @classmethod
    def of(cls, logits_LV: Tensor, kernels: Kernels) -> Scores:
        return cls(logits_LV, kernels.largest(logits_LV))

    def best(self) -> list[tuple[int, float]]:
        """``largest`` row by row."""
        ids_L, values_L = self.arrays or self.largest
        return list(zip(ids_L.tolist(), values_L.tolist(), strict=True))

    def rows(self, wanted: list[int]) -> Scores:
        ids_L, values_L = self.largest
        return Scores(self.logits_LV[wanted], (ids_L[wanted], values_L[wanted]))


@dataclass(slots=True)
class _Recorded:
    tape: Tape
    batch: ForwardBatch
    scores: Scores


class StepTapes:
    """Recorded steps of one model. Belongs to the engine's thread.

    ``scores`` must be called inside an open ``Kernels.scope``; what it returns is valid until that
    scope ends.
    """

    def __init__(self, model: Decoder, cache: KVCache, kv: list[Tensor], block_tokens: int) -> None:
        self._model = model
        self._cache = cache
        self._kv = kv
        self._block_tokens = block_tokens
        self._columns = 0
        self._recorded: OrderedDict[tuple[int, int], _Recorded] = OrderedDict()
        self._latest: _Recorded | None = None
        self._tokens = torch.zeros(MOST_TOKENS, dtype=torch.int32)
        self._positions = torch.zeros(MOST_TOKENS, dtype=torch.int32)
        self._starts = torch.zeros(MOST_TOKENS + 1, dtype=torch.int32)
        self._context = torch.zeros(MOST_TOKENS, dtype=torch.int32)
        self._tables: list[Tensor] = []
        self._rows: list[IntArray] = []
        """The tables as numpy sees them, like the four above: writing single entries is cheap."""
        self._inputs = [
            t.numpy() for t in (self._tokens, self._positions, self._starts, self._context)
        ]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(sequences, tokens) of the steps that are recorded, the latest used last."""
        return list(self._recorded)

    def takes(self, slices: list[Slice], tokens: int) -> bool:
        """Whether a step of these slices is recorded: a small one that wants all its logits."""
        return tokens <= MOST_TOKENS and all(p.seq.decoding and p.samples for p in slices)

    def scores(self, slices: list[Slice], tokens: int) -> Scores:
        """Of every token of the slices."""
        self._fill(slices)
        shape = (len(slices), tokens)
        found = self._recorded.get(shape)
        if found is None:
            found = self._latest = self._record(shape)
            return found.scores
        self._latest = found
        self._recorded.move_to_end(shape)
        found.tape.replay()
        return found.scores

    def again(self, slices: list[Slice]) -> Scores | None:
        """``scores`` of the slices of the call before, each of them one token, now the next one.
        None where that takes the whole way."""
        latest = self._latest
        if latest is None or not self._move_on(slices):
            return None
        latest.tape.replay()
        return latest.scores

    def _move_on(self, slices: list[Slice]) -> bool:
        """Write what differs from the step before. Tables change where a block begins, and those
        of a window as it moves."""
        tokens, positions, _, context = self._inputs
        for row, piece in enumerate(slices):
            seq, at = piece.seq, piece.start
            tokens[row] = seq.tokens.last
            positions[row] = context[row] = at
            if self._cache.windowed or at % self._block_tokens == 0:
                if at >= self._columns * self._block_tokens:
                    return False
                self._fill_tables(row, seq)
        return True

    def _fill(self, slices: list[Slice]) -> None:
        longest = max(piece.start + piece.count for piece in slices)
        self._ensure(-(-longest // self._block_tokens))
        tokens, positions, starts, context = self._inputs
        at = 0
        for row, piece in enumerate(slices):
            seq, end = piece.seq, at + piece.count
            tokens[at:end] = piece.new_tokens
            positions[at:end] = range(piece.start, piece.start + piece.count)
            context[row] = piece.start
            starts[row + 1] = at = end
            self._fill_tables(row, seq)

    def _fill_tables(self, row: int, seq: Sequence) -> None:
        assert seq.kv is not None
        for group, table in enumerate(self._rows):
            blocks = self._cache.table(seq.kv, group)
            table[row, : len(blocks)] = blocks

    def _ensure(self, blocks: int) -> None:
        """Room for sequences of so many blocks. Longer tables mean that steps are recorded anew."""
        if blocks <= self._columns:
            return
        self._columns = max(FIRST_BLOCKS, 1 << (blocks - 1).bit_length())
        self._recorded.clear()
        self._latest = None
        self._tables = [
            torch.full((MOST_TOKENS, self._columns), -1, dtype=torch.int32) for _ in self._kv
        ]
        self._rows = [table.numpy() for table in self._tables]

    def _record(self, shape: tuple[int, int]) -> _Recorded:
        sequences, tokens = shape
        batch = ForwardBatch(
            tokens_T=self._tokens[:tokens],
            positions_T=self._positions[:tokens],
            starts_S1=self._starts[: sequences + 1],
            context_S=self._context[:sequences],
            tables=[table[:sequences] for table in self._tables],
            logit_rows_L=None,
            kv=self._kv,
        )
        tape = self._model.kernels.tape()
        assert tape is not None
        with tape.recording():
            scores = Scores.of(self._model.forward(batch), self._model.kernels)
        scores.arrays = (scores.largest[0].numpy(), scores.largest[1].numpy())
        recorded = self._recorded[shape] = _Recorded(tape, batch, scores)
        if len(self._recorded) > MOST_TAPES:
            self._recorded.popitem(last=False)
        return recorded
