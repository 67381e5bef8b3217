"""Stop strings in streamed text. Knows nothing of tokens, nor of stop ids.

One automaton for all stop strings (Aho and Corasick, 1975): a character costs one step, however
many strings there are, and a state's depth is exactly how much text must be held back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from tenfold.core.errors import InvalidRequest


class StopResult(NamedTuple):
    """``text`` may be sent; ``matched`` is the stop string that ended it, if one did."""

    text: str
    matched: str | None


class _State:
    __slots__ = ("depth", "found", "next")

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.next: dict[str, _State] = {}
        self.found: str | None = None


class StopStrings:
    """Cuts text at the first stop string, and holds back what could still become one.

    The first to be complete wins, and of those that end together the longest, so the outcome does
    not depend on how the text was cut. ``include_stop`` leaves the string in the text. Raises
    InvalidRequest for an empty stop string, which would match everywhere.
    """

    __slots__ = ("_held", "_include", "_matched", "_root", "_state")

    def __init__(self, stops: Iterable[str] = (), *, include_stop: bool = False) -> None:
        self._root = _automaton(stops)
        self._state = self._root
        self._held = ""
        self._include = include_stop
        self._matched: str | None = None

    def push(self, text: str) -> StopResult:
        """After a match all further text is swallowed."""
        if self._matched is not None:
            return StopResult("", self._matched)
        if not self._root.next:
            return StopResult(text, None)
        state = self._state
        for place, char in enumerate(text):
            state = state.next.get(char) or self._root.next.get(char) or self._root
            if state.found is not None:
                return self._stop(self._held + text[: place + 1], state.found)
        self._state = state
        seen = self._held + text
        settled = len(seen) - state.depth
        self._held = seen[settled:]
        return StopResult(seen[:settled], None)

    def flush(self) -> str:
        """The held-back text, once nothing follows. Empty after a match."""
        held, self._held, self._state = self._held, "", self._root
        return held

    def _stop(self, seen: str, stop: str) -> StopResult:
        self._matched, self._held = stop, ""
        return StopResult(seen if self._include else seen[: -len(stop)], stop)


def _automaton(stops: Iterable[str]) -> _State:
    """States are prefixes of stop strings. ``next`` of a state other than the root holds its own
    children and those of its longest proper suffix that is a state, but not the root's, which
    every step falls back on."""
    root = _State(0)
    for stop in stops:
        if not stop:
            raise InvalidRequest("a stop string is empty; leave it out", param="stop")
        state = root
        for char in stop:
            state = state.next.setdefault(char, _State(state.depth + 1))
        state.found = stop
    waiting = deque((child, root) for child in root.next.values())
    while waiting:
        state, suffix = waiting.popleft()
        state.found = state.found or suffix.found
        for char, child in state.next.items():
            waiting.append((child, suffix.next.get(char) or root.next.get(char) or root))
        if suffix is not root:
            state.next = suffix.next | state.next
    return root
