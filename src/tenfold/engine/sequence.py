"""A request in the engine: its tokens, where its KV is, and how far it has been computed.

Knows nothing of how tokens are computed or chosen.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.core.types import EngineRequest, FinishReason, TokenLogprob
from tenfold.costs.step import StepShape
from tenfold.kvcache.cache import SequenceKV
from tenfold.scheduling.base import Waiting

Tokens = NDArray[np.int32]


class TokenBuffer:
    """A growing int32 array: the prompt, then what was generated."""

    def __init__(self, prompt: Seq[int]) -> None:
        self._data = np.empty(len(prompt) + 64, dtype=np.int32)
        self._data[: len(prompt)] = prompt
        self.length = len(prompt)

    def append(self, token: int) -> None:
        if self.length == len(self._data):
            self._data = np.concatenate([self._data, np.empty_like(self._data)])
        self._data[self.length] = token
        self.length += 1

    def view(self, start: int = 0, stop: int | None = None) -> Tokens:
        return self._data[start : self.length if stop is None else stop]


@dataclass(slots=True, eq=False)
class Sequence:
    """One sequence being generated.

    ``tokens`` holds prompt and output; positions below ``computed`` have valid keys and values. A
    sequence that runs has ``kv``; a waiting or preempted one has none. The sequence is *decoding*
    when only its last token is missing from the cache, else it is in prefill.
    """

    request: EngineRequest
    tokens: TokenBuffer
    limit: int
    """Longest that ``tokens`` may become: the request's own limit and the model's context."""
    hashes: list[Any]
    waiting: Waiting
    kv: SequenceKV | None = None
    computed: int = 0
    started: bool = False
    billed: int = 0
    """Prompt positions already charged to the client: a recompute is never charged again."""

    @property
    def age(self) -> tuple[int, int]:
        """Orders all sequences of a device: the largest is the first to give way."""
        return self.request.priority, self.waiting.order

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.prompt)

    @property
    def generated(self) -> int:
        return self.tokens.length - self.prompt_tokens

    @property
    def decoding(self) -> bool:
        return self.computed == self.tokens.length - 1 and self.generated > 0


@dataclass(slots=True)
class Slice:
    """New tokens of one sequence in one step: positions [start, start + count)."""

    seq: Sequence
    start: int
    count: int

    @property
    def samples(self) -> bool:
        """Whether this slice ends at the sequence's last token, so that a new one is chosen."""
        return self.start + self.count == self.seq.tokens.length


@dataclass(slots=True)
class StepPlan:
    """What one step computes: slices of several sequences of one model."""

    slices: list[Slice]
    shape: StepShape


@dataclass(slots=True)
class Choice:
    """The token chosen for one sampling slice. ``error`` set: this sequence cannot go on."""

    token: int = -1
    logprob: TokenLogprob | None = None
    finish: FinishReason | None = None
    error: Exception | None = None
