"""What a token of one model costs beside one of another. Knows nothing of devices or clients."""

from __future__ import annotations


class Prices:
    """Prices of a device's models: of the first one 1, of the others in proportion to the
    multiplications of a token, which are those of the parameters it passes. They do not change
    when models come and go, so what clients owe keeps its meaning."""

    def __init__(self) -> None:
        self._unit = 0

    def of(self, parameters: int) -> float:
        """The price of a token of a model with so many parameters."""
        if not self._unit:
            self._unit = max(1, parameters)
        return max(1, parameters) / self._unit
