"""CUDA graphs as tapes: one memory pool for all of a device's graphs. Not yet run on a GPU.

A graph replays the kernels of one run on the same addresses, with one launch. What its kernels
wrote lies in the graphs' common pool until the next graph runs. Knows nothing of what is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Protocol

import torch

from tenfold.core.errors import Conflict


class Graph(Protocol):
    """As much of ``torch.cuda.CUDAGraph`` as is used."""

    def replay(self) -> None: ...


class Graphs:
    """Makes tapes that share one pool. ``new_graph`` and ``capture`` are torch's; tests give
    others. Graphs that share a pool must be replayed one after another, never side by side.
    """

    def __init__(
        self,
        new_graph: Callable[[], Any] | None = None,
        capture: Callable[..., AbstractContextManager[None]] | None = None,
        pool: Any = None,
    ) -> None:
        self._new_graph = new_graph or torch.cuda.CUDAGraph
        # Another thread may be loading a model: what it does is no fault of this one's capture.
        own = partial(torch.cuda.graph, capture_error_mode="thread_local")
        self._capture = capture or own
        self._pool = pool if pool is not None else torch.cuda.graph_pool_handle()

    def tape(self) -> GraphTape:
        return GraphTape(self._new_graph(), self._capture, self._pool)


class GraphTape:
    """One graph. See ``kernels.base.Tape``: what is recorded is also run once."""

    def __init__(
        self, graph: Graph, capture: Callable[..., AbstractContextManager[None]], pool: Any
    ) -> None:
        self._graph = graph
        self._capture = capture
        self._pool = pool
        self._ready = False

    @contextmanager
    def recording(self) -> Iterator[None]:
        if self._ready:
            raise Conflict("a tape records once; take a fresh one")
        with self._capture(self._graph, pool=self._pool):
            yield
        self._ready = True
        self._graph.replay()  # capturing only writes down

    def replay(self) -> None:
        if not self._ready:
            raise Conflict("nothing was recorded on this tape")
        self._graph.replay()
