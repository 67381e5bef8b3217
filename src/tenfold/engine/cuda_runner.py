"""The runner of a CUDA device: staged inputs, and decode steps replayed as CUDA graphs.

A step of single tokens is padded to the next batch bucket and replayed; everything else runs as it
comes. A padding row has context and position -1: it reads no keys, writes none, and its logits are
not looked at. Shape letters as in ``models.batch``. Not yet run on a GPU. Knows nothing of how a
token is chosen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold.core.types import EngineRequest
from tenfold.engine.runner import StepRecorder, TorchRunner
from tenfold.engine.sampler_state import SamplerState, TokenMatcher
from tenfold.engine.sampling import Sampler
from tenfold.engine.sequence import Slice, StepPlan
from tenfold.engine.tapes import Scores
from tenfold.kernels.base import Tape
from tenfold.kernels.checks import ShapeError
from tenfold.kernels.cuda_staging import CopyEngine, StepInputs
from tenfold.kvcache.cache import KVCache
from tenfold.models.batch import ForwardBatch
from tenfold.models.decoder import Decoder

log = logging.getLogger("tenfold.engine")


@dataclass(slots=True)
class GraphLimits:
    """Which graphs are made: for batches up to ``rows``, while they take at most ``nbytes`` by
    ``used()``'s count. ``context``: positions of the longest sequence. ``trim`` gives back what no
    graph needs any more. ``only`` makes one bucket, of exactly that size."""

    rows: int
    context: int
    nbytes: int
    used: Callable[[], int]
    trim: Callable[[], None]
    only: int | None = None

    def sizes(self) -> list[int]:
        return buckets(self.rows) if self.only is None else [self.only]


class Tables(Protocol):
    """Where block tables come from: a ``KVCache``."""

    @property
    def block_tokens(self) -> int: ...

    def table(self, kv: Any, group: int) -> NDArray[np.int32]: ...


class Row(Protocol):
    """One row of a decode step: a ``Slice``."""

    @property
    def seq(self) -> Any: ...

    @property
    def start(self) -> int: ...


def buckets(rows: int) -> list[int]:
    """Batch sizes that graphs are made for: 1, 2, 4, then multiples of 8, the last one >= rows."""
    found = [1, 2, 4, *range(8, rows + 8, 8)]
    return [size for index, size in enumerate(found) if index == 0 or found[index - 1] < rows]


@dataclass(slots=True)
class _Graph:
    tape: Tape
    batch: ForwardBatch
    scores: Scores


class DecodeGraphs:
    """One captured step per bucket, over common input buffers. Belongs to the engine's thread."""

    def __init__(
        self,
        model: Decoder,
        cache: Tables,
        kv: list[Tensor],
        device: torch.device,
        copies: CopyEngine,
        limits: GraphLimits,
    ) -> None:
        self._model = model
        self._cache = cache
        self._kv = kv
        self._copies = copies
        self._wait: Callable[[], None] = lambda: None
        most = limits.sizes()[-1]
        columns = -(-limits.context // cache.block_tokens)
        self._rows = 3 * most
        size = self._rows + len(kv) * most * columns
        self._pinned = copies.pinned(4 * size).view(torch.int32)
        self._there = torch.full((size,), -1, dtype=torch.int32, device=device)
        self._here = self._pinned.numpy()
        self._here.fill(-1)
        self._starts = torch.arange(most + 1, dtype=torch.int32, device=device)
        self._tables_here = self._here[self._rows :].reshape(len(kv), most, columns)
        self._tables = list(self._there[self._rows :].view(len(kv), most, columns))
        self._most = most
        self._vocab = model.spec.vocab
        self._graphs: dict[int, _Graph] = {}
        self._capture(limits)

    @property
    def sizes(self) -> list[int]:
        """The buckets that were captured, smallest first."""
        return sorted(self._graphs)

    def takes(self, slices: list[Slice], tokens: int) -> bool:
        """Whether each sequence has one new token, of whose logits it samples, and a graph fits."""
        if not self._graphs or tokens != len(slices) or tokens > max(self._graphs):
            return False
        return all(piece.seq.decoding and piece.samples for piece in slices)

    def scores(self, slices: Sequence[Row], tokens: int) -> Scores:
        """Of every slice. The next replay writes over them."""
        size = next(size for size in self.sizes if size >= tokens)
        self._wait()  # the last copy still reads the buffer that is filled now
        self._fill(slices, size)
        self._send(size)
        graph = self._graphs[size]
        graph.tape.replay()
        ids_L, values_L = graph.scores.largest
        return Scores(graph.scores.logits_LV[:tokens], (ids_L[:tokens], values_L[:tokens]))

    def again(self, slices: list[Slice]) -> None:
        """There is no shorter way: every step's inputs are sent whole."""

    def _fill(self, slices: Sequence[Row], size: int) -> None:
        most, here = self._most, self._here
        tokens, positions, context = here[:most], here[most : 2 * most], here[2 * most : 3 * most]
        for row, piece in enumerate(slices):
            kv, at = piece.seq.kv, piece.start
            assert kv is not None
            tokens[row] = piece.seq.tokens.view(at, at + 1)[0]
            positions[row] = context[row] = at
            for group, table in enumerate(self._tables_here):
                blocks = self._cache.table(kv, group)
                table[row, : len(blocks)] = blocks
        check_ids(tokens[: len(slices)], self._vocab)
        tokens[len(slices) : size] = 0
        positions[len(slices) : size] = context[len(slices) : size] = -1

    def _send(self, size: int) -> None:
        """The first three inputs whole, and ``size`` rows of each group's table."""
        columns = self._tables_here.shape[2]
        spans = [(0, self._rows)]
        for group in range(len(self._tables)):
            start = self._rows + group * self._most * columns
            spans.append((start, start + size * columns))
        for start, end in spans:
            self._there[start:end].copy_(self._pinned[start:end], non_blocking=True)
        self._wait = self._copies.mark()

    def _capture(self, limits: GraphLimits) -> None:
        """Largest first: the others then find room in its memory."""
        before = limits.used()
        for size in reversed(limits.sizes()):
            self._graphs[size] = self._graph(size)
            taken = limits.used() - before
            if taken > limits.nbytes:
                del self._graphs[size]
                limits.trim()
                log.warning(
                    "no decode graph for %d sequences: graphs would take %d MiB of at most %d",
                    size, taken >> 20, limits.nbytes >> 20,
                )  # fmt: skip

    def _graph(self, size: int) -> _Graph:
        most, there = self._most, self._there
        batch = ForwardBatch(
            tokens_T=there[:size],
            positions_T=there[most : most + size],
            starts_S1=self._starts[: size + 1],
            context_S=there[2 * most : 2 * most + size],
            tables=[table[:size] for table in self._tables],
            logit_rows_L=None,
            kv=self._kv,
        )
        there[:most] = 0  # padding rows only: nothing is read or written
        there[most : 3 * most] = -1
        self._run(batch)  # compiles what was not, which a capture forbids
        tape = self._model.kernels.tape()
        assert tape is not None
        with tape.recording():
            scores = self._run(batch)
        return _Graph(tape, batch, scores)

    def _run(self, batch: ForwardBatch) -> Scores:
        return Scores.of(self._model.forward(batch), self._model.kernels)


class CudaRunner(TorchRunner):
    """Executor over a model on a GPU. ``limits`` None makes no graphs; inside ``quiet`` nobody
    moves pages, which waits for the device and so would spoil a capture."""

    def __init__(
        self,
        model: Decoder,
        cache: KVCache,
        kv: list[Tensor],
        sampler: Sampler,
        new_state: Callable[[EngineRequest, TokenMatcher | None], SamplerState],
        *,
        device: torch.device,
        copies: CopyEngine,
        limits: GraphLimits | None,
        quiet: Callable[[], AbstractContextManager[object]],
    ) -> None:
        super().__init__(model, cache, kv, sampler, new_state)
        self._device = device
        self._copies = copies
        self._limits = limits
        self._quiet = quiet
        self._inputs = StepInputs(copies, device)

    def _recorder(self) -> StepRecorder | None:
        return None  # see ``prepare``

    def prepare(self) -> None:
        """Capture the decode steps, on the thread that will replay them."""
        model, limits = self.model, self._limits
        if limits is None or not model.recordable or model.kernels.tape() is None:
            return
        with torch.inference_mode(), self._quiet():
            self.tapes = DecodeGraphs(
                model, self.cache, self.kv, self._device, self._copies, limits
            )

    def _batch(self, plan: StepPlan) -> ForwardBatch:
        batch = super()._batch(plan)
        check_ids(batch.tokens_T.numpy(), self.model.spec.vocab)
        rows = batch.logit_rows_L
        assert rows is not None
        tensors = [batch.tokens_T, batch.positions_T, batch.starts_S1, batch.context_S, rows]
        tokens, positions, starts, context, rows, *tables = self._inputs.send(
            [*tensors, *batch.tables]
        )
        return ForwardBatch(tokens, positions, starts, context, tables, rows, batch.kv)


def check_ids(ids: NDArray[np.int32], vocab: int) -> None:
    """Token ids, while they are still on the host: a wrong one ends a GPU's whole process."""
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocab:
        raise ShapeError(f"token ids {int(ids.min())} to {int(ids.max())}, known: [0, {vocab})")
