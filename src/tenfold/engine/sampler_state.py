"""What sampling must remember of one sequence, and what its settings do to a row of logits.

Knows nothing of batches, temperature or draws: those are ``sampling`` and ``draw``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tenfold.core.errors import InvalidRequest, TenfoldError
from tenfold.core.types import SamplingParams
from tenfold.engine.draw import Row, uniform

GREEDY_BELOW = 1e-5
"""Temperatures under this are greedy: dividing by them would overflow."""


class TokenMatcher(Protocol):
    """What a grammar offers a sampler; ``text.grammar.Matcher`` is one."""

    @property
    def finished(self) -> bool: ...

    def mask(self, out: NDArray[np.uint32], /) -> None: ...

    def accept(self, token: int, /) -> bool: ...


class SamplerState:
    """One sequence's sampling state. It outlives preemption; ``output`` restores an earlier one.

    ``prompt``: token ids, for the repetition penalty. ``eos_ids``: ids that end an answer of the
    model. Raises InvalidRequest for a ``logit_bias`` outside the vocabulary.

    ``position`` is the number of output tokens. ``finished_by_grammar`` turns true when the text is
    complete by its grammar: the sequence ends with reason "stop", whatever ``min_tokens`` and
    ``ignore_eos`` say, because no further token is legal.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int] | NDArray[np.integer],
        vocab_size: int,
        eos_ids: Sequence[int],
        matcher: TokenMatcher | None = None,
        output: Iterable[int] = (),
    ) -> None:
        self.params = params
        self.vocab_size = vocab_size
        self.matcher = matcher
        self.position = 0
        self.finished_by_grammar = False
        self.seed = int.from_bytes(os.urandom(8)) if params.seed is None else params.seed
        self._bias = _bias_of(params, vocab_size)
        stops = {*params.stop_token_ids, *(() if params.ignore_eos else eos_ids)}
        self._stops = np.array(sorted(id for id in stops if 0 <= id < vocab_size), dtype=np.intp)
        counted = params.presence_penalty != 0 or params.frequency_penalty != 0
        self._counts = _Counts() if counted else None
        given = np.asarray(prompt, dtype=np.intp)
        given = given[(given >= 0) & (given < vocab_size)]
        self._seen = _Counts(given) if params.repetition_penalty != 1 else None
        for token in output:
            self.accept(token)

    @property
    def greedy(self) -> bool:
        return self.params.temperature < GREEDY_BELOW

    @property
    def alters_logits(self) -> bool:
        """Whether ``alter`` would do anything at this position."""
        return (
            self.matcher is not None
            or self._bias is not None
            or self._counts is not None
            or self._seen is not None
            or self.position < self.params.min_tokens
        )

    @property
    def plain(self) -> bool:
        """Whether it asks for nothing but the best token. A state that is plain stays so: only
        ``min_tokens`` ever changes that, and only to plain."""
        return self.greedy and not self.alters_logits and self.params.logprobs is None

    def uniform(self) -> float:
        """This position's random number: a function of the seed and the position alone."""
        return uniform(self.seed, self.position)

    def alter(self, row: Row) -> None:
        """Apply the request's settings to a row of logits, in place and in this order.

        1. logit bias;
        2. repetition penalty, on tokens of prompt and output: a positive logit is divided by it, a
           negative one multiplied;
        3. frequency and presence penalty, on tokens of the output;
        4. until ``min_tokens``, the ban of end-of-sequence and stop ids;
        5. the grammar. One that is complete wins over ``min_tokens``.

        Raises TenfoldError where the grammar fails. May leave no token at all (all -inf).
        """
        params = self.params
        if self._bias is not None:
            row[self._bias[0]] += self._bias[1]
        if self._seen is not None:
            ids = self._seen.ids
            logits = row[ids]
            penalty = np.float32(params.repetition_penalty)
            row[ids] = np.where(logits > 0, logits / penalty, logits * penalty)
        if self._counts is not None:
            row[self._counts.ids] -= np.float32(
                params.frequency_penalty
            ) * self._counts.counts + np.float32(params.presence_penalty)
        banned = self._stops if self.position < params.min_tokens else self._stops[:0]
        saved = row[banned]
        row[banned] = -np.inf
        if self.matcher is not None:
            forbidden = self._forbidden(self.matcher, len(row))
            tensor = torch.from_numpy(row)
            tensor.masked_fill_(torch.from_numpy(forbidden), -float("inf"))
            if len(banned) and not np.isfinite(row.max()):
                row[banned] = np.where(forbidden[banned], np.float32(-np.inf), saved)

    def accept(self, token: int) -> None:
        """Record ``token`` as the next output. Raises TenfoldError if the grammar forbids it."""
        if self.matcher is not None:
            if not self.matcher.accept(token):
                raise TenfoldError(f"the grammar does not allow token {token} here")
            self.finished_by_grammar = self.matcher.finished
        if self._counts is not None:
            self._counts.add(token)
        if self._seen is not None:
            self._seen.add(token)
        self.position += 1

    def _forbidden(self, matcher: TokenMatcher, size: int) -> NDArray[np.bool_]:
        words = np.empty((size + 31) // 32, dtype=np.uint32)
        matcher.mask(words)
        np.invert(words, out=words)
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        return bits[:size].view(np.bool_)


class _Counts:
    """Distinct token ids and how often each was added, as arrays that grow by doubling."""

    def __init__(self, tokens: NDArray[np.intp] | None = None) -> None:
        given = np.empty(0, dtype=np.intp) if tokens is None else tokens
        ids, counts = np.unique(given, return_counts=True)
        self._slots = {int(id): slot for slot, id in enumerate(ids)}
        self._ids = ids
        self._counts = counts.astype(np.float32)

    @property
    def ids(self) -> NDArray[np.intp]:
        return self._ids[: len(self._slots)]

    @property
    def counts(self) -> NDArray[np.float32]:
        return self._counts[: len(self._slots)]

    def add(self, token: int) -> None:
        used = len(self._slots)
        slot = self._slots.setdefault(token, used)
        if slot == len(self._ids):
            room = max(16, used)
            self._ids = np.concatenate([self._ids, np.zeros(room, dtype=np.intp)])
            self._counts = np.concatenate([self._counts, np.zeros(room, dtype=np.float32)])
        self._ids[slot] = token
        self._counts[slot] += 1


def _bias_of(
    params: SamplingParams, vocab_size: int
) -> tuple[NDArray[np.intp], NDArray[np.float32]] | None:
    if not params.logit_bias:
        return None
    outside = [id for id in params.logit_bias if not 0 <= id < vocab_size]
    if outside:
        raise InvalidRequest(
            f"logit_bias names token {outside[0]}; this model has tokens 0 to {vocab_size - 1}",
            param="logit_bias",
        )
    ids = np.array(list(params.logit_bias), dtype=np.intp)
    return ids, np.array(list(params.logit_bias.values()), dtype=np.float32)
