"""Which model of a device steps next: the one that has used the least time."""

from __future__ import annotations

from collections.abc import Iterable


class Turns:
    """Shares a device's time equally among the models that have work.

    A model that comes back after idling starts level with the least of those that kept working, so
    that idling earns no credit to be spent in one long turn."""

    def __init__(self) -> None:
        self._used: dict[str, float] = {}
        self._busy: set[str] = set()

    def order(self, busy: Iterable[str]) -> list[str]:
        """The busy models, whose turn it is first; ties by name."""
        now = set(busy)
        stayed = [self._used[name] for name in now & self._busy if name in self._used]
        level = min(stayed, default=0.0)
        for name in now - self._busy:
            self._used[name] = max(self._used.get(name, 0.0), level)
        self._busy = now
        return sorted(now, key=lambda name: (self._used[name], name))

    def spent(self, name: str, seconds: float) -> None:
        """A model used the device for so long."""
        self._used[name] = self._used.get(name, 0.0) + seconds

    def forget(self, name: str) -> None:
        """The model is gone."""
        self._used.pop(name, None)
        self._busy.discard(name)
