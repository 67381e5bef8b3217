"""What one engine step will take: a linear model of its shape, fitted while the engine runs.

    seconds = base + prefill_token·P + decode_row·D + decode_context·C + prefill_context·X
              + draft_token·G

P and D count the step's prompt and decode tokens, C the cached tokens that the decode rows read,
X sums chunk tokens x tokens cached before the chunk over the chunks of prompts, and G counts the
guessed tokens that are verified beside the decode rows. These have a term of their own because few
more rows of a sequence cost less than one more sequence.
Does not know which model or device it describes; whoever has facts about them makes the prior.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from math import inf, sqrt
from operator import mul

from tenfold.costs.fitting import RecursiveFit

BATCH = 8
"""Steps without prefill that are learnt from together: from the one whose time is in the middle,
where all have as many rows."""


@dataclass(slots=True)
class StepShape:
    """The size of one step.

    ``prefill_tokens``: prompt tokens computed. ``prefill_context``: the sum, over chunks of
    prompts, of chunk tokens x the tokens cached before the chunk. ``decode_rows``: sequences that
    decode one token. ``decode_context``: the tokens they attend to, summed. ``sequences``: all that
    take part; no term of the model reads it, logs do. ``draft_tokens``: guessed tokens verified
    beside the decode rows; what they attend to counts as ``prefill_context``.
    """

    prefill_tokens: int = 0
    prefill_context: int = 0
    decode_rows: int = 0
    decode_context: int = 0
    sequences: int = 0
    draft_tokens: int = 0


@dataclass(slots=True, frozen=True)
class StepCosts:
    """Seconds per unit of each term; none is negative.

    The defaults are a small model (some 10^8 parameters) on two cores; the fit leaves them behind
    within some tens of steps.
    """

    base: float = 5e-3
    prefill_token: float = 1e-3
    decode_row: float = 3e-3
    decode_context: float = 2e-6
    prefill_context: float = 2e-7
    draft_token: float = 1e-3

    def __post_init__(self) -> None:
        terms = (self.base, self.prefill_token, self.decode_row, self.decode_context)
        if min(*terms, self.prefill_context, self.draft_token) < 0:
            raise ValueError(f"step costs must not be negative: {self}")

    @classmethod
    def roofline(
        cls,
        *,
        parameters: int,
        weight_bytes: int,
        kv_bytes_per_token: int,
        flops: float,
        bandwidth: float,
    ) -> StepCosts:
        """A prior from a device's floating-point operations and bytes a second.

        Weights are read once a step, each token takes two operations a parameter, and each decode
        row reads its KV. Attention of a prefill chunk is taken to reuse each KV byte 16 times.
        """
        token = 2 * parameters / flops
        read = kv_bytes_per_token / bandwidth
        return cls(weight_bytes / bandwidth, token, token, read, read / 16, token)


class StepModel:
    """Predicts step times; starts from a prior and follows what is measured.

    Deterministic: the same observations in the same order give the same costs.
    """

    def __init__(self, prior: StepCosts | None = None) -> None:
        self._costs = prior or StepCosts()
        self._terms: tuple[float, ...] = astuple(self._costs)
        # A prior of nothing would give the fit no scale; a picosecond is nothing enough.
        self._scales = [max(cost, 1e-12) for cost in astuple(self._costs)]
        self._fit = RecursiveFit(len(self._scales))
        self._heard: list[tuple[float, tuple[float, ...]]] = []

    @property
    def costs(self) -> StepCosts:
        """What ``predict`` uses now."""
        self._learn()
        return self._costs

    @property
    def error(self) -> float:
        """Typical relative error of recent predictions, outliers clipped (0.1 is ten per cent)."""
        self._learn()
        return sqrt(self._fit.variance)

    def predict(self, shape: StepShape) -> float:
        """Seconds that a step of this shape takes."""
        base, prompt, row, read, attend, draft = self._terms
        return (
            base
            + prompt * shape.prefill_tokens
            + row * shape.decode_rows
            + read * shape.decode_context
            + attend * shape.prefill_context
            + draft * shape.draft_tokens
        )

    def predict_decodes(self, shape: StepShape, steps: int) -> list[float]:
        """Seconds of each of the steps that follow a step of this shape, in which nothing but
        sequences decodes, while all of them go on: to the last bit what ``predict`` says."""
        base, _, row, read, _, _ = self._terms
        rows, context = shape.decode_rows, shape.decode_context
        fixed = base + row * rows
        last = context + rows * steps
        return [fixed + read * seen for seen in range(context + rows, last + 1, rows)]

    def observe(self, shape: StepShape, seconds: float) -> None:
        """Learn from a step. Empty steps and times that are not positive and finite are ignored.

        The arithmetic waits until ``BATCH`` steps are there: beside a decode step of a few
        milliseconds, whose weights have just gone through every cache, each piece of Python that
        runs for the first time since costs several times what it does in a loop."""
        if not (0 < seconds < inf) or not (shape.prefill_tokens or shape.decode_rows):
            return
        self._heard.append((seconds, _features(shape)))
        if shape.prefill_tokens or len(self._heard) >= BATCH:
            self._learn()

    def _learn(self) -> None:
        if not self._heard:
            return
        heard = self._heard
        # Like steps differ by noise, and the middle one has least of it.
        if len(heard) == BATCH and len({_kind(features) for _, features in heard}) == 1:
            heard = [sorted(heard)[BATCH // 2]]
        for seconds, features in heard:
            self._fit.observe(list(map(mul, features, self._scales)), seconds)
        self._heard.clear()
        self._terms = tuple(map(mul, self._fit.coefficients(), self._scales))
        self._costs = StepCosts(*self._terms)

    def draft_seconds(self, context: int) -> float:
        """What one more token to verify adds to a step, ``context`` tokens into its sequence."""
        return self._costs.draft_token + self._costs.prefill_context * context

    def largest_chunk(
        self, seconds: float, shape: StepShape, context: int, limit: int = 1 << 20
    ) -> int:
        """The longest prompt chunk, in tokens, that fits beside ``shape`` in a step of ``seconds``.

        ``context``: tokens of its sequence that are cached already. 0 when the step is too long
        without it; ``limit`` when the chunk costs next to nothing.
        """
        spare = seconds - self.predict(shape)
        per_token = self._costs.prefill_token + self._costs.prefill_context * context
        if spare <= 0:
            return 0
        return limit if per_token * limit <= spare else int(spare / per_token)


class FixedStepModel(StepModel):
    """Keeps the costs it was given: the model of a simulation."""

    def observe(self, shape: StepShape, seconds: float) -> None:
        """Nothing is learnt."""


def _kind(features: tuple[float, ...]) -> tuple[float, ...]:
    """What steps must have in common to be compared: all but the tokens that were attended to."""
    _, prompts, rows, _, _, drafts = features
    return prompts, rows, drafts


def _features(shape: StepShape) -> tuple[float, ...]:
    return (
        1.0,
        shape.prefill_tokens,
        shape.decode_rows,
        shape.decode_context,
        shape.prefill_context,
        shape.draft_tokens,
    )
