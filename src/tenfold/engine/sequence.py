"""A request in the engine: its tokens, where its KV is, and how far it has been computed.

Knows nothing of how tokens are computed or chosen.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold.core.types import EngineRequest, FinishReason, TokenLogprob
from tenfold.costs.step import StepShape
from tenfold.kvcache.cache import SequenceKV
from tenfold.scheduling.base import Waiting
from tenfold.scheduling.speculation import Track

Tokens = NDArray[np.int32]


class TokenBuffer:
    """A growing int32 array: the prompt, then what was generated."""

    def __init__(self, prompt: Seq[int]) -> None:
        self.length = len(prompt)
        self._data = np.empty(self.length + 64, dtype=np.int32)
        self._data[: self.length] = prompt
        self.first = int(self._data[0]) if self.length else 0

    def append(self, token: int) -> None:
        if self.length == len(self._data):
            self._data = np.concatenate([self._data, np.empty_like(self._data)])
        self._data[self.length] = token
        self.length += 1

    def extend(self, tokens: Tokens) -> None:
        need = self.length + len(tokens)
        if need > len(self._data):
            grown = np.empty(max(need, 2 * len(self._data)), dtype=np.int32)
            grown[: self.length] = self._data[: self.length]
            self._data = grown
        self._data[self.length : need] = tokens
        self.length = need

    @property
    def last(self) -> int:
        return int(self._data[self.length - 1])

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
    itl_target: float | None = None
    """Wished seconds of the steps that it decodes in."""
    kv: SequenceKV | None = None
    computed: int = 0
    started: bool = False
    billed: int = 0
    """Prompt positions already charged to the client: a recompute is never charged again."""
    track: Track | None = None
    """Its guessed tokens, where the model speculates."""
    age: tuple[int, int] = field(init=False)
    """Orders all sequences of a device: the largest is the first to give way."""
    prompt_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.age = (self.request.priority, self.waiting.order)
        self.prompt_tokens = self.waiting.prompt_tokens
        if self.request.continued:
            self.billed = self.prompt_tokens

    @property
    def generated(self) -> int:
        return self.tokens.length - self.prompt_tokens

    @property
    def decoding(self) -> bool:
        length = self.tokens.length
        return self.computed == length - 1 and length > self.prompt_tokens


@dataclass(slots=True)
class Slice:
    """New tokens of one sequence in one step: positions [start, start + count).

    The last of them may be a ``draft``: guessed tokens that the sequence does not have yet, to be
    verified in the step that computes them.
    """

    seq: Sequence
    start: int
    count: int
    draft: list[int] = field(default_factory=list)

    @property
    def samples(self) -> bool:
        """Whether this slice reaches the sequence's last token, so that a new one is chosen."""
        return self.start + self.count - len(self.draft) == self.seq.tokens.length

    @property
    def new_tokens(self) -> Tokens:
        """The tokens to compute, the draft included."""
        tokens = self.seq.tokens.view(self.start, self.start + self.count - len(self.draft))
        return np.append(tokens, np.array(self.draft, np.int32)) if self.draft else tokens


@dataclass(slots=True)
class StepPlan:
    """What one step computes: slices of several sequences of one model.

    ``again``: the plan of the step before, every slice moved on by the one token it computed. All
    of them decode, without drafts, and nothing else has run between.
    """

    slices: list[Slice]
    shape: StepShape
    again: bool = False


@dataclass(slots=True)
class Choice:
    """What was chosen for one sampling slice: a token and, where the start of its draft was right,
    one more for each right token. ``logprobs``: one a token, where asked for. ``finish`` is about
    the last of them. ``error`` set: behind these tokens the sequence cannot go on."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    finish: FinishReason | None = None
    error: Exception | None = None
