"""Conversations of several turns, with the published means of Chatbot Arena in the DLPM paper: 56
tokens of prompt before the first answer, answers of 142 (arXiv 2501.14312, section 6). Synthetic:
the data is not used, and lengths are drawn around the means.

Each turn carries the whole conversation so far, and follows the answer before it after a pause.
Clients that misbehave by more requests hold ``factor`` times the conversations, or have ``factor``
times the first message.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tenfold.fleet.workloads.base import Call, Clients, Person, Program, check_positive
from tenfold.fleet.workloads.prompt import Prompt


@dataclass(slots=True)
class Chat(Clients):
    """``turns``: on average, one at least; ``pause``: seconds between an answer and the next
    message, on average. Lengths in tokens. The rate is of conversations. ``calms``: the client that
    behaves from the middle of the run on; -1: none does."""

    name: str = "chat"
    rate: float = 0.2
    turns: float = 3.0
    pause: float = 5.0
    message: int = 56
    output: int = 142
    spread: float = 0.5
    calms: int = -1

    def calls(self, seed: int, seconds: float) -> Iterator[Call]:
        check_positive(self.name, turns=self.turns, pause=self.pause, message=self.message)
        check_positive(self.name, output=self.output)

        def start(person: Person, at: float) -> list[Call]:
            calm = person.number == self.calms and at > seconds / 2
            bad = self.scenario if person.misbehaves else "none"
            if calm and bad == "requests" and person.random.random() * self.factor > 1.0:
                return []
            longer = self.factor if bad == "prefix" and not calm else 1.0
            first = person.words.prompt(
                person.length(self.message * longer, self.scale, self.spread)
            )
            turns = 1
            while person.random.random() * self.turns > 1.0:
                turns += 1
            return [self._turn(person, first, at, person.program(turns), turns)]

        return self.drawn(seed, seconds, start)

    def _turn(self, person: Person, prompt: Prompt, at: float, program: Program, left: int) -> Call:
        def answer(call: Call, tokens: list[int], now: float) -> list[Call]:
            message = person.words.tokens(person.length(self.message, self.scale, self.spread))
            later = now + person.random.expovariate(1 / self.pause)
            heard = call.prompt.plus(tokens).plus(message)
            return [self._turn(person, heard, later, program, left - 1)]

        output = person.length(self.output, self.scale, self.spread)
        return Call(person.name, prompt, output, at, program, answer if left > 1 else None)
