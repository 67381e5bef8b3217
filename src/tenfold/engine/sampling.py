"""From a batch of logits to one token per sequence.

The order of things, for each row (vLLM's, where it has one):

1. log-probabilities, if asked for, from the model's own logits, before anything below changes them
   (what OpenAI's API reports, and vLLM's ``raw_logprobs``);
2. logit bias; repetition penalty; frequency and presence penalty; ``min_tokens``; grammar
   (``SamplerState.alter``);
3. temperature 0: the largest logit, the lowest id among equals. Else temperature, min_p, top_k,
   top_p (``draw.truncate``), and a draw.

A draw is a function of the request's seed, the position in the output and the row: never of the
batch, of preemption, or of what was drawn before. A row that cannot be sampled fails alone. Knows
nothing of ``n``, stop strings, stop ids, or token limits: the step loop ends sequences.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tenfold.core.errors import InvalidRequest, TenfoldError
from tenfold.core.types import TokenLogprob
from tenfold.engine.draw import Row, largest, log_sum_exp, pick, truncate
from tenfold.engine.sampler_state import SamplerState

LOGPROB_FLOOR = -9999.0
"""Stands for the logarithm of zero, which JSON cannot carry."""


@dataclass(slots=True)
class Sampled:
    """One row's outcome: a token, or the error that ends its request (``token`` is then -1)."""

    token: int
    logprob: TokenLogprob | None = None
    error: TenfoldError | None = None


class Sampler:
    """Samples for one model, whose name its errors carry. Holds no state of any sequence."""

    def __init__(self, model: str) -> None:
        self._model = model

    def sample(
        self,
        logits_LV: Tensor,
        states: Sequence[SamplerState],
        largest: tuple[Tensor, Tensor] | None = None,
    ) -> list[Sampled]:
        """Choose a token for each row, and record it in the row's state: ``verify`` without drafts.

        ``logits_LV``: row i belongs to ``states[i]``."""
        runs = self.verify(logits_LV, states, [()] * len(states), largest)
        return [run[0] for run in runs]

    def verify(
        self,
        logits_LV: Tensor,
        states: Sequence[SamplerState],
        drafts: Sequence[Sequence[int]],
        largest: tuple[Tensor, Tensor] | None = None,
    ) -> list[list[Sampled]]:
        """Choose tokens for each state while they are those of its draft, and one more.

        ``states[i]`` has 1 + len(``drafts[i]``) rows, one after another: row j holds the logits
        behind the draft's first j tokens. What comes back, and is recorded in the state, is token
        for token what single steps would choose, so a draft never changes an output or its
        distribution. A run ends early where its grammar is complete, or with an error.

        ``logits_LV``: float32, on any device, not changed. -inf bars a token; NaN or +inf fail the
        row. ``largest``: ids and values of each row's largest logit (``Kernels.largest``), found
        here where they are not given. Rows that ask for nothing but the best token take no more
        than that.
        """
        plain = [state.plain for state in states]
        best: list[tuple[int, float]] = []
        if any(plain):
            ids_L, values_L = largest or self._best_of(logits_LV)
            best = list(zip(ids_L.tolist(), values_L.tolist(), strict=True))
        owners = [i for i, draft in enumerate(drafts) for _ in range(1 + len(draft))]
        wanted = [index for index, owner in enumerate(owners) if not plain[owner]]
        rows = dict(zip(wanted, self._rows(logits_LV, wanted), strict=True))
        runs: list[list[Sampled]] = []
        first = 0
        for state, draft in zip(states, drafts, strict=True):
            run: list[Sampled] = []
            for index, guess in enumerate([*draft, None], start=first):
                run.append(self._one(index, state, rows, best))
                if run[-1].token != guess or state.finished_by_grammar:
                    break
            runs.append(run)
            first += 1 + len(draft)
        return runs

    def best(
        self, largest: list[tuple[int, float]], states: Sequence[SamplerState]
    ) -> list[Sampled]:
        """``sample`` for plain states, from each row's largest logit: its id and its value."""
        return [self._one(row, state, {}, largest) for row, state in enumerate(states)]

    def _one(
        self,
        index: int,
        state: SamplerState,
        rows: dict[int, Row],
        best: list[tuple[int, float]],
    ) -> Sampled:
        """Row ``index``'s outcome, from ``rows`` or, if it is not there, from ``best``."""
        try:
            if index in rows:
                return self._sample_row(rows[index], state)
            return self._accepted(state, *best[index])
        except TenfoldError as exc:
            return Sampled(-1, error=exc)
        except Exception as exc:  # whatever one request asks for, the others go on
            return Sampled(-1, error=TenfoldError(f"sampling failed: {type(exc).__name__}: {exc}"))

    def _rows(self, logits_LV: Tensor, wanted: list[int]) -> Iterable[Row]:
        """The wanted rows in main memory, without a copy where they are there already."""
        if not wanted:
            return []
        some = logits_LV if len(wanted) == len(logits_LV) else logits_LV[wanted]
        rows: Iterable[Row] = some.detach().float().cpu().numpy()
        return rows

    def _best_of(self, logits_LV: Tensor) -> tuple[Tensor, Tensor]:
        """Each row's largest logit, found where the logits are: ids (L,) and values (L,)."""
        if logits_LV.device.type == "cpu":  # numpy promises the first of equals
            ids_L1 = torch.from_numpy(logits_LV.numpy().argmax(-1, keepdims=True))
        else:
            ids_L1 = logits_LV.argmax(dim=-1, keepdim=True)
        return ids_L1[:, 0], logits_LV.gather(1, ids_L1)[:, 0]

    def _sample_row(self, row: Row, state: SamplerState) -> Sampled:
        best = int(row.argmax())  # the first of equals; a NaN counts as the largest
        self._check(float(row[best]))
        logits = row
        if state.alters_logits:
            logits = row.copy()
            state.alter(logits)
            best = int(logits.argmax())
            if not np.isfinite(logits[best]):
                raise self._nothing_left(state, float(logits[best]))
        if state.greedy:
            token = best
        else:
            params = state.params
            choice = truncate(
                logits,
                temperature=params.temperature,
                min_p=params.min_p,
                top_k=params.top_k,
                top_p=params.top_p,
            )
            token = pick(choice, state.uniform())
        state.accept(token)
        logprobs = state.params.logprobs
        return Sampled(token, None if logprobs is None else _logprob(row, token, logprobs))

    def _accepted(self, state: SamplerState, token: int, value: float) -> Sampled:
        self._check(value)
        state.accept(token)
        return Sampled(token)

    def _check(self, best: float) -> None:
        """``best``: the row's largest logit. Raises TenfoldError unless it is finite."""
        if math.isfinite(best):
            return
        what = "no finite logit" if best == -math.inf else f"a logit that is {best}"
        raise TenfoldError(
            f"model {self._model!r} computed {what}; its weights or its numbers are damaged"
        )

    def _nothing_left(self, state: SamplerState, best: float) -> TenfoldError:
        field = "logit_bias" if state.matcher is None else "response_format"
        if best == -math.inf:
            return InvalidRequest(
                "no token is left to choose: the grammar, logit_bias and min_tokens together "
                "forbid all of them",
                param=field,
            )
        return InvalidRequest(f"the penalties and logit_bias make a logit {best}", param=field)


def _logprob(row: Row, token: int, count: int) -> TokenLogprob:
    """The token's log-probability and the ``count`` best ones, from the logits as they are."""
    total = log_sum_exp(row)

    def of(id: int) -> float:
        return max(float(row[id]) - total, LOGPROB_FLOOR)

    return TokenLogprob(token, of(token), [(int(id), of(int(id))) for id in largest(row, count)])
