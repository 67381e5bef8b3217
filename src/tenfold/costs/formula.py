"""Step models that are a formula, not a fit: what a paper or a data sheet says.

They answer what ``StepModel`` answers and learn nothing.
"""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

from tenfold.costs.step import FixedStepModel, StepShape


class Formula(FixedStepModel):
    """A model whose ``predict`` is given by a subclass; it must not fall when a step grows."""

    def predict(self, shape: StepShape) -> float:
        raise TypeError(f"{type(self).__name__} has no formula")

    def predict_decodes(self, shape: StepShape, steps: int) -> list[float]:
        later = replace(shape)
        seconds = []
        for _ in range(steps):
            later.decode_context += later.decode_rows
            seconds.append(self.predict(later))
        return seconds

    def draft_seconds(self, context: int) -> float:
        one = StepShape(decode_rows=1, decode_context=context, sequences=1)
        more = replace(one, draft_tokens=1, prefill_context=context)
        return self.predict(more) - self.predict(one)

    def largest_chunk(
        self, seconds: float, shape: StepShape, context: int, limit: int = 1 << 20
    ) -> int:
        """By bisection."""

        def fits(chunk: int) -> bool:
            return self.predict(with_chunk(shape, chunk, context)) <= seconds

        if not fits(1):
            return 0
        low, high = 1, 2
        while high < limit and fits(high):
            low, high = high, 2 * high
        high = min(high, limit)
        if fits(high):
            return high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low


def with_chunk(shape: StepShape, chunk: int, context: int) -> StepShape:
    """The shape with one more chunk of a prompt, ``context`` tokens into it."""
    return replace(
        shape,
        prefill_tokens=shape.prefill_tokens + chunk,
        prefill_context=shape.prefill_context + chunk * context,
        sequences=shape.sequences + 1,
    )


class Roofline(Formula):
    """The slower of what memory and arithmetic need, and a fixed time a step.

    Memory: the weights once, the keys and values that decode rows read, and those that prompts'
    chunks read, each byte used for ``reuse`` tokens. Arithmetic: two operations a parameter and
    token, and of attention four a token, a token it sees and a unit of ``attention_width`` (layers
    x query heads x head dim). ``flops`` and ``bandwidth`` are what is reached, not peaks.
    """

    def __init__(
        self,
        *,
        parameters: float,
        weight_bytes: float,
        kv_token_bytes: float,
        attention_width: float,
        flops: float,
        bandwidth: float,
        overhead: float,
        reuse: int = 128,
    ) -> None:
        super().__init__()
        self._overhead = overhead
        self._weights = weight_bytes / bandwidth
        self._read = kv_token_bytes / bandwidth
        self._chunk_read = self._read / reuse
        self._token = 2 * parameters / flops
        self._pair = 4 * attention_width / flops

    def predict(self, shape: StepShape) -> float:
        prompt = shape.prefill_tokens
        # Tokens of a chunk see each other: half of its square, taken as of one chunk.
        pairs = shape.decode_context + shape.prefill_context + 0.5 * prompt * prompt
        tokens = prompt + shape.decode_rows + shape.draft_tokens
        memory = (
            self._weights
            + self._read * shape.decode_context
            + self._chunk_read * shape.prefill_context
        )
        return self._overhead + max(memory, self._token * tokens + self._pair * pairs)

    def predict_decodes(self, shape: StepShape, steps: int) -> list[float]:
        rows, context = shape.decode_rows, shape.decode_context
        overhead, weights, read, pair = self._overhead, self._weights, self._read, self._pair
        work = self._token * rows
        return [
            overhead + max(weights + read * seen, work + pair * seen)
            for seen in range(context + rows, context + rows * steps + 1, rows)
        ]

    def largest_chunk(
        self, seconds: float, shape: StepShape, context: int, limit: int = 1 << 20
    ) -> int:
        """Where memory or arithmetic has used up the time: a linear and a quadratic equation."""
        spare = seconds - self._overhead
        prompt = shape.prefill_tokens
        memory = (
            spare
            - self._weights
            - self._read * shape.decode_context
            - self._chunk_read * shape.prefill_context
        )
        seen = shape.decode_context + shape.prefill_context + 0.5 * prompt * prompt
        tokens = prompt + shape.decode_rows + shape.draft_tokens
        work = spare - self._token * tokens - self._pair * seen
        if memory < 0 or work <= 0:
            return 0
        # pair/2 c^2 + (token + pair (context + prompt)) c = work
        linear = self._token + self._pair * (context + prompt)
        by_work = 2 * work / (linear + sqrt(linear * linear + 2 * self._pair * work))
        by_memory = memory / (self._chunk_read * context) if context else float(limit)
        return max(0, min(limit, int(by_work), int(by_memory)))
