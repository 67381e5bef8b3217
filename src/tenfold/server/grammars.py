"""Checking what an answer must match, before the request joins a queue.

A costly grammar takes seconds: a few are tried at once, the others wait, and a flood is refused.
"""

from __future__ import annotations

import asyncio

from tenfold.core.errors import Overloaded
from tenfold.core.types import Constraint
from tenfold.text.grammar_check import GrammarGate

PARALLEL = 2


class GrammarCheck:
    """The text room's gate, kept off the event loop. ``patience``: seconds to wait for a turn."""

    def __init__(self, patience: float = 30.0) -> None:
        self._patience = patience
        self._turns = asyncio.Semaphore(PARALLEL)
        self._gate = GrammarGate(parallel=PARALLEL)

    async def check(self, constraint: Constraint) -> None:
        """Raises InvalidRequest, naming the field, for what does not compile or costs too much;
        Overloaded where too many others wait to have theirs checked.
        """
        try:
            async with asyncio.timeout(self._patience):
                await self._turns.acquire()
        except TimeoutError:
            raise Overloaded("too many grammars wait to be checked", retry_after=5) from None
        try:
            await asyncio.to_thread(self._gate.check, constraint)
        finally:
            self._turns.release()
