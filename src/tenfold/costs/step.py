"""What a step costs: an affine model of its parts, learned from the steps that were run.

    seconds = base + prefill * tokens + decode * rows + context * tokens read by decode
              + pair * sum(chunk * context)

The last term is prefill attention. Knows nothing of what the hardware is; a roofline may supply the
prior. Steps are seconds, sizes are tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


@dataclass(slots=True)
class StepShape:
    """The size of one step. ``prefill_context``: sum over chunks of chunk x tokens before it;
    ``decode_context``: tokens that the decoding rows attend to, in all."""

    prefill_tokens: int = 0
    prefill_context: int = 0
    decode_rows: int = 0
    decode_context: int = 0
    sequences: int = 0


# The scale of each term, so that the fit works on numbers near one.
_SCALE = np.array([1.0, 1e2, 1e1, 1e4, 1e5])


def _features(shape: StepShape) -> Vector:
    raw = (
        1.0,
        shape.prefill_tokens,
        shape.decode_rows,
        shape.decode_context,
        shape.prefill_context,
    )
    features: Vector = np.array(raw) / _SCALE
    return features


class FixedStepModel:
    """Constant coefficients, in seconds a unit: for simulation, and to learn from."""

    def __init__(
        self,
        base: float = 5e-3,
        prefill: float = 2e-3,
        decode: float = 5e-3,
        context: float = 1e-6,
        pair: float = 1e-6,
    ) -> None:
        self._weights: Vector = np.array([base, prefill, decode, context, pair]) * _SCALE

    def predict(self, shape: StepShape) -> float:
        """Expected seconds; never negative."""
        return float(_features(shape) @ self._weights)

    def observe(self, shape: StepShape, seconds: float) -> None:
        """A step took so long. A fixed model does not learn."""

    def largest_chunk(self, seconds: float, shape: StepShape, context: int) -> int:
        """Most prompt tokens, after ``context`` of their own sequence, that may join ``shape`` so
        that what prompts cost stays within ``seconds``; 0 when nothing fits."""
        prefill, pair = self._weights[1] / _SCALE[1], self._weights[4] / _SCALE[4]
        spent = prefill * shape.prefill_tokens + pair * shape.prefill_context
        return max(0, int((seconds - spent) / max(prefill + pair * context, 1e-12)))

    def coefficients(self) -> dict[str, float]:
        """Seconds a step, a prompt token, a decoding row, a context token, a chunk-context pair."""
        names = ("base", "prefill", "decode", "context", "pair")
        return dict(zip(names, (self._weights / _SCALE).tolist(), strict=True))


class StepModel(FixedStepModel):
    """Learns from every step by recursive least squares with forgetting.

    Coefficients stay at or above a small part of the prior, so that a run of odd steps cannot make
    work look free. A step far above its prediction (a page fault storm, a busy neighbour) counts
    with a bounded error.
    """

    def __init__(
        self, prior: FixedStepModel | None = None, *, forgetting: float = 0.995, trust: float = 4.0
    ) -> None:
        super().__init__()
        if prior is not None:
            self._weights = prior._weights.copy()
        self._floor = self._weights * 1e-3
        self._forgetting = forgetting
        self._trust = trust
        self._covariance = np.diag(np.square(self._weights)) * 10.0
        self._noise = 0.0
        self.observed = 0

    def observe(self, shape: StepShape, seconds: float) -> None:
        x = _features(shape)
        # Relative errors: a step of a second and one of ten milliseconds teach equally much.
        scale = 1.0 / max(seconds, 1e-6)
        x, y = x * scale, seconds * scale
        error = y - float(x @ self._weights)
        if self.observed > 16:
            bound = self._trust * max(self._noise, 0.05)
            error = min(max(error, -bound), bound)
        gain = self._covariance @ x / (self._forgetting + float(x @ self._covariance @ x))
        self._weights = np.maximum(self._weights + gain * error, self._floor)
        self._covariance = (
            self._covariance - np.outer(gain, x @ self._covariance)
        ) / self._forgetting
        # Directions that no step excites must not grow without bound while time passes.
        limit = np.square(self._weights + self._floor) * 100.0
        np.fill_diagonal(self._covariance, np.minimum(np.diag(self._covariance), limit + 1e-30))
        self._noise += 0.05 * (abs(error) - self._noise)
        self.observed += 1
