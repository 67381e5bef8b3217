"""How long a model's prompts take, from what its steps took: e = a / B + p / c.

The cost model (``costs.step``) is fitted to every step, so it knows a, the time of a step whatever
is in it, and c, the speed of prompt tokens, attention included. What is learnt here is by how much
the latest steps with prompts differed from it: bursts of long prompts, a neighbour on the machine.
The engine computes several prompts in a step, so each pays a B-th part of a. Knows one model.
"""

from __future__ import annotations

from tenfold.costs.step import StepModel, StepShape

MEMORY = 0.2
"""Weight of the latest step."""

LEAST, MOST = 0.5, 4.0
"""A single step that was off by more says nothing of the next."""


class Pace:
    """Estimates for one model. ``error``: how much longer than predicted prompts took lately;
    ``latest``: prompt tokens of the last step."""

    def __init__(self, steps: StepModel) -> None:
        self._steps = steps
        self.error = 1.0
        self.latest = 0

    def observe(self, shape: StepShape, predicted: float, seconds: float) -> None:
        """A step was over."""
        self.latest = shape.prefill_tokens
        if shape.prefill_tokens and predicted > 0:
            off = min(MOST, max(LEAST, seconds / predicted))
            self.error += MEMORY * (off - self.error)

    def prompts(self, left: list[tuple[int, int]], seconds: float) -> list[float]:
        """For each prompt, of which so many tokens are ``left`` behind so many that are cached: the
        seconds it adds, if steps take ``seconds`` and hold as many prompts as fit."""
        if not left:
            return []
        costs = self._steps.costs
        token, attend, base = costs.prefill_token, costs.prefill_context, costs.base
        most = max(seconds - base, base, 1e-9)
        chunk = most / max(token, 1e-12)
        # What earlier chunks of the prompt computed is context for the later ones.
        own = [n * (token + attend * (seen + max(0.0, n - chunk) / 2)) for n, seen in left]
        together = max(1.0, min(len(own), most * len(own) / max(sum(own), 1e-12)))
        return [self.error * (one + base * max(1 / together, one / most)) for one in own]
