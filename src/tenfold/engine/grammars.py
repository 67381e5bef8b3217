"""Grammars of one model, set up when the first constrained request comes.

The tokeniser and llguidance are imported and built on the thread that asks, which is not the
engine's: a vocabulary of 262k tokens takes seconds, and nobody else's tokens should wait for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tenfold.core.types import Constraint, EngineRequest

if TYPE_CHECKING:
    from tenfold.text.grammar import GrammarFactory, Matcher


class Grammars:
    """Makes matchers. Safe to call from several threads; the first call is slow."""

    def __init__(
        self,
        path: str,
        eos_ids: list[int],
        seconds: float,
        keep: Callable[[EngineRequest, Matcher], None],
    ) -> None:
        self.keep: Callable[[EngineRequest, Any], None] = keep
        self._path = path
        self._eos_ids = eos_ids
        self._seconds = seconds
        self._lock = threading.Lock()
        self._factory: GrammarFactory | None = None

    def compile(self, constraint: Constraint) -> Matcher:
        """A fresh matcher; quick for a grammar compiled lately. Raises InvalidRequest."""
        with self._lock:
            if self._factory is None:
                from tenfold.text.grammar import GrammarFactory
                from tenfold.text.tokenizer import load_tokenizer

                self._factory = GrammarFactory(
                    load_tokenizer(self._path), eos_ids=self._eos_ids, seconds=self._seconds
                )
        return self._factory.compile(constraint)
